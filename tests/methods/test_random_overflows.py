"""Random overflows: method, wrapper, dtype, dispatch and where it happens are drawn.

What comes out must be the trajectory of plain float64 steps inside jit, with the same second
gradients lost, and without the steps that a wrapper skips because their first one is.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import NAMES, ROWS, initial_params, loss, losses, make_batch, ravel

import sam_optax

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 5
LOSSES = ["neither", "second", "second", "both"]  # of the gradients of a step
DTYPES = {"float64": 1e-9, "float32": 2e-3, "bfloat16": None, "float16": None}
# Rounding may turn their decisions and signs, and a dtype has its own random numbers.
TURNING = ("ae_sam", "ae_looksam", "samar", "eigen_sam", "esam", "r_sam", "r_gsam", "lpf_sgd")
TURNING += ("bsam", "ivon")


def selected(tx):
    """Flax's pattern: a step whose first gradient is not finite is not taken."""

    def update(updates, state, params=None, **extra):
        finite = jnp.isfinite(optax.tree.norm(updates))
        new, following = tx.update(updates, state, params, **extra)
        zeros = optax.tree.zeros_like(new)
        return optax.tree.where(finite, (new, following), (zeros, state))

    return optax.GradientTransformationExtraArgs(tx.init, update)


WRAPPERS = {
    "none": lambda tx: tx,
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 100),
    "selected": selected,
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step, **extra: True
    ),
    "a chain in a chain": lambda tx: optax.chain(optax.identity(), optax.chain(tx)),
}
SKIPPING = ("apply_if_finite", "selected")


class Draw(NamedTuple):
    name: str
    wrapper: str
    dtype: str
    dispatch: str
    lost: tuple[str, ...]
    value: float


def drawn(seed):
    rng = np.random.default_rng(seed)
    wrapper = str(rng.choice(list(WRAPPERS)))
    kinds = LOSSES if wrapper in SKIPPING else LOSSES[:3]
    return Draw(
        NAMES[seed % len(NAMES)],
        wrapper,
        str(rng.choice(list(DTYPES))),
        str(rng.choice(["host", "jit", "scan"])),
        tuple(str(rng.choice(kinds)) for _ in range(STEPS)),
        float(rng.choice([np.inf, -np.inf, np.nan])),
    )


grad_loss = jax.jit(jax.grad(loss))


@jax.jit
def spoiled(gradient, factor):
    kernel = gradient["dense_kernel"]
    last = kernel.at[1, 0].mul(factor.astype(kernel.dtype))
    return {**gradient, "dense_kernel": last}


def stepping(row, tx, dtype):
    """step(carry, (batch, factor of the first gradient, factor of the others))."""

    def step(carry, inputs):
        params, opt_state = carry
        batch, first, others = inputs
        batch = jax.tree.map(lambda x: x.astype(dtype), batch)

        def on(p, indices=slice(None)):
            return grad_loss(p, jax.tree.map(lambda x: x[indices], batch))

        extra = {}
        if row.call["examples"]:
            extra["example_loss_fn"] = lambda p: losses(p, batch)
        updates, opt_state = tx.update(
            spoiled(on(params), first),
            opt_state,
            params,
            grad_fn=lambda p, *i: spoiled(on(p, *i), others),
            **extra,
        )
        return (optax.apply_updates(params, updates), opt_state), None

    return step


def inputs(t, lost, value):
    factors = {"neither": (1.0, 1.0), "second": (1.0, value), "both": (value, value)}[lost]
    return jax.tree.map(jnp.asarray, (make_batch(t), *factors))


def start(tx, dtype):
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), initial_params())
    return params, tx.init(params)


@functools.cache
def plain(name):
    """The optimizer and its compiled step in float64."""
    row = ROWS[name]
    tx = row.optimizer()
    return tx, jax.jit(stepping(row, tx, "float64"))


def expected(draw):
    tx, step = plain(draw.name)
    carry = start(tx, "float64")
    for t, lost in enumerate(draw.lost):
        if lost != "both":
            carry, _ = step(carry, inputs(t, lost, draw.value))
    return carry


def found(draw):
    row = ROWS[draw.name]
    tx = WRAPPERS[draw.wrapper](row.optimizer())
    step, carry = stepping(row, tx, draw.dtype), start(tx, draw.dtype)
    every = [inputs(t, lost, draw.value) for t, lost in enumerate(draw.lost)]
    if draw.dispatch == "scan":
        stacked = jax.tree.map(lambda *x: np.stack(x), *every)
        return jax.jit(lambda carry: jax.lax.scan(step, carry, stacked))(carry)[0]
    step = jax.jit(step) if draw.dispatch == "jit" else step
    for each in every:
        carry, _ = step(carry, each)
    return carry


def is_finite(leaf: Any):
    return bool(np.isfinite(np.asarray(leaf, float)).all())


def check(seed):
    draw = drawn(seed)
    (w, state), (params, opt_state) = expected(draw), found(draw)
    assert all(map(is_finite, jax.tree.leaves((w, state, params, opt_state)))), draw
    counts = [int(sam_optax.read(opt_state, "steps")), int(sam_optax.read(state, "steps"))]
    assert counts[0] == counts[1], draw
    rtol = DTYPES[draw.dtype]
    if rtol is None or (rtol > 1e-6 and draw.name in TURNING):
        return
    for count in ("ascents", "notfinite"):
        assert int(sam_optax.read(opt_state, count)) == int(sam_optax.read(state, count)), draw
    np.testing.assert_allclose(ravel(params), ravel(w), rtol=rtol, atol=rtol, err_msg=str(draw))


# Each dtype, dispatch and wrapper, with few methods besides, whose plain steps are compiled once.
FEW = (1, 2, 3, 6, 8, 9, 11, 24, 48, 54)


@pytest.mark.parametrize("seed", FEW)
def test_random_overflows(seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [seed for seed in range(500) if seed not in FEW])
def test_many_random_overflows(seed):
    check(seed)
