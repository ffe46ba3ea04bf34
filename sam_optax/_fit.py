"""Whether a gradient fits the parameters: structure, shapes and kinds of dtype, leaf by leaf."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sam_optax._contracts import Tree
from sam_optax._parts import Part, at, is_inexact, is_masked, is_none, trainable

Path = tuple[Any, ...]


def check(name: str, gradient: Any, part: Part, params: Tree) -> None:
    """Raises unless each leaf of a part has its gradient.

    Args:
      name: of the gradient, for the message.
      gradient: anything for the rest of the parameters.
      part: the leaves that matter.
      params: the whole parameters.

    Raises:
      ValueError: naming the key path, what was expected, what was found and the likely cause.
    """
    try:
        leaves = part.structure.flatten_up_to(gradient)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must have the structure of params: {_difference(params, gradient, ())}"
        ) from None
    wanted = part.structure.flatten_up_to(params)
    for i, (leaf, param, inside) in enumerate(zip(leaves, wanted, part.inside, strict=True)):
        if inside and not (_fits(leaf, param) and jax.tree_util.all_leaves([leaf])):
            path, _ = jax.tree.leaves_with_path(params, is_leaf=is_none)[i]
            raise ValueError(f"{name}{jax.tree_util.keystr(path)} {_misfit(leaf, param)}")


def checked_offset(found: Any, state: Any, first: Tree, params: Tree) -> Tree:
    """ε, without what is in the gaps of the parameters.

    Raises unless it fits them, and where a mask of Optax's has left a leaf of the gradient in it.
    """
    part = trainable(params)
    check("what perturb returns", found, part, params)
    epsilon: Tree = part.prune(found)
    pairs = zip(jax.tree.leaves_with_path(epsilon), jax.tree.leaves(first), strict=True)
    raw = [path for (path, offset), gradient in pairs if offset is gradient]
    if raw and _has_mask(state):
        raise ValueError(
            f"what perturb returns{jax.tree_util.keystr(raw[0])} is the gradient itself, as "
            "optax.masked hands on what it leaves out: take sam_optax.perturb.only(mask, part), "
            "whose offset is 0 there, or optax.scale(1.0) where the gradient is the offset you "
            "mean."
        )
    return epsilon


def _has_mask(state: Any) -> bool:
    """Whether a state of `optax.masked` or `optax.partition` is in it."""

    def is_mask(node: object) -> bool:
        return isinstance(node, optax.MaskedState)

    return any(map(is_mask, jax.tree.leaves(state, is_leaf=is_mask)))


def _fits(leaf: Any, param: Any) -> bool:
    try:
        if leaf.shape == param.shape and leaf.dtype == param.dtype:  # as nearly always
            return True
    except AttributeError:  # a number has neither
        pass
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, float) and jnp.shape(param) == ()
    shape = param.shape if hasattr(param, "dtype") else ()
    return bool(leaf.shape == shape) and is_inexact(leaf.dtype) and leaf.dtype.kind != "c"


def _misfit(leaf: Any, param: Any) -> str:
    """What is wrong with one leaf, and why that may be."""
    wanted = f"where the parameter is {_shown(param)}"
    if leaf is None:
        return (
            f"is None {wanted}: differentiate with respect to all parameters, or leave this one "
            "out by sam_optax.masked(link, mask)."
        )
    if not hasattr(leaf, "dtype"):
        cause = "it must be an array of that shape."
        if is_masked(leaf):
            cause = "take sam_optax.masked(link, mask) in place of optax.masked."
        elif isinstance(leaf, tuple):
            cause = _cause(leaf)
        return f"is {leaf!r:.60} {wanted}: {cause}"
    if not jax.tree_util.all_leaves([leaf]):  # as a variable of Flax NNX, which has shape and dtype
        return (
            f"is a {type(leaf).__name__} {wanted}: hand over the array inside, such as "
            "flax.nnx.as_pure takes out of variables."
        )
    shape = jnp.shape(param)
    if leaf.shape == shape:
        return f"is {_shown(leaf)} {wanted}: a gradient is a real number for each of its numbers."
    cause = "it must be the gradient of a scalar loss with respect to these parameters."
    if leaf.shape[1:] == shape and leaf.shape[0] > 1:
        cause = f"did the loss forget the mean over {leaf.shape[0]} examples?"
    return f"is {_shown(leaf)} {wanted}: {cause}"


def _shown(x: Any) -> str:
    dtype = jnp.result_type(x)
    return f"{'float0' if dtype == jax.dtypes.float0 else dtype}{list(jnp.shape(x))}"


def _difference(wanted: Any, found: Any, path: Path) -> str:
    """The first place where two trees differ in what nodes they are of."""
    here, there = _children(wanted), _children(found)
    if () in here:  # a leaf or a gap, where anything may stand
        return ""
    if type(wanted) is not type(found):
        return (
            f"at {at(path)} expected {type(wanted).__name__}, got {type(found).__name__}: "
            f"{_CAUSE if isinstance(wanted, list) else _cause(found)}"
        )
    for key in here:
        if key not in there:
            return f"there is no {at((*path, *key))}: {_CAUSE}"
    for key in there:
        if key not in here:
            return f"the parameters have no {at((*path, *key))}: {_CAUSE}"
    for key, child in here.items():
        if different := _difference(child, there[key], (*path, *key)):
            return different
    return "" if path else f"the nodes hold other data than those of params: {_CAUSE}"


_CAUSE = "it must be made of the very tree that is passed as params."


def _cause(found: object) -> str:
    if isinstance(found, tuple):
        return "hand over the gradient alone: use jax.grad, or drop the value and aux."
    return _CAUSE


def _children(node: Any) -> dict[Path, Any]:
    """The children of a node by their keys; a leaf is its own."""
    if node is None:
        return {(): None}
    return dict(jax.tree.leaves_with_path(node, is_leaf=lambda child: child is not node))
