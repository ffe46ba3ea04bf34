"""The part of a tree that a method lives on: prune the rest away, and merge it in again.

What is pruned is None, which JAX takes for a node without leaves: no part of a method sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam_optax._contracts import Tree
from sam_optax._promotion import callers

T = TypeVar("T")

ASKED = "a tree of booleans that is a prefix of the parameters, or a function of them"


def is_none(node: object) -> bool:
    """Whether a node is a gap."""
    return node is None


class Part:
    """Some leaves of a tree.

    Attributes:
      structure: of the whole tree, where None is a leaf.
      inside: for each leaf whether it belongs to the part.
    """

    def __init__(self, structure: Any, inside: Sequence[bool]) -> None:
        self.structure, self.inside = structure, tuple(inside)
        self._is_whole = all(inside)

    def prune(self, tree: Tree) -> Tree:
        """The tree with None for the rest."""
        if self._is_whole:
            return tree
        leaves = self.structure.flatten_up_to(tree)
        return self._unflatten(
            [leaf if i else None for leaf, i in zip(leaves, self.inside, strict=True)]
        )

    def merge(self, tree: Tree, rest: Tree) -> Tree:
        """A pruned tree, with what it lacks from another one."""
        if self._is_whole:
            return tree
        leaves = zip(*map(self.structure.flatten_up_to, (tree, rest)), self.inside, strict=True)
        return self._unflatten([mine if i else other for mine, other, i in leaves])

    def within(self, function: Callable[..., T], params: Tree) -> Callable[..., T]:
        """A function of the parameters as one of the pruned ones, the rest closed over."""
        if self._is_whole:
            return function

        @functools.wraps(function)
        def of_part(pruned: Tree, *args: Any, **kwargs: Any) -> T:
            return function(self.merge(pruned, params), *args, **kwargs)

        return of_part

    def prune_alike(self, params: Tree, extra: dict[str, Any]) -> dict[str, Any]:
        """Extra arguments, those pruned that are trees of the structure and shapes of params."""
        if self._is_whole or jax.tree_util.all_leaves([params]):  # any number is like one
            return extra
        shaped = _shaped(params)
        return {
            name: self.prune(tree) if _shaped(tree) == shaped else tree
            for name, tree in extra.items()
        }

    def prune_inside(self, params: Tree, state: Any) -> Any:
        """A state, those trees in it pruned that have the structure and shapes of params."""
        if self._is_whole or jax.tree_util.all_leaves([params]):
            return state
        shaped = _shaped(params)

        def is_alike(node: Any) -> bool:
            return _shaped(node) == shaped

        return jax.tree.map(
            lambda node: self.prune(node) if is_alike(node) else node, state, is_leaf=is_alike
        )

    def mark(self) -> Tree:
        """The part as a tree without leaves, which a state can hold."""
        nodes = [optax.EmptyState() if i else optax.MaskedNode() for i in self.inside]
        return self._unflatten(nodes)

    def _unflatten(self, leaves: list[Any]) -> Tree:
        tree: Tree = jax.tree.unflatten(self.structure, leaves)
        return tree


def _shaped(tree: Tree) -> tuple[Any, list[Any]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [getattr(leaf, "shape", None) for leaf in leaves]


class MaskedState(NamedTuple):
    """State of `masked`.

    Attributes:
      inner_state: of the link, on the part.
      part: which leaves of the parameters are in it, as a tree without leaves.
    """

    inner_state: optax.OptState
    part: Any


def marked(mark: Tree) -> Part:
    """The part that `Part.mark` has made this tree of."""
    kinds = (optax.EmptyState, optax.MaskedNode)
    nodes, structure = jax.tree.flatten(mark, is_leaf=lambda node: isinstance(node, kinds))
    return Part(structure, [isinstance(node, optax.EmptyState) for node in nodes])


# By structure and dtypes, so that a step outside jit does not look again.
_known: dict[Hashable, Part] = {}


def trainable(params: Tree) -> Part:
    """The real arrays and numbers, of any precision: what has a gradient.

    Raises:
      ValueError: the parameters hold an `optax.MaskedNode`.
      TypeError: they hold complex numbers.
    """
    leaves, structure = jax.tree.flatten(params)
    key = structure, tuple([getattr(leaf, "dtype", type(leaf)) for leaf in leaves])
    if key not in _known:
        _refuse(params)
        leaves, structure = jax.tree.flatten(params, is_leaf=is_none)
        _known[key] = Part(structure, list(map(_is_trainable, leaves)))
    return _known[key]


def _refuse(params: Tree) -> None:
    """Raises for the first leaf that is masked or complex."""
    for path, node in jax.tree.leaves_with_path(params, is_leaf=is_masked):
        if is_masked(node):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is an optax.MaskedNode, so grad_fn cannot be "
                "evaluated: in place of optax.masked around this link take sam_optax.masked(link, "
                "mask), which trains a part alone; for groups of different radii put "
                "optax.partition into the perturb slot."
            )
        if isinstance(node, complex) or getattr(getattr(node, "dtype", None), "kind", "") == "c":
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is complex, which is not supported: hold its "
                "real and imaginary part as two leaves, and join them by jax.lax.complex in the "
                "loss."
            )


def is_masked(node: object) -> bool:
    """Whether a node stands for what Optax hides."""
    return isinstance(node, optax.MaskedNode)


def hide_as(masked: Tree, tree: Tree) -> Tree:
    """A tree, without what one of Optax's masks has left out of another one."""
    hidden: Tree = jax.tree.map(
        lambda node, other: node if is_masked(node) else other, masked, tree, is_leaf=is_masked
    )
    return hidden


def _is_trainable(leaf: object) -> bool:
    if isinstance(leaf, type):  # such as np.float32, whose numbers have a dtype
        return False
    return is_inexact(leaf.dtype) if hasattr(leaf, "dtype") else isinstance(leaf, float)


@functools.cache
def is_inexact(dtype: Any) -> bool:
    """Whether numbers of a dtype are real or complex; float0 is none of them."""
    return jnp.issubdtype(dtype, jnp.inexact)


def _is_boolean(leaf: Any) -> bool:
    """Of Python, NumPy or, where its value is known, JAX."""
    return isinstance(leaf, bool | np.bool_) or (
        isinstance(leaf, np.ndarray | jax.Array)
        and not isinstance(leaf, jax.core.Tracer)
        and (leaf.shape, leaf.dtype) == ((), np.bool_)
    )


def is_function(mask: Any) -> bool:
    """Whether it is to be called; a module of booleans may be called too, but is a tree."""
    leaves = jax.tree.leaves(mask)
    is_tree = bool(leaves) and all(map(_is_boolean, leaves))
    return callable(mask) and not is_tree


def check_mask(name: str, mask: Any) -> None:
    """Raises where an argument of this name is neither a function nor a tree of booleans."""
    if mask is None:
        raise TypeError(f"{name} must be {ASKED}, got None: pass True for all leaves.")
    if not is_function(mask):
        check_booleans(name, mask)


def check_booleans(name: str, tree: Tree) -> None:
    """Raises unless the leaves of a mask are booleans; a gap is no leaf."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not _is_boolean(leaf):
            raise TypeError(
                f"{name} must be {ASKED}, got {leaf!r} at {at(path)}: pass True or False."
            )


def chosen(name: str, mask: Any, params: Tree) -> Part:
    """The part that a mask, an argument of this name, chooses of the parameters.

    None counts as False, so that a tree with gaps can be the mask's. What has no gradient is never
    in it.
    """
    if not jax.tree.leaves(params):  # as those by which optax.tree.map_params asks for their places
        return trainable(params)
    found = mask
    if is_function(mask):
        with callers():
            found = mask(params)
        check_booleans(name, found)
    found = jax.tree.map(lambda leaf: False if leaf is None else leaf, found, is_leaf=is_none)
    leaves, structure = jax.tree.flatten(params, is_leaf=is_none)
    try:
        booleans = jax.tree.broadcast(found, jax.tree.unflatten(structure, range(len(leaves))))
    except ValueError as error:
        raise ValueError(f"{name} must be {ASKED}, got {found!r}: {error}") from error
    inside = zip(jax.tree.leaves(booleans), leaves, strict=True)
    return Part(structure, [bool(i) and _is_trainable(leaf) for i, leaf in inside])


def at(path: tuple[Any, ...]) -> str:
    """A key path for a message."""
    return jax.tree_util.keystr(path) or "its root"
