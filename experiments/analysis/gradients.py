"""The gradients of batches: how long they are, how they vary, how they turn near the parameters."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.analysis.objective import AnalysisError, Objective
from sam_optax import perturb


class Norms(NamedTuple):
    """Gradients of batches at one point.

    Attributes:
      squared: ‖∇L(B)‖² of each batch, float64 [batches].
      whole: ‖∇L(D)‖², of the whole set.
    """

    squared: np.ndarray
    whole: float

    @property
    def mean(self) -> float:
        """E ‖∇L(B)‖² over the batches."""
        return float(self.squared.mean())

    @property
    def variance(self) -> float:
        """E ‖∇L(B) − ∇L(D)‖², for batches of one size."""
        return max(self.mean - self.whole, 0.0)


def norms(objective: Objective, params: optax.Params) -> Norms:
    """The norms of the gradients of all batches, and of their mean."""
    squared, total = [], jax.tree.map(jnp.zeros_like, params)
    gradients = objective.gradients(params)
    for weight, gradient in zip(objective.weights, gradients, strict=True):
        squared.append(float(optax.tree.norm(gradient, squared=True)))
        total = optax.tree.add_scale(total, weight, gradient)
    return Norms(np.array(squared), float(optax.tree.norm(total, squared=True)))


class Turning(NamedTuple):
    """Of the gradient along SAM's ascent, each [gammas, radii], means over the draws.

    Attributes:
      cosines: cos(g(w + δ), g(w + δ + ρ unit g(w + δ))).
      losses: L(w + δ + ρ unit g(w + δ)).
    """

    cosines: np.ndarray
    losses: np.ndarray


def turning(
    objective: Objective,
    params: optax.Params,
    radii: Sequence[float],
    gammas: Sequence[float],
    *,
    key: jax.Array,
    draws: int = 1,
) -> Turning:
    """How the gradient turns, and the loss rises, along the ascent with and without noise.

    Args:
      objective: the loss.
      params: w.
      radii: ρ.
      gammas: the standard deviations of the normal noise δ in each coordinate; 0 for none.
      key: draws the noise.
      draws: of the noise, for each standard deviation.

    Raises:
      AnalysisError: a gamma is negative, or draws are less than 1.

    References:
      Liu et al., Random Sharpness-Aware Minimization, NeurIPS 2022, Figures 1 and 2.
    """
    if not gammas or not min(gammas) >= 0 or draws < 1:
        raise AnalysisError(
            f"gammas must not be negative and draws be at least 1, got {gammas} and {draws}."
        )

    def of(gamma, key):
        noise = optax.tree.random_like(key, params)
        start = optax.tree.add_scale(params, gamma, noise)
        first = objective.gradient(start)
        for radius in radii:
            ball = perturb.ball(radius)
            epsilon, _ = ball.update(first, ball.init(start), start, step=0)
            point = optax.apply_updates(start, epsilon)
            yield _cosine(first, objective.gradient(point)), objective.loss(point)

    rows = [
        np.mean([list(of(gamma, own)) for own in jax.random.split(key, draws if gamma else 1)], 0)
        for gamma in gammas
    ]
    return Turning(*np.moveaxis(np.array(rows), -1, 0))


def _cosine(a, b):
    """0 where one is zero."""
    product = optax.tree.norm(a) * optax.tree.norm(b)
    return float(optax.tree.vdot(a, b) / jnp.maximum(product, jnp.finfo(jnp.float32).tiny))
