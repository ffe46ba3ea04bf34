"""Balls around the parameters, whose radius is given or follows from the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _parts, _tree
from sam_optax._contracts import Schedulable, State, Tree, transformation, value_at
from sam_optax._purity import ours


def ball(rho: Schedulable) -> optax.GradientTransformationExtraArgs:
    """ε = ρ unit(g): the steepest ascent in a Euclidean ball over the whole tree.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters, or a schedule of it. 0 is the neutral
        setting.

    Returns:
      A stateless transformation; a zero gradient gives ε = 0.

    Raises:
      ValueError: rho is negative.
      TypeError: rho is neither a number nor a schedule.

    References:
      Foret et al., Sharpness-Aware Minimization, 2021, Equation 2 with p = 2.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")

    @ours()
    def update(
        first: Tree, state: State, params: Tree | None = None, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del params, extra
        return _tree.towards(first, value_at(rho, step)), state

    return transformation(optax.init_empty_state, update)


def layer_ball(rho: Schedulable) -> optax.GradientTransformationExtraArgs:
    """ε_l = ρ ‖w_l‖ g_l / ‖g_l‖ for each leaf l: a ball a layer, relative to the layer's norm.

    Where w_l or g_l is 0, ε_l = 0. To leave biases and normalisation out, put it into `only`.

    Args:
      rho: the radius ρ ≥ 0, relative to the norm of each leaf, or a schedule of it. 0 is the
        neutral setting.

    Returns:
      A stateless transformation.

    Raises:
      ValueError: rho is negative.
      TypeError: rho is neither a number nor a schedule.

    References:
      Wu et al., Adversarial Weight Perturbation Helps Robust Generalization (AWP), 2020, Section
      4.2, with a leaf for a layer.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")

    @ours()
    def update(
        first: Tree, state: State, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del extra
        radius = value_at(rho, step)
        lengths = jax.tree.map(lambda norm: radius * norm, _tree.norms(params))
        return _tree.each_towards(first, lengths), state

    return transformation(optax.init_empty_state, update)


class LossBallState(NamedTuple):
    """State of `loss_ball`.

    Attributes:
      rho: ρ_t, the radius in force at the last step, 0 before the first; float32, or float64 for
        float64 parameters.
    """

    rho: jax.Array


def loss_ball(
    budget: Schedulable, rho_max: Schedulable | None = None
) -> optax.GradientTransformationExtraArgs:
    """ε = ρ_t g / N, ρ_t = min(budget_t / N, ρ_max), N = √(‖g‖² + 1e-12).

    The radius that raises the linearised loss by the budget: ⟨g, ε⟩ = budget where ρ_max does not
    bind.

    Args:
      budget: the loss budget ≥ 0, in the units of the loss, or a schedule of it. 0 is the neutral
        setting. Not invariant to the scale of the loss.
      rho_max: the largest radius, in the units of the parameters, or a schedule of it; None for no
        bound.

    Returns:
      A transformation whose state holds ρ_t as `rho`; a zero gradient gives ε = 0.

    Raises:
      ValueError: budget or rho_max is negative.
      TypeError: budget or rho_max is neither a number nor a schedule.

    References:
      Wang et al., Fix the Loss, Not the Radius (LE-SAM), 2026, Equations 11 and 12, Sections 4.3
      and B.1.
    """
    budget = _checks.interval("budget", budget, "[0, inf)")
    if rho_max is not None:
        rho_max = _checks.interval("rho_max", rho_max, "[0, inf)")

    @ours()
    def init(params: Tree) -> LossBallState:
        return LossBallState(rho=_tree.scalar(0, params))

    @ours()
    def update(
        first: Tree,
        state: LossBallState,
        params: Tree | None = None,
        *,
        step: jax.Array,
        **extra: Any,
    ) -> tuple[Tree, LossBallState]:
        del state, extra
        n = jnp.sqrt(_tree.vdot(first, first) + 1e-12)
        rho = value_at(budget, step) / n
        if rho_max is not None:
            rho = jnp.minimum(rho, value_at(rho_max, step))
        epsilon = _tree.combine(lambda g: rho / n * g, first)
        return epsilon, LossBallState(rho=_tree.scalar(rho, params))

    return transformation(init, update)


def noisy_ball(
    rho: Schedulable, lambda_: Schedulable = 1.0, *, normalize_gradient: bool = False
) -> optax.GradientTransformationExtraArgs:
    """ε = ρ unit(δ0 + λ g), around the parameters, with g taken at the parameters + δ0.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters, or a schedule of it.
      lambda_: the weight λ ≥ 0 of the gradient against the noise, or a schedule of it.
      normalize_gradient: whether λ weighs unit(g) in place of g.

    Returns:
      A stateless transformation. Without an offset it is `ball`, where λ > 0.

    Raises:
      ValueError: rho or `lambda_` is negative.
      TypeError: rho or `lambda_` is neither a number nor a schedule.

    References:
      Liu et al., Random Sharpness-Aware Minimization, 2022, Equation 7; the normalised gradient is
      the reading of Section 4.6.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")
    lambda_ = _checks.interval("lambda_", lambda_, "[0, inf)")
    _checks.flag("normalize_gradient", normalize_gradient)

    @ours()
    def update(
        first: Tree,
        state: State,
        params: Tree | None = None,
        *,
        step: jax.Array,
        offset: Tree | None = None,
        **extra: Any,
    ) -> tuple[Tree, State]:
        del params, extra
        weight = value_at(lambda_, step)
        if normalize_gradient:
            ascent = _tree.towards(first, weight)
        else:
            ascent = _tree.combine(lambda g: weight * g, first)
        if offset is not None:  # of all parameters, where a group is perturbed
            ascent = _tree.combine(jnp.add, _parts.hide_as(ascent, offset), ascent)
        return _tree.towards(ascent, value_at(rho, step)), state

    return transformation(optax.init_empty_state, update)
