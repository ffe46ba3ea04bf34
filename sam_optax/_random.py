"""Random keys that a checkpoint can hold and that every backend reads alike."""

import numbers

import jax
import jax.numpy as jnp

IMPLEMENTATION = "threefry2x32"

Key = int | jax.Array


def key_data(key: Key) -> jax.Array:
    """uint32[2], the threefry key of an int, a `jax.random.key` or a `jax.random.PRNGKey`."""
    if isinstance(key, numbers.Integral):
        key = jnp.asarray(key)
    if not isinstance(key, jax.Array):
        raise TypeError(f"key must be an int or a jax.random.key, got {key!r}.")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if jax.random.key_impl(key) == IMPLEMENTATION:
            return jax.random.key_data(key)
        return jax.random.bits(key, (2,), jnp.uint32)
    if key.shape == (2,) and key.dtype == jnp.uint32:
        return key
    if key.shape == () and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key_data(jax.random.key(key, impl=IMPLEMENTATION))
    raise TypeError(
        f"key must be an int or a jax.random.key, got an array of {key.dtype}{key.shape}."
    )


def fold(data: jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
    """The key number `count` of the stream that starts at key data."""
    return jax.random.fold_in(jax.random.wrap_key_data(data, impl=IMPLEMENTATION), count)
