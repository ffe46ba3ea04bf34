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
    # The settings are the best of a grid on a held-out fifth of the training set, with 40 % of its
    # labels flipped, the held-out ones too: docs/results/digits.md has the grids.
    "digits": Recipe(
        dataset="digits",
        model=models.MLP,
        epochs=100,
        batch_size=64,
        learning_rate=0.02,
        settings={
            "sam": {"rho": 0.5},
            "gsam": {"rho": 0.3, "alpha": 0.4},
            "looksam": {"rho": 0.4, "alpha": 1.0, "period": 2},
            "ae_sam": {"rho": 0.8, "lambda_1": -1.0, "lambda_2": 0.0},
            "ae_looksam": {"rho": 0.5, "alpha": 0.9, "lambda_1": -1.0, "lambda_2": 1.0},
            "samar": {"rho": 0.8, "gamma": 1.2, "chi": 1.0},
            "le_sam": {"budget": 0.35, "rho_max": 0.5},
            "le_sam_plus": {"budget": 0.2, "alpha": 0.3, "rho_max": 0.4},
            "r_sam": {"rho": 0.6, "gamma": 0.02, "lambda_": 100.0},
            "r_gsam": {"rho": 0.4, "gamma": 0.02, "lambda_": 100.0, "alpha": 0.4},
            "wsam": {"rho": 0.6, "gamma": 0.9},
            "coupled_wsam": {"rho": 0.2, "gamma": 0.7},
        },
    ),
    "digits_cnn": Recipe(
        dataset="digits",
        model=models.CNN,
        epochs=20,
        batch_size=64,
        learning_rate=0.1,
    ),
}
