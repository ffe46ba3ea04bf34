"""Mapped axes of devices, and what may differ along them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
import numbers
from typing import Any

import jax
import numpy as np

AxisName = str | tuple[str, ...]


def names(axis_name: AxisName) -> tuple[str, ...]:
    """The single axes of an axis_name."""
    return tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)


def ordered(axes: Iterable[Any]) -> tuple[Any, ...]:
    """Axes in an order that is the same in every process."""
    return tuple(sorted(axes, key=str))


def listed(axes: Iterable[Any]) -> str:
    """Axes for a message."""
    return " and ".join(map(repr, ordered(axes)))


def check(axis_name: Any) -> None:
    """Raises unless axis_name names mapped axes: a string as a rule, or what else is hashable."""
    for name in names(axis_name):
        unfit = name is None or callable(name) or isinstance(name, numbers.Number | np.bool_)
        if unfit or not isinstance(name, Hashable) or isinstance(name, tuple):
            raise TypeError(
                "axis_name must be the name of a mapped axis, such as 'batch', or a tuple of "
                f"names, got {axis_name!r}."
            )


def varying(x: Any) -> frozenset[str]:
    """The axes of `jax.shard_map` along which x may differ, as far as it keeps count of them.

    x is an array, or the type of one.
    """
    kind: Any = x if isinstance(x, jax.core.AbstractValue) else jax.typeof(x)
    axes: frozenset[str] = kind.manual_axis_type.varying
    return axes


def vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """x, varying over these axes of `jax.shard_map` at least."""
    if missing := axes - varying(x):
        x = jax.lax.pcast(x, ordered(missing), to="varying")
    return x
