"""Which axes of a leaf make one kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam_optax import _shards
from sam_optax._contracts import Tree
from sam_optax._parts import is_none
from sam_optax._promotion import callers

# (key path, leaf) ↦ axes
AxesOf = Callable[[tuple[Any, ...], Any], Sequence[int]]

# One for all leaves, or a tree of them that is a prefix of the parameters; None for the default.
Kernels = AxesOf | Any


def is_axis(axis: object) -> bool:
    """Whether it may name an axis."""
    return isinstance(axis, int | np.integer) and not isinstance(axis, bool)


def check(kernels: Any) -> None:
    """Raises unless kernels is a function, a tree of them and of gaps, or None."""
    for leaf in jax.tree.leaves(kernels):
        if not callable(leaf):
            raise TypeError(
                "kernels must be a function (key path, leaf) -> axes, such as "
                "sam_optax.start.kernel_axes(out_axis=0), or a tree of such functions that is a "
                f"prefix of the parameters, got {leaf!r}: name the axes by kernel_axes."
            )


def mark(kernels: Kernels, default: AxesOf, params: Tree) -> Tree:
    """The axes of the kernels as a tree without leaves, which a state can hold."""
    if not jax.tree.leaves(params):  # as those by which optax.tree.map_params asks for their places
        return params
    whole = jax.tree.map(lambda f: default if f is None else f, kernels, is_leaf=is_none)
    try:
        functions = jax.tree.broadcast(whole, params)
    except ValueError as error:
        raise ValueError(
            "kernels must be a function (key path, leaf) -> axes or a tree of such functions that "
            f"is a prefix of the parameters, got {kernels!r}: {error}"
        ) from error

    def marked(path: tuple[Any, ...], w: Any, function: AxesOf) -> tuple[Any, ...]:
        leaf = _shards.whole(path, w)
        with callers():
            axes = function(path, leaf)
        ndim = jnp.ndim(w)
        if isinstance(axes, str) or not (
            isinstance(axes, Sequence)
            and all(is_axis(axis) and -ndim <= axis < ndim for axis in axes)
        ):
            raise ValueError(
                f"kernels must return the axes of one kernel, a tuple of integers from {-ndim} to "
                f"{ndim - 1}, for params{jax.tree_util.keystr(path)}, got {axes!r}."
            )
        inside = {axis % ndim for axis in axes}
        return tuple(
            [optax.EmptyState() if i in inside else optax.MaskedNode() for i in range(ndim)]
        )

    marks: Tree = jax.tree.map_with_path(marked, params, functions)
    return marks


def marked_axes(marks: Tree, params: Tree) -> Any:
    """The tree of axes that `mark` has made this one of."""
    structure: Any = jax.tree.structure(params)
    axes = [
        tuple([i for i, node in enumerate(nodes) if isinstance(node, optax.EmptyState)])
        for nodes in structure.flatten_up_to(marks)
    ]
    return jax.tree.unflatten(structure, axes)
