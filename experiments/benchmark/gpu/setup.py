"""What the parts measure on, and for how long."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import models
from experiments.cli.settings import METHODS
from experiments.data import disk, reading, sets
from experiments.data.feeds import Arrays, arrays
from experiments.models import sizes
from experiments.recipes import RECIPES
from experiments.recipes.base import Recipe
from experiments.system.errors import UserError
from experiments.system.words import known, positive

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setup:
    """The model, the images, and the turns; options of the command."""

    methods: tuple[str, ...] = METHODS
    """The methods whose step is measured in the part steps; SGD and SAM are added."""
    model: str = "resnet18"
    width: int | None = None
    """Width of the model's narrowest layer."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the model's computations."""
    batch_size: int = 128
    examples: int = 50_000
    """Images of an epoch."""
    seconds: float = 0.2
    """What a method, and SGD beside it, trains in a turn; ten steps at least."""
    turns: int = 5
    """Turns; a ratio is the median over them."""
    epochs: int = 3
    """Epochs that are timed after the first; that are trained of real images."""
    workers: int = os.cpu_count() or 1
    """Programs that are compiled at a time."""
    data_dir: Path = disk.DATA_DIR
    """The TFDS directory."""

    def check(self) -> None:
        """Raises where an option makes no sense, before anything is computed.

        Raises:
          UserError: as said.
        """
        if self.turns < 2:
            raise UserError(f"--turns must be at least 2, got {self.turns}.")
        if self.workers < 1:
            raise UserError(f"--workers must be at least 1, got {self.workers}.")
        positive("seconds", self.seconds)
        if self.examples < self.batch_size:
            raise UserError(
                f"--examples must be at least --batch-size {self.batch_size}, got {self.examples}."
            )
        known("model", self.model, models.MODELS)
        sizes.check(self.model, self.width, 10, (32, 32, 3), self.examples)
        for name in self.methods:
            known("method", name, METHODS)

    @property
    def recipe(self) -> Recipe:
        """ResNet-18 on CIFAR-10 as its paper trains it, but for the options."""
        return dataclasses.replace(
            RECIPES["cifar10_resnet18_ae_sam"],
            model=self.model,
            width=self.width,
            dtype=self.dtype,
            batch_size=self.batch_size,
            train_examples=self.examples,
            validation=0.0,
        )

    @functools.cached_property
    def data(self) -> sets.Data:
        """CIFAR-10, or images and labels at random where it is not prepared.

        Raises:
          UserError: there are not so many examples.
        """
        try:
            return sets.load("cifar10", data_dir=self.data_dir, train_examples=self.examples)
        except ValueError as error:
            raise UserError(f"--examples: {error}") from error
        except disk.NotPreparedError:
            rng = np.random.default_rng(0)
            images = rng.integers(0, 256, (self.examples, 32, 32, 3), np.uint8)
            made = reading.Split(images, rng.integers(0, 10, self.examples, np.int32))
            level = np.full(3, 128, np.float32)
            return sets.Data(made, made, None, 10, 0.0, level, level / 2)

    @property
    def images(self) -> str:
        """Which they are."""
        return "CIFAR-10" if self.data.read else "made, of the shapes of CIFAR-10"

    @functools.cached_property
    def train(self) -> Arrays:
        """The training images on the device."""
        return arrays(self.data)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.examples // self.batch_size
