"""Options of every command that trains, and what follows from them: recipe, data, trainer."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from experiments import models
from experiments.cli.settings import change
from experiments.data import augment, disk, loading, sets
from experiments.models import sizes
from experiments.models.weights import Weights
from experiments.recipes import RECIPES
from experiments.recipes.base import Recipe
from experiments.system import compiler
from experiments.system.errors import UserError
from experiments.system.words import known
from experiments.training import objectives
from experiments.training.optimizers import optimizer
from experiments.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
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
    deterministic: bool = True
    """On a GPU, train by operations that give the same bits in every process."""
    data_dir: Path = disk.DATA_DIR
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
            raise UserError(loading.with_options(str(error), recipe.domain)) from error
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

    def load(self, recipe: Recipe, seed: int) -> sets.Data:
        """The recipe's data, its noise and its held-out part drawn from the seed."""
        loaded = loading.load(
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
        loaded: sets.Data,
        *,
        apart: bool = False,
        **kwargs: Any,
    ) -> Trainer:
        """A trainer for this method, its settings checked; on an accelerator programs are kept."""
        compiler.keep_programs()
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
        self, asked: Iterable[tuple[Recipe, str, Mapping[str, Any]]], loaded: sets.Data
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
