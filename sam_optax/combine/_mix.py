"""A weight that follows the course of the gradient norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sam_optax import _axes, _checks, _tree
from sam_optax._axes import AxisName
from sam_optax._contracts import Combine, Schedulable, Tree, value_at
from sam_optax._purity import ours
from sam_optax.combine._plain import _hand_on_first


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
