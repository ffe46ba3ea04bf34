"""Parameters of one model that are divided over mapped axes, as in tensor parallelism.

Inside `jax.shard_map` or `jax.pmap` a device sees its own part of an array. Norms, products and
draws of the whole are then those of all parts together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


class Layout(NamedTuple):
    """How parameters lie on the devices; hashable, since programs are kept by it.

    Attributes:
      cuts: the leaves that are divided, by their key paths.
      unclear: mapped axes along which all differ, whether they are divided over them or not.
      apart: mapped axes along which each device has an optimizer of its own.
    """

    cuts: tuple[tuple[Path, Cut], ...] = ()
    unclear: frozenset[Any] = frozenset()
    apart: frozenset[Any] = frozenset()


NOWHERE = Layout()
# While a step is traced.
_layout: contextvars.ContextVar[Layout] = contextvars.ContextVar("layout", default=NOWHERE)


@contextlib.contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Inside it norms, products and draws are those of the whole."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def current() -> Layout:
    """The layout in force."""
    return _layout.get()


def compiled(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """One program for a caller outside jit; inside jit it is no call."""

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def program(layout: Layout, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        del layout  # that in force, which the program is kept by
        return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        result: Result = program(_layout.get(), *args, **kwargs)
        return result

    return call


def axes() -> frozenset[Any]:
    """All mapped axes over which something is divided."""
    return frozenset([name for _, cut in _layout.get().cuts for name in cut.names])


def joint(varying: frozenset[Any]) -> Names:
    """The mapped axes of one optimizer, where something varies along these."""
    return _axes.ordered((varying - _layout.get().apart) | axes())


def _cuts() -> dict[Path, Cut]:
    """The leaves that are divided.

    Raises:
      ValueError: it is not known which are.
    """
    if unclear := _layout.get().unclear:
        raise ValueError(
            f"all parameters differ between the devices along {_axes.listed(unclear)}, so they may "
            "be parts of one model, whose norms are sums over the devices, or each device's own, "
            "whole: pass param_specs=specs to the update (and to gradient_point), the "
            "PartitionSpecs that in_specs of jax.shard_map has for the parameters, or "
            "param_specs=jax.sharding.PartitionSpec() where each device has all of them."
        )
    return dict(_layout.get().cuts)


def names(tree: Tree) -> tuple[Names, ...] | None:
    """For each leaf the mapped axes over which it is divided; None where nothing is."""
    if not (cuts := _cuts()):
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
    whole: list[jax.Array] = [jax.lax.psum(sum(some), axes) for axes, some in apart.items()]
    return sum([*own, *whole], jnp.zeros([], jnp.float32))


def whole(path: Path, leaf: Any) -> Any:
    """What has the shape of a leaf, of all its parts together; the leaf where no layout is known.

    Raises:
      ValueError: it is not known which axis of the leaf is divided.
    """
    if _layout.get() is NOWHERE:
        return leaf
    shape, cut = list(jnp.shape(leaf)), _cuts().get(path)
    if cut is not None and len(shape) > 1:
        if cut.by_axis is None:
            raise ValueError(
                f"the noise of params{jax.tree_util.keystr(path)} follows the norms of its "
                f"kernels, and which of its axes is divided over {_axes.listed(cut.names)} is not "
                "known: pass param_specs=specs to the update (and to gradient_point), the "
                "PartitionSpecs that in_specs of jax.shard_map has for the parameters."
            )
        shape = [n * jax.lax.axis_size(by) for n, by in zip(shape, cut.by_axis, strict=True)]
    return jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(leaf))


def over(path: Path, inside: Sequence[int]) -> Names:
    """The mapped axes over which these axes of a leaf are divided, where `whole` has seen it."""
    cut = _cuts().get(path)
    if cut is None:
        return ()
    if cut.by_axis is None:  # it has one axis
        return cut.names
    return tuple([name for i in inside for name in cut.by_axis[i]])


def found(params: Tree, updates: Tree | None, steps: jax.Array, param_specs: Any) -> Layout:
    """How the parameters are divided, as far as `jax.shard_map` keeps count of it, or as is told.

    Args:
      params: the parameters.
      updates: their gradient; None where there is none yet.
      steps: the count of a link.
      param_specs: of the caller; None where nothing is told.

    Raises:
      ValueError: what is told does not fit.
      TypeError: what is told is no PartitionSpec.
    """
    leaves = jax.tree.leaves_with_path(params)
    if param_specs is not None:
        return Layout(_told(leaves, param_specs), apart=_axes.varying(steps))
    if not any(isinstance(leaf, jax.core.Tracer) for _, leaf in leaves):
        return NOWHERE
    where = [_axes.varying(leaf) for _, leaf in leaves]
    every = frozenset.intersection(*where)
    # Over one device nothing is divided, and nothing unclear.
    unclear = frozenset([name for name in every if jax.lax.axis_size(name) > 1])
    divided = frozenset[Any]().union(*where) - unclear
    if updates is not None:  # an average is no part of anything
        unclear &= frozenset[Any]().union(*map(_axes.varying, jax.tree.leaves(updates)))
    cuts = [(path, own & divided) for (path, _), own in zip(leaves, where, strict=True)]
    known = tuple([(path, Cut(_axes.ordered(own), None)) for path, own in cuts if own])
    return Layout(known, unclear, _axes.varying(steps))


def _told(leaves: Sequence[tuple[Path, Any]], param_specs: Any) -> tuple[tuple[Path, Cut], ...]:
    """The leaves that are divided by the specs of the caller, a prefix of their tree."""

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
        _check_told(path, leaf, by_axis)
        by_axis += [()] * (jnp.ndim(leaf) - len(by_axis))
        cuts.append(
            (path, Cut(_axes.ordered(name for by in by_axis for name in by), tuple(by_axis)))
        )
    told = frozenset([name for _, cut in cuts for name in cut.names])
    for (path, leaf), (_, cut) in zip(leaves, cuts, strict=True):
        if lacking := (_axes.varying(leaf) & told).difference(cut.names):
            raise ValueError(
                f"param_specs divides other parameters over {_axes.listed(lacking)} and not params"
                f"{jax.tree_util.keystr(path)}, which differs along it: pass the PartitionSpecs "
                "that in_specs of jax.shard_map has. Where a test of each device's own part has "
                "chosen it, make the test one for all, as jax.lax.pmin(finite.astype(int), axis) "
                "> 0."
            )
    return tuple([(path, cut) for path, cut in cuts if cut.names])


def _check_told(path: Path, leaf: Any, by_axis: Sequence[Names]) -> None:
    """Raises where a leaf cannot be divided as it is told."""
    here = f"params{jax.tree_util.keystr(path)}"
    if len(by_axis) > jnp.ndim(leaf):
        raise ValueError(
            f"param_specs has {len(by_axis)} axes for {here}, which has {jnp.ndim(leaf)}: pass the "
            "PartitionSpec of the array as one device sees it."
        )
    for name in [name for axes in by_axis for name in axes]:
        try:
            counts = bool(_axes.varying(jax.lax.axis_index(name)))
        except NameError:
            raise ValueError(
                f"param_specs divides {here} over {name!r}, which is no mapped axis here: name "
                "mapped axes alone, and leave param_specs away outside jax.shard_map and "
                "jax.pmap, where JAX sees whole arrays."
            ) from None
        if counts and name not in _axes.varying(leaf):
            raise ValueError(
                f"param_specs divides {here} over {name!r}, along which it is the same on all "
                "devices: pass the PartitionSpecs that in_specs of jax.shard_map has."
            )
