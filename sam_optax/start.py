"""Where the first gradient is taken: at params + offset."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _random, _tree
from sam_optax._contracts import Schedulable, Start, value_at


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

    def offset(self, params: optax.Params) -> optax.Updates:
        """δ0 for these params, in float32 at least; redrawn from the counter, never stored."""

        def sample(key, shape, dtype, *, out_sharding):
            dtype = jnp.promote_types(dtype, jnp.float32)
            return jax.random.normal(key, shape, dtype, out_sharding=out_sharding)

        normal = optax.tree.random_like(
            _random.fold(self.key_data, self.draw), jax.tree.map(jnp.asarray, params), sample
        )
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


def noise(gamma: Schedulable, *, key: _random.Key = 0, power: float = 1.0) -> Start:
    r"""δ0 ~ N(0, σ_j²) in each kernel j, with σ_j = γ ‖w_j‖^power and the norms of the current w.

    Args:
      gamma: the relative scale γ ≥ 0, or a schedule of it. 0 is the neutral setting: the first
        gradient is taken at w. Under `optax.inject_hyperparams` a changed γ takes effect one step
        later, because the offset of a step is fixed when the step before it ends.
      key: an int or a `jax.random.key`. Draw number t uses `jax.random.fold_in(key, t)`, split
        over the leaves by `optax.tree.random_like`. Keys are threefry keys; one of another
        implementation seeds one.
      power: 1 for a standard deviation of γ ‖w_j‖, ½ for a variance of γ² ‖w_j‖.

    Returns:
      A `Start`. Leaves are drawn in float32, float64 leaves in float64.

    Raises:
      ValueError: gamma or power is negative.
      TypeError: gamma is no number or schedule, or key is no int or key.

    References:
      Liu et al., Random Sharpness-Aware Minimization, 2022, Section 3.2 and Algorithm 1; the
      notation of Bisla et al., Low-Pass Filtering SGD, 2022.
    """
    _checks.interval("gamma", gamma, "[0, inf)")
    _checks.interval("power", power, "[0, inf)", schedule=False)
    _random.check(key)

    def init(params):
        return NoiseState(
            key_data=_random.key_data(key),
            draw=jnp.zeros([], jnp.int32),
            gamma=_tree.scalar(value_at(gamma, 0), params),
            power=_tree.scalar(power, params),
        )

    def update(direction, state, params, *, step, **extra):
        del direction, extra
        draw = optax.safe_increment(state.draw)
        following = value_at(gamma, optax.safe_increment(step))
        return state._replace(draw=draw, gamma=_tree.scalar(following, params))

    return Start(init, update)
