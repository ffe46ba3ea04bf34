"""Points beside the parameters, in the parameters' dtypes.

What an offset adds to a parameter of bfloat16 or float16 is mostly less than the unit of its last
place, and would be rounded away. There their sum in float32 is rounded up or down at random, by how
near it is to either, so that its mean is that sum (Gupta et al., Deep Learning with Limited
Numerical Precision, 2015, Section 3). The draws follow from the count of steps, and nothing is
stored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sam_optax import _random, _shards, _tree
from sam_optax._contracts import Tree
from sam_optax._promotion import standard

# The random streams of the second point, and of the first, whose samples take those behind it.
SECOND, FIRST = 5, 6


def moved(params: Tree, offset: Tree, steps: jax.typing.ArrayLike, stream: int) -> Tree:
    """params + offset, each leaf in the dtype of the parameters.

    Args:
      params: the parameters.
      offset: in their structure and shapes.
      steps: the count of steps, which names the draws.
      stream: of the draws.
    """
    if not any(map(_is_coarse, jax.tree.leaves(params))):
        return _tree.add(params, offset)
    moved: Tree = _moved(params, _tree.placed_like(offset, params), steps, stream)
    return moved


@standard
@_shards.compiled
def _moved(
    params: Tree, offset: Tree, steps: jax.typing.ArrayLike, stream: jax.typing.ArrayLike
) -> Tree:
    key_data = _random.key_data(0, stream)
    coarse = jax.tree.map(lambda w: w if _is_coarse(w) else None, params)
    drawn = _random.draw_like(jax.random.uniform, key_data, steps, coarse)

    def move(coin: jax.Array | None, w: jax.Array, d: jax.Array) -> Tree:
        if coin is None:
            return _tree.add(w, d)
        # Beside parameters of float64 the offset is one of float64, too.
        point = (_tree.widen(w) + _tree.widen(d)).astype(jnp.float32)
        # Its derivative is that of the point.
        return (point + jax.lax.stop_gradient(_step(point, coin, w.dtype))).astype(w.dtype)

    moved: Tree = jax.tree.map(move, drawn, params, offset, is_leaf=lambda node: node is None)
    return moved


def _is_coarse(leaf: jax.typing.ArrayLike) -> bool:
    return jnp.finfo(jnp.result_type(leaf)).bits < 32


def _step(x: jax.Array, coin: jax.Array, dtype: np.dtype) -> jax.Array:
    """How far from x, up or down, a number of the dtype is; coin is uniform in [0, 1)."""
    kind = jnp.finfo(dtype)
    # Of float32 the exponent: a cast to and fro is what XLA would leave out.
    exponent = ((jax.lax.bitcast_convert_type(x, jnp.int32) >> 23) & 255) - 127
    # Float32 has no power of two below 2⁻¹²⁶ but subnormal ones.
    last = jnp.maximum(jnp.maximum(exponent, kind.minexp) - kind.nmant, -126)
    units = jnp.abs(x) * _power_of_two(-last)  # exact, which a division need not be everywhere
    below = jnp.floor(units)
    size = (below + (coin < units - below)) * _power_of_two(last)
    # What is beyond the largest number overflows, or not, as a cast has it.
    fits = jnp.abs(x) <= float(kind.max)
    return jnp.where(fits, jnp.copysign(size, x) - x, 0)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    power: jax.Array = jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
    return power


def displacement(params: Tree, offset: Tree, steps: jax.typing.ArrayLike, stream: int) -> Tree:
    """How far `moved` moves the parameters, in float32 at least."""
    point = moved(params, offset, steps, stream)

    def of(w: jax.Array, p: jax.Array, d: jax.Array) -> jax.Array:
        return _tree.widen(p) - _tree.widen(w) if _is_coarse(w) else d

    found: Tree = jax.tree.map(of, params, point, offset)
    return found
