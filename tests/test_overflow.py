"""A gradient of the method's own that is not finite counts as not taken."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import (
    LEARNING_RATE,
    NAMES,
    ROWS,
    STEPS,
    Gradient,
    initial_params,
    loss,
    losses,
    make_batch,
    norm,
    ravel,
    unit,
)

import sam_optax

# The steps at which the method's own gradients are not finite: the first, and some of each period.
BAD = {0: np.inf, 3: np.nan, 4: -np.inf, 6: np.nan, 9: np.inf}
POINTS = ("r_sam_point", "r_gsam_point", "msam_point", "lpf_sgd_samples", "lpf_sgd_samples_point")
STARTS = (sam_optax.r_sam, sam_optax.r_gsam, sam_optax.lpf_sgd, sam_optax.msam, sam_optax.s2_sam)


class Seen(Gradient):
    """A gradient that keeps what it has returned."""

    def __init__(self, batch):
        super().__init__(batch)
        self.returned = []

    def __call__(self, *args):
        self.returned.append(super().__call__(*args))
        return self.returned[-1]


def without(row, w, t, state):
    """The direction and the state of a step whose own gradients are lost, and if it asked for any.

    The state of what sees the first gradient goes on; that of what sees the second does not.
    """
    gradient = Seen(make_batch(t))
    direction, after = row.step(w, gradient, t, state)
    first, second = gradient.returned[0], gradient.returned[1:]
    factory, settings = row.factory, row.settings
    starts = factory in STARTS
    if not (second or (starts and not row.call["at_point"])):
        return direction, after, False
    g = gradient(w) if starts and not row.call["at_point"] else first
    if factory in (sam_optax.looksam, sam_optax.ae_looksam):
        v = state.get("v", np.zeros_like(w))
        return g + settings["alpha"] * norm(g) * unit(v), {**after, "v": v}, True
    if factory is sam_optax.eigen_sam:
        return g, {"v": state.get("v", np.zeros_like(w))}, True
    if factory is sam_optax.samar:
        before = {"lambda_k": settings["lambda_0"], "previous_norm": 1e-300}
        return g, before | state, True
    if factory is sam_optax.wsam:
        return after["trace"], after, True
    if factory is sam_optax.msam:
        return g, {"velocity": settings["decay"] * state.get("velocity", 0.0) + g}, True
    if factory is sam_optax.s2_sam:
        return g, {"previous": g}, True
    return g, after, True


def expected(row):
    """(w, state) after each step, by NumPy."""
    w, state, trace, ascents, lost = ravel(initial_params()), {}, 0.0, 0, 0
    for t in range(STEPS):
        if t in BAD:
            direction, state, asked = without(row, w, t, state)
            lost += asked
        else:
            gradient = Gradient(make_batch(t))
            direction, state = row.step(w, gradient, t, state)
            ascents += gradient.calls - row.firsts
        trace = direction + (row.momentum or 0.0) * trace
        w = w - LEARNING_RATE * trace
        yield w, {**state, "ascents": ascents, "notfinite": lost, "steps": t + 1}


def spoil(gradient, factor):
    """One number of it is not finite, nor is its derivative."""
    return {**gradient, "dense_kernel": gradient["dense_kernel"].at[1, 0].mul(factor)}


def steps(row, compiled):
    """(params, opt_state) after each step of the library."""
    tx = row.optimizer()
    grad_loss = jax.jit(jax.grad(loss))
    spoiled = jax.jit(spoil)

    def step(params, opt_state, batch, factor):
        def on(p, indices=slice(None)):
            return grad_loss(p, jax.tree.map(lambda x: x[indices], batch))

        def grad_fn(p, *indices):
            return spoiled(on(p, *indices), factor)

        extra = {}
        if row.call["examples"]:
            extra["example_loss_fn"] = lambda p: losses(p, batch)
        point = params
        if row.call["at_point"]:
            point = sam_optax.gradient_point(opt_state, params)
        updates, opt_state = tx.update(on(point), opt_state, params, grad_fn=grad_fn, **extra)
        return optax.apply_updates(params, updates), opt_state

    step = jax.jit(step) if compiled else step
    params = jax.tree.map(jnp.asarray, initial_params())
    opt_state = tx.init(params)
    for t in range(STEPS):
        batch = jax.tree.map(jnp.asarray, make_batch(t))
        params, opt_state = step(params, opt_state, batch, jnp.asarray(BAD.get(t, 1.0)))
        yield params, opt_state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("compiled", [False, True], ids=["host", "jit"])
@pytest.mark.parametrize("name", [*NAMES, *POINTS])
def test_a_step_whose_own_gradient_is_lost_is_the_step_without_it(name, compiled):
    row = ROWS[name]
    for t, ((params, opt_state), (w, state)) in enumerate(
        zip(steps(row, compiled), expected(row), strict=True)
    ):
        np.testing.assert_allclose(ravel(params), w, 1e-10, 1e-13, err_msg=f"step {t}")
        for quantity, value in state.items():
            actual = ravel(optax.tree.get(opt_state, quantity))
            np.testing.assert_allclose(
                actual, np.ravel(value), 1e-10, 1e-13, err_msg=f"{quantity} at step {t}"
            )
    given = name == "msam_point"  # it takes no gradient of its own
    assert (int(sam_optax.read(opt_state, "notfinite")) == 0) == given
