"""The runs that `experiments.train` left under a folder, and how each differs from its recipe."""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from experiments.recipes import RECIPES, Recipe
from experiments.recipes.base import UNTRAINED
from experiments.results import files, folders
from experiments.results.files import DamagedError

# What a config holds beside the fields of a recipe: what is told in words of its own, and what
# makes a run no other experiment.
_TOLD = ("recipe", "method", "method_kwargs", "then", "device_perturbations", "weights")
_ALIKE = ("seed", "together", "decide", "data", "jax")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
      path: its folder.
      config: what was asked for.
      summary: its results; None where it has not come to its end.
      epochs: those that are over.
    """

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    epochs: int

    @property
    def recipe(self) -> str:
        """The name of its recipe."""
        return self.config["recipe"]

    @property
    def method(self) -> str:
        """The method that trained it from the first epoch on."""
        return self.config["method"]

    @property
    def seed(self) -> int:
        """What its random numbers follow from."""
        return self.config["seed"]

    @property
    def weights(self) -> str | None:
        """The digest of the pretrained weights that it began with; None for those of its seed."""
        return self.config.get("weights")

    @functools.cached_property
    def differences(self) -> tuple[str, ...]:
        """Where it differs from its recipe as that stands now, in words.

        Raises:
          KeyError: a field that has no default is missing.
        """
        return tuple(differences(self.config))

    @property
    def label(self) -> str:
        """Recipe, method and differences, such as "digits sam, epochs 100 → 2"."""
        return ", ".join([f"{self.recipe} {self.method}", *self.differences])

    @property
    def accuracy(self) -> float:
        """The test accuracy in percent that its recipe reports, of the last epoch or the best."""
        best = self.recipe in RECIPES and RECIPES[self.recipe].reports == "best"
        return 100 * self.summary["test_accuracy_best" if best else "test_accuracy"]


class Collected(NamedTuple):
    """What lies under a folder.

    Attributes:
      runs: those of `experiments.train`, by their paths.
      damaged: what cannot be read, and why.
      others: folders of other commands.
    """

    runs: list[Run]
    damaged: list[str]
    others: list[Path]


def collect(folder: Path) -> Collected:
    """The runs in a folder and in the folders inside, which stay as they are."""
    found = Collected([], [], [])
    for root, names, there in os.walk(folder, onerror=lambda e: _note(found, e.filename, e)):
        names[:] = sorted(set(names) - {folders.CHECKPOINTS, folders.TENSORBOARD, folders.REPLACED})
        path = Path(root)
        if not {folders.CONFIG, folders.SUMMARY} & set(there):
            continue
        try:
            run = _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DamagedError) as error:
            _note(found, path, error)
            continue
        if run is None:
            found.others.append(path)
        else:
            found.runs.append(run)
    return found


def _note(found, path, error):
    kind = "" if isinstance(error, DamagedError) else f"{type(error).__name__}: "
    found.damaged.append(f"{path} ({kind}{error})")


def _read(path):
    """The run of a folder; None for a folder of another command."""
    if files.is_sealed(path) and files.read_json(path / files.MANIFEST).get("command") != "train":
        return None
    config = files.read_json(path / folders.CONFIG)
    ended = (path / folders.SUMMARY).exists()
    if not ended and not {"recipe", "method", "seed"} <= config.keys():
        return None
    for name, kind in (("recipe", str), ("method", str), ("seed", int), ("epochs", int)):
        if not isinstance(config[name], kind):
            raise TypeError(f"{name} is {config[name]!r}")
    summary = files.read_json(path / folders.SUMMARY) if ended else None
    if ended and not folders.belongs(summary, config):
        raise ValueError("its summary is that of another run")
    for name in ("test_accuracy", "test_accuracy_best") if ended else ():
        if not 0 <= summary[name] <= 1:
            raise ValueError(f"{name} is {summary[name]!r}")
    epochs = config["epochs"] if ended else len(files.read_lines(path / folders.METRICS))
    run = Run(path, config, summary, epochs)
    _ = run.differences  # a config that lacks what they are told from is damaged
    return run


def differences(config: Mapping[str, Any]) -> Iterator[str]:
    """Where a run differs from its recipe as that stands now, in words.

    A field that the config lacks is younger than the run, and has its default. Which weights a
    recipe begins with it says in words: that there are some is compared.

    Args:
      config: what was asked for, as `experiments.train` writes it.

    Yields:
      Such as "epochs 200 → 2".

    Raises:
      KeyError: a field that has no default is missing.
    """
    if config["recipe"] not in RECIPES:
        yield "no recipe of this name"
        return
    method = config["method"]
    recipe = RECIPES[config["recipe"]].of(method)
    fields = {k: v for k, v in dataclasses.asdict(recipe).items() if k not in UNTRAINED}
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(Recipe)
        if field.default is not dataclasses.MISSING
    }
    held = {k: v for k, v in config.items() if k not in (*_TOLD, *_ALIKE)}
    yield from _changes(fields, {**{k: defaults[k] for k in fields.keys() - held.keys()}, **held})
    yield from _changes(recipe.settings.get(method, {}), config["method_kwargs"])
    for start, then, settings in config.get("then") or ():
        with_settings = f"{then} {_said(settings)}" if settings else then
        yield f"then {with_settings} from epoch {start}"
    if (recipe.pretrained is None) != (config.get("weights") is None):
        yield "weights pretrained → none" if recipe.pretrained else "weights none → pretrained"
    if (devices := config.get("device_perturbations")) is not None:
        yield f"a perturbation on each of {devices} devices"


def _changes(own, held):
    """A text for each name whose values differ, such as "epochs 200 → 2"."""
    own, held = (json.loads(json.dumps(side)) for side in (own, held))  # lists for tuples
    for name in {**own, **held}:
        if name not in own or name not in held or own[name] != held[name]:
            pair = [_said(side[name]) if name in side else "default" for side in (own, held)]
            yield f"{name} {' → '.join(pair)}"


def _said(value):
    """A value of JSON in short."""
    match value:
        case None | []:
            return "none"
        case str():
            return value
        case list():
            return " ".join(map(_said, value))
        case dict():
            return "(" + ", ".join(f"{name} {_said(item)}" for name, item in value.items()) + ")"
    return f"{value}"


def evaluated(figures: Mapping[str, float]) -> float:
    """The accuracy to choose by: on the held-out part, or on the test split where there is none."""
    return figures.get("validation_accuracy", figures["test_accuracy"])
