"""What to train: data set, model, length, base optimizer, and each method's settings."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import linen as nn

from experiments import models


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One experiment; every method shares all but its own settings.

    Attributes:
      dataset: a TFDS name.
      model: makes the Flax module from the number of classes.
      epochs: passes over the training set.
      batch_size: images a step; the last incomplete batch of an epoch is dropped.
      learning_rate: at the start; a cosine per step takes it to 0.
      momentum: of SGD.
      weight_decay: coupled, added to the direction behind the method, outside the perturbation.
      settings: keyword arguments of each method; a method that is not named has its defaults.
    """

    dataset: str
    model: Callable[[int], nn.Module]
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


RECIPES = {
    "digits": Recipe(
        dataset="digits",
        model=models.MLP,
        epochs=100,
        batch_size=64,
        learning_rate=0.02,
    ),
    "digits_cnn": Recipe(
        dataset="digits",
        model=models.CNN,
        epochs=20,
        batch_size=64,
        learning_rate=0.1,
    ),
}
