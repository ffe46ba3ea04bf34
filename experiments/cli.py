"""What the commands share: options, clear errors, names close to a wrong one."""

import ast
from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from experiments import augment, data, limits, models, objectives, sizes, streams
from experiments.command import run
from experiments.errors import UserError
from experiments.normalization import NORMALIZATIONS
from experiments.optimizers import SGD, optimizer
from experiments.recipes import RECIPES
from experiments.recipes.base import Recipe
from experiments.training import Trainer
from experiments.weights import Weights
import sam_optax
from sam_optax import methods

__all__ = [
    "METHODS",
    "MethodName",
    "Options",
    "UserError",
    "change",
    "known",
    "load",
    "method_settings",
    "parse",
    "positive",
    "run",
]

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


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every command that trains; one that is left out is the recipe's."""

    recipe: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="RECIPE", help="What to train; python -m experiments.recipes lists all."
        ),
    ] = "digits"
    model: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help=f"The model: {', '.join(models.MODELS)}.")
    ] = None
    width: int | None = None
    """Width of the model's narrowest layer."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the model's computations; parameters are float32."""
    epochs: int | None = None
    """Passes over the training set."""
    batch_size: int | None = None
    """Images a step."""
    objective: Literal["cross_entropy", "glmc"] | None = None
    """What a step minimizes: cross-entropy, or GLMC's mixtures for long-tailed sets."""
    optimizer: Literal["sgd", "rmsprop", "adamw"] | None = None
    """The base optimizer behind the method."""
    learning_rate: float | None = None
    """The largest learning rate."""
    schedule: Literal["cosine", "cosine_epoch", "linear", "constant"] | None = None
    """Of the learning rate: a cosine by step or by epoch, linear, or constant."""
    warmup_epochs: float | None = None
    """Epochs in which the learning rate rises from 0."""
    momentum: float | None = None
    """Momentum of SGD and RMSProp."""
    weight_decay: float | None = None
    """Weight decay, outside the perturbation."""
    decoupled: bool | None = None
    """Whether weight decay bypasses the base optimizer, as in AdamW, where it always does."""
    label_smoothing: float | None = None
    """Share of each label that is spread over all classes, in [0, 1)."""
    clip_norm: float | None = None
    """Largest norm of what the base optimizer is fed."""
    augmentation: (
        tuple[
            Literal["crop", "flip", "cutout", "inception", "randaugment", "jitter", "grayscale"],
            ...,
        ]
        | None
    ) = None
    """What training images go through; from inception on for streamed sets alone."""
    crop_area: tuple[float, float] | None = None
    """Smallest and largest share of the image that inception crops."""
    randaugment: tuple[int, int] | None = None
    """Operations of randaugment and their magnitude; 10 is the strongest of its paper."""
    image_size: int | None = None
    """Height and width of the images that the model sees."""
    normalization: Literal["data", "imagenet", "half"] | None = None
    """Mean and deviation of the training images, of ImageNet, or a half."""
    mixup: float | None = None
    """The α of mixup; 0 for none."""
    label_noise: float | None = None
    """Share of the training labels to make noisy, in [0, 1]."""
    noise: Literal["flip", "symmetric"] | None = None
    """Noisy labels are flipped to another class, or drawn from all classes."""
    validation: float | None = None
    """Share of the training set to hold out and evaluate on too, in [0, 1)."""
    imbalance: float | None = None
    """Long-tailed training set: the largest class over the smallest."""
    train_examples: int | None = None
    """Training images to keep."""
    domain: str | None = None
    """The domain of image folders to train on; the others are the test sets."""
    weights: Path | None = None
    """A file of pretrained weights to begin with; the classifier is new for other classes."""
    workers: int | None = None
    """Processes that decode a streamed set; 0 for threads of this one, a core each by default."""
    skip_corrupt: bool = False
    """Pass over streamed images that cannot be decoded, and tell how many there were."""
    decide: Literal["auto", "device", "host"] = "auto"
    """Where a method decides; auto is the host for convolutions on CPU."""
    data_dir: Path = data.DATA_DIR
    """The TFDS directory."""
    out: Path = Path("runs")
    """The folder of all results."""

    def resolve(self) -> Recipe:
        """The recipe with this command's changes."""
        recipe = RECIPES[known("recipe", self.recipe, RECIPES)]
        names = [f.name for f in dataclasses.fields(Recipe)]
        given = {name: getattr(self, name, None) for name in names if name != "method"}
        recipe = change(recipe, {name: v for name, v in given.items() if v is not None})
        if recipe.warmup_epochs >= recipe.epochs:
            raise UserError(
                f"--warmup-epochs must be less than the {recipe.epochs} epochs, got "
                f"{recipe.warmup_epochs:g}: pass a shorter warm-up."
            )
        known("model", recipe.model, models.MODELS)
        try:
            objectives.make(recipe, classes=2).model()
        except ValueError as error:
            raise UserError(_with_options(str(error), recipe.domain)) from error
        if recipe.pretrained is not None and self.weights is None:
            raise UserError(
                f"{self.recipe} begins with pretrained weights, {recipe.pretrained}: pass their "
                "file by --weights."
            )
        return recipe

    @functools.cached_property
    def begins_with(self) -> Weights | None:
        """The weights to begin with.

        Raises:
          WeightsError: their file cannot be read.
        """
        if self.weights is None:
            return None
        recipe = RECIPES[known("recipe", self.recipe, RECIPES)]
        # What the user has said of the images counts.
        expected = None if self.normalization else recipe.normalization
        return Weights.of(self.weights, expected)

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the file of weights; None where there is none."""
        return self.begins_with and self.begins_with.sha256

    def load(self, recipe: Recipe, seed: int) -> data.Data:
        """The recipe's data, its noise and its held-out part drawn from the seed."""
        loaded = load(
            recipe, seed, self.data_dir, workers=self.workers, skip_corrupt=self.skip_corrupt
        )
        if loaded.train.examples < recipe.batch_size:
            raise UserError(
                f"--batch-size {recipe.batch_size} exceeds the {loaded.train.examples} training "
                "images: pass a smaller one."
            )
        return loaded

    def on_host(self, recipe: Recipe) -> bool:
        """Whether methods decide on the host."""
        if self.decide == "auto":
            convolutional = models.make(recipe.model, 2, width=recipe.width).convolutional
            return convolutional and jax.default_backend() == "cpu"
        return self.decide == "host"

    def trainer(
        self,
        recipe: Recipe,
        method: str,
        settings: Mapping[str, Any],
        loaded: data.Data,
        *,
        apart: bool = False,
        **kwargs: Any,
    ) -> Trainer:
        """A trainer for this method, its settings checked."""
        on_host = self.on_host(recipe) and not apart
        shape = augment.shape(loaded.train.shape, recipe.image_size)
        sizes.check(recipe.model, recipe.width, loaded.classes, shape, recipe.batch_size)
        try:
            return Trainer(
                recipe,
                method,
                settings,
                data=loaded,
                on_host=on_host,
                apart=apart,
                weights=self.begins_with,
                **kwargs,
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{method}: {error}") from error

    def check(
        self, asked: Iterable[tuple[Recipe, str, Mapping[str, Any]]], loaded: data.Data
    ) -> None:
        """Raises as the trainers of these would, before anything is written.

        Args:
          asked: recipes of one model, each with a method and its settings.
          loaded: a set of theirs.
        """
        asked = list(asked)
        first = self.trainer(*asked[0], loaded)
        for recipe, method, settings in asked[1:]:
            steps = loaded.train.examples // recipe.batch_size
            try:
                optimizer(recipe, method, settings, epochs=recipe.epochs, steps_per_epoch=steps)
            except (TypeError, ValueError) as error:
                raise UserError(f"{method}: {error}") from error
        if self.weights is not None:
            first.init(loaded.train.shape, seed=0)


def load(
    recipe: Recipe,
    seed: int,
    data_dir: Path,
    *,
    workers: int | None = None,
    skip_corrupt: bool = False,
) -> data.Data:
    """A recipe's data, its noise and its held-out part drawn from the seed.

    Args:
      recipe: what to load.
      seed: in [0, 2³²).
      data_dir: the TFDS directory.
      workers: processes that decode a streamed set; None for one for each core.
      skip_corrupt: whether its images that cannot be decoded are left out.

    Raises:
      UserError: the set is not there, or the recipe's part of it cannot be made.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"a seed must lie in [0, 2**32), got {seed}.")
    try:
        data_dir = data.directory(data_dir)
        if streams.is_streamed(recipe.dataset, data_dir, recipe.domain):
            return streams.load(
                recipe, data_dir=data_dir, seed=seed, workers=workers, skip_corrupt=skip_corrupt
            )
        _check_in_memory(recipe)
        loaded = data.load(
            recipe.dataset,
            data_dir=data_dir,
            seed=seed,
            label_noise=recipe.label_noise,
            noise=recipe.noise,
            validation=recipe.validation,
            imbalance=recipe.imbalance,
            train_examples=recipe.train_examples,
        )
    except ValueError as error:
        raise UserError(_with_options(str(error), recipe.domain)) from error
    except data.NotPreparedError as error:
        # Of a set of TFDS the command that prepares it is told, with the directory.
        option = "" if recipe.domain is None else f"--data-dir {data_dir}: "
        raise UserError(f"{option}{error}") from error
    except OSError as error:
        raise UserError(f"--data-dir {data_dir} cannot be used: {error}.") from error
    if recipe.normalization == "data":
        return loaded
    mean, std = NORMALIZATIONS[recipe.normalization].of(loaded.train.shape[-1])
    return loaded._replace(mean=mean, std=std)


def _check_in_memory(recipe):
    """Raises where a recipe asks for what the workers of a streamed set do."""
    if asked := [name for name in recipe.augmentation if name in streams.AUGMENTATIONS]:
        raise UserError(
            f"--augmentation {' '.join(asked)} is for streamed sets, and {recipe.dataset} lies in "
            f"memory: pass any of {', '.join(augment.NAMES)}."
        )


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


def _with_options(message, domain):
    """A message about an argument such as train_examples, as one about its option.

    Another, about image folders, is one about the domain of theirs that was asked for.
    """
    name, space, rest = message.partition(" ")
    if name in [field.name for field in dataclasses.fields(Recipe)]:
        return f"--{name.replace('_', '-')}{space}{rest}"
    return message if domain is None else f"--domain {domain}: {message}"


def parse(value: str) -> Any:
    """A number, True, False, None, or else the string itself."""
    for kind in (int, float, ast.literal_eval):
        try:
            return kind(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value


def positive(option: str, value: float) -> None:
    """Raises unless an option's number is positive and finite."""
    if not 0 < value < math.inf:
        raise UserError(f"--{option} must be positive and finite, got {value}.")


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is one of the names.

    Raises:
      UserError: it is not; the message offers the nearest.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    there_are = f"there are {', '.join(names) or 'none'}."
    hint = f"did you mean {' or '.join(near)}?" if near else there_are
    raise UserError(f"unknown {kind} {name!r}: {hint}")
