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


def expected_calibration_error(hit: np.ndarray, confidence: np.ndarray) -> float:
    """The mean of abs(accuracy - confidence) over bins of equal width, by the images in each.

    Guo et al., On Calibration of Modern Neural Networks, 2017, equation 5, with their 15 bins, each
    with its upper edge and without its lower.

    Args:
      hit: whether each image's class was predicted, bool [N], N ≥ 1.
      confidence: of the prediction, [N] in [0, 1].
    """
    upper = np.linspace(0, 1, BINS + 1)[1:-1]
    bins = np.searchsorted(upper, confidence, side="left")
    gap = np.bincount(bins, np.asarray(hit, float) - np.asarray(confidence, float))
    return float(np.abs(gap).sum() / len(hit))
