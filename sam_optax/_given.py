"""What a caller gives to a method: its parts, the parameters, a loss in place of its gradient."""

from __future__ import annotations

from collections.abc import Callable
import inspect
from typing import Any

import numpy as np
import optax

from sam_optax import _checks
from sam_optax._contracts import Combine, Start, Tree, When


def check_parts(
    perturb: object, start: object, when: object, combine: object, updates_at: str
) -> None:
    """Raises where a slot holds what does not belong there."""
    _checks.choice("updates_at", updates_at, ("params", "gradient_point"))
    if perturb is None:
        acts_alone = isinstance(combine, Combine) and combine.fresh is None
        if when is not None or (combine is not None and not acts_alone):
            raise ValueError(
                "when and combine act on a second gradient, and without perturb there is none: "
                "pass perturb, such as sam_optax.perturb.ball(0.05)."
            )
    elif not isinstance(perturb, optax.GradientTransformation):
        raise TypeError(f"perturb must be an Optax transformation, got {perturb!r}.")
    elif isinstance(combine, Combine) and combine.fresh is None:
        raise ValueError(
            "combine acts on the first gradient alone, and with perturb there is a second: leave "
            "perturb away, or pass another combine, such as sam_optax.combine.perturbed()."
        )
    for name, part, kind in (
        ("start", start, Start),
        ("when", when, When),
        ("combine", combine, Combine),
    ):
        if part is not None and not isinstance(part, kind):
            raise TypeError(
                f"{name} must be a {kind.__name__}, such as sam_optax.{name} makes, got {part!r}."
            )


def checked_params(params: Tree | None) -> Tree:
    """The parameters, if they are there."""
    if params is None:
        raise ValueError(
            "a sharpness-aware update needs the parameters: call update(grads, opt_state, params, "
            "grad_fn=grad_fn)."
        )
    return params


def checked_decision(fire: object) -> bool | None:
    """A decision of the caller's, if it is known while the step is made."""
    if fire is None:
        return None
    if not isinstance(fire, bool | np.bool_):
        raise TypeError(
            "fire must be a Python bool, known when the step is compiled, or None for the decision "
            f"of the method, got {fire!r}: make it static, as jax.jit(step, "
            'static_argnames="fire") does, and pass bool(fire).'
        )
    return bool(fire)


def takes(function: Callable[..., Any] | None, name: str) -> bool:
    """Whether a function of a part has an argument of this name."""
    return function is not None and name in inspect.signature(function).parameters


def learned(slots: Any, field: str, *, part: str, start: str) -> Any:
    """The state of the start that a part needs, which keeps a field of this name."""
    if not hasattr(slots.start, field):
        raise ValueError(
            f"{part} divides by what start.{start} learns, and the method has another start, or "
            f"none: pass start=sam_optax.start.{start}(ess) beside it."
        )
    return slots.start
