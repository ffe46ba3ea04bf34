"""What a recipe costs, in gradients of one batch and in hours."""

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

# Multiply-adds of a forward pass on one image: by model, size of the image, and width.
MACS = {
    ("resnet18", 32, None): 556e6,
    ("resnet34", 32, None): 1.159e9,
    ("resnet50", 32, None): 1.298e9,
    ("resnet32", 32, None): 69e6,
    ("resnet32", 32, 64): 1.1e9,
    ("wrn28_10", 32, None): 5.243e9,
    ("wrn34_10", 32, None): 6.661e9,
    ("pyramidnet110", 32, None): 4.711e9,
    ("vit_small", 32, None): 1.42e9,
    ("imagenet_resnet18", 224, None): 1.814e9,
    ("imagenet_resnet50", 224, None): 4.089e9,
    ("imagenet_resnet101", 224, None): 7.801e9,
    ("vit_s16", 224, None): 4.6e9,
    ("vit_b16", 224, None): 17.56e9,
}

# Images of each example that a gradient is of.
PASSES = {"cross_entropy": 1, "glmc": 2}

# Floating-point operations a second of one GeForce RTX 5090, to estimate by. Table 6 of the LE-SAM
# paper has 9.06, 55.83 and 88.82 s an epoch with SAM for ResNet-18, WRN-28-10 and PyramidNet-110,
# which is 37, 56 and 32 · 10¹².
RATE = 40e12

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
        case "sgd" | "msam" | "s2_sam" | "ivon":
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


def said(recipe: Recipe, method: str) -> str:
    """The gradients of the run, such as "105.3k (1.5/step)"."""
    per_step = gradients_per_step(recipe, method)
    total = steps(recipe.of(method)) * per_step
    text = f"{total / 1e6:.2f}M" if total >= 1e6 else f"{total / 1e3:.1f}k"
    return f"{text} ({per_step:.2g}/step)"


def hours(recipe: Recipe, method: str) -> float | None:
    """An estimate of the hours that a run takes on one GeForce RTX 5090; None for a small model.

    A gradient costs three forward passes, a multiply-add two operations. Evaluation, and what a
    method computes beside gradients, are not counted.
    """
    macs = MACS.get((recipe.model, recipe.image_size or 32, recipe.width))
    if macs is None:
        return None
    recipe = recipe.of(method)
    gradients = steps(recipe) * recipe.batch_size * gradients_per_step(recipe, method)
    return PASSES[recipe.objective] * gradients * 3 * 2 * macs / RATE / 3600


def share_above(lambda_1: float, lambda_2: float) -> float:
    """How often a normal variable exceeds a threshold that moves evenly from λ2 to λ1."""
    normal = statistics.NormalDist()
    if lambda_1 == lambda_2:
        return normal.cdf(-lambda_1)

    def antiderivative(c):
        return c * normal.cdf(-c) - normal.pdf(c)

    return (antiderivative(lambda_2) - antiderivative(lambda_1)) / (lambda_2 - lambda_1)
