"""What is handed on: with a second gradient (`fresh`), and without one (`stale`).

g is the first gradient, g' the second. Sums and norms are taken in float32 at least; the engine
returns the direction in the dtype of the gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _axes, _checks, _tree
from sam_optax._axes import AxisName
from sam_optax._contracts import Combine, Schedulable, State, Tree, value_at
from sam_optax._promotion import callers
from sam_optax._purity import ours
from sam_optax._signs import turns_around

__all__ = [
    "MixState",
    "ReuseState",
    "WeighState",
    "extrapolate",
    "mix",
    "perturbed",
    "renormalize",
    "reuse",
    "surrogate_gap",
    "weigh",
]


@ours()
def _hand_on_first(first: Tree, state: State, params: Tree, **extra: Any) -> tuple[Tree, State]:
    """The stale step of the base optimizer alone: d = g."""
    del params, extra
    return first, state


def perturbed() -> Combine:
    """d = g'; without a second gradient d = g.

    Returns:
      A stateless `Combine`.

    References:
      Foret et al., Sharpness-Aware Minimization, 2021, Equation 3.
    """

    @ours()
    def fresh(
        first: Tree, second: Tree, state: State, params: Tree, **extra: Any
    ) -> tuple[Tree, State]:
        del first, params, extra
        return second, state

    return Combine(optax.init_empty_state, fresh, _hand_on_first)


class MixState(NamedTuple):
    """State of `mix`; both float32, or float64 for float64 parameters.

    Attributes:
      lambda_k: λ_k, the weight of g' at the coming step.
      previous_norm: ‖g_{k−1}‖ (of g' where ratio is "perturbed"), 0 before the first step.
    """

    lambda_k: jax.Array
    previous_norm: jax.Array


def mix(
    gamma: Schedulable = 1.4,
    chi: Schedulable = 1.05,
    lambda_0: float = 1.0,
    delta: float = 0.01,
    *,
    ratio: str = "clean",
    axis_name: AxisName | None = None,
) -> Combine:
    """d = (1 − λ_k) g + λ_k g', with λ_k led by the ratio of consecutive gradient norms.

    With r_k = ‖g_k‖ / ‖g_{k−1}‖: λ_{k+1} = clip(γ λ_k, δ, 1 − δ) if k = 0 or r_k ≥ χ, else
    clip(λ_k / γ, δ, 1 − δ). λ_0 itself is not clipped. Without a second gradient d = g, and λ and
    the previous norm stay as they are.

    Args:
      gamma: the factor γ > 1 by which λ grows and shrinks, or a schedule of it.
      chi: the threshold χ ≥ 0 of r_k, or a schedule of it.
      lambda_0: λ_0 in [0, 1].
      delta: δ in [0, 0.5], the distance that λ keeps from 0 and 1.
      ratio: "clean" takes r_k of ‖g‖, "perturbed" of ‖g'‖.
      axis_name: the mapped axes over which the norm is averaged, so that λ is equal on all devices
        where each feeds its own gradient.

    Returns:
      A `Combine` with state `MixState`.

    Raises:
      ValueError: an argument is out of its range.
      TypeError: an argument is no number.

    References:
      Zou et al., Sharpness-Aware Minimization with Adaptive Regularization for Training Deep Neural
      Networks (SAMAR), 2024, Algorithm 1.
    """
    gamma = _checks.interval("gamma", gamma, "(1, inf)")
    chi = _checks.interval("chi", chi, "[0, inf)")
    _checks.interval("lambda_0", lambda_0, "[0, 1]", schedule=False)
    _checks.interval("delta", delta, "[0, 0.5]", schedule=False)
    _checks.choice("ratio", ratio, ("clean", "perturbed"))
    if axis_name is not None:
        _axes.check(axis_name)

    @ours()
    def init(params: Tree) -> MixState:
        return MixState(_tree.scalar(lambda_0, params), _tree.scalar(0, params))

    @ours()
    def fresh(
        first: Tree, second: Tree, state: MixState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, MixState]:
        del extra
        lambda_k = state.lambda_k
        direction = _tree.combine(lambda g, h: (1 - lambda_k) * g + lambda_k * h, first, second)
        norm = _tree.norm(first if ratio == "clean" else second)
        if axis_name is not None:
            norm = jax.lax.pmean(norm, axis_name)
        factor = value_at(gamma, step)
        # r_k ≥ χ without the division, so that a zero gradient gives no NaN; the previous norm of 0
        # before the first step makes this hold at k = 0, as it should.
        grows = norm >= value_at(chi, step) * state.previous_norm
        moved = jnp.where(grows, factor * lambda_k, lambda_k / factor)
        following = jnp.clip(moved, delta, 1 - delta)
        return direction, MixState(_tree.scalar(following, params), _tree.scalar(norm, params))

    return Combine(init, fresh, _hand_on_first)


class WeighState(NamedTuple):
    """State of `weigh`.

    Attributes:
      base: the state of the base transformation.
    """

    base: optax.OptState


def weigh(gamma: Schedulable, base: optax.GradientTransformation | None = None) -> Combine:
    """d = base(g) + γ/(1 − γ) (g' − g), the base fed the clean gradient alone.

    Without a second gradient d = base(g).

    Args:
      gamma: the weight γ of the sharpness in [0, 1), or a schedule of it. ½ hands on
        base(g) + g' − g, 0 (the neutral setting) base(g).
      base: an Optax transformation that gives a direction, without the learning rate; None for the
        identity, with which this is the coupled form. The sign of a part that is to climb belongs
        into grad_fn.

    Returns:
      A `Combine` with state `WeighState`.

    Raises:
      ValueError: gamma is outside [0, 1); at init, base hands on the negative of a direction in
        some leaf, as far as its first steps show on a small quadratic.
      TypeError: gamma is no number or schedule, or base no Optax transformation.

    References:
      Yue et al., Sharpness-Aware Minimization Revisited, 2023, Algorithms 2 and 4.
    """
    gamma = _checks.interval("gamma", gamma, "[0, 1)")
    if base is None:
        base = optax.identity()
    if not isinstance(base, optax.GradientTransformation):
        raise TypeError(
            "base must be an Optax transformation without the learning rate, such as "
            f"optax.trace(0.9) or optax.scale_by_adam(), got {base!r}."
        )
    base = optax.with_extra_args_support(base)
    descends: dict[Any, bool] = {}  # by the structure of the parameters

    @ours(base)
    def init(params: Tree) -> WeighState:
        structure = jax.tree.structure(params), *map(jnp.ndim, jax.tree.leaves(params))
        if structure not in descends:
            descends[structure] = turns_around(base, params)
        if descends[structure]:
            raise ValueError(
                "base must hand on a direction along the gradient, and this one hands on its "
                "negative, as an optimizer with a learning rate does: pass it without, such as "
                "optax.trace(0.9) for SGD or optax.scale_by_adam() for Adam, or "
                "optax.chain(base, optax.scale(-1)) where the learning rate belongs into it."
            )
        with callers():
            return WeighState(base.init(params))

    @ours(base)
    def stale(
        first: Tree, state: WeighState, params: Tree, **extra: Any
    ) -> tuple[Tree, WeighState]:
        with callers():
            direction, base_state = base.update(first, state.base, params, **extra)
        return direction, WeighState(base_state)

    @ours(base)
    def fresh(
        first: Tree, second: Tree, state: WeighState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, WeighState]:
        direction, state = stale(first, state, params, step=step, **extra)
        gamma_t = value_at(gamma, step)
        weight = gamma_t / (1 - gamma_t)
        return _tree.combine(lambda u, g, h: u + weight * (h - g), direction, first, second), state

    return Combine(init, fresh, stale)


def extrapolate(alpha: Schedulable) -> Combine:
    """d = g' − α g, without rescaling; without a second gradient d = g.

    Args:
      alpha: the weight α ≥ 0 of the clean gradient, or a schedule of it. 0 is the neutral setting.

    Returns:
      A stateless `Combine`.

    Raises:
      ValueError: alpha is negative.
      TypeError: alpha is neither a number nor a schedule.

    References:
      Wang et al., Fix the Loss, Not the Radius (LE-SAM+), 2026, Section 6.1.
    """
    alpha = _checks.interval("alpha", alpha, "[0, inf)")

    @ours()
    def fresh(
        first: Tree, second: Tree, state: State, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del params, extra
        weight = value_at(alpha, step)
        return _tree.combine(lambda g, h: h - weight * g, first, second), state

    return Combine(optax.init_empty_state, fresh, _hand_on_first)


def surrogate_gap(alpha: Schedulable) -> Combine:
    """d = g' − α reject(g, g'); without a second gradient d = g.

    The rejected part is the first gradient's, orthogonal to the second, and it is subtracted:
    that descends the surrogate gap without changing the perturbed loss to first order.

    Args:
      alpha: the weight α ≥ 0 of the rejected part, or a schedule of it. 0 is the neutral setting.

    Returns:
      A stateless `Combine`.

    Raises:
      ValueError: alpha is negative.
      TypeError: alpha is neither a number nor a schedule.

    References:
      Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, 2022,
      Algorithm 1.
    """
    alpha = _checks.interval("alpha", alpha, "[0, inf)")

    @ours()
    def fresh(
        first: Tree, second: Tree, state: State, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del params, extra
        weight = value_at(alpha, step)
        rejected = _tree.reject(first, second)
        return _tree.combine(lambda h, r: h - weight * r, second, rejected), state

    return Combine(optax.init_empty_state, fresh, _hand_on_first)


def renormalize() -> Combine:
    """d = g' ‖g‖ / ‖g'‖, and 0 where g' = 0; without a second gradient d = g.

    Returns:
      A stateless `Combine`.

    References:
      Tan et al., Stabilizing Sharpness-Aware Minimization Through A Simple Renormalization Strategy
      (SSAM), 2024.
    """

    @ours()
    def fresh(
        first: Tree, second: Tree, state: State, params: Tree, **extra: Any
    ) -> tuple[Tree, State]:
        del params, extra
        length = _tree.norm(first)
        # Where ‖g‖² and ‖g'‖² overflow, 0 and not NaN.
        return _tree.towards(second, jnp.minimum(length, jnp.finfo(length.dtype).max)), state

    return Combine(optax.init_empty_state, fresh, _hand_on_first)


class ReuseState(NamedTuple):
    """State of `reuse`.

    Attributes:
      v: reject(g', g) of the last step with a second gradient, 0 before; shaped and typed like the
        parameters.
    """

    v: optax.Updates


def reuse(alpha: Schedulable) -> Combine:
    """d = g', storing v = reject(g', g); without a second gradient d = g + α ‖g‖ unit(v).

    Global vectors, not one per tensor. v = 0 gives d = g: before the first second gradient, and
    where g' is parallel to g up to rounding (100 units of float32, one of a smaller dtype of g').

    Args:
      alpha: the weight α ≥ 0 of the reused direction, or a schedule of it; 0 hands on g.

    Returns:
      A `Combine` with state `ReuseState`, one copy of the parameters.

    Raises:
      ValueError: alpha is negative.
      TypeError: alpha is neither a number nor a schedule.

    References:
      Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization (LookSAM), 2022,
      Algorithm 1; Jiang et al., 2023, Algorithm 1, lines 8 and 11.
    """
    alpha = _checks.interval("alpha", alpha, "[0, inf)")

    @ours()
    def init(params: Tree) -> ReuseState:
        return ReuseState(v=optax.tree.zeros_like(params))

    @ours()
    def fresh(
        first: Tree, second: Tree, state: ReuseState, params: Tree, **extra: Any
    ) -> tuple[Tree, ReuseState]:
        del params, extra
        rejected = _tree.reject(second, first)
        # Where g' is parallel to g, what is left is rounding, and unit(v) would magnify it.
        remainder = _tree.norm(rejected)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(second)}
        units = [jnp.finfo(d).eps for d in dtypes if jnp.issubdtype(d, jnp.floating)]
        rounding = max([100 * jnp.finfo(remainder.dtype).eps, *units]) * _tree.norm(second)
        v = _tree.combine(lambda r: jnp.where(remainder > rounding, r, 0), rejected)
        return second, ReuseState(v=_tree.cast_like(v, state.v))

    @ours()
    def stale(
        first: Tree, state: ReuseState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, ReuseState]:
        del params, extra
        v = _tree.placed_like(state.v, first)
        sharp = _tree.towards(v, value_at(alpha, step) * _tree.norm(first))
        return _tree.combine(jnp.add, first, sharp), state

    return Combine(init, fresh, stale)
