"""Bounds of the commands' numbers, held before anything is read or allocated."""

from collections.abc import Iterator
import dataclasses
import math
from pathlib import Path
from typing import Any

from experiments.system.errors import UserError

WHOLE = 2**31 - 1  # of numbers that JAX counts by
FLOAT = 3.4e38  # of those that it computes with
SEED = 2**32 - 1

# The least and the most of an option, in whichever command it stands.
BOUNDS: dict[str, tuple[float, float]] = {
    "adaptive_radii": (0, 1e6),
    "ascent_steps": (1, 10**6),
    "basis": (1, 10**6),
    "batch_size": (1, 2**20),
    "checkpoint_minutes": (0, 10**6),
    "crop_area": (0, 1),
    "draws": (1, 10**6),
    "epochs": (1, 10**6),
    "examples": (1, 10**8),
    "grid": (3, 501),
    "image_size": (1, 4096),
    "images": (1, 10**6),
    "k": (1, 10**4),
    "keep_epochs": (1, 10**6),
    "m": (1, 2**20),
    "memory_images": (1, 10**8),
    "parts_of_m": (2, 10**6),
    "posterior_samples": (1, 10**4),
    "probes": (1, 10**6),
    "randaugment": (1, 100),
    "restarts": (1, 10**4),
    "rounds": (1, 10**4),
    "samples": (2, 10**6),
    "size": (1, 4096),
    "steps": (1, 10**6),
    "steps_per_dispatch": (1, WHOLE),
    "switch_at": (1, 10**6),
    "turns": (0, 10**5),
    "width": (1, 2**14),
    "workers": (0, 1024),
}
SEEDS, RUNS = 10_000, 100_000  # of a comparison or a sweep


def check(options: Any) -> None:
    """Raises where a number of a command's options is out of its bounds.

    Raises:
      UserError: it is not finite, or too small or too large.
    """
    for name, value in _numbers(options):
        option = f"--{name.replace('_', '-')}"
        if not math.isfinite(value):
            raise UserError(f"{option} must be a finite number, got {value}.")
        low, high = BOUNDS.get(name, (-FLOAT, WHOLE if isinstance(value, int) else FLOAT))
        if name in ("seed", "seeds"):
            low, high = 0, SEED
        if value < low:
            raise UserError(f"{option} must be at least {_shown(low)}, got {_shown(value)}.")
        if value > high:
            raise UserError(f"{option} must be at most {_shown(high)}, got {_shown(value)}.")


def _shown(value):
    text = f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value}"
    return text if len(text) <= 40 else f"{text[:20]}… ({len(text)} digits)"


def _numbers(options) -> Iterator[tuple[str, float]]:
    """The numbers of options and of those inside, by name."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value)
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int | float) and not isinstance(item, bool):
                yield field.name, item


def expanded(options: Any) -> Any:
    """The options with the home directory in place of a leading ~ of their paths.

    Raises:
      UserError: there is no such home directory.
    """
    changes = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = expanded(value)
        elif isinstance(value, Path) and field.name != "data_dir":  # which may not be needed
            changes[field.name] = _expanded(field.name, value)
        elif isinstance(value, tuple) and any(isinstance(item, Path) for item in value):
            changes[field.name] = tuple(_expanded(field.name, item) for item in value)
    return dataclasses.replace(options, **changes)


def _expanded(name, path):
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(
            f"--{name.replace('_', '-')} {path}: no such home: pass a whole path."
        ) from error
