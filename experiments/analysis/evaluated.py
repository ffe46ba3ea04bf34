"""A trained model on a test set: accuracy, likelihood and calibration of what it says."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.analysis.calibration import (
    Judged,
    binned,
    expected_calibration_error,
    judged,
)
from experiments.analysis.trained import Trained
from experiments.data import augment, feeds
from experiments.data.othersets import OtherSet
from experiments.system.errors import UserError
import sam_optax


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read of a set, and how."""

    examples: int | None = None
    """The first images of each set, for a quick look; all where left out."""
    batch_size: int = 500
    """Images at a time; the figures do not depend on it."""


class Model:
    """The last checkpoint of a run, in evaluation mode.

    Attributes:
      samples: of its posterior, over which its probabilities are averaged; 0 where they are those
        of its parameters.
    """

    def __init__(
        self,
        trained: Trained,
        reading: Reading,
        on_batch: Callable[[], None],
        *,
        posterior_samples: int | None = None,
    ):
        """Reads the checkpoint.

        Args:
          trained: the run.
          reading: what is read of each set.
          on_batch: called after each batch.
          posterior_samples: how many to draw where the run's method has learned a posterior; None
            for its mean.

        Raises:
          AnalysisError: its parameters are not finite.
          UserError: it cannot be read, or the set that it was trained on.
        """
        self._trained, self._reading, self._on_batch = trained, reading, on_batch
        # Of a streamed set no more is used than the number of its classes.
        recipe, found = trained.recipe, trained.found if trained.is_streamed else trained.data
        params, model_state = trained.last_weights()
        posterior = trained.posterior(params) if posterior_samples else None
        self.samples = 0 if posterior is None else posterior_samples
        self._points = functools.partial(_points, params, posterior, self.samples)
        scale = (jnp.asarray(found.mean), jnp.asarray(found.std))
        self._classes = found.classes
        predict = _predict(trained.model(recipe.dtype), recipe.image_size)
        self._predict = functools.partial(predict, model_state, scale)

    def measure(self, one: OtherSet, places: np.ndarray) -> dict[str, Any]:
        """The accuracy on a set, and how good the probabilities are.

        Args:
          one: the set.
          places: of its classes among those of the model.

        Returns:
          The accuracy; the nll, the mean over the images of -log of the probability that the right
          classes have together, in nats; the ece, the expected calibration error, in [0, 1], and
          the bins that it is of; the samples that the probabilities are the mean over, 0 for none;
          the examples that all this is of; how many had no right class and were left_out; the names
          of those that were corrupt; how many of the classes predictions were chosen among.

        Raises:
          UserError: an image cannot be read, or none counts.
        """
        among = np.isin(np.arange(self._classes), places[one.among])
        found = []
        try:
            split = self._read(one)
            size = min(self._reading.batch_size, split.examples)
            for images, labels, valid in feeds.evaluated(split, size):
                good = right_classes(np.asarray(labels), places, self._classes)
                said = judged(self._log_probabilities(among, images), good)
                found.append([np.asarray(of)[np.asarray(valid)] for of in said])
                self._on_batch()
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
        all_of = Judged(*map(np.concatenate, zip(*found, strict=True)))
        count = len(all_of.hit)
        if not count:
            raise UserError(
                "no image has a right class and can be decoded: evaluate on more --examples, or "
                "prepare the set again."
            )
        corrupt = list(getattr(split, "corrupt", ()))
        bins = binned(all_of.hit, all_of.confidence)
        return {
            "accuracy": float(all_of.hit.mean()),
            "nll": -float(all_of.right.mean(dtype=float)),
            "ece": expected_calibration_error(bins),
            "bins": bins.tolist(),
            "samples": self.samples,
            "examples": count,
            "left_out": split.examples - count - len(corrupt),
            "corrupt": corrupt,
            "among": int(among.sum()),
            "classes": self._classes,
        }

    def _log_probabilities(self, among, images):
        """Of the mean over the points: one for the parameters themselves, or one a sample."""
        total = -jnp.inf
        for params in self._points():
            total = jnp.logaddexp(total, self._predict(params, among, images))
        return total - np.log(self.samples or 1)

    def _read(self, one):
        """The images, in the way in which the run reads its own."""
        if not self._trained.is_streamed:
            return one.split(self._reading.examples)
        size = self._trained.recipe.image_size
        return one.stream(size, self._reading.examples, **self._trained.how)


def _points(params, posterior, samples) -> Iterator[Any]:
    """The parameters to predict at, drawn anew each time, since all at once may be too many."""
    if posterior is None:
        yield params
    for i in range(samples):
        yield _sample(jax.random.fold_in(jax.random.key(0), i), posterior, params)


_sample = jax.jit(sam_optax.posterior_sample)


@functools.cache
def _predict(model, size):
    """The log of the probability of each class, float32 [B, classes], among some of the classes."""

    def predict(model_state, scale, params, among, images):
        seen = augment.augment(None, images, *scale, (), size=size)
        logits = model.apply({"params": params, **model_state}, seen, train=False)
        return jax.nn.log_softmax(jnp.where(among, logits.astype(jnp.float32), -jnp.inf))

    return jax.jit(predict)


def right_classes(labels: np.ndarray, places: np.ndarray, classes: int) -> np.ndarray:
    """Which classes of a model are right for each image, bool [B, classes].

    Args:
      labels: int [B], or [B, K] with ones for several right classes, of the K classes of a set.
      places: of these among the classes of the model, int [K].
      classes: of the model.
    """
    of_set = labels == 1 if labels.ndim > 1 else labels[:, None] == np.arange(len(places))
    right = np.zeros((len(labels), classes), bool)
    right[:, places] = of_set
    return right
