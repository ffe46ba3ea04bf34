"""Parts of one gradient across or along the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _tree
from sam_optax._contracts import Combine, Schedulable, State, Tree, value_at
from sam_optax._purity import ours
from sam_optax.combine._plain import _hand_on_first


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
    Gradients of float32 do not tell that their loss was computed in bfloat16: with a small radius v
    is then mostly its rounding (docs/results/bfloat16.md has figures).

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
