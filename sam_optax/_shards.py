"""Parameters of one model that are divided over mapped axes, as in tensor parallelism.

Inside `jax.shard_map` or `jax.pmap` a device sees its own part of an array. Norms, products and
draws of the whole are then those of all parts together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import contextvars
import functools
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from sam_optax import _axes
from sam_optax._contracts import Tree
from sam_optax._parts import at

Path = tuple[Any, ...]
Names = tuple[Any, ...]
Args = ParamSpec("Args")
Result = TypeVar("Result")

SPEC = jax.sharding.PartitionSpec


class Cut(NamedTuple):
    """How one leaf is divided.

    Attributes:
      names: the mapped axes over which it is.
      by_axis: those of each axis of the leaf; None where it is not known which it is.
    """

    names: Names
    by_axis: tuple[Names, ...] | None


# The leaves that are divided, while a step is traced; hashable, since programs are kept by it.
Cuts = tuple[tuple[Path, Cut], ...]
_cuts: contextvars.ContextVar[Cuts] = contextvars.ContextVar("cuts", default=())


@contextlib.contextmanager
def divided(cuts: Cuts) -> Iterator[None]:
    """Inside it norms, products and draws are those of the whole."""
    token = _cuts.set(cuts)
    try:
        yield
    finally:
        _cuts.reset(token)


def compiled(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """One program for a caller outside jit; inside jit it is no call."""

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def program(cuts: Cuts, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        del cuts  # those in force, which the program is kept by
        return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        result: Result = program(_cuts.get(), *args, **kwargs)
        return result

    return call


def axes() -> frozenset[Any]:
    """All mapped axes over which something is divided."""
    return frozenset([name for _, cut in _cuts.get() for name in cut.names])


def names(tree: Tree) -> tuple[Names, ...] | None:
    """For each leaf the mapped axes over which it is divided; None where nothing is."""
    if not (cuts := dict(_cuts.get())):
        return None
    paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
    return tuple([cuts[path].names if path in cuts else () for path in paths])


def total(sums: Tree) -> jax.Array:
    """The sum of a tree of sums over leaves, each over the whole leaf."""
    leaves, where = jax.tree.leaves(sums), names(sums)
    apart: dict[Names, list[jax.Array]] = {}
    for leaf, axes in zip(leaves, where or [()] * len(leaves), strict=True):
        apart.setdefault(axes, []).append(leaf)
    own = apart.pop((), [])
    joint: list[jax.Array] = [jax.lax.psum(sum(some), axes) for axes, some in apart.items()]
    return sum([*own, *joint], jnp.zeros([], jnp.float32))


def over(path: Path, inside: Sequence[int], ndim: int) -> Names:
    """The mapped axes over which these axes of a leaf are divided.

    Raises:
      ValueError: it is not known which axis of the leaf is.
    """
    cut = dict(_cuts.get()).get(path)
    if cut is None:
        return ()
    if len(inside) == ndim:
        return cut.names
    if cut.by_axis is None:
        raise ValueError(
            f"the noise of params{jax.tree_util.keystr(path)} follows the norms of its kernels, "
            f"and which of its axes is divided over {_listed(cut.names)} is not known: pass "
            "update(..., param_specs=specs), the PartitionSpecs that in_specs of jax.shard_map has "
            "for the parameters."
        )
    return tuple([name for i in inside for name in cut.by_axis[i]])


def found(params: Tree, updates: Tree | None, steps: jax.Array, param_specs: Any) -> Cuts:
    """How the parameters are divided, as far as `jax.shard_map` keeps count of it, or as is told.

    Args:
      params: the parameters.
      updates: their gradient; None where there is none yet.
      steps: the count of a link.
      param_specs: of the caller; None where nothing is told.

    Raises:
      ValueError: it cannot be known, or what is told does not fit.
      TypeError: what is told is no PartitionSpec.
    """
    leaves = jax.tree.leaves_with_path(params)
    if param_specs is not None:
        return _told(leaves, param_specs)
    if not any(isinstance(leaf, jax.core.Tracer) for _, leaf in leaves):
        return ()
    where = [_axes.varying(leaf) for _, leaf in leaves]
    some = frozenset[Any]().union(*where) - _axes.varying(steps)  # else each has its own optimizer
    if some and updates is not None:  # an average is no part of anything
        some &= frozenset[Any]().union(*map(_axes.varying, jax.tree.leaves(updates)))
    if unclear := some.intersection(*where):
        raise ValueError(
            "all parameters differ between the devices along "
            f"{_listed(unclear)}, so they may be parts of one model, whose norms are sums over "
            "the devices, or each device's own, whole: pass update(..., param_specs=specs), the "
            "PartitionSpecs that in_specs of jax.shard_map has for the parameters, or "
            "param_specs=jax.sharding.PartitionSpec() where each device has all of them."
        )
    cuts = [(path, own & some) for (path, _), own in zip(leaves, where, strict=True)]
    return tuple([(path, Cut(_ordered(own), None)) for path, own in cuts if own])


def _told(leaves: Sequence[tuple[Path, Any]], param_specs: Any) -> Cuts:
    """How the parameters are divided by the specs of the caller, a prefix of their tree."""

    def is_spec(node: object) -> bool:
        return node is None or isinstance(node, SPEC)

    specs = dict(jax.tree.leaves_with_path(param_specs, is_leaf=is_spec))
    for path, spec in specs.items():
        if not is_spec(spec):
            raise TypeError(
                "param_specs must be a jax.sharding.PartitionSpec or a tree of them that is a "
                f"prefix of the parameters, got {spec!r} at {at(path)}: of a NamedSharding take "
                "its spec."
            )
    counts = any(_axes.varying(leaf) for _, leaf in leaves)
    cuts = []
    for path, leaf in leaves:
        prefixes = [path[:length] for length in range(len(path) + 1) if path[:length] in specs]
        if not prefixes:
            raise ValueError(
                "param_specs must be a prefix of the parameters, and lacks params"
                f"{jax.tree_util.keystr(path)}: give it jax.sharding.PartitionSpec() where it is "
                "whole."
            )
        by_axis = [() if axes is None else _axes.names(axes) for axes in specs[prefixes[0]] or ()]
        _check_told(path, leaf, by_axis, counts)
        by_axis += [()] * (jnp.ndim(leaf) - len(by_axis))
        if own := _ordered(name for axes in by_axis for name in axes):
            cuts.append((path, Cut(own, tuple(by_axis))))
    return tuple(cuts)


def _check_told(path: Path, leaf: Any, by_axis: Sequence[Names], counts: bool) -> None:
    """Raises where a leaf cannot be divided as it is told."""
    here = f"params{jax.tree_util.keystr(path)}"
    if len(by_axis) > jnp.ndim(leaf):
        raise ValueError(
            f"param_specs has {len(by_axis)} axes for {here}, which has {jnp.ndim(leaf)}: pass the "
            "PartitionSpec of the array as one device sees it."
        )
    for name in [name for axes in by_axis for name in axes]:
        try:
            jax.lax.axis_size(name)
        except NameError:
            raise ValueError(
                f"param_specs divides {here} over {name!r}, which is no mapped axis here: outside "
                "jax.shard_map and jax.pmap, where JAX sees whole arrays, leave param_specs away."
            ) from None
        if counts and name not in _axes.varying(leaf):
            raise ValueError(
                f"param_specs divides {here} over {name!r}, along which it is the same on all "
                "devices: pass the PartitionSpecs that in_specs of jax.shard_map has."
            )


def _ordered(axes: Iterable[Any]) -> Names:
    return tuple(sorted(axes, key=str))


def _listed(axes: Iterable[Any]) -> str:
    return " and ".join(map(repr, _ordered(axes)))
