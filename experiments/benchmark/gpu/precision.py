"""Which radius survives which precision: g′ − g in bfloat16, in TF32 and in float32.

What SAM adds to a step is the difference of two gradients that lie ρ apart. The shorter ρ, the
smaller the difference, and the more of it is rounding. On recent NVIDIA cards JAX's default for
float32 is TF32, of ten bits, so that `default` differs from `highest` there.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.gpu.loop import Asked, Loop
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.training.optimizers import SGD
from experiments.training.state import TrainState
from experiments.training.trainer import Trainer

RADII = (0.01, 0.05, 0.1, 0.2, 0.5)
IMAGES = 512
EXACT = "highest"
# Of the computation; parameters are float32.
PRECISIONS = {
    EXACT: ("float32", EXACT),
    "default": ("float32", None),
    "bfloat16": ("bfloat16", None),
}

Gradient = Callable[[Any], tuple[float, np.ndarray]]


def measure(setup: Setup) -> Iterator[Row]:
    """Rows of a radius and a precision, at the first parameters and after a short training."""
    loop = Loop(setup, Asked(SGD))
    gradients = {name: _gradient(setup, loop.state, *how) for name, how in PRECISIONS.items()}
    yield from _at("init", loop.state, gradients)
    for _ in range(setup.epochs):
        loop.run(setup.steps)
    length = "1 epoch" if setup.epochs == 1 else f"{setup.epochs} epochs"
    yield from _at(f"after {length}", loop.state, gradients)


def _at(when, state, gradients):
    def all_at(params):
        return {name: gradient(params, state.model_state) for name, gradient in gradients.items()}

    base = all_at(state.params)
    exact = base[EXACT][1]
    for name in gradients:
        error = np.linalg.norm(base[name][1] - exact) / np.linalg.norm(exact)
        yield {"name": f"{when}, {name}", "when": when, "gradient_error": error}
    flat, unravel = ravel_pytree(state.params)
    for radius in RADII:
        epsilon = jnp.asarray(radius * exact / np.linalg.norm(exact), flat.dtype)
        there = unravel(flat + epsilon)
        second = all_at(there)
        truth = second[EXACT][1] - exact
        about = {"when": when, "rho": radius}
        for name in gradients:
            difference = second[name][1] - base[name][1]
            yield {
                "name": f"{when}, {name}, ρ {radius:g}",
                **about,
                "precision": name,
                "cos": cosine(difference, truth),
                "size": np.linalg.norm(difference) / np.linalg.norm(truth),
                "over_g": np.linalg.norm(truth) / np.linalg.norm(exact),
                "cos_g": cosine(second[name][1], second[EXACT][1]),
                "loss_rise": second[name][0] - base[name][0],
            }
        yield {"name": f"{when}, weights, ρ {radius:g}", **about, **moved(flat, epsilon)}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of the angle between two vectors."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def moved(weights: jax.Array, epsilon: jax.Array) -> Row:
    """The share of the weights that a perturbation moves once they are bfloat16.

    Args:
      weights: float32 [n].
      epsilon: of the same shape, not zero.

    Returns:
      The share whose bfloat16 value changes where float32 parameters are cast, and where the
      parameters themselves are bfloat16; and the length of the step that is left of ε there.
    """
    low = weights.astype(jnp.bfloat16)
    there = low + epsilon.astype(jnp.bfloat16)
    step = there.astype(jnp.float32) - low.astype(jnp.float32)
    return {
        "f32_params_bf16_cast_changed": float(
            jnp.mean((weights + epsilon).astype(jnp.bfloat16) != low)
        ),
        "bf16_params_changed": float(jnp.mean(there != low)),
        "bf16_params_step_kept": float(jnp.linalg.norm(step) / jnp.linalg.norm(epsilon)),
    }


def _gradient(setup: Setup, state: TrainState, dtype: str, matmul: str | None) -> Gradient:
    """(parameters, statistics) -> loss and gradient, float64 [n] on the host, of a few images."""
    recipe = dataclasses.replace(setup.recipe, dtype=dtype, augmentation=())
    step, train = Trainer(recipe, SGD, {}, data=setup.data, on_host=False).step, setup.train
    batch = jax.jit(step.prepared)(state, train.scale, train.images[:IMAGES], train.labels[:IMAGES])
    # Of what is traced within.
    with jax.default_matmul_precision(matmul) if matmul else contextlib.nullcontext():
        program = jax.jit(step.second).lower(state.model_state, batch, state.params).compile()

    def gradient(params, model_state):
        loss, grads = program(model_state, batch, params)
        return float(loss), np.asarray(ravel_pytree(grads)[0], np.float64)

    return gradient
