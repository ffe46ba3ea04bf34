"""A trained model under attack: its accuracy and loss on test images at the worst that is found.

An image counts where the model, in evaluation mode, is right on it and on each attacked form of it.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.analysis import attacks
from experiments.analysis.objective import AnalysisError
from experiments.analysis.trained import Trained
from experiments.data import augment, feeds
from experiments.data.disk import CorruptedError
from experiments.system.errors import UserError


class Norm(NamedTuple):
    """A norm of the attacks: its sign, and what its radii are told in."""

    sign: str
    unit: float
    suffix: str

    def said(self, epsilon: float) -> str:
        """A radius in words."""
        return f"{epsilon:g}{self.suffix}"


NORMS = {"linf": Norm("L∞", 1 / 255, "/255"), "l2": Norm("L2", 1.0, "")}


@dataclasses.dataclass(frozen=True)
class Attack:
    """How hard to attack."""

    steps: int = 10
    """Steps of projected gradient descent."""
    linf_step_size: float | None = None
    """The step of L∞ in its radius; 2.5/steps where left out."""
    l2_step_size: float | None = None
    """The step of L2 in its radius; 2.5/steps where left out."""
    restarts: int = 1
    """Attacks on each image, from different random starts; it must withstand all of them."""
    random_start: bool = True
    """Whether an attack starts at random in the ball, or at the image."""
    examples: int | None = None
    """The first test images; all where left out."""
    seed: int = 0
    """Draws the random starts."""

    def step_size(self, norm: str) -> float:
        """The step in the radius."""
        given = getattr(self, f"{norm}_step_size")
        return 2.5 / self.steps if given is None else given


class Target:
    """The last checkpoint of a run, under attack."""

    def __init__(
        self, trained: Trained, attack: Attack, batch_size: int, on_batch: Callable[[], None]
    ):
        """Reads the checkpoint.

        Raises:
          AnalysisError: its parameters are not finite.
          UserError: it cannot be read.
        """
        self._trained, self._attack, self._batch_size = trained, attack, batch_size
        self._on_batch = on_batch
        params, model_state = trained.last_weights()
        found = trained.data
        judge, gradient = _functions(trained.model(), trained.recipe.image_size)
        scale = (jnp.asarray(found.mean), jnp.asarray(found.std))
        given = ({"params": params, **model_state}, scale)
        self._judge = functools.partial(judge, *given)
        self._gradient = jax.tree_util.Partial(gradient, *given)

    def measure(self, norm: str | None, epsilon: float | None) -> dict[str, Any]:
        """Accuracy and mean loss at the worst that the attacks find.

        Args:
          norm: of the attacks; None for the clean images alone.
          epsilon: their radius, in the unit of its norm.

        Returns:
          Both, the examples that they are means over, and how many more were left_out, as they
          could not be decoded.

        Raises:
          AnalysisError: a loss is not finite.
        """
        right, count, total = 0, 0, 0.0
        examples = self._attack.examples
        batches = in_batches(self._trained, self._batch_size, examples)
        for images, labels, valid, places in batches:
            losses, correct = self._judge(images, labels)
            for attacked in self._attacked(images, labels, places, norm, epsilon):
                found = self._judge(attacked, labels)
                losses, correct = jnp.maximum(losses, found[0]), correct & found[1]
            right += int(np.asarray(correct)[valid].sum())
            total += float(np.asarray(losses, np.float64)[valid].sum())
            count += int(valid.sum())
            self._on_batch()
        if not math.isfinite(total):
            raise AnalysisError("the loss of an image is not finite, so that no attack climbs it.")
        there = self._trained.data.test.examples
        left_out = (there if examples is None else min(there, examples)) - count
        return {
            "accuracy": right / count,
            "loss": total / count,
            "examples": count,
            "left_out": left_out,
        }

    def _attacked(self, images, labels, places, norm, epsilon):
        """The images as each attack leaves them."""
        attack = self._attack
        for restart in range(attack.restarts if norm else 0):
            key = jax.random.fold_in(jax.random.key(attack.seed), restart)
            # A start for each place in the test split, however it is divided.
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
            radius = epsilon * NORMS[norm].unit
            yield attacks.pgd(
                self._gradient,
                images,
                labels,
                epsilon=radius,
                norm=norm,
                steps=attack.steps,
                step_size=attack.step_size(norm) * radius,
                key=keys if attack.random_start else None,
            )


@functools.cache
def _functions(model, size):
    """Loss and whether it is right, for each image in [0, 1], and the gradient of its loss."""

    def judge(variables, scale, images, labels):
        seen = augment.augment(None, 255 * images, *scale, (), size=size)
        logits = model.apply(variables, seen, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses, logits.argmax(-1) == labels

    def gradient(variables, scale, images, labels):
        # In evaluation mode no image sees another: the gradient of the sum has each one's own.
        return jax.grad(lambda images: judge(variables, scale, images, labels)[0].sum())(images)

    return jax.jit(judge), gradient


def in_batches(
    trained: Trained, size: int, examples: int | None
) -> Iterator[tuple[jax.Array, jax.Array, np.ndarray, np.ndarray]]:
    """The test split of a run, or its first examples, in batches of one size.

    Yields:
      Images in [0, 1], labels, which of them count, and their places in the split.

    Raises:
      UserError: there are several test sets, an image cannot be read, or none is left.
    """
    if isinstance(trained.data.test, dict):
        raise UserError(
            f"{trained.path} has a test set for each domain: robustness is measured on one."
        )
    first, counted = 0, 0
    size = min(size, trained.data.test.examples)
    for images, labels, valid in _read(trained.data.test, size):
        missing = size - len(labels)
        images, labels, valid = (
            np.pad(np.asarray(a), [(0, missing)] + [(0, 0)] * (a.ndim - 1))
            for a in (images, labels, valid)
        )
        places = first + np.arange(size)
        valid &= places < (math.inf if examples is None else examples)
        counted += int(valid.sum())
        yield jnp.asarray(images, jnp.float32) / 255, jnp.asarray(labels), valid, places
        first += size
        if examples is not None and first >= examples:
            break
    if not counted:
        raise UserError("no image of the test split could be decoded: prepare the set again.")


def _read(test, size):
    """The batches of a test split, whose corrupt image is no reason to leave out the other runs."""
    try:
        yield from feeds.evaluated(test, size)
    except CorruptedError as error:
        raise UserError(str(error)) from error
