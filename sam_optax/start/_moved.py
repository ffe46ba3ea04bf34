"""Along what was handed on before."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from sam_optax import _checks, _shards, _tree
from sam_optax._contracts import Schedulable, Start, Tree, value_at
from sam_optax._promotion import standard
from sam_optax._purity import ours
from sam_optax.start._following import _following


class MomentumState(NamedTuple):
    """State of `momentum`.

    Attributes:
      velocity: v, the momentum of the directions; shaped like the parameters, in float32 at least.
      rho: ρ of the coming step; float32, or float64 for float64 parameters.
    """

    velocity: optax.Updates
    rho: jax.Array

    @standard
    @_shards.compiled
    def offset(self, params: optax.Params) -> optax.Updates:
        """δ0 = −ρ unit(v)."""
        return _tree.towards(_tree.placed_like(self.velocity, params), -self.rho)


def momentum(rho: Schedulable, decay: float = 0.9) -> Start:
    """δ0 = −ρ unit(v), v ← decay · v + d: ahead, along the last update's direction.

    d is the direction that the link hands on; v is 0, and step 0 unperturbed, at the start.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters, or a schedule of it. 0 is the neutral
        setting. Under `optax.inject_hyperparams` a changed ρ takes effect one step later.
      decay: of the momentum, in [0, 1): that of the optimizer behind the link.

    Returns:
      A `Start` with state `MomentumState`, one copy of the parameters in float32 at least, where
      a sum of small gradients neither overflows nor stalls.

    Raises:
      ValueError: rho is negative, or decay outside [0, 1).
      TypeError: rho is neither a number nor a schedule, or decay no number.

    References:
      Becker et al., Momentum-SAM, 2024.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")
    _checks.interval("decay", decay, "[0, 1)", schedule=False)

    @ours()
    def init(params: Tree) -> MomentumState:
        rho_0 = _tree.scalar(value_at(rho, 0), params)
        return MomentumState(_tree.zeros_like(params), rho_0)

    @ours()
    def update(
        direction: Tree, state: MomentumState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> MomentumState:
        del extra
        direction = _tree.placed_like(direction, state.velocity)
        velocity = _tree.combine(lambda v, d: decay * v + d, state.velocity, direction)
        velocity = _tree.cast_like(velocity, state.velocity)
        return MomentumState(velocity, _following(rho, step, params))

    return Start(init, update)


class PreviousState(NamedTuple):
    """State of `previous`.

    Attributes:
      previous: p, the direction of the step before; shaped and typed like the parameters.
      rho: ρ of the coming step; float32, or float64 for float64 parameters.
    """

    previous: optax.Updates
    rho: jax.Array

    @standard
    @_shards.compiled
    def offset(self, params: optax.Params) -> optax.Updates:
        """δ0 = ρ unit(p)."""
        return _tree.towards(_tree.placed_like(self.previous, params), self.rho)


def previous(rho: Schedulable) -> Start:
    """δ0 = ρ unit(p), p the direction that the link handed on at the step before.

    p is 0, and step 0 unperturbed, at the start.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters, or a schedule of it. 0 is the neutral
        setting. Under `optax.inject_hyperparams` a changed ρ takes effect one step later.

    Returns:
      A `Start` with state `PreviousState`, one copy of the parameters.

    Raises:
      ValueError: rho is negative.
      TypeError: rho is neither a number nor a schedule.

    References:
      Ji et al., A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient
      and Accurate Sparse Training (S2-SAM), 2024.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")

    @ours()
    def init(params: Tree) -> PreviousState:
        rho_0 = _tree.scalar(value_at(rho, 0), params)
        return PreviousState(optax.tree.zeros_like(params), rho_0)

    @ours()
    def update(
        direction: Tree, state: PreviousState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> PreviousState:
        del extra
        p = _tree.cast_like(direction, state.previous)
        return PreviousState(p, _following(rho, step, params))

    return Start(init, update)
