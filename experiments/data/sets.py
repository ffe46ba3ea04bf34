"""Image sets from TFDS as bytes in memory: held out, noisy, long-tailed or smaller as asked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import disk, reading
from experiments.data.pipeline.stream import Stream
from experiments.data.reading import Split


class Data(NamedTuple):
    """A set to train on and one or more to evaluate on, in memory or streamed.

    Attributes:
      train: its labels may be noisy.
      test: the test split, always clean; of a set of domains each of the others, by its name.
      validation: the held-out part of the training split, noise included, or None.
      classes: the number of classes.
      flipped: the share of the labels of `train` that differ from the true ones.
      mean: of the images of `train`, for each channel, in 0 to 255; float32 [C].
      std: their standard deviation, 1 for a channel that never varies; float32 [C].
      read: which data were read, by split (of a set of domains by domain), before any was held
        out, made wrong or left out: {"examples": int, "classes": int, "sha256": str} each. Plain
        values of JSON, that two readings share where the images are the same, wherever they lie.
    """

    train: Split | Stream
    test: Split | Stream | dict[str, Stream]
    validation: Split | Stream | None
    classes: int
    flipped: float
    mean: np.ndarray
    std: np.ndarray
    read: Mapping[str, Any] = {}


def load(
    name: str,
    *,
    data_dir: Path = disk.DATA_DIR,
    seed: int = 0,
    label_noise: float = 0.0,
    noise: str = "flip",
    validation: float = 0.0,
    imbalance: float | None = None,
    train_examples: int | None = None,
) -> Data:
    """Reads a set that fits in memory, and makes its training split noisy, smaller or long-tailed.

    In this order: noise over the whole training split, the long tail by the true classes, the
    held-out part of what is left, the number of examples. Each draws from a stream of its own, so
    that an example has the same label whatever else is asked for; and what a smaller number of
    examples keeps is part of what a larger one keeps. How many there are does not depend on the
    seed.

    Args:
      name: an image classification set of TFDS, `set` or `set/configuration`, prepared as
        array_record under data_dir; `digits` prepares itself.
      data_dir: the TFDS directory.
      seed: of the noise, the held-out part, the long tail and the choice of examples.
      label_noise: the share of training labels, in [0, 1], that are replaced.
      noise: `flip`, by one of the other classes, each equally likely (AE-SAM, section 4.3), or
        `symmetric`, by any class, the true one among them, each equally likely (Arazo et al.
        2019, which WSAM follows): of C classes a share label_noise · (C − 1)/C is wrong then.
      validation: the share of the training split, in [0, 1), to hold out.
      imbalance: the size of the largest class over that of the smallest in a training split made
        long-tailed, at least 1; None for the split as it is.
      train_examples: how many training examples to keep; None for all.

    Returns:
      The arrays. A set without a test split gives its validation split as `test`. The set that was
      read last is kept, so that arrays that hold a whole split cannot be written.

    Raises:
      ValueError: an argument is out of range, the set is unknown to TFDS, or it is not one of
        equally large byte images with a label each.
      NotPreparedError: the set is not prepared, or not as array_record.
      CorruptedError: a record or a description of the set cannot be read.
      OSError: data_dir cannot be read or written.
    """
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise must lie in [0, 1], got {label_noise}: pass a share.")
    if noise not in NOISES:
        raise ValueError(f"noise must be {' or '.join(NOISES)}, got {noise!r}: pass one of them.")
    if not 0 <= validation < 1:
        raise ValueError(f"validation must lie in [0, 1), got {validation}: pass a share.")
    if imbalance is not None and not 1 <= imbalance < np.inf:
        raise ValueError(
            f"imbalance must lie in [1, inf), got {imbalance}: pass the size of the largest class "
            "over that of the smallest."
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}: pass 0 or more.")
    train, test, classes, read = reading.whole(reading.builder_of(name, data_dir))
    noise_rng, tail_rng = (np.random.default_rng([seed, i]) for i in (1, 2))

    labels = NOISES[noise](train.labels, label_noise, classes, noise_rng)
    kept = np.arange(len(labels))
    if imbalance is not None:
        kept = long_tail(train.labels, imbalance, classes, tail_rng)
    kept, held_out = divided(kept, validation, train_examples, seed)

    validation_part = None
    if held_out is not None:
        validation_part = Split(train.images[held_out], labels[held_out])
    flipped = float(np.mean(labels[kept] != train.labels[kept]))
    images = train.images if len(kept) == train.examples else train.images[kept]
    train = Split(images, labels[kept])
    read = {split: dict(entry) for split, entry in read.items()}
    return Data(train, test, validation_part, classes, flipped, *moments(images), read)


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words how two `Data.read` differ, such as `train: 1,437 images then, 1,436 now`.

    Args:
      then: what was read at another time.
      now: what is read now.

    Returns:
      What differs of each split; nothing where the two are the same.
    """
    found = []
    for split in dict.fromkeys((*then, *now)):
        old, new = then.get(split), now.get(split)
        if old == new:
            continue
        if old is None or new is None:
            found.append(f"{split}: {'not there then' if old is None else 'no longer there'}")
            continue
        counts = [
            f"{old[key]:,} {what} then, {new[key]:,} now"
            for key, what in (("examples", "images"), ("classes", "classes"))
            if old[key] != new[key]
        ]
        found.append(f"{split}: {' and '.join(counts) or 'other images or classes'}")
    return "; ".join(found)


def divided(
    indices: np.ndarray, validation: float, train_examples: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The examples to train on, and those held out, None for none.

    Args:
      indices: of all examples.
      validation: the share to hold out.
      train_examples: how many of the others to keep; None for all.
      seed: of both choices.

    Raises:
      ValueError: one of the two parts would be empty, or there are not so many examples.
    """
    part_rng, size_rng = (np.random.default_rng([seed, i]) for i in (0, 3))
    kept, held_out = indices, None
    if validation:
        count = round(validation * len(kept))
        if count in (0, len(kept)):
            raise ValueError(
                f"validation {validation} holds out {count} of {len(kept)} images: pass a "
                "share that leaves some on both sides."
            )
        held_out, kept = np.split(kept[part_rng.permutation(len(kept))], [count])
    if train_examples is not None:
        if not 1 <= train_examples <= len(kept):
            raise ValueError(
                f"train_examples must lie in [1, {len(kept)}], got {train_examples}: pass at most "
                "as many as there are to train on."
            )
        kept = kept[np.sort(size_rng.permutation(len(kept))[:train_examples])]
    return kept, held_out


def flip(labels: np.ndarray, share: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Labels [N], of which round(share · N) are replaced by one of the other classes."""
    labels = labels.copy()
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    labels[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return labels


def symmetric(
    labels: np.ndarray, share: float, classes: int, rng: np.random.Generator
) -> np.ndarray:
    """Labels [N], of which round(share · N) are replaced by any class, the true one included."""
    labels = labels.copy()
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    labels[chosen] = rng.integers(0, classes, len(chosen))
    return labels


NOISES = {"flip": flip, "symmetric": symmetric}


def long_tail(
    labels: np.ndarray, imbalance: float, classes: int, rng: np.random.Generator
) -> np.ndarray:
    """Which examples to keep for classes of exponentially falling size.

    Class i keeps int(n · imbalance^(−i/(classes − 1))) of its examples, where n is the size of
    the largest class, or all that it has where those are fewer.

    Args:
      labels: the true classes [N].
      imbalance: the size of the first class over that of the last, at least 1.
      classes: the number of classes.
      rng: of the choice within a class.

    Returns:
      Their indices, in ascending order.

    Raises:
      ValueError: the last class would be empty.

    References:
      Cao et al. 2019, Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, as
      in their code; on CIFAR-100 these are the 10,847 images (imbalance 100) and 12,608 (50) of
      CIFAR-100-LT.
    """
    largest = np.bincount(labels, minlength=classes).max()
    sizes = (largest * (1 / imbalance) ** (np.arange(classes) / max(classes - 1, 1))).astype(int)
    if not sizes[-1]:
        raise ValueError(
            f"imbalance {imbalance} leaves class {classes - 1} without an example: pass less than "
            f"{largest}, the size of the largest class."
        )
    kept = [rng.permutation(np.flatnonzero(labels == i))[:size] for i, size in enumerate(sizes)]
    return np.sort(np.concatenate(kept))


def moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 [C], of each channel of uint8 images [N, H, W, C].

    The deviation is 1 where it would be 0, so that one can divide by it.
    """
    pixels = images.reshape(len(images), -1)
    channels = images.shape[-1]
    # Sums of integers are exact, and einsum makes no copy of the images in the wider type.
    total = np.einsum("nd->d", pixels, dtype=np.int64).reshape(-1, channels).sum(0)
    squares = np.einsum("nd,nd->d", pixels, pixels, dtype=np.int64).reshape(-1, channels).sum(0)
    count = images.size // channels
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
