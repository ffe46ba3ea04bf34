"""Image sets from TFDS as arrays in memory, their held-out part and their label noise."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from experiments import digits  # noqa: F401, registers the set with TFDS

DATA_DIR = Path("~/tensorflow_datasets").expanduser()


class NotPreparedError(FileNotFoundError):
    """The set is not in the TFDS directory; the message says how to prepare it."""


class Split(NamedTuple):
    """Images float32 [N, H, W, C] and labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


class Data(NamedTuple):
    """A set to train on and one to evaluate on.

    Attributes:
      train: its labels may be noisy.
      test: the test split, or the held-out part of the training split.
      classes: the number of classes.
      flipped: the share of training labels that differ from the true ones.
    """

    train: Split
    test: Split
    classes: int
    flipped: float


def load(
    name: str,
    *,
    data_dir: Path = DATA_DIR,
    seed: int = 0,
    label_noise: float = 0.0,
    validation: float = 0.0,
) -> Data:
    """Reads a set, flips labels of its training split, and holds out a part where asked to.

    Images are scaled to mean 0 and variance 1 for each channel of the training split. With a
    held-out part, noise included, the test split is not touched.

    Args:
      name: a data set of TFDS, prepared as array_record under data_dir; `digits` prepares itself.
      data_dir: the TFDS directory.
      seed: of the flips and of the held-out part.
      label_noise: the share of training labels, in [0, 1], that are replaced by one of the other
        classes, each equally likely.
      validation: the share of the training split, in [0, 1), to evaluate on in place of the test
        split; 0 for the test split.

    Returns:
      The arrays.

    Raises:
      ValueError: label_noise or validation is out of range.
      NotPreparedError: the set is not prepared.
      OSError: data_dir cannot be read or written.
    """
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label noise must lie in [0, 1], got {label_noise}: pass a share.")
    if not 0 <= validation < 1:
        raise ValueError(f"validation must lie in [0, 1), got {validation}: pass a share.")
    builder = _builder(name, data_dir)
    train, test = (_read(builder, split) for split in ("train", "test"))
    classes = builder.info.features["label"].num_classes
    # Two streams of one seed, so that the held-out part is the same at every noise level.
    split_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(2))
    labels = flip(train.labels, label_noise, classes, noise_rng)
    wrong = labels != train.labels
    train = train._replace(labels=labels)
    if validation:
        order = split_rng.permutation(len(labels))
        held_out = round(validation * len(labels))
        if held_out in (0, len(labels)):
            raise ValueError(
                f"validation {validation} holds out {held_out} of {len(labels)} images: pass a "
                "share that leaves some on both sides."
            )
        test = Split(*(a[order[:held_out]] for a in train))
        train = Split(*(a[order[held_out:]] for a in train))
        wrong = wrong[order[held_out:]]
    mean = train.images.mean((0, 1, 2))
    std = train.images.std((0, 1, 2))
    train, test = (s._replace(images=(s.images - mean) / std) for s in (train, test))
    return Data(train, test, classes, float(wrong.mean()))


def flip(labels: np.ndarray, share: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Labels [N], of which round(share · N) are replaced by one of the other classes."""
    labels = labels.copy()
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    labels[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return labels


def _builder(name, data_dir):
    logging.getLogger("absl").setLevel(logging.ERROR)  # how images are decoded is of no interest
    data_dir = Path(data_dir).expanduser()
    if name == "digits":
        tfds.disable_progress_bar()
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(file_format="array_record")
        return builder
    try:
        return tfds.builder_from_directories(sorted((data_dir / name).glob("*"))[-1:])
    except (ValueError, IndexError) as error:
        raise NotPreparedError(
            f"{name} is not prepared under {data_dir}. Prepare it once with: python -m pip install "
            f"'sam_optax[prepare]' && tfds build {name} --file_format=array_record "
            f"--data_dir={data_dir}"
        ) from error


def _read(builder, split):
    source = builder.as_data_source(split=split)
    examples = source.__getitems__(range(len(source)))
    images = np.stack([example["image"] for example in examples]).astype(np.float32)
    return Split(images, np.array([example["label"] for example in examples], np.int32))
