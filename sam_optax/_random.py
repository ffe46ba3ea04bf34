"""Random keys that a checkpoint can hold and that every backend reads alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam_optax import _promotion, _shards, _threefry
from sam_optax._contracts import Tree
from sam_optax._shards import Names

IMPLEMENTATION = "threefry2x32"

Key = int | jax.Array


def check(key: Key) -> None:
    """Raises unless key is an int, a `jax.random.key` or a `jax.random.PRNGKey`."""
    if isinstance(key, numbers.Integral) and not isinstance(key, bool):
        if not -(2**63) <= key < 2**63:
            raise ValueError(
                f"key must fit 64 bits, got an integer of {int(key).bit_length()} bits: pass a "
                "smaller one."
            )
        return
    if not isinstance(key, jax.Array):
        raise TypeError(f"key must be an int or a jax.random.key, got {key!r}.")
    raw = key.shape == (2,) and key.dtype == jnp.uint32
    seed = key.shape == () and jnp.issubdtype(key.dtype, jnp.integer)
    if not (raw or seed or (_is_typed(key) and key.shape == ())):
        raise TypeError(
            f"key must be an int or one jax.random.key, got an array {key.dtype}{list(key.shape)}."
        )


def key_data(key: Key, stream: jax.typing.ArrayLike | None = None) -> jax.Array:
    """A new uint32[2], the threefry key of a key that `check` accepts.

    Parts that draw arrays have streams of their own, so that two of them with the same key, such as
    the default, do not share their bits.
    """
    data = _key_data(key)
    return data if stream is None else jax.random.key_data(fold(data, stream))


def _key_data(key: Key) -> jax.Array:
    if not isinstance(key, jax.Array) or (key.shape == () and not _is_typed(key)):
        key = jax.random.key(key, impl=IMPLEMENTATION)
    if not _is_typed(key):
        return jnp.array(key)
    if jax.random.key_impl(key) != IMPLEMENTATION:
        return jax.random.bits(key, (2,), jnp.uint32)
    # a copy, so that a caller who donates the state keeps the key
    return jnp.array(jax.random.key_data(key))


def fold(data: jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
    """The key number `count` of the stream that starts at key data."""
    return jax.random.fold_in(jax.random.wrap_key_data(data, impl=_threefry.prng()), count)


def draw_like(
    sampler: Callable[..., jax.Array],
    data: jax.Array,
    count: jax.typing.ArrayLike,
    tree: Tree,
    *,
    whole: bool = False,
) -> Tree:
    """A tree like `tree` from key number `count`; float32 at least, float64 leaves in float64.

    Where parameters are divided over devices, each draws for its own part; whole says that leaves
    are the same on all of them.
    """
    divided = None if whole else _shards.names(tree)
    drawn: Tree = _draw_like(divided, sampler, data, count, tree)
    return drawn


# Compiled once, also for a caller outside jit, who would trace and compile the loop at each call.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw_like(
    divided: tuple[Names, ...] | None,
    sampler: Callable[..., jax.Array],
    data: jax.Array,
    count: jax.typing.ArrayLike,
    tree: Tree,
) -> Tree:
    def sample(
        key: jax.Array,
        shape: Sequence[int],
        dtype: jax.typing.DTypeLike,
        out_sharding: jax.sharding.Sharding,
    ) -> jax.Array:
        dtype = _promotion.common(jnp.dtype(dtype))
        return sampler(key, shape, dtype, out_sharding=out_sharding)

    tree = jax.tree.map(jnp.asarray, tree)

    def alike(key: jax.Array) -> Tree:
        return _random_like(key, tree, sample, divided)

    def as_in_optax(key: jax.Array) -> Tree:
        return optax.tree.random_like(key, tree, sample)

    drawn: Tree = jax.lax.platform_dependent(
        fold(data, count), cpu=alike, default=alike if divided else as_in_optax
    )
    return drawn


def _random_like(
    key: jax.Array,
    tree: Tree,
    sample: Callable[..., jax.Array],
    divided: tuple[Names, ...] | None,
) -> Tree:
    """The numbers of `optax.tree.random_like`, the leaves of a shape drawn at once.

    For each draw XLA for CPU compiles a kernel of its own, which takes as long as a layer of a
    model. The key of a leaf that is divided is folded with the number of the device's part.
    """
    leaves, structure = jax.tree.flatten(tree)
    alike: dict[Any, list[int]] = {}
    for i, (leaf, names) in enumerate(zip(leaves, divided or [()] * len(leaves), strict=True)):
        kind = leaf.shape, leaf.dtype, jax.typeof(leaf).sharding, names
        alike.setdefault(kind, []).append(i)
    drawn: dict[int, jax.Array] = {}
    for (shape, dtype, sharding, names), indices in alike.items():
        draw = functools.partial(sample, shape=shape, dtype=dtype, out_sharding=sharding)
        # Number i of a split is the key folded with i; XLA takes minutes over a gather from one.
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, np.array(indices))
        if names:
            part = jax.lax.axis_index(names)
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, part)
        drawn |= zip(indices, _once(jax.vmap(draw), keys), strict=True)
    drawn_tree: Tree = jax.tree.unflatten(structure, [drawn[i] for i in range(len(leaves))])
    return drawn_tree


def _once(function: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
    """function(keys), computed once.

    XLA for CPU would copy cheap arithmetic, and a draw is hundreds of operations of it, into
    everything that uses it. Here it stands in a loop of one turn, a number that it does not see.
    """
    like = jax.eval_shape(function, keys)
    data = jax.random.key_data(keys)
    turns = (data[0, 0] | 1) & 1
    # Zeros that vary over the mapped axes over which the keys do, as `shard_map` wants them.
    zeros = jnp.zeros(like.shape, like.dtype, device=like.sharding) + (turns - 1).astype(like.dtype)

    def turn(i: jax.Array, drawn: jax.Array) -> jax.Array:
        del i, drawn
        return function(jax.random.wrap_key_data(data, impl=_threefry.prng()))

    drawn: jax.Array = jax.lax.fori_loop(0, turns.astype(jnp.int32), turn, zeros)
    return drawn


def _is_typed(key: jax.Array) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
