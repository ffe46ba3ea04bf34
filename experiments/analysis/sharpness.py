"""How much higher the loss is near the parameters: along an ascent, at worst, on average."""

from collections.abc import Callable, Sequence
import math
import statistics

import jax
import optax

from experiments.analysis.hessian import Estimate
from experiments.analysis.objective import AnalysisError, Objective
from sam_optax import perturb


def increases(
    objective: Objective,
    params: optax.Params,
    radii: Sequence[float],
    ball: Callable[[float], optax.GradientTransformation] = perturb.ball,
) -> list[float]:
    """L(w + ε) − L(w) at several radii ρ, with ε = ball(ρ) of the gradient, as a method perturbs.

    With `sam_optax.perturb.ball` it is SAM's sharpness, with `sam_optax.perturb.adaptive_ball` the
    adaptive sharpness of ASAM, both to first order: the maximum in the ball of a linear loss.
    """
    gradient, start = objective.gradient(params), objective.loss(params)

    def increase(radius):
        perturbation = ball(radius)
        epsilon, _ = perturbation.update(gradient, perturbation.init(params), params, step=0)
        return objective.loss(optax.apply_updates(params, epsilon)) - start

    return [increase(radius) for radius in radii]


def worst_case(
    objective: Objective,
    params: optax.Params,
    radius: float,
    *,
    steps: int = 20,
    step_size: float | None = None,
) -> float:
    """max L(w + ε) − L(w) over the ball ‖ε‖₂ ≤ radius, by projected ascent along unit gradients.

    The first step is SAM's own, to the sphere, so that the increase is SAM's at least.

    Args:
      objective: the loss.
      params: w.
      radius: of the ball, > 0.
      steps: of the ascent, one gradient and one loss each.
      step_size: the length of the further steps; radius / 4 where left out.

    Returns:
      The largest increase seen, 0 at least: a lower bound of the maximum.

    Raises:
      AnalysisError: radius is not positive, steps are less than 1, or a loss is NaN.
    """
    if not radius > 0 or steps < 1:
        raise AnalysisError(
            f"radius must be positive and steps at least 1, got {radius} and {steps}."
        )
    epsilon = optax.tree.zeros_like(params)
    start = objective.loss(params)
    highest = start
    for i in range(steps):
        ascent = perturb.ball(radius if i == 0 else step_size or radius / 4)
        here = optax.apply_updates(params, epsilon)
        rise, _ = ascent.update(objective.gradient(here), ascent.init(params), params, step=0)
        epsilon = optax.apply_updates(epsilon, rise)
        length = optax.tree.norm(epsilon)
        if length > radius:
            epsilon = optax.tree.scale(radius / length, epsilon)
        loss = objective.loss(optax.apply_updates(params, epsilon))
        if math.isnan(loss):
            raise AnalysisError(f"the loss is NaN within the radius {radius}: pass a smaller one.")
        highest = max(highest, loss)
    return highest - start


def m_sharpness(
    objective: Objective,
    params: optax.Params,
    radius: float,
    m: int,
    *,
    parts: int | None = None,
    **ascent: float,
) -> Estimate:
    """The mean of `worst_case` over parts of m examples, each perturbed for itself.

    Args:
      objective: the loss.
      params: w.
      radius: of the ball.
      m: examples that share a perturbation.
      parts: how many, the first of the set; all where left out.
      **ascent: steps and step_size of `worst_case`.

    Returns:
      The mean over the parts and its standard error.

    Raises:
      AnalysisError: there are fewer than two parts of m examples.

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR
      2021, Section 4.1.
    """
    own = objective.parts(m, parts)
    if len(own) < 2:
        raise AnalysisError(f"there must be two parts of m examples at least, got m = {m}.")
    return Estimate.of([worst_case(part, params, radius, **ascent) for part in own])


def average_case(
    objective: Objective,
    params: optax.Params,
    sigma: float,
    *,
    key: jax.Array,
    samples: int = 16,
) -> Estimate:
    """E L(w + z) − L(w) for normal z of the standard deviation sigma in every coordinate.

    That is the LPF measure less the loss itself, and ½ sigma² tr H on a quadratic. The draws come
    in pairs z and −z, whose mean is free of the gradient's part.

    Args:
      objective: the loss.
      params: w.
      sigma: of each coordinate, > 0.
      key: draws z.
      samples: pairs, two at least; each takes two passes.

    Returns:
      The mean over the pairs and its standard error.

    Raises:
      AnalysisError: sigma is not positive, or samples are less than 2.

    References:
      Bisla, Wang and Choromanska, Low-Pass Filtering SGD for Recovering Flat Optima in the Deep
      Learning Optimization Landscape, AISTATS 2022, Section 4.
    """
    if not sigma > 0 or samples < 2:
        raise AnalysisError(
            f"sigma must be positive and samples at least 2, got {sigma} and {samples}."
        )
    start = objective.loss(params)

    def pair(sample):
        noise = optax.tree.scale(sigma, optax.tree.random_like(sample, params))
        ends = [optax.tree.add_scale(params, sign, noise) for sign in (1.0, -1.0)]
        return statistics.fmean(map(objective.loss, ends)) - start

    return Estimate.of([pair(sample) for sample in jax.random.split(key, samples)])
