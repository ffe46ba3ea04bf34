"""Noise relative to the norm of each kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _kernels, _random, _shards, _tree
from sam_optax._contracts import Schedulable, Start, Tree, value_at
from sam_optax._kernels import Kernels
from sam_optax._promotion import standard
from sam_optax._purity import ours
from sam_optax._random import Key
from sam_optax.start._following import _following
from sam_optax.start._kernel_axes import kernel_axes


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
    @_shards.compiled
    def offset(self, params: optax.Params, sample: int = 0) -> optax.Updates:
        """δ0 for these params, in float32 at least; redrawn from the counter, never stored."""
        shapes = jax.tree.map_with_path(_shards.whole, params)
        return _drawn(self, params, sample, jax.tree.map_with_path(kernel_axes(), shapes))


class KernelNoiseState(NamedTuple):
    """State of `noise` with kernels of the caller's.

    Attributes:
      noise: the state without them.
      kernels: the axes that make one kernel of each leaf, as a tree without leaves.
    """

    noise: NoiseState
    kernels: Any

    @standard
    @_shards.compiled
    def offset(self, params: optax.Params, sample: int = 0) -> optax.Updates:
        """δ0 for these params, in float32 at least; redrawn from the counter, never stored."""
        jax.tree.map_with_path(_shards.whole, params)  # raises where it is not known
        return _drawn(self.noise, params, sample, _kernels.marked_axes(self.kernels, params))


def _drawn(state: NoiseState, params: Tree, sample: int, kernels: Any) -> Tree:
    """Normal numbers, those of a kernel scaled by γ ‖w_j‖^power."""
    normal = _random.draw_like(jax.random.normal, state.key_data, state.draw + sample, params)

    def scaled(path: Any, w: jax.Array, z: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        w = _tree.widen(w)
        squared = jnp.sum(jnp.square(w), axis=axes, keepdims=True)
        if names := _shards.over(path, axes):
            squared = jax.lax.psum(squared, names)
        return state.gamma * _norm_power(squared, state.power) * z

    drawn: Tree = jax.tree.map_with_path(scaled, params, normal, kernels)
    return drawn


@jax.custom_jvp
def _norm_power(squared: jax.Array, power: jax.Array) -> jax.Array:
    """‖w‖^power of ‖w‖², with a derivative of 0 at 0."""
    return jnp.sqrt(squared) ** power


@_norm_power.defjvp
def _norm_power_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (squared, power), (by_squared, by_power) = primals, tangents
    value = _norm_power(squared, power)
    some = jnp.where(squared > 0, squared, 1)
    relative = 0.5 * (power * by_squared / some + jnp.log(some) * by_power)
    return value, jnp.where(squared > 0, value * relative, 0)


def noise(
    gamma: Schedulable,
    *,
    key: Key = 0,
    power: float = 1.0,
    samples: int = 1,
    kernels: Kernels = None,
) -> Start:
    r"""δ0 ~ N(0, σ_j²) in each kernel j, with σ_j = γ ‖w_j‖^power and the norms of the current w.

    γ is a scale for each number: a kernel of n numbers, its fan-in, is moved by about γ √n times
    its norm (power 1). To move it by a share r, take γ = r / √n for the n of the largest layers.

    Args:
      gamma: the scale γ ≥ 0, or a schedule of it. 0 is the neutral setting: the first
        gradient is taken at w. Under `optax.inject_hyperparams` a changed γ takes effect one step
        later, because the offset of a step is fixed when the step before it ends.
      key: an int or a `jax.random.key`. Draw number t uses `jax.random.fold_in(key, t)`, split
        over the leaves by `optax.tree.random_like`. Keys are threefry keys; one of another
        implementation seeds one.
      power: 1 for a standard deviation of γ ‖w_j‖, ½ for a variance of γ² ‖w_j‖.
      samples: the number n ≥ 1 of draws over which the first gradient is averaged; step t takes the
        draws nt to nt + n − 1. The program grows with it. Not to be injected.
      kernels: which axes of a leaf make one kernel: a function (key path, leaf) ↦ axes, such as
        `kernel_axes` makes, or a tree of such functions that is a prefix of the parameters, None in
        it for the default. By default `kernel_axes()`, the paper's kernels in the layout of Flax: a
        kernel is a slice along the last axis of a leaf with two or more axes, and a leaf with fewer
        axes is one. Other layouts, stacked layers, embeddings and attention have to be told. Not to
        be injected.

    Returns:
      A `Start` with state `NoiseState`, or `KernelNoiseState` where kernels are given. Leaves are
      drawn in float32, float64 leaves in float64.

    Raises:
      ValueError: gamma or power is negative, or samples is less than 1; at init, kernels is no
        prefix of the parameters, or returns axes that a leaf does not have.
      TypeError: gamma is no number or schedule, key no int or key, samples no Python integer, or
        kernels neither a function nor a tree of functions.

    References:
      Liu et al., Random Sharpness-Aware Minimization, 2022, Section 3.2 and Algorithm 1; the
      notation of Bisla et al., Low-Pass Filtering SGD, 2022, who average over draws.
    """
    gamma = _checks.interval("gamma", gamma, "[0, inf)")
    _checks.interval("power", power, "[0, inf)", schedule=False)
    _checks.static("samples", samples)
    _checks.whole("samples", samples, 1)
    _kernels.check(kernels)
    _random.check(key)

    @ours(kernels)
    def init(params: Tree) -> NoiseState | KernelNoiseState:
        state = NoiseState(
            key_data=_random.key_data(key),
            draw=jnp.zeros([], jnp.int32),
            gamma=_tree.scalar(value_at(gamma, 0), params),
            power=_tree.scalar(power, params),
        )
        return (
            state
            if kernels is None
            else KernelNoiseState(state, _kernels.mark(kernels, kernel_axes(), params))
        )

    @ours()
    def update(
        direction: Tree,
        state: NoiseState | KernelNoiseState,
        params: Tree,
        *,
        step: jax.Array,
        **extra: Any,
    ) -> NoiseState | KernelNoiseState:
        del direction, extra
        old = state.noise if isinstance(state, KernelNoiseState) else state
        # The number of the draw may wrap around: it only names a key.
        new = old._replace(draw=old.draw + samples, gamma=_following(gamma, step, params))
        return state._replace(noise=new) if isinstance(state, KernelNoiseState) else new

    return Start(init, update, samples)
