"""Sets whose images differ in size, as streams: of TFDS, or folders of images by domain."""

from collections.abc import Sequence
import functools
import os
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import disk, reading, sets
from experiments.data.normalization import NORMALIZATIONS
from experiments.data.pipeline.records import FolderRecords, TfdsRecords
from experiments.data.pipeline.stream import Stream
from experiments.recipes.base import Recipe

# What the workers do; crop, flip and cutout are done on the device.
AUGMENTATIONS = ("inception", "jitter", "grayscale", "randaugment")


def is_streamed(name: str, data_dir: Path, domain: str | None) -> bool:
    """Whether a set has to be streamed: it is one of folders, or its images differ in size.

    Raises:
      ValueError, NotPreparedError, CorruptedError: as `experiments.data.sets.load`.
    """
    if domain is not None:
        return True
    features = dict(disk.opened(name, data_dir).info.features.items())
    image = features.get("image")
    return isinstance(image, tfds.features.Image) and None in image.shape[:2]


def load(
    recipe: Recipe,
    *,
    data_dir: Path,
    seed: int = 0,
    workers: int | None = None,
    skip_corrupt: bool = False,
) -> sets.Data:
    """The streams of a recipe's set.

    Of image folders split/class/image the recipe's domain is one split to train on; each of the
    others is a test set.

    Args:
      recipe: its data set, size of the images, augmentation and held-out share.
      data_dir: the TFDS directory, in which image folders lie too.
      seed: of the held-out part and the choice of examples.
      workers: processes that decode; 0 for threads of this one, None for a process for each core.
      skip_corrupt: whether images that cannot be decoded are left out.

    Raises:
      ValueError: the recipe asks for what a streamed set cannot be, or the set has no such split.
      NotPreparedError: the set is not prepared.
      CorruptedError: its description cannot be read, or a file of it is not there.
    """
    _check(recipe)
    if recipe.domain is None:
        own, (train, others) = "train", _prepared(recipe.dataset, data_dir)
    else:
        own, (train, others) = recipe.domain, _folders(recipe, data_dir)
    everything = np.arange(len(train))
    kept, held_out = sets.divided(everything, recipe.validation, recipe.train_examples, seed)
    names = set(recipe.augmentation) & set(AUGMENTATIONS)
    stream = functools.partial(
        Stream,
        size=recipe.image_size,
        classes=train.classes,
        augmentation=names - {"randaugment"},
        crop_area=recipe.crop_area,
        randaugment=recipe.randaugment if "randaugment" in names else None,
        workers=processes(workers),
        skip_corrupt=skip_corrupt,
    )
    mean, std = NORMALIZATIONS[recipe.normalization].of(3)
    tests = {name: stream(records) for name, records in others.items()}
    return sets.Data(
        train=stream(train, indices=np.sort(kept)),
        test=next(iter(tests.values())) if recipe.domain is None else tests,
        validation=None if held_out is None else stream(train, indices=np.sort(held_out)),
        classes=train.classes,
        flipped=0.0,
        mean=mean,
        std=std,
        read={name: records.digest for name, records in {own: train, **others}.items()},
    )


def processes(workers: int | None) -> int:
    """How many decode: those asked for, or one for each core."""
    return (os.cpu_count() or 1) if workers is None else workers


def class_names(recipe: Recipe, data_dir: Path) -> tuple[str, ...]:
    """The names of the classes of a recipe's set, by label; numbers where it gives none.

    Raises:
      ValueError, NotPreparedError, CorruptedError: as `load`.
    """
    if recipe.domain is not None:
        return FolderRecords(disk.directory(data_dir) / recipe.dataset, recipe.domain).class_names
    return TfdsRecords(recipe.dataset, "train", data_dir=data_dir).class_names


def _check(recipe):
    """Raises where a recipe asks for what a stream does not do."""
    if recipe.image_size is None:
        raise ValueError(
            f"image_size must be given for {recipe.dataset}, whose images differ in size: pass "
            "such as 224."
        )
    for name, neutral in (("label_noise", 0.0), ("imbalance", None)):
        if getattr(recipe, name) != neutral:
            raise ValueError(
                f"{name} is for sets in memory, and {recipe.dataset} is streamed: leave it away."
            )
    if recipe.objective != "cross_entropy":
        raise ValueError(
            f"objective must be cross_entropy for {recipe.dataset}, which is streamed, got "
            f"{recipe.objective!r}, which draws examples by their class: pass cross_entropy."
        )
    if recipe.normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be {' or '.join(NORMALIZATIONS)} for a streamed set, got "
            f"{recipe.normalization!r}: pass one of them."
        )


def _prepared(name, data_dir) -> tuple[TfdsRecords, dict[str, TfdsRecords]]:
    """The training split of a set of TFDS, and the split to test on by its name."""
    test = reading.tested_split(disk.opened(name, data_dir))
    train, tested = (TfdsRecords(name, split, data_dir=data_dir) for split in ("train", test))
    return train, {test: tested}


def _folders(recipe, data_dir) -> tuple[FolderRecords, dict[str, FolderRecords]]:
    """The domain to train on, and the others by name."""
    root = disk.directory(data_dir) / recipe.dataset
    train = FolderRecords(root, recipe.domain)
    others: Sequence[str] = [name for name in train.splits if name != recipe.domain]
    if not others:
        raise ValueError(
            f"{root} has the domain {recipe.domain} alone: put the others beside it, to test on."
        )
    return train, {name: FolderRecords(root, name) for name in others}
