"""Schedules of radii, budgets and thresholds, in steps of the link's own count."""

from __future__ import annotations

import math
import numbers

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks
from sam_optax._promotion import callers
from sam_optax._purity import is_pure, ours

__all__ = [
    "budget_annealing",
    "linear_threshold",
    "ramp",
    "rho_from_learning_rate",
]


def rho_from_learning_rate(
    learning_rate: optax.Schedule,
    *,
    rho_max: float,
    rho_min: float,
    lr_max: float,
    lr_min: float,
    clamp: bool = True,
) -> optax.Schedule:
    """ρ_t = ρ_min + (ρ_max − ρ_min)(lr_t − lr_min)/(lr_max − lr_min), between ρ_min and ρ_max.

    The radius follows the learning rate; it is always ρ_max where lr_max = lr_min. Otherwise it is
    ρ_min below lr_min, as in a warm-up from 0, and ρ_max above lr_max. The learning rate is tried
    here, so call `jax.distributed.initialize`, where there is need of it, before.

    Args:
      learning_rate: the schedule that the optimizer uses, in the same count of steps.
      rho_max: ρ at lr_max.
      rho_min: ρ at lr_min.
      lr_max: the learning rate that maps to rho_max.
      lr_min: the learning rate that maps to rho_min, at most lr_max.
      clamp: false for the paper's line as it is, which leaves the two radii where the learning rate
        leaves its bounds, and may become negative.

    Returns:
      A schedule of ρ.

    Raises:
      ValueError: a radius is negative, or lr_min exceeds lr_max; with clamp, the learning rate
        exceeds lr_max at step 0, or, for a schedule of Optax's, at a power of two of steps.
      TypeError: learning_rate is no schedule, or clamp no boolean.

    Example:
      >>> import optax, sam_optax
      >>> lr = optax.linear_schedule(1.0, 0.0, 100)
      >>> rho = sam_optax.schedules.rho_from_learning_rate(
      ...     lr, rho_max=0.6, rho_min=0.2, lr_max=1.0, lr_min=0.0)
      >>> print(f"{rho(50):.2f}")
      0.40

    References:
      Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, 2022, Section 4
      and Algorithm 1. Deviation: the paper has no clamp, and no learning rate outside the bounds.
    """
    if not callable(learning_rate):
        raise TypeError(
            f"learning_rate must be a schedule, got {learning_rate!r}: pass the optimizer's own, "
            "or optax.constant_schedule(...)."
        )
    _checks.interval("rho_max", rho_max, "[0, inf)", schedule=False)
    _checks.interval("rho_min", rho_min, "[0, inf)", schedule=False)
    _checks.interval("lr_max", lr_max, "(-inf, inf)", schedule=False)
    _checks.interval("lr_min", lr_min, "(-inf, inf)", schedule=False)
    _checks.flag("clamp", clamp)
    if lr_min > lr_max:
        raise ValueError(f"lr_min must be at most lr_max, got {lr_min!r} > {lr_max!r}.")
    if clamp:
        _check_peak(learning_rate, lr_max)
    if lr_max == lr_min:
        return optax.constant_schedule(rho_max)
    slope = (rho_max - rho_min) / (lr_max - lr_min)

    @ours(learning_rate)
    def schedule(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        with callers():
            rate = learning_rate(step)
        rho = rho_min + slope * (rate - lr_min)
        # ρ may also fall as the learning rate rises.
        low, high = jnp.minimum(rho_min, rho_max), jnp.maximum(rho_min, rho_max)
        return jnp.clip(rho, low, high) if clamp else rho

    return schedule


def _check_peak(learning_rate: optax.Schedule, lr_max: float) -> None:
    """Raises where a learning rate that can be known now is beyond lr_max."""
    steps = [0, *(2**i for i in range(24))] if is_pure(learning_rate) else [0]
    for step in steps:
        rate = _checks.known(learning_rate, step)
        if rate is not None and rate - lr_max > 1e-5 * abs(lr_max):  # float32 rounds up
            raise ValueError(
                f"lr_max must be the largest learning rate, got {lr_max!r}, and learning_rate is "
                f"{rate:g} at step {step}: pass its peak as lr_max, in the same units (not a "
                "schedule relative to the peak), or clamp=False."
            )


def budget_annealing(
    budget: float,
    anneal_from: int,
    total: int,
    final: float = 0.0,
    warmup: int = 0,
    *,
    steps_per_epoch: int = 1,
) -> optax.Schedule:
    """Constant, then a cosine to `final`: final + ½(budget − final)(1 + cos πτ).

    τ = (e − anneal_from)/(total − anneal_from − 1) at index e, so that the last index, total − 1,
    has `final`; so have all after it.

    Args:
      budget: the budget of the constant part, ≥ 0.
      anneal_from: the index of the first annealed step or epoch; total or more for no annealing.
      total: the number of steps or epochs, ≥ 1.
      final: the budget at the last index, ≥ 0.
      warmup: the length of a linear rise from 0, whose index e has budget · e / warmup; 0 for none.
      steps_per_epoch: 1 where the indices count steps; otherwise they count epochs of so many
        steps, within which the budget is constant.

    Returns:
      A schedule over steps.

    Raises:
      ValueError: a budget is negative, or an index or count is out of range.
      TypeError: a count is no integer.

    References:
      Wang et al., Fix the Loss, Not the Radius (LE-SAM), 2026, Section 4.3. The paper gives no
      formula: the indices and the end point are those of the authors' code.
    """
    _checks.interval("budget", budget, "[0, inf)", schedule=False)
    _checks.interval("final", final, "[0, inf)", schedule=False)
    _checks.whole("total", total, 1)
    _checks.whole("anneal_from", anneal_from, 0)
    _checks.whole("warmup", warmup, 0)
    _checks.whole("steps_per_epoch", steps_per_epoch, 1)

    @ours()
    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        index = jnp.asarray(jnp.asarray(step) // steps_per_epoch, float)
        value = jnp.where(index < warmup, budget * index / max(warmup, 1), budget)
        if anneal_from >= total:
            return value
        tau = (index - anneal_from) / max(total - anneal_from - 1, 1)
        cosine = final + 0.5 * (budget - final) * (1 + jnp.cos(jnp.pi * tau))
        annealed = jnp.where(index >= total - 1, final, cosine)
        return jnp.where(index >= anneal_from, annealed, value)

    return schedule


def linear_threshold(lambda_1: float, lambda_2: float, total_steps: int) -> optax.Schedule:
    """c_t = (t/T) λ1 + (1 − t/T) λ2: from λ2 at step 0 to λ1 at step T, and λ1 after it.

    Args:
      lambda_1: λ1, the threshold at the end; may be infinite.
      lambda_2: λ2, the threshold at the beginning; may be infinite.
      total_steps: T ≥ 1.

    Returns:
      A schedule of c_t.

    Raises:
      ValueError: total_steps is less than 1, a threshold is NaN, or the two are infinities of
        opposite sign.
      TypeError: a threshold is no number, or total_steps no integer.

    References:
      Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, 2023, Section 3.2.
    """
    _checks.interval("lambda_1", lambda_1, "[-inf, inf]", schedule=False)
    _checks.interval("lambda_2", lambda_2, "[-inf, inf]", schedule=False)
    _checks.whole("total_steps", total_steps, 1)
    concrete = isinstance(lambda_1, numbers.Real) and isinstance(lambda_2, numbers.Real)
    if concrete and math.isinf(lambda_1) and lambda_1 == -lambda_2:
        raise ValueError(
            f"lambda_1 and lambda_2 must not be opposite infinities, got {lambda_1!r} and "
            f"{lambda_2!r}: between them the threshold is undefined."
        )

    @ours()
    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        share = jnp.minimum(jnp.asarray(step, float) / total_steps, 1)
        # 0 · inf would be NaN: a term of weight 0 is 0.
        last = jnp.where(share > 0, share * lambda_1, 0)
        first = jnp.where(share < 1, (1 - share) * lambda_2, 0)
        return last + first

    return schedule


def ramp(value: float, steps: int, *, begin: int = 0, initial: float = 0.0) -> optax.Schedule:
    """From `initial` to `value` in a line over so many steps, and constant before and after.

    Args:
      value: the radius, budget or weight behind the ramp, ≥ 0.
      steps: the length of the ramp, ≥ 1; at step begin + steps it is `value`.
      begin: the step at which it leaves `initial`, ≥ 0.
      initial: the value before, ≥ 0. The value itself is the neutral setting, a constant.

    Returns:
      A schedule over steps, Optax's `linear_schedule`.

    Raises:
      ValueError: a value is negative, or a count out of range.
      TypeError: a value is no number, or a count no integer.

    Example:
      >>> import sam_optax
      >>> rho = sam_optax.schedules.ramp(0.2, 100, begin=50)
      >>> print([f"{rho(step):.2f}" for step in (0, 50, 100, 150, 500)])
      ['0.00', '0.00', '0.10', '0.20', '0.20']
    """
    _checks.interval("value", value, "[0, inf)", schedule=False)
    _checks.interval("initial", initial, "[0, inf)", schedule=False)
    _checks.whole("steps", steps, 1)
    _checks.whole("begin", begin, 0)
    return optax.linear_schedule(initial, value, steps, begin)
