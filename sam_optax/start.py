"""Where the first gradient is taken: at params + offset."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _random, _tree
from sam_optax._contracts import Schedulable, Start, Tree, value_at
from sam_optax._promotion import standard
from sam_optax._purity import ours
from sam_optax._random import Key

__all__ = [
    "MomentumState",
    "NoiseState",
    "PreviousState",
    "momentum",
    "noise",
    "previous",
]


def _following(hyperparameter: Schedulable, step: jax.Array, params: Tree) -> jax.Array:
    """The hyperparameter at the step after this one, whose offset the state has to fix."""
    return _tree.scalar(value_at(hyperparameter, step, ahead=1), params)


class NoiseState(NamedTuple):
    """State of `noise`: all that the offset needs beside the parameters.

    Attributes:
      key_data: uint32[2], the key of the stream of draws.
      draw: int32, the number of the coming draw.
      gamma: the scale of the coming draw; float32, or float64 for float64 parameters.
      power: the exponent of the kernel norm, of the same dtype.
    """

    key_data: jax.Array
    draw: jax.Array
    gamma: jax.Array
    power: jax.Array

    @standard
    def offset(self, params: optax.Params, sample: int = 0) -> optax.Updates:
        """δ0 for these params, in float32 at least; redrawn from the counter, never stored."""
        normal = _random.draw_like(jax.random.normal, self.key_data, self.draw + sample, params)
        return _tree.combine(
            lambda w, z: self.gamma * _kernel_norm(w) ** self.power * z, params, normal
        )


def _kernel_norm(w: jax.Array) -> jax.Array:
    """‖w_j‖ of each kernel, broadcastable to w.

    A kernel is a slice along the last axis of a leaf with two or more axes (in Flax the output
    channel or feature); a leaf with fewer axes is one kernel.
    """
    axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None
    return jnp.sqrt(jnp.sum(jnp.square(w), axis=axes, keepdims=True))


def noise(gamma: Schedulable, *, key: Key = 0, power: float = 1.0, samples: int = 1) -> Start:
    r"""δ0 ~ N(0, σ_j²) in each kernel j, with σ_j = γ ‖w_j‖^power and the norms of the current w.

    Args:
      gamma: the relative scale γ ≥ 0, or a schedule of it. 0 is the neutral setting: the first
        gradient is taken at w. Under `optax.inject_hyperparams` a changed γ takes effect one step
        later, because the offset of a step is fixed when the step before it ends.
      key: an int or a `jax.random.key`. Draw number t uses `jax.random.fold_in(key, t)`, split
        over the leaves by `optax.tree.random_like`. Keys are threefry keys; one of another
        implementation seeds one.
      power: 1 for a standard deviation of γ ‖w_j‖, ½ for a variance of γ² ‖w_j‖.
      samples: the number n ≥ 1 of draws over which the first gradient is averaged; step t takes the
        draws nt to nt + n − 1. The program grows with it. Not to be injected.

    Returns:
      A `Start`. Leaves are drawn in float32, float64 leaves in float64.

    Raises:
      ValueError: gamma or power is negative, or samples is less than 1.
      TypeError: gamma is no number or schedule, key no int or key, or samples no Python integer.

    References:
      Liu et al., Random Sharpness-Aware Minimization, 2022, Section 3.2 and Algorithm 1; the
      notation of Bisla et al., Low-Pass Filtering SGD, 2022, who average over draws.
    """
    _checks.interval("gamma", gamma, "[0, inf)")
    _checks.interval("power", power, "[0, inf)", schedule=False)
    _checks.static("samples", samples)
    _checks.whole("samples", samples, 1)
    _random.check(key)

    @ours()
    def init(params: Tree) -> NoiseState:
        return NoiseState(
            key_data=_random.key_data(key),
            draw=jnp.zeros([], jnp.int32),
            gamma=_tree.scalar(value_at(gamma, 0), params),
            power=_tree.scalar(power, params),
        )

    @ours()
    def update(
        direction: Tree, state: NoiseState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> NoiseState:
        del direction, extra
        # The number of the draw may wrap around: it only names a key.
        return state._replace(draw=state.draw + samples, gamma=_following(gamma, step, params))

    return Start(init, update, samples)


class MomentumState(NamedTuple):
    """State of `momentum`.

    Attributes:
      velocity: v, the momentum of the directions; shaped like the parameters, in float32 at least.
      rho: ρ of the coming step; float32, or float64 for float64 parameters.
    """

    velocity: optax.Updates
    rho: jax.Array

    @standard
    def offset(self, params: optax.Params) -> optax.Updates:
        """δ0 = −ρ unit(v)."""
        del params
        return _tree.towards(self.velocity, -self.rho)


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
    _checks.interval("rho", rho, "[0, inf)")
    _checks.interval("decay", decay, "[0, 1)", schedule=False)

    @ours()
    def init(params: Tree) -> MomentumState:
        rho_0 = _tree.scalar(value_at(rho, 0), params)
        return MomentumState(_tree.combine(jnp.zeros_like, params), rho_0)

    @ours()
    def update(
        direction: Tree, state: MomentumState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> MomentumState:
        del extra
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
    def offset(self, params: optax.Params) -> optax.Updates:
        """δ0 = ρ unit(p)."""
        del params
        return _tree.towards(self.previous, self.rho)


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
    _checks.interval("rho", rho, "[0, inf)")

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
