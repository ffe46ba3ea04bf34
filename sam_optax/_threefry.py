"""Threefry-2x32 (Salmon et al. 2011) for `jax.random`, with its rounds written out.

The numbers are JAX's own, with `jax_threefry_partitionable` as it comes. JAX compiles the rounds
for CPU to a loop through memory, which costs ten times as much, and more than a gradient of a small
model.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def _rounds(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Twenty rounds on two words, uint32 arrays of one shape."""
    words = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(PARITY))
    x, y = x + words[0], y + words[1]
    for i in range(5):
        for distance in ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(distance)) | (y >> np.uint32(32 - distance)))
        x = x + words[(i + 1) % 3]
        y = y + (words[(i + 2) % 3] + np.uint32(i + 1))  # of scalars first
    return x, y


def _number(shape: Sequence[int]) -> jax.Array:
    """The number of each element, in an array that a partitioner can divide along any axis."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    iotas = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape)))
    number = jnp.zeros(shape, jnp.uint32)
    return sum((np.uint32(s) * i for s, i in zip(strides, iotas, strict=True)), number)


def _bits(key: jax.Array, bit_width: int, shape: Sequence[int]) -> jax.Array:
    if bit_width not in (32, 64) or math.prod(shape) > 2**32:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.bits(key, shape, jnp.dtype(f"uint{bit_width}"))
    number = _number(shape)
    high, low = _rounds(key, jnp.zeros_like(number), number)
    if bit_width == 32:
        return high ^ low
    return high.astype(jnp.uint64) << np.uint64(32) | low.astype(jnp.uint64)


def _split(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    number = _number(shape)
    return jnp.stack(_rounds(key, jnp.zeros_like(number), number), axis=-1)


def _seed(seed: jax.typing.ArrayLike) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _fold_in(key: jax.Array, data: jax.typing.ArrayLike) -> jax.Array:
    return jnp.stack(_rounds(key, *_seed(data)))


@functools.cache
def prng() -> Any:
    """The implementation, for `jax.random.wrap_key_data`."""
    import jax.extend  # takes longer than all the rest of this package

    return jax.extend.random.define_prng_impl(
        key_shape=(2,),
        seed=_seed,
        split=_split,
        random_bits=_bits,
        fold_in=_fold_in,
        name="sam_optax_threefry2x32",
        tag="sam",
    )
