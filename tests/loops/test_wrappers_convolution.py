"""A convolution in Optax's wrappers on CPU: what is slow is said, and the way out is not slow."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_gradient_counts import convolution, product
from test_random_overflows import selected

import sam_optax

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the rule is for CPU")

PARAMS = {"kernel": jnp.linspace(-1.0, 1.0, 36).reshape(2, 2, 3, 3)}
X = jnp.ones((1, 2, 4, 4))

# Those that take the update in a conditional of their own, and those that do not.
CONDITIONAL = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step, **_: True),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
}
OTHERS = {
    "nothing": lambda tx: tx,
    "selected": selected,
    "chain": lambda tx: optax.chain(optax.identity(), tx),
    "named_chain": lambda tx: optax.named_chain(("tx", tx)),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda rho: optax.chain(sam_optax.sam(rho), optax.sgd(0.1))
    )(rho=0.05),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.1, b1=0.9),
    "MultiSteps behind the link": lambda tx: optax.chain(
        sam_optax.sam(0.05), optax.MultiSteps(optax.sgd(0.1), 1).gradient_transformation()
    ),
    "apply_if_finite behind the link": lambda tx: optax.chain(
        sam_optax.sam(0.05), optax.apply_if_finite(optax.sgd(0.1), 3)
    ),
}


def grad_of(apply):
    return jax.grad(lambda p: jnp.sum(apply(p, X) ** 2))


def update(tx, apply, compiled):
    """The updates, and the warnings."""
    gradient = grad_of(apply)

    def step(params, state):
        return tx.update(gradient(params), state, params, grad_fn=gradient)[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        updates = (jax.jit(step) if compiled else step)(PARAMS, tx.init(PARAMS))
    return updates, [str(w.message) for w in caught if "40 times slower" in str(w.message)]


def sam():
    return optax.chain(sam_optax.sam(0.05), optax.sgd(0.1))


EXPECTED = optax.tree.scale(-0.1, sam_optax.sam(0.05).update(
    grad_of(convolution)(PARAMS), sam_optax.sam(0.05).init(PARAMS), PARAMS,
    grad_fn=grad_of(convolution))[0])  # fmt: skip


@on_cpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("wrapper", CONDITIONAL)
def test_a_convolution_in_a_conditional_of_anothers_is_warned_of(wrapper, compiled):
    tx = CONDITIONAL[wrapper](sam())
    updates, messages = update(tx, convolution, compiled)
    np.testing.assert_allclose(updates["kernel"], EXPECTED["kernel"], rtol=1e-4)
    assert "conditional of another's" in messages[0]
    assert r"optax.tree.where(finite, new, old)" in messages[0]
    assert update(tx, product, compiled)[1] == []


@on_cpu
def test_a_method_that_decides_gives_no_other_advice_there():
    """Outside jit its decision is in the wrapper's conditional too."""
    looksam = optax.chain(sam_optax.looksam(0.05, period=2), optax.sgd(0.1))
    _, messages = update(CONDITIONAL["apply_if_finite"](looksam), convolution, True)
    assert messages
    assert all("conditional of another's" in message for message in messages)


@on_cpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("wrapper", OTHERS)
def test_elsewhere_there_is_no_warning(wrapper, compiled):
    updates, messages = update(OTHERS[wrapper](sam()), convolution, compiled)
    assert messages == []
    if wrapper != "schedule_free":  # whose first step is another
        np.testing.assert_allclose(updates["kernel"], EXPECTED["kernel"], rtol=1e-4)


@on_cpu
def test_a_gradient_that_is_passed_and_not_taken_is_not_warned_of():
    msam = sam_optax.msam(updates_at="gradient_point")
    tx = optax.apply_if_finite(optax.chain(msam, optax.sgd(0.1)), 3)
    assert update(tx, convolution, True)[1] == []


@on_cpu
def test_the_way_out_has_no_convolution_in_a_conditional():
    tx = selected(sam())
    gradient = grad_of(convolution)

    def step(params, state):
        return tx.update(gradient(params), state, params, grad_fn=gradient)

    text = jax.jit(step).lower(PARAMS, tx.init(PARAMS)).compile().as_text()
    assert " conditional(" not in text
