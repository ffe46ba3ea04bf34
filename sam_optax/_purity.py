"""What may be compiled outside jit: code of JAX, of Optax and of this package over plain values.

Any other function may read Python variables, decide by `if` or print. Optax runs it at each update,
and so must we.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
import functools
import inspect
import types
from typing import Any, TypeVar

import jax
import numpy as np

from sam_optax import _promotion

F = TypeVar("F", bound=Callable[..., Any])

PACKAGES = ("jax", "optax", "sam_optax")
PLAIN = (int, float, complex, str, bytes, np.generic, np.dtype, jax.Array, type(None))


def ours(*holds: Any) -> Callable[[F], F]:
    """Marks a function of this package that is made in a constructor.

    It runs under the standard rules of promotion, and calls schedules through `value_at` alone.

    Args:
      *holds: what it calls besides of the caller's, such as a base transformation.

    Returns:
      A decorator.
    """

    def mark(function: F) -> F:
        marked: Any = _promotion.standard(function)
        marked.holds = holds
        result: F = marked
        return result

    return mark


def is_pure(thing: Any) -> bool:
    """Whether a function or transformation is known to do the same at each call.

    Dictionaries and lists are taken to stay as they are.
    """
    try:
        fingerprint(thing)
    except ImpureError:
        return False
    return True


class ImpureError(Exception):
    """Raised for what is not known to do the same at each call."""


def fingerprint(thing: Any) -> Hashable:
    """Equal for things that do the same to shapes, such as one part made twice.

    Args:
      thing: a function or transformation.

    Returns:
      What it is made of: the code of functions, the values of numbers, the shapes of arrays.

    Raises:
      ImpureError: it holds code of the caller's.
    """
    return _fingerprint(thing, set())


def _fingerprint(thing: Any, seen: set[int]) -> Hashable:
    if isinstance(thing, jax.Array):
        return thing.shape, thing.dtype
    if isinstance(thing, PLAIN):
        return type(thing), thing
    if isinstance(thing, tuple | list):
        return _all(thing, seen)
    if isinstance(thing, dict):
        return tuple(thing), _all(thing.values(), seen)
    if isinstance(thing, functools.partial):
        return _all((thing.func, thing.args, thing.keywords), seen)
    if not isinstance(thing, types.FunctionType):
        raise ImpureError
    if id(thing) in seen:  # it may hold itself
        return None
    seen.add(id(thing))
    # Not __module__, which a decorator copies.
    if thing.__globals__.get("__name__", "").split(".")[0] not in PACKAGES:
        raise ImpureError
    if hasattr(thing, "holds"):
        return inspect.unwrap(thing).__code__, _all(thing.holds, seen)
    try:
        held = [cell.cell_contents for cell in thing.__closure__ or ()]
    except ValueError:  # a cell that is not filled yet
        raise ImpureError from None
    return thing.__code__, _all((held, thing.__defaults__, thing.__kwdefaults__), seen)


def _all(things: Iterable[Any], seen: set[int]) -> tuple[Hashable, ...]:
    return tuple([_fingerprint(thing, seen) for thing in things])
