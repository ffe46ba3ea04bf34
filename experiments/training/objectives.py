"""What a step minimizes: the model under it, how its batch is made, and the loss of each example.

An objective has

    model(dtype)                         the module to train, whose logits are evaluated
    batch(key, progress, train, indices) the batch of these examples of a set in memory, a pytree
                                         whose leaves have the examples on their leading axis
    losses(model, variables, batch)      losses [B], hits [B], and the new batch statistics

where the key is the step's own and progress is the share of the run's epochs that are over, so that
all that is random follows from seed and step. For sets that are streamed there is `prepared`.
"""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments import models
from experiments.data import augment
from experiments.data.feeds import Arrays
from experiments.recipes.base import Recipe
from experiments.training.glmc import Glmc


class Batch(NamedTuple):
    """Images float32 [B, H, W, C]; labels int32 [B], or soft ones float32 [B, classes]."""

    images: jax.Array
    labels: jax.Array


class CrossEntropy:
    """The cross-entropy of augmented images, their labels smoothed or mixed up where asked for."""

    def __init__(self, recipe: Recipe, classes: int):
        """What the recipe asks for."""
        self._recipe, self._classes = recipe, classes
        # The rest is done by the workers of a streamed set.
        self._augmentation = [name for name in recipe.augmentation if name in augment.NAMES]

    def model(self, dtype: Any = None) -> nn.Module:
        """The recipe's model; the dtype is the recipe's where left out."""
        recipe = self._recipe
        dtype = jnp.dtype(recipe.dtype if dtype is None else dtype)
        return models.make(recipe.model, self._classes, dtype=dtype, width=recipe.width)

    def batch(
        self, key: jax.Array, progress: jax.Array, train: Arrays, indices: jax.Array
    ) -> Batch:
        """These examples, augmented; every epoch is the same."""
        del progress
        return self.prepared(key, train.scale, train.images[indices], train.labels[indices])

    def prepared(
        self,
        key: jax.Array,
        scale: tuple[jax.Array, jax.Array],
        images: jax.Array,
        labels: jax.Array,
    ) -> Batch:
        """The batch of these images uint8 [B, H, W, C] with labels int32 [B], augmented."""
        key, mix_key = jax.random.split(key)
        recipe = self._recipe
        images = augment.augment(key, images, *scale, self._augmentation, size=recipe.image_size)
        if recipe.label_smoothing or recipe.mixup:
            one_hot = jax.nn.one_hot(labels, self._classes)
            labels = optax.smooth_labels(one_hot, recipe.label_smoothing)
        if recipe.mixup:
            images, labels = augment.mixup(mix_key, images, labels, recipe.mixup)
        return Batch(images, labels)

    def losses(
        self, model: nn.Module, variables: Any, batch: Batch
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Losses [B], whether the model is right on each [B], and the new batch statistics."""
        logits, state = model.apply(
            variables, batch.images, train=True, mutable=[k for k in variables if k != "params"]
        )
        if batch.labels.ndim > 1:
            losses = optax.softmax_cross_entropy(logits, batch.labels)
            return losses, logits.argmax(-1) == batch.labels.argmax(-1), state
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses, logits.argmax(-1) == batch.labels, state


OBJECTIVES = {"cross_entropy": CrossEntropy, "glmc": Glmc}


def make(recipe: Recipe, classes: int) -> CrossEntropy | Glmc:
    """The recipe's objective.

    Raises:
      ValueError: there is none of this name, or the recipe does not fit to it.
    """
    if recipe.objective not in OBJECTIVES:
        raise ValueError(
            f"objective must be {' or '.join(OBJECTIVES)}, got {recipe.objective!r}: pass one of "
            "them."
        )
    return OBJECTIVES[recipe.objective](recipe, classes)
