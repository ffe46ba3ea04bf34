"""How far the probabilities that a model gives are right: likelihood and calibration."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BINS = 15


class Judged(NamedTuple):
    """What a model says of images, each [B].

    Attributes:
      hit: bool, whether the most likely class is right.
      confidence: of the most likely class, in [0, 1].
      right: the log of what all right classes have together.
    """

    hit: jax.typing.ArrayLike
    confidence: jax.typing.ArrayLike
    right: jax.typing.ArrayLike


@jax.jit
def judged(log_probabilities: jax.Array, good: jax.Array) -> Judged:
    """What the probabilities say.

    Args:
      log_probabilities: [B, classes]; -inf for a class that is no answer.
      good: the right classes, bool of the same shape.
    """
    most = log_probabilities.argmax(-1)[:, None]
    hit, log_confidence = (
        jnp.take_along_axis(of, most, -1)[:, 0] for of in (good, log_probabilities)
    )
    right = jax.nn.logsumexp(jnp.where(good, log_probabilities, -jnp.inf), -1)
    return Judged(hit, jnp.exp(log_confidence), right)


def binned(hit: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Images, hits and the sum of the confidences of each bin, float [BINS, 3].

    The bins have equal widths, each with its upper edge and without its lower.

    Args:
      hit: whether each image's class was predicted, bool [N].
      confidence: of the prediction, [N] in [0, 1].
    """
    upper = np.linspace(0, 1, BINS + 1)[1:-1]
    bins = np.searchsorted(upper, confidence, side="left")
    sums = (np.bincount(bins, of, minlength=BINS) for of in (np.ones(len(hit)), hit, confidence))
    return np.stack(list(sums), axis=1)


def expected_calibration_error(bins: np.ndarray) -> float:
    """The mean of abs(accuracy - confidence) over the bins, by the images in each.

    Guo et al., On Calibration of Modern Neural Networks, 2017, equation 5, with their 15 bins.

    Args:
      bins: what `binned` gives of an image or more.
    """
    images, hits, confidences = bins.T
    return float(np.abs(hits - confidences).sum() / images.sum())
