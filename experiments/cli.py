"""What the commands share: options, clear errors, names close to a wrong one."""

import ast
from collections.abc import Callable, Iterable, Mapping
import dataclasses
import difflib
import inspect
import math
import numbers
import os
from pathlib import Path
import sys
from typing import Annotated, Any, Literal

import jax
import tyro

from experiments import data
from experiments.recipes import RECIPES, Recipe
from experiments.training import SGD, Trainer, optimizer
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


class UserError(Exception):
    """A mistake in what the user asked for; its message says what to do."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every command that trains; one that is left out is the recipe's."""

    recipe: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RECIPE", help=f"What to train: {', '.join(RECIPES)}."),
    ] = "digits"
    epochs: int | None = None
    """Passes over the training set."""
    batch_size: int | None = None
    """Images a step."""
    learning_rate: float | None = None
    """Learning rate at the start of the cosine."""
    momentum: float | None = None
    """Momentum of SGD."""
    weight_decay: float | None = None
    """Coupled weight decay, outside the perturbation."""
    label_noise: float = 0.0
    """Share of the training labels to flip to another class, in [0, 1]."""
    validation: float = 0.0
    """Share of the training set to hold out and evaluate on in place of the test set, in [0, 1)."""
    decide: Literal["auto", "device", "host"] = "auto"
    """Where a method decides; auto is the host for convolutions on CPU."""
    data_dir: Path = data.DATA_DIR
    """The TFDS directory."""
    out: Path = Path("runs")
    """The folder of all results."""

    def resolve(self) -> Recipe:
        """The recipe with this command's changes."""
        recipe = RECIPES[_known("recipe", self.recipe, RECIPES)]
        changes = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(Recipe)
            if getattr(self, f.name, None) is not None
        }
        return change(recipe, changes)

    def load(self, recipe: Recipe, seed: int) -> data.Data:
        """The recipe's data with this command's noise and held-out part."""
        if seed < 0:
            raise UserError(f"--seed must not be negative, got {seed}.")
        try:
            loaded = data.load(
                recipe.dataset,
                data_dir=self.data_dir,
                seed=seed,
                label_noise=self.label_noise,
                validation=self.validation,
            )
        except (ValueError, data.NotPreparedError) as error:
            raise UserError(str(error)) from error
        except OSError as error:
            raise UserError(f"--data-dir {self.data_dir} cannot be used: {error}.") from error
        if len(loaded.train.labels) < recipe.batch_size:
            raise UserError(
                f"--batch-size {recipe.batch_size} exceeds the {len(loaded.train.labels)} training "
                "images: pass a smaller one."
            )
        return loaded

    def on_host(self, recipe: Recipe) -> bool:
        """Whether methods decide on the host."""
        if self.decide == "auto":
            return recipe.model(1).convolutional and jax.default_backend() == "cpu"
        return self.decide == "host"

    def trainer(
        self, recipe: Recipe, method: str, settings: Mapping[str, Any], loaded: data.Data
    ) -> Trainer:
        """A trainer for this method, its settings checked."""
        steps = recipe.epochs * (len(loaded.train.labels) // recipe.batch_size)
        try:
            optimizer(recipe, method, settings, total_steps=steps)
        except (TypeError, ValueError) as error:
            raise UserError(f"{method}: {error}") from error
        return Trainer(
            recipe,
            method,
            settings,
            classes=loaded.classes,
            total_steps=steps,
            on_host=self.on_host(recipe),
        )


def change(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values.

    Raises:
      UserError: a value is no number of the right size.
    """
    for name, value in changes.items():
        option = f"--{name.replace('_', '-')}"
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise UserError(f"{option} must be a finite number, got {value!r}.")
        if name in ("epochs", "batch_size") and value < 1:
            raise UserError(f"{option} must be at least 1, got {value}.")
        if value < 0:
            raise UserError(f"{option} must not be negative, got {value}.")
    return dataclasses.replace(recipe, **changes)


def method_settings(recipe: Recipe, method: str, changes: Iterable[str] = ()) -> dict[str, Any]:
    """The recipe's settings of a method with changes such as "rho=0.1".

    Raises:
      UserError: there is no such method, or it has no such setting.
    """
    _known("method", method, METHODS)
    function = (lambda: None) if method == SGD else getattr(sam_optax, method)
    allowed = list(inspect.signature(function).parameters)
    settings = dict(recipe.settings.get(method, {}))
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"a setting must read name=value, got {change!r}.")
        settings[_known(f"setting of {method}", name, allowed)] = parse(value)
    return settings


def parse(value: str) -> Any:
    """A number, True, False, None, or else the string itself."""
    for kind in (int, float, ast.literal_eval):
        try:
            return kind(value)
        except (ValueError, SyntaxError):
            continue
    return value


def run(main: Callable[[Any], None], options: type) -> None:
    """Runs a command: a user's mistake is one line and exit 2, Ctrl-C is exit 130."""
    try:
        description = inspect.getdoc(sys.modules[main.__module__])
        command = f"python -m {description.split('python -m ')[1].split()[0]}"
        main(tyro.cli(options, prog=command, description=description))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; what was written before is kept", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # not sys.exit: the interpreter's shutdown can crash while a computation still runs
        os._exit(130)


def _known(kind, name, names):
    """Name, if it is one of names; the nearest names otherwise."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names) or 'none'}."
    )
    raise UserError(f"unknown {kind} {name!r}: {hint}")
