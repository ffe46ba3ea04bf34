"""Mapped axes of devices, and what may differ along them."""

from __future__ import annotations

from typing import Any

import jax

AxisName = str | tuple[str, ...]


def names(axis_name: AxisName) -> tuple[str, ...]:
    """The single axes of an axis_name."""
    return tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)


def varying(x: Any) -> frozenset[str]:
    """The axes of `jax.shard_map` along which x may differ, as far as it keeps count of them."""
    axes: frozenset[str] = jax.typeof(x).manual_axis_type.varying
    return axes
