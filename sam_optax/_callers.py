"""Who calls an update, as the frames of Python's stack tell: Optax has no other way to ask."""

from __future__ import annotations

from collections.abc import Iterator
import sys
import types

import jax


def _frames(module: str) -> Iterator[types.FrameType]:
    """Those of a module, by the end of its name."""
    frame = sys._getframe().f_back
    while frame is not None:
        if frame.f_globals.get("__name__", "").endswith(module):
            yield frame
        frame = frame.f_back


def in_conditional() -> bool:
    """Whether a branch of `jax.lax.cond` or `switch` is being traced."""
    return any(True for _ in _frames("control_flow.conditionals"))


def check_not_accumulated() -> None:
    """Raises inside `optax.MultiSteps` over several micro-batches."""
    for frame in _frames("transforms._accumulation"):
        steps = frame.f_locals.get("k_steps", 1)
        if isinstance(steps, jax.core.Tracer) or int(steps) != 1:
            raise ValueError(
                "optax.MultiSteps around a method that takes a gradient by grad_fn takes it of the "
                "last micro-batch alone, and what it is handed is the mean of all: put it behind, "
                "as optax.chain(link, optax.MultiSteps(optimizer, k).gradient_transformation()), "
                "take the mean over them inside grad_fn, or build a method of one gradient, such "
                'as msam, with updates_at="gradient_point".'
            )
