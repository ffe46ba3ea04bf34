"""The loss as `value_fn`, as Optax's line searches and the solvers of others pass it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import METHODS, NAMES, initial_params, loss, make_batch, ravel

import sam_optax

pytestmark = pytest.mark.usefixtures("x64")

OTHERS = [name for name in NAMES if name != "esam"]  # whose gradient takes the examples
BATCH = jax.tree.map(jnp.asarray, make_batch(0))


@jax.jit
def value_fn(params):
    return loss(params, BATCH)


gradient = jax.jit(jax.grad(value_fn))


@jax.jit
def of_batch(params, batch):
    return loss(params, batch)


def steps(tx, compiled, params, **extra):
    def step(params, state):
        updates, state = tx.update(gradient(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if compiled else step
    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    return ravel(params)


# In every run: a method that skips second gradients, and one with gradients of another kind.
OFTEN = {True: ["ae_looksam", "wsam"], False: ["ae_looksam", "eigen_sam", "msam"]}


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        pytest.param(name, compiled, marks=() if name in often else pytest.mark.slow)
        for compiled, often in OFTEN.items()
        for name in OTHERS
    ],
)
def test_its_gradient_takes_the_place_of_grad_fn(name, compiled):
    tx = METHODS[name].optimizer()
    params = jax.tree.map(jnp.asarray, initial_params())
    run = functools.partial(steps, tx, compiled, params)
    expected = run(grad_fn=gradient)
    np.testing.assert_allclose(run(value_fn=value_fn), expected, rtol=1e-9, atol=1e-12)
    by_name = run(value_fn=of_batch, batch=BATCH)
    np.testing.assert_allclose(by_name, expected, rtol=1e-9, atol=1e-12)
    both = run(grad_fn=gradient, value_fn=lambda p: jnp.nan * value_fn(p))
    np.testing.assert_allclose(both, expected, rtol=1e-9, atol=1e-12)


def test_none_is_no_loss():
    link, w = sam_optax.sam(0.1), jnp.ones(2)
    with pytest.raises(ValueError, match=r"needs grad_fn.* or pass the loss as value_fn"):
        link.update(w, link.init(w), w, value_fn=None)


@pytest.mark.parametrize("masked", [False, True])
def test_what_has_no_gradient_is_left_out(masked):
    params = {"w": jnp.array([3.0, 4.0]), "count": jnp.array(7), "rest": jnp.array([100.0])}

    def value_fn(p):
        return jnp.sum(p["w"] ** 2) / 2 + p["count"] * 0 + jnp.sum(p["rest"]) * masked

    link = sam_optax.sam(5.0)
    if masked:
        link = sam_optax.masked(link, {"w": True, "count": True, "rest": False})
    grads = jax.grad(value_fn, allow_int=True)(params)
    updates, _ = link.update(grads, link.init(params), params, value_fn=value_fn)
    np.testing.assert_allclose(updates["w"], [6.0, 8.0])


def test_a_line_search_behind_the_link_takes_the_same():
    tx = optax.chain(
        sam_optax.sam(0.01), optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)
    )
    params = jax.tree.map(jnp.asarray, initial_params())
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, value

    values = []
    for _ in range(10):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]
    assert (np.diff(values) < 0).all()
