"""Clear errors for hyperparameters out of range."""

from __future__ import annotations

import numbers
from typing import Any

import jax
import numpy as np


def interval(name: str, value: Any, bounds: str, *, schedule: bool = True) -> None:
    """Raises unless value is inside bounds, such as "[0, 1)", or cannot be known yet.

    Arrays pass, because `optax.inject_hyperparams` hands them over and their values would have to
    be waited for; so do schedules, which are known only when they run, where they are allowed.
    """
    if (callable(value) and schedule) or isinstance(value, (jax.Array, np.ndarray)):
        return
    if not isinstance(value, numbers.Real):
        or_schedule = " or an Optax schedule (a function of the step)" if schedule else ""
        raise TypeError(f"{name} must be a number{or_schedule}, got {value!r}.")
    low, high = map(float, bounds[1:-1].split(","))
    # numbers.Real is typed with < and <= alone.
    above = value >= low if bounds[0] == "[" else value > low  # type: ignore[operator]
    below = value <= high if bounds[-1] == "]" else value < high
    if not (above and below):
        raise ValueError(
            f"{name} must lie in {bounds}, got {value!r}: pass a number from that interval"
            f"{', or a schedule with such values' if schedule else ''}."
        )


def whole(name: str, value: Any, low: int) -> None:
    """Raises unless value is an integer of at least low, or an array."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}: pass a larger number.")


def static(name: str, value: Any) -> None:
    """Raises where value is an array: what sets a shape or unrolls a loop cannot be traced."""
    if isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(
            f"{name} must be a Python number, known before tracing, got {value!r}: under "
            f"optax.inject_hyperparams pass static_args=({name!r},)."
        )


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises unless value is one of choices."""
    if value not in choices:
        listed = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {listed}, got {value!r}.")
