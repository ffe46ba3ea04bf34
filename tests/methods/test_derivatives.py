"""Derivatives through the update: right, and never NaN where a norm is 0."""

import functools

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import FEW, LEARNING_RATE, METHODS, few, sgd

import sam_optax

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 4
X = np.random.default_rng(0).normal(size=(STEPS + 1, 4, 2))


def parameters(bias):
    """Of a small network; with a bias of 0 the kernel norm of `noise` is 0."""
    rng = np.random.default_rng(3)
    return {
        "bias": jnp.asarray(bias * rng.normal(size=3)),
        "kernel": jnp.asarray(rng.normal(size=(2, 3))),
        "scale": jnp.asarray(0.8),
    }


def losses(params, x, margin=-100.0):
    """A hinge: the gradient is 0, and nearby, of an example whose loss is below the margin."""
    hidden = jnp.tanh(x @ params["kernel"] + params["bias"])
    error = params["scale"] * hidden.sum(-1) - x[:, 0] * x[:, 1]
    return jax.nn.relu(error**2 - margin)


def trained(row, task, params, moved, batches):
    """Parameters behind a step on the task with each of the batches, from where they are moved."""
    tx = optax.chain(row.link(), sgd(row.momentum))

    def step(carry, x):
        params, state = carry

        def grad_fn(p, indices=slice(None)):
            return jax.grad(lambda p: jnp.mean(task(p, x[indices])))(p)

        point = sam_optax.gradient_point(state, params) if row.call["at_point"] else params
        extra = {"example_loss_fn": lambda p: task(p, x)} if row.call["examples"] else {}
        updates, state = tx.update(grad_fn(point), state, params, grad_fn=grad_fn, **extra)
        return (optax.apply_updates(params, updates), state), None

    carry = jax.tree.map(jnp.add, params, moved), tx.init(params)
    return jax.lax.scan(step, carry, batches)[0][0]


@functools.cache
def derivatives(name):
    """A function (params, margin) ↦ the derivatives of a meta-loss, in three ways."""
    zeros, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, parameters(1.0)))
    h = 1e-5

    def all_three(params, margin):
        def meta_loss(moved):
            task = functools.partial(losses, margin=margin)
            last = trained(METHODS[name], task, params, unravel(moved), X[:-1])
            return jnp.mean(losses(last, X[-1]))

        differences = jax.lax.map(meta_loss, h * jnp.concatenate([jnp.eye(10), -jnp.eye(10)]))
        central = (differences[:10] - differences[10:]) / (2 * h)
        return jax.grad(meta_loss)(zeros), jax.jacfwd(meta_loss)(zeros), central

    return jax.jit(all_three)


@pytest.mark.parametrize(
    ("bias", "margin"),
    [(1.0, -100.0), (0.0, -100.0), (1.0, 100.0), (0.0, 100.0)],
    ids=["a task", "zero biases", "a solved task", "a solved task and zero biases"],
)
@pytest.mark.parametrize("name", few("gsam", "ae_looksam", "le_sam", "lpf_sgd", "msam"))
def test_derivatives_through_the_steps_are_central_differences(name, bias, margin):
    reverse, forward, central = derivatives(name)(parameters(bias), margin)
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(reverse, central, rtol=1e-5, atol=1e-6)
    assert max(abs(reverse)) > 1e-3


@pytest.mark.parametrize("name", FEW)
def test_at_the_very_optimum_the_derivative_is_that_of_no_perturbation(name):
    """There ε jumps, and the slope of x / max(‖x‖, 1e-12), which is 1e12, says nothing."""
    w = {"a": np.zeros(2), "b": np.zeros(3)}
    h = [2.0, 0.5]

    def task(p, x):
        return 0.5 * (h[0] * jnp.sum(p["a"] ** 2) + h[1] * jnp.sum(p["b"] ** 2)) + 0 * x[:, 0]

    def last(moved):
        return trained(METHODS[name], task, w, moved, X[:1])

    jacobian = jax.jit(jax.jacrev(last))(w)
    # Of le_sam the formula is smooth, ε = ρ_max g / 1e-6 here, and so is what it says.
    size = {"le_sam": 0.3e6, "le_sam_plus": 0.12e6}.get(name, 10.0)
    for k, curvature in zip(w, h, strict=True):
        slope = np.diagonal(jacobian[k][k])
        assert np.isfinite(slope).all()
        assert (abs(1 - slope) <= 1.1 * LEARNING_RATE * curvature * (1 + size * curvature)).all()
