"""Equinox's idioms: a model filtered by arrays, by inexact arrays, or not at all."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import METHODS, few

import sam_optax


class Model(eqx.Module):
    """With an integer array, a string and a function among its leaves."""

    net: eqx.nn.MLP
    count: jax.Array
    name: str
    activation: Callable


MODEL = Model(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), jnp.array(3), "net", jnp.tanh)
X = jnp.linspace(-1.0, 1.0, 15).reshape(5, 3)


def ravel(model):
    return np.concatenate(
        [leaf.ravel() for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array))]
    )


@eqx.filter_jit
def losses(model):
    return jnp.mean(model.activation(jax.vmap(model.net)(X) * model.count) ** 2, axis=1)


@eqx.filter_jit
def gradient(model):
    return eqx.filter_grad(lambda model: jnp.mean(losses(model)))(model)


FORMS = {
    "arrays": lambda model: eqx.partition(model, eqx.is_array),
    "inexact arrays": lambda model: eqx.partition(model, eqx.is_inexact_array),
    "all": lambda model: (model, None),
}


def trained(name, form):
    """The numbers of the network after two steps of the method in front of plain SGD."""
    row = METHODS[name].unnamed
    tx = optax.chain(row.factory(**row.settings), optax.scale(-0.1))
    params, static = FORMS[form](MODEL)

    def whole(params):
        return params if static is None else eqx.combine(params, static)

    extra = {"example_loss_fn": lambda p: losses(whole(p))} if name == "esam" else {}
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(
            gradient(whole(params)),
            state,
            params,
            grad_fn=lambda p, kept=None: gradient(whole(p)),
            **extra,
        )
        params = eqx.apply_updates(params, updates)
    assert int(whole(params).count) == 3
    assert int(sam_optax.read(state, "steps")) == 2
    return ravel(params.net)


@pytest.mark.parametrize("name", few("gsam", "ae_looksam", "esam", "msam", "wsam"))
def test_a_step_is_the_same_however_the_model_is_filtered(name):
    expected = trained(name, "inexact arrays")
    assert np.abs(expected - ravel(MODEL.net)).max() > 1e-4
    for form in ("arrays", "all"):
        np.testing.assert_allclose(trained(name, form), expected, rtol=1e-6, atol=1e-7)
