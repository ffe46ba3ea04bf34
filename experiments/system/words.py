"""What a user types, and what is told: values, names close to a wrong one, errors in one line."""

import ast
from collections.abc import Iterable
import difflib
import math
from typing import Any

from experiments.system.errors import UserError


def parse(value: str) -> Any:
    """A number, True, False, None, or else the string itself."""
    for kind in (int, float, ast.literal_eval):
        try:
            return kind(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value


def positive(option: str, value: float) -> None:
    """Raises unless an option's number is positive and finite."""
    if not 0 < value < math.inf:
        raise UserError(f"--{option} must be positive and finite, got {value}.")


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is one of the names.

    Raises:
      UserError: it is not; the message offers the nearest.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    there_are = f"there are {', '.join(names) or 'none'}."
    hint = f"did you mean {' or '.join(near)}?" if near else there_are
    raise UserError(f"unknown {kind} {name!r}: {hint}")


def said(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(f"{error}".split())[:200] or type(error).__name__


def names(values: Iterable[Any], most: int = 3) -> str:
    """Some of the values, and how many more there are."""
    listed = [f"{value!s}" for value in values]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
