"""A direction divided by what the start has learned."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _given, _tree
from sam_optax._contracts import Combine, Tree
from sam_optax._purity import ours


class MomentState(NamedTuple):
    """State of `newton_precision` and `newton_hessian`.

    Attributes:
      m: the moving average of the gradient, shaped like the parameters, in float32 at least.
    """

    m: optax.Updates


def _init_moment(params: Tree) -> MomentState:
    return MomentState(_tree.zeros_like(params))


def _moved_moment(m: Tree, gradient: Tree, decay: float) -> Tree:
    gradient = _tree.placed_like(gradient, m)
    return _tree.cast_like(_tree.combine(lambda m, g: decay * m + (1 - decay) * g, m, gradient), m)


def newton_precision(
    beta_1: float = 0.9, *, weight_decay: float = 5e-4, precision_at: str = "updated"
) -> Combine:
    """d = m / s, m ← β₁ m + (1 − β₁)(g' + δ w); without a second gradient g takes the place of g'.

    Args:
      beta_1: β₁ in [0, 1).
      weight_decay: δ ≥ 0, that of `sam_optax.start.precision`.
      precision_at: "updated" divides by the s of the coming step, as the paper's algorithm does,
        "previous" by that of this step, as the authors' code does.

    Returns:
      A `Combine` with state `MomentState`, one copy of the parameters in float32 at least.

    Raises:
      ValueError: an argument is out of its range; at update, the method has another start.
      TypeError: an argument is no number.

    References:
      Möllenhoff and Khan, SAM as an Optimal Relaxation of Bayes (bSAM), 2023, Algorithm 1.
    """
    _checks.interval("beta_1", beta_1, "[0, 1)", schedule=False)
    _checks.interval("weight_decay", weight_decay, "[0, inf)", schedule=False)
    _checks.choice("precision_at", precision_at, ("updated", "previous"))

    def divided(
        gradient: Tree, first: Tree, state: MomentState, params: Tree, slots: Any
    ) -> tuple[Tree, MomentState]:
        decayed = _tree.combine(lambda g, w: g + weight_decay * w, gradient, params)
        m = _moved_moment(state.m, decayed, beta_1)
        learned = _given.learned(slots, "s", part="newton_precision", start="precision")
        s = (
            learned.following(first, params, slots.steps)
            if precision_at == "updated"
            else learned.s
        )
        placed = _tree.placed_like(m, first), _tree.placed_like(s, first)
        return _tree.combine(jnp.divide, *placed), MomentState(m)

    @ours()
    def fresh(
        first: Tree, second: Tree, state: MomentState, params: Tree, *, slots: Any, **extra: Any
    ) -> tuple[Tree, MomentState]:
        del extra
        return divided(second, first, state, params, slots)

    @ours()
    def stale(
        first: Tree, state: MomentState, params: Tree, *, slots: Any, **extra: Any
    ) -> tuple[Tree, MomentState]:
        del extra
        return divided(first, first, state, params, slots)

    return Combine(_init_moment, fresh, stale)


def newton_hessian(
    beta_1: float = 0.9,
    *,
    clip: float = float("inf"),
    rescale: float = 1.0,
) -> Combine:
    """d = c · clip((m / (1 − β₁^t) + δ w) / (h + δ)), m ← β₁ m + (1 − β₁) g, with the coming h.

    It acts on the first gradient, for a method without a second one.

    Args:
      beta_1: β₁ in [0, 1).
      clip: the largest size of a number of the direction before c, > 0.
      rescale: c > 0.

    Returns:
      A `Combine` with state `MomentState`, for a method with the start `hessian`.

    Raises:
      ValueError: an argument is out of its range; at update, the method has another start.
      TypeError: an argument is no number.

    References:
      Shen et al., Variational Learning is Effective for Large Deep Networks (IVON), 2024,
      Algorithm 1.
    """
    _checks.interval("beta_1", beta_1, "[0, 1)", schedule=False)
    _checks.interval("clip", clip, "(0, inf]", schedule=False)
    _checks.interval("rescale", rescale, "(0, inf)", schedule=False)

    @ours()
    def stale(
        first: Tree,
        state: MomentState,
        params: Tree,
        *,
        step: jax.Array,
        slots: Any,
        **extra: Any,
    ) -> tuple[Tree, MomentState]:
        del extra
        m = _moved_moment(state.m, first, beta_1)
        learned = _given.learned(slots, "h", part="newton_hessian", start="hessian")
        h, delta = learned.following(first, params, step), learned.weight_decay
        unbiased = 1 - beta_1 ** (step + 1)

        def newton(m: jax.Array, w: jax.Array, h: jax.Array) -> jax.Array:
            return rescale * jnp.clip((m / unbiased + delta * w) / (h + delta), -clip, clip)

        placed = [_tree.placed_like(tree, first) for tree in (m, params, h)]
        return _tree.combine(newton, *placed), MomentState(m)

    return Combine(_init_moment, None, stale)
