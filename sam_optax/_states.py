"""The state of every method, and whether one is of this method and of these parameters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam_optax import _purity, _shards
from sam_optax._contracts import Tree, answering, some_number

REMEDY = "pass the state of this method, or make one by init(params)."

Shapes = tuple[tuple[int, ...], ...]  # of the leaves of a tree
Signature = tuple[Any, Shapes]  # the structure of a tree, and the shapes

# By what an init is made of: under `optax.inject_hyperparams` it is made anew at each update.
_known: dict[Hashable, Any] = {}


class SharpnessAwareState(NamedTuple):
    """State of every sharpness-aware method.

    Attributes:
      steps: int32, the steps taken.
      ascents: int32, the second gradients taken; ascents / steps is the share of SAM steps.
      notfinite: int32, the steps whose own gradients were not finite, and so counted as not taken.
      rise: L(w + ε) − L(w) of the last second gradient that told it, 0 before; float32, or float64
        for float64 parameters.
      start: state of the part that places the first gradient.
      perturb: state of the part that places the second.
      when: state of the part that decides.
      combine: state of the part that combines.
      aux: aux of the last second gradient where `keep_aux` asks for it, else ().
    """

    steps: jax.Array
    ascents: jax.Array
    notfinite: jax.Array
    rise: jax.Array
    start: Any
    perturb: optax.OptState
    when: Any
    combine: Any
    aux: Any = ()


class States:
    """Checks the slots of a state against what init makes of the parameters.

    A state that has passed is known by its structure and shapes, so that the check costs a step
    outside jit next to nothing. Parts with code of the caller's are not asked: their init may be
    more than can be traced.
    """

    def __init__(self, slots: Mapping[str, Any]) -> None:
        """Of the parts by the names of their slots."""
        self._slots = slots
        self._passed: set[tuple[Signature, Signature, _shards.Layout]] = set()

    def check(self, state: Any, params: Tree) -> None:
        """Raises a ValueError unless the slots of the state fit the method and the parameters."""
        leaves, structure = jax.tree.flatten(params)
        shapes = _shapes(leaves)
        signatures = (structure, shapes), _signature(state), _shards.current()
        if signatures in self._passed:
            return
        dtypes = tuple(map(jnp.result_type, leaves))
        for slot, part in self._slots.items():
            if _purity.is_pure(part):
                expected = _made(part.init, structure, shapes, dtypes)
                _compare(slot, expected, getattr(state, slot))
        self._passed.add(signatures)


def _made(
    init: Callable[[Tree], Any], structure: Any, shapes: Shapes, dtypes: tuple[np.dtype, ...]
) -> Any:
    """What init makes of parameters, as structure and shapes alone."""
    key = _purity.fingerprint(init), structure, shapes, dtypes, _shards.current()
    if key not in _known:
        params = jax.tree.unflatten(structure, map(jax.ShapeDtypeStruct, shapes, dtypes))
        with answering(lambda schedule, ahead: some_number()):
            _known[key] = jax.eval_shape(init, params)
    return _known[key]


def _signature(tree: Tree) -> Signature:
    leaves, structure = jax.tree.flatten(tree)
    return structure, _shapes(leaves)


def _shapes(leaves: Iterable[Any]) -> Shapes:
    return tuple([getattr(leaf, "shape", ()) for leaf in leaves])  # numbers have none


def _compare(slot: str, expected: Any, got: Any) -> None:
    """Raises unless got has the structure and shapes of expected."""
    # Typed as any tree, which mypy takes for one that cannot differ.
    wanted: object = jax.tree.structure(expected)
    found: object = jax.tree.structure(got)
    if wanted != found:
        raise ValueError(
            f"the state holds in {slot} what this method does not keep there for these parameters, "
            f"as the state of another method or of other parameters does: {REMEDY} Expected "
            f"{wanted}, got {found}."
        )
    pairs = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True)
    for (path, leaf), other in pairs:
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"the state is of other parameters, or of another method: {slot}"
                f"{jax.tree_util.keystr(path)} has shape {list(jnp.shape(other))}, and these "
                f"parameters take {list(jnp.shape(leaf))}: {REMEDY}"
            )


def check_kind(state: object) -> None:
    """Raises where the state is none of a sharpness-aware method."""
    if not isinstance(state, SharpnessAwareState):
        raise ValueError(
            "a sharpness-aware update needs a sam_optax.SharpnessAwareState, got "
            f"{type(state).__name__}, which is of another optimizer, or was restored without its "
            f"types: {REMEDY}"
        )
