"""Whether a gradient is finite, and what to take where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from sam_optax import _axes, _shards
from sam_optax._contracts import Tree

T = TypeVar("T")


def is_finite(gradient: Tree, params: Tree) -> jax.Array:
    """Whether all numbers of a gradient are finite, alike wherever the parameters are.

    It is over the devices along which `shard_map` says that the gradient may differ, but those
    with an optimizer of their own; over those with other parts of the parameters; and over mapped
    gradients at parameters that are not mapped.
    """
    finite: jax.Array = _is_finite(*jax.lax.stop_gradient((gradient, params)))
    if axes := _shards.joint(_axes.varying(finite)):
        finite = jax.lax.pmin(finite.astype(jnp.int32), axes) > 0
    return finite


def _all_finite(gradient: Tree) -> jax.Array:
    """It is told by a division, which XLA computes once.

    A bare conjunction over the leaves it would repeat in each leaf that uses the result.
    """
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]
    lost = sum([1 - flag.astype(jnp.float32) for flag in finite], jnp.zeros([], jnp.float32))
    return 1 / (1 + lost) == 1


@jax.custom_batching.custom_vmap
def _is_finite(gradient: Tree, params: Tree) -> jax.Array:
    del params
    return _all_finite(gradient)


@_is_finite.def_vmap
def _is_finite_vmap(
    axis_size: int, in_batched: Any, gradient: Tree, params: Tree
) -> tuple[jax.Array, bool]:
    del axis_size
    if not any(jax.tree.leaves(in_batched[1])):  # micro-batches: one step, and one answer
        return _is_finite(gradient, params), False
    axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, in_batched[0])
    if not any(jax.tree.leaves(in_batched[0])):
        return _all_finite(gradient), False
    return jax.vmap(_all_finite, in_axes=(axes,))(gradient), True


def choose(finite: jax.Array, yes: Callable[[], T], no: Callable[[], T]) -> T:
    """yes() or no(), one alone where it is known which."""
    if not isinstance(finite, jax.core.Tracer):
        return yes() if finite else no()
    chosen: T = optax.tree.where(finite, yes(), no())
    return chosen
