"""Changes of a recipe and of a method's settings, checked as what a user typed."""

from collections.abc import Iterable, Mapping
import dataclasses
import inspect
import math
import numbers
from typing import Annotated, Any

import tyro

from experiments.cli import limits
from experiments.recipes.base import Recipe
from experiments.system.errors import UserError
from experiments.system.words import known, parse
from experiments.training.optimizers import SGD
import sam_optax
from sam_optax import methods

METHODS = (
    SGD,
    *(
        name
        for name, function in inspect.getmembers(methods, inspect.isfunction)
        if function.__module__ == methods.__name__ and not name.startswith("_")
    ),
)


MethodName = Annotated[
    str, tyro.conf.arg(metavar="NAME", help=f"The method: {', '.join(METHODS)}.")
]


def change(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values.

    Raises:
      UserError: a value is no number of the right size.
    """
    for name, value in changes.items():
        option = f"--{name.replace('_', '-')}"
        if name == "crop_area" and not 0 < value[0] <= value[1]:
            raise UserError(
                f"{option} must be two ascending shares in (0, 1], got {value[0]} {value[1]}."
            )
        if isinstance(getattr(recipe, name), str | tuple | bool) or name == "domain":
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, numbers.Real)
            or not math.isfinite(value)
        ):
            raise UserError(f"{option} must be a finite number, got {value!r}.")
        if value > limits.FLOAT:
            raise UserError(f"{option} must be at most {limits.FLOAT:g}, got {value}.")
        if name in ("train_examples", "imbalance") and value < 1:
            raise UserError(f"{option} must be at least 1, got {value}.")
        if value < 0:
            raise UserError(f"{option} must not be negative, got {value}.")
        if name == "label_smoothing" and value >= 1:
            raise UserError(f"{option} must lie in [0, 1), got {value}.")
        if name == "clip_norm" and not value:
            raise UserError(f"{option} must be positive, got {value}: leave it away for none.")
    return dataclasses.replace(recipe, **changes)


def method_settings(recipe: Recipe, method: str, changes: Iterable[str] = ()) -> dict[str, Any]:
    """The recipe's settings of a method with changes such as "rho=0.1".

    Raises:
      UserError: there is no such method, or it has no such setting.
    """
    known("method", method, METHODS)
    function = (lambda: None) if method == SGD else getattr(sam_optax, method)
    # What the trainer itself gives a method is no setting of it.
    given = ("base", "key", "updates_at", "axis_name")
    allowed = [name for name in inspect.signature(function).parameters if name not in given]
    settings, named = dict(recipe.settings.get(method, {})), set()
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"a setting must read name=value, got {change!r}.")
        if name in named:
            raise UserError(f"the setting {name} of {method} is given twice: pass one value.")
        named.add(known(f"setting of {method}", name, allowed))
        settings[name] = parse(value)
        if isinstance(settings[name], float) and limits.FLOAT < abs(settings[name]) < math.inf:
            raise UserError(f"{name} must be at most {limits.FLOAT:g}, got {value}.")
    return settings
