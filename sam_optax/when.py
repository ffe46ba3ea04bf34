"""Whether the second gradient is worth its cost at this step: first gradient ↦ fire.

What decides must be equal on all devices, or the program hangs: a counter, a shared key, or a norm
that was averaged.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import optax

from sam_optax import _axes, _checks, _random, _tree
from sam_optax._axes import AxisName
from sam_optax._contracts import Schedulable, State, Tree, When, value_at
from sam_optax._purity import ours
from sam_optax._random import Key

__all__ = [
    "AdaptiveState",
    "BernoulliState",
    "SeveralState",
    "adaptive",
    "all_of",
    "always",
    "any_of",
    "bernoulli",
    "between",
    "every",
]


def always() -> When:
    """A second gradient at every step.

    Returns:
      A stateless `When`, and the only one that costs no conditional.
    """
    return When(optax.init_empty_state, _fire, ahead=True)


@ours()
def _fire(first: Tree, state: State, params: Tree, **extra: Any) -> tuple[bool, State]:
    del first, params, extra
    return True, state


def every(period: int) -> When:
    """A second gradient at every `period`-th step, step 0 included.

    Args:
      period: the period ≥ 1; 1 is the neutral setting, a second gradient at every step.

    Returns:
      A stateless `When`.

    Raises:
      ValueError: period is less than 1.
      TypeError: period is no integer.

    References:
      Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization (LookSAM), 2022,
      Algorithm 1.
    """
    _checks.whole("period", period, 1)

    @ours()
    def update(
        first: Tree, state: State, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[jax.Array, State]:
        del first, params, extra
        return step % period == 0, state

    return When(optax.init_empty_state, update, ahead=True)


def between(start: int, stop: int | None = None, *, total_steps: int | None = None) -> When:
    """A second gradient at the steps start, start + 1, … up to, and without, stop: a window.

    Args:
      start: the first step of the window, ≥ 0.
      stop: the step behind its last, > start; None for a window that stays open. `between(0)` is
        the neutral setting, a second gradient at every step.
      total_steps: the number of steps of the training, for a warning where it ends before the
        window opens; None where it is not known.

    Returns:
      A stateless `When`.

    Raises:
      ValueError: start is negative, stop does not lie behind it, or total_steps is less than 1.
      TypeError: one of them is no integer.

    References:
      Zhou et al., Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training,
      2024: SAM in the last epochs alone, or in the first.
    """
    _checks.whole("start", start, 0)
    if stop is not None:
        _checks.whole("stop", stop, 1)
        if all(isinstance(step, _checks.NUMBERS) for step in (start, stop)) and stop <= start:
            raise ValueError(
                f"stop must lie behind start, got between({start}, {stop}): pass a larger stop, or "
                "None for a window that stays open."
            )
    if total_steps is not None:
        _checks.whole("total_steps", total_steps, 1)
        if isinstance(start, _checks.NUMBERS) and start >= total_steps:
            warnings.warn(
                f"the window between({start}, {stop}) never opens within total_steps="
                f"{total_steps}: no second gradient will be taken. Pass an earlier start.",
                stacklevel=2,
            )

    @ours()
    def update(
        first: Tree, state: State, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[jax.Array, State]:
        del first, params, extra
        is_open = step >= start
        return is_open if stop is None else is_open & (step < stop), state

    return When(optax.init_empty_state, update, ahead=True)


class SeveralState(NamedTuple):
    """State of `all_of` and `any_of`.

    Attributes:
      policies: the states of the policies, in their order.
    """

    policies: tuple[Any, ...]


def all_of(*policies: When) -> When:
    """A second gradient where all policies ask for one, as for an adaptive one inside a window.

    Each of them sees every step, whatever the others say.

    Args:
      *policies: one or more `When`.

    Returns:
      A `When` with state `SeveralState`.

    Raises:
      ValueError: there is no policy.
      TypeError: one is no `When`.
    """
    return _several("all_of", jnp.logical_and, policies)


def any_of(*policies: When) -> When:
    """A second gradient where one policy or more asks for one, as for two windows.

    Each of them sees every step, whatever the others say.

    Args:
      *policies: one or more `When`.

    Returns:
      A `When` with state `SeveralState`.

    Raises:
      ValueError: there is no policy.
      TypeError: one is no `When`.
    """
    return _several("any_of", jnp.logical_or, policies)


def _several(name: str, meet: Callable[..., jax.Array], policies: tuple[When, ...]) -> When:
    if not policies:
        raise ValueError(
            f"{name} needs a policy at least, such as {name}(every(5), between(0, 9))."
        )
    for policy in policies:
        if not isinstance(policy, When):
            raise TypeError(
                f"the policies of {name} must be When, such as sam_optax.when makes, got "
                f"{policy!r}: pass each as an argument of its own."
            )

    @ours(policies)
    def init(params: Tree) -> SeveralState:
        return SeveralState(tuple([policy.init(params) for policy in policies]))

    @ours(policies, meet)
    def update(
        first: Tree, state: SeveralState, params: Tree, **extra: Any
    ) -> tuple[jax.typing.ArrayLike, SeveralState]:
        asked = [
            policy.update(first, own, params, **extra)
            for policy, own in zip(policies, state.policies, strict=True)
        ]
        fire = functools.reduce(meet, [fire for fire, _ in asked])
        return fire, SeveralState(tuple([own for _, own in asked]))

    return When(init, update, ahead=all(policy.ahead for policy in policies))


class BernoulliState(NamedTuple):
    """State of `bernoulli`.

    Attributes:
      key_data: uint32[2], the key of the stream of coins.
    """

    key_data: jax.Array


def bernoulli(probability: Schedulable, *, key: Key = 0) -> When:
    """A second gradient with a probability, by a coin that all devices share.

    Args:
      probability: of a second gradient, in [0, 1], or a schedule of it. 1 is the neutral setting.
      key: an int or a `jax.random.key`; step t tosses with `jax.random.fold_in(key, t)`. Keys are
        threefry keys; one of another implementation seeds one.

    Returns:
      A `When` with state `BernoulliState`.

    Raises:
      ValueError: probability is outside [0, 1].
      TypeError: probability is no number or schedule, or key is no int or key.

    References:
      Zhao et al., SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization, 2022, Section 3.
    """
    probability = _checks.interval("probability", probability, "[0, 1]")
    _random.check(key)

    @ours()
    def init(params: Tree) -> BernoulliState:
        del params
        return BernoulliState(_random.key_data(key))

    @ours()
    def update(
        first: Tree, state: BernoulliState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[jax.Array, BernoulliState]:
        del first, params, extra
        coin = _random.fold(state.key_data, step)
        # Of one dtype, so that the coins do not depend on that of the probability.
        return jax.random.uniform(coin, (), jnp.float32) < value_at(probability, step), state

    return When(init, update, ahead=True)


class AdaptiveState(NamedTuple):
    """State of `adaptive`; both float32, or float64 for float64 parameters.

    Attributes:
      mean: μ_t, the moving average of ‖g‖².
      variance: σ_t², the moving variance of ‖g‖².
    """

    mean: jax.Array
    variance: jax.Array


def adaptive(
    threshold: Schedulable,
    *,
    decay: float = 0.9,
    initial_variance: float = math.exp(-10),
    axis_name: AxisName | None = None,
) -> When:
    """A second gradient where ‖g‖² is large for its recent course: s ≥ μ_t + c_t σ_t.

    With s = ‖g‖², μ_t = δ μ + (1 − δ) s, then σ_t² = δ σ² + (1 − δ)(s − μ_t)² with the NEW μ_t,
    both before the test and without bias correction; μ starts at 0.

    Args:
      threshold: c_t, or a schedule of it. −inf is the neutral setting (a second gradient at every
        step), inf never fires.
      decay: δ in [0, 1].
      initial_variance: σ² before the first step, ≥ 0. The paper prints e^(−10).
      axis_name: the mapped axes over which s is averaged; needed where each device feeds its own
        gradient, so that all decide alike.

    Returns:
      A `When` with state `AdaptiveState`. The statistics follow every step, but one whose s or
      (s − μ)² overflows or is NaN leaves them as they were.

    Raises:
      ValueError: decay is outside [0, 1], initial_variance is negative, or threshold is NaN.
      TypeError: one of them is no number.

    References:
      Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, 2023, Equations 4 and
      5 and Algorithm 1, lines 4 to 6.
    """
    threshold = _checks.interval("threshold", threshold, "[-inf, inf]")
    _checks.interval("decay", decay, "[0, 1]", schedule=False)
    _checks.interval("initial_variance", initial_variance, "[0, inf)", schedule=False)
    if axis_name is not None:
        _axes.check(axis_name)

    @ours()
    def init(params: Tree) -> AdaptiveState:
        return AdaptiveState(_tree.scalar(0, params), _tree.scalar(initial_variance, params))

    @ours()
    def update(
        first: Tree, state: AdaptiveState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[jax.Array, AdaptiveState]:
        del extra
        s = _tree.vdot(first, first)
        if axis_name is not None:
            s = jax.lax.pmean(s, axis_name)
        mean = decay * state.mean + (1 - decay) * s
        variance = decay * state.variance + (1 - decay) * jnp.square(s - mean)
        c = jnp.asarray(value_at(threshold, step))
        # An infinite c decides alone: ±inf times a σ of 0 would be NaN.
        bound = jnp.where(jnp.isinf(c), c, mean + c * jnp.sqrt(variance))
        # One overflow would stay in a moving average for ever.
        finite = jnp.isfinite(variance)
        following = AdaptiveState(_tree.scalar(mean, params), _tree.scalar(variance, params))
        return s >= bound, optax.tree.where(finite, following, state)

    return When(init, update)
