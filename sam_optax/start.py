"""Where the first gradient is taken: at params + offset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _axes, _checks, _kernels, _names, _random, _shards, _tree
from sam_optax._contracts import Schedulable, Start, Tree, value_at
from sam_optax._kernels import AxesOf, Kernels
from sam_optax._promotion import standard
from sam_optax._purity import ours
from sam_optax._random import Key

__all__ = [
    "KernelNoiseState",
    "MomentumState",
    "NoiseState",
    "PreviousState",
    "kernel_axes",
    "momentum",
    "noise",
    "previous",
]


def _following(hyperparameter: Schedulable, step: jax.Array, params: Tree) -> jax.Array:
    """The hyperparameter at the step after this one, whose offset the state has to fix."""
    return _tree.scalar(value_at(hyperparameter, step, ahead=1), params)


def kernel_axes(out_axis: int | Sequence[int] = -1, batch_axis: int | Sequence[int] = ()) -> AxesOf:
    """Which axes of a leaf make one kernel, told as in `jax.nn.initializers.variance_scaling`.

    They are the axes that are neither outputs nor a batch; where there are none, as in a bias, all
    that are no batch. So are those of a bias, by its name, whose other axes are of size 1, as in a
    convolution of Equinox. Some layouts:

    - (in, out) and (window, in, out), as in Flax: `kernel_axes()`
    - (out, in) and (out, in, window), as in Equinox and PyTorch: `kernel_axes(out_axis=0)`
    - (rows, features), an embedding, each row a kernel: `kernel_axes(out_axis=0)`
    - (in, heads, size), the query, key and value of attention: `kernel_axes(out_axis=(-2, -1))`
    - (layers, ...), stacked for a scan: `kernel_axes(batch_axis=0)`

    Args:
      out_axis: the axis or axes of the outputs, each of which has a kernel of its own.
      batch_axis: the axis or axes along which whole layers are stacked. A leaf that lacks an axis
        does without it.

    Returns:
      A function (key path, leaf) ↦ the axes of one kernel.

    Raises:
      TypeError: an axis is no integer.
      ValueError: in the init of a method inside `jax.shard_map`, where the whole shape of a bias is
        not seen.

    Example:
      >>> import jax.numpy as jnp, sam_optax
      >>> kernels = {
      ...     "embedding": sam_optax.start.kernel_axes(out_axis=0),
      ...     "blocks": sam_optax.start.kernel_axes(batch_axis=0),
      ...     "head": None}  # the default
      >>> link = sam_optax.r_sam(gamma=0.01, kernels=kernels)
    """
    outputs, batch = _several("out_axis", out_axis), _several("batch_axis", batch_axis)

    @ours(outputs, batch)
    def axes(path: tuple[Any, ...], w: jax.typing.ArrayLike) -> tuple[int, ...]:
        shape = jnp.shape(w)
        ndim = len(shape)
        own = [i for i in range(ndim) if i not in batch and i - ndim not in batch]
        inside = [i for i in own if i not in outputs and i - ndim not in outputs]
        # A bias of (out, 1, 1) is as one of (out).
        is_flat = all(shape[i] == 1 for i in inside) and _names.is_bias(_names.last(path))
        if is_flat and inside and isinstance(w, jax.core.Tracer) and _axes.varying(w):
            raise ValueError(
                f"the kernels of params{jax.tree_util.keystr(path)} depend on its whole shape, of "
                "which a device sees a part: make the state by init of the whole parameters, "
                "outside jax.shard_map."
            )
        return tuple(own if is_flat or not inside else inside)

    return axes


def _several(name: str, axes: int | Sequence[int]) -> tuple[int, ...]:
    found = axes if isinstance(axes, Sequence) else [axes]
    if isinstance(axes, str) or not all(map(_kernels.is_axis, found)):
        raise TypeError(f"{name} must be an axis or several, such as -1 or (0, 1), got {axes!r}.")
    return tuple(found)


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
