"""The first gradient: where the state of a start has it taken, and its mean over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from sam_optax import _rounding, _tree
from sam_optax._contracts import GradFn, Tree


def offset(start: Any, params: Tree, *sample: int) -> Tree | None:
    """δ0, or None where the first gradient is taken at the parameters."""
    return start.offset(params, *sample) if hasattr(start, "offset") else None


def point(start: Any, params: Tree, steps: jax.typing.ArrayLike, sample: int = 0) -> Tree:
    """The parameters at which the first gradient, or a further sample of it, is taken."""
    away = offset(start, params, *([sample] if sample else []))
    if away is None:
        return params
    return _rounding.moved(params, away, steps, _rounding.FIRST + sample)


def average(first: Tree, gradient: GradFn, samples: int, place: Callable[..., Tree]) -> Tree:
    """The mean of the first gradient over the samples of a start; `first` is number 0.

    Args:
      first: the gradient at place().
      gradient: as a function of the parameters.
      samples: how many.
      place: `point` of a sample.
    """
    further = [gradient(place(i)) for i in range(1, samples)]
    if not further:
        return first
    mean = _tree.combine(lambda *g: sum(g) / len(g), first, *further)
    return _tree.cast_like(mean, first)
