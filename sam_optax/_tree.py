"""Global inner products and norms over whole pytrees, in float32 at least."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sam_optax import _axes, _promotion, _shards
from sam_optax._contracts import Tree

# The smallest norm that is divided by: unit(0) is 0 and not NaN.
TINY = 1e-12

# It says of its result that it is a tree.
_map: Callable[..., Tree] = jax.tree.map


def widen(x: jax.typing.ArrayLike) -> jax.Array:
    """x in float32 at least; float64 stays float64."""
    x = jnp.asarray(x)
    return x.astype(_promotion.common(x.dtype))


def combine(function: Callable[..., jax.Array], *trees: Tree) -> Tree:
    """function, leaf by leaf, of the widened leaves."""
    return _map(lambda *leaves: function(*map(widen, leaves)), *trees)


def zeros_like(tree: Tree) -> Tree:
    """Zeros in float32 at least, of shapes too."""
    return _map(lambda x: jnp.zeros_like(x, dtype=_promotion.common(jnp.result_type(x))), tree)


def vdot(a: Tree, b: Tree) -> jax.Array:
    """⟨a, b⟩ over all leaves."""
    return _shards.total(combine(lambda x, y: jnp.sum(x * y), a, b))


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """√x, with a derivative of 0 at 0: the subgradient of a norm that its symmetry picks."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    # The inner choice is for the derivative of this one.
    slope = jnp.where(x > 0, 0.5 / root(jnp.where(x > 0, x, 1)), 0)
    return root(x), slope * tangent


def norm(a: Tree) -> jax.Array:
    """‖a‖ over all leaves."""
    return root(vdot(a, a))


@jax.custom_jvp
def _where_long(x: jax.Array, length: jax.Array) -> jax.Array:
    """x, whose derivative is 0 where its tree has no direction."""
    del length
    return x


@_where_long.defjvp
def _where_long_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, length), (tangent, _) = primals, tangents
    return x, tangent * (length > TINY)


def towards(a: Tree, length: jax.typing.ArrayLike) -> Tree:
    """length · unit(a).

    It jumps at 0, where its slope, 1 / TINY, is that of no direction: there its derivative is 0.
    """
    size = norm(a)
    scale = 1 / jnp.maximum(size, TINY) * length
    return combine(lambda x: scale * _where_long(x, size), a)


def norms(a: Tree) -> Tree:
    """‖a_l‖ of each leaf l, over all its parts where it is divided."""

    def of(path: _shards.Path, leaf: jax.Array) -> jax.Array:
        squared = jnp.sum(jnp.square(widen(leaf)))
        if names := _shards.over(path, range(leaf.ndim)):
            squared = jax.lax.psum(squared, names)
        return root(squared)

    found: Tree = jax.tree.map_with_path(of, a)
    return found


def each_towards(a: Tree, lengths: Tree) -> Tree:
    """length_l · unit(a_l) of each leaf l."""

    def towards(x: jax.Array, size: jax.Array, length: jax.Array) -> jax.Array:
        return 1 / jnp.maximum(size, TINY) * length * _where_long(x, size)

    return combine(towards, a, norms(a), lengths)


def along(a: Tree, b: Tree) -> jax.Array:
    """⟨a, unit(b)⟩ / ‖b‖, the share c with which c b is the part of `a` along b; 0 where b = 0.

    It ends in a division, which XLA computes once: a bare sum over the leaves it would repeat in
    each leaf that uses it, and take minutes to compile where there are hundreds.
    """
    # The unit vector goes into the product, which could overflow with b itself.
    return vdot(a, towards(b, 1.0)) / jnp.maximum(norm(b), TINY)


def reject(a: Tree, b: Tree) -> Tree:
    """The part of `a` orthogonal to `b`: a − ⟨a, unit(b)⟩ unit(b), and `a` where b = 0."""
    share = along(a, b)
    return combine(lambda x, y: x - share * y, a, b)


def add(params: Tree, delta: Tree) -> Tree:
    """params + delta, each leaf in the dtype of the parameters."""
    return _map(lambda p, d: p + d, params, cast_like(delta, params))


def placed_like(tree: Tree, reference: Tree) -> Tree:
    """tree, divided over an explicit mesh as reference is, and varying where it does.

    reference holds arrays, or the types of some.
    """
    return _map(_placed, tree, reference)


def _placed(x: jax.Array, reference: Any) -> jax.Array:
    x = _axes.vary(x, _axes.varying(reference))
    is_type = isinstance(reference, jax.core.AbstractValue)
    kind: Any = reference if is_type else jax.typeof(reference)
    wanted = kind.sharding
    is_explicit = jax.sharding.AxisType.Explicit in wanted.mesh.axis_types
    if not is_explicit or jax.typeof(x).sharding == wanted:
        return x
    placed: jax.Array = jax.sharding.reshard(x, wanted)
    return placed


def cast_like(tree: Tree, reference: Tree) -> Tree:
    """tree in the dtypes of reference, and divided over an explicit mesh as it is."""

    def cast(x: jax.Array, r: jax.typing.ArrayLike) -> jax.Array:
        x = _placed(x, r) if hasattr(x, "dtype") else x
        # result_type, which only numbers need, takes longer than a small gradient
        if hasattr(x, "dtype") and x.dtype == getattr(r, "dtype", None):
            return x
        return jnp.asarray(x).astype(jnp.result_type(r))

    return _map(cast, tree, reference)


def scalar(value: jax.typing.ArrayLike, params: Tree | None) -> jax.Array:
    """A new scalar in the dtype of the statistics: float32, or float64 for float64 params."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    return jnp.array(value, _promotion.common(*dtypes))
