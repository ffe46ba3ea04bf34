"""What a recipe costs, in gradients of one batch."""

from collections.abc import Mapping
import statistics
from typing import Any

from experiments.recipes.base import Recipe

# Training examples and classes of each data set, or of each domain of one.
SIZES = {
    "digits": (1_437, 10),
    "mnist": (60_000, 10),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "imagenet2012": (1_281_167, 1000),
    "PACS/photo": (1_670, 7),
    "PACS/art_painting": (2_048, 7),
    "PACS/cartoon": (2_344, 7),
    "PACS/sketch": (3_929, 7),
    "VLCS/Caltech101": (1_415, 5),
    "VLCS/LabelMe": (2_656, 5),
    "VLCS/SUN09": (3_282, 5),
    "VLCS/VOC2007": (3_376, 5),
}

# The settings of `sam_optax` that decide the cost of a method, where a recipe has none.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "lpf_sgd": {"samples": 1},
    "looksam": {"period": 5},
    "ss_sam": {"probability": 0.5},
    "esam": {"gamma": 0.5},
    "ae_sam": {"lambda_1": -1.0, "lambda_2": 1.0},
    "ae_looksam": {"lambda_1": 0.0, "lambda_2": 2.0},
}


def size(recipe: Recipe) -> tuple[int, int]:
    """Training examples and classes of its set, before any is left out."""
    return SIZES[recipe.dataset if recipe.domain is None else f"{recipe.dataset}/{recipe.domain}"]


def steps(recipe: Recipe) -> int:
    """The steps of the whole run."""
    examples, classes = size(recipe)
    if recipe.imbalance is not None:
        largest = examples // classes
        shares = ((1 / recipe.imbalance) ** (c / (classes - 1)) for c in range(classes))
        examples = sum(int(largest * share) for share in shares)
    examples -= round(recipe.validation * examples)
    if recipe.train_examples is not None:
        examples = min(examples, recipe.train_examples)
    return recipe.epochs * (examples // recipe.batch_size)


def gradients_per_step(recipe: Recipe, method: str) -> float:
    """Gradients that a step of the method takes, on average.

    For the adaptive methods it is what their own model predicts: a normal distribution of the
    squared norm. Forward passes and Hessian-vector products are not counted.
    """
    settings = {**DEFAULTS.get(method, {}), **recipe.settings.get(method, {})}
    match method:
        case "sgd" | "msam" | "s2_sam":
            return 1.0
        case "lpf_sgd":
            return float(settings["samples"])
        case "looksam":
            return 1 + 1 / settings["period"]
        case "ss_sam":
            return 1 + settings["probability"]
        case "esam":
            return 1 + settings["gamma"]
        case "ae_sam" | "ae_looksam":
            return 1 + share_above(settings["lambda_1"], settings["lambda_2"])
    return 2.0


def share_above(lambda_1: float, lambda_2: float) -> float:
    """How often a normal variable exceeds a threshold that moves evenly from λ2 to λ1."""
    normal = statistics.NormalDist()
    if lambda_1 == lambda_2:
        return normal.cdf(-lambda_1)

    def antiderivative(c):
        return c * normal.cdf(-c) - normal.pdf(c)

    return (antiderivative(lambda_2) - antiderivative(lambda_1)) / (lambda_2 - lambda_1)
