"""Sets that fit in memory, read whole: the arrays of each split as they lie on disk."""

from collections.abc import Iterator, Sequence
import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import disk
from experiments.data.pipeline import digests

BLOCK = 1024  # records read at once

UNLABELLED = ("imagenet2012", "imagenet2012_corrupted")  # in their test splits


class Split(NamedTuple):
    """Images uint8 [N, H, W, C] and labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.images.shape[1:]


class Whole(NamedTuple):
    """A set in memory as it was read, in arrays that cannot be written."""

    train: Split
    test: Split
    classes: int
    read: dict[str, digests.Entry]


# The set that was read last, by where it lies and the state of its files: what draws many seeds,
# one after the other, from one set is to read it once.
_last: dict[tuple, Whole] = {}


def load_tested(name: str, *, data_dir: Path = disk.DATA_DIR) -> Split:
    """Reads the test split alone of a set that fits in memory, or else its validation split.

    Raises:
      ValueError, NotPreparedError, CorruptedError, OSError: as `sets.load`.
    """
    builder = builder_of(name, data_dir)
    if (held := _last.get(_state(builder))) is not None:
        return held.test
    return _read(builder, tested_split(builder))


def tested_split(builder: tfds.core.DatasetBuilder) -> str:
    """The split to test on: the test split where there is one with labels, or else validation."""
    labelled = "test" in builder.info.splits and builder.name not in UNLABELLED
    return "test" if labelled else "validation"


def builder_of(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """What reads the newest prepared version of a set of byte images with a label each."""
    builder = disk.opened(name, data_dir)
    features = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if not (
        isinstance(image, tfds.features.Image)
        and image.np_dtype == np.uint8
        and isinstance(label, tfds.features.ClassLabel)
        and label.num_classes
    ):
        raise ValueError(
            f"{name} has the features {', '.join(sorted(features))}, and not byte images under "
            "`image` and classes under `label`: pass an image classification set."
        )
    return builder


def whole(builder: tfds.core.DatasetBuilder) -> Whole:
    """Both splits of a set, read anew unless they were the last that were."""
    state = _state(builder)
    if state not in _last:
        _last.clear()  # before the next one needs the memory
        tested, label = tested_split(builder), builder.info.features["label"]
        train = _read(builder, "train")
        splits = {"train": train, tested: _read(builder, tested, train.shape)}
        read = {name: _entry(split, label.names) for name, split in splits.items()}
        _last[state] = Whole(train, splits[tested], label.num_classes, read)
    return _last[state]


def _state(builder: tfds.core.DatasetBuilder) -> tuple:
    """Where a set lies and in which state its files are."""
    folder, files = Path(builder.data_path).resolve(), []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # such as a link to nothing
                found = entry.stat()
                files.append((entry.name, found.st_ino, found.st_size, found.st_mtime_ns))
    return folder, *sorted(files)


def _entry(split: Split, names: Sequence[str]) -> digests.Entry:
    """What `sets.Data.read` tells of a split."""
    parts = [str(split.images.shape).encode(), memoryview(split.images).cast("B")]
    parts += [memoryview(split.labels.astype("<i4")).cast("B"), *digests.words(names)]
    return digests.entry(parts, examples=split.examples, classes=len(names))


def _read(
    builder: tfds.core.DatasetBuilder, split: str, shape: tuple[int, ...] | None = None
) -> Split:
    """One split as arrays, of images of the given shape, or else of that of the first one."""
    name, splits = builder.info.full_name, builder.info.splits
    if split not in splits or not splits[split].num_examples:
        raise ValueError(
            f"{name} has no images in a split {split!r}, but the splits {', '.join(splits)}: pass "
            "a set with a training split and a test or validation split."
        )
    images, labels = None, None
    for i, example in enumerate(_examples(builder, split)):
        image = example["image"]
        if images is None:
            shape = shape or image.shape
            if 0 in shape:
                raise ValueError(
                    f"{name} has images of {shape}, without a pixel: pass another set."
                )
            images, labels = _room(name, splits[split], shape)
        if image.shape != shape:
            raise ValueError(
                f"{name} has images of different sizes, {shape} and {image.shape}: pass a set of "
                "equally large ones."
            )
        images[i], labels[i] = image, example["label"]
    if labels.min() < 0:
        raise ValueError(f"{name} has images without a label in {split!r}: pass another set.")
    if labels.max() >= (classes := builder.info.features["label"].num_classes):
        raise disk.CorruptedError(
            f"{name} has the label {labels.max()} in {split!r}, and {classes} classes: delete its "
            "folder and prepare the set again."
        )
    for array in (images, labels):
        array.setflags(write=False)
    return Split(images, labels)


def _room(name, split, shape):
    """Arrays for the images and the labels of a split."""
    count = split.num_examples
    try:
        return np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
    except (MemoryError, ValueError) as error:  # the other where NumPy cannot count so far
        raise ValueError(
            f"{name} has {count:,} images of {shape} in {split.name!r}, more than there is memory "
            "for: pass a smaller set."
        ) from error


def _examples(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[dict]:
    """The image and the label of each record, in the order of the files.

    Other features are not decoded: that takes time, and TensorFlow for some.
    """
    features = tfds.features.FeaturesDict({k: builder.info.features[k] for k in ("image", "label")})
    source = builder.as_data_source(
        split,
        deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        file_format="array_record",
    )

    def decoded(indices):
        return [features.deserialize_example_np(record) for record in source.__getitems__(indices)]

    for start in range(0, len(source), BLOCK):
        indices = range(start, min(start + BLOCK, len(source)))
        try:
            examples = decoded(indices)
        except Exception:  # the reader, protobuf and the image decoder each raise their own
            for i in indices:
                try:
                    decoded([i])
                except Exception as error:
                    raise disk.CorruptedError(_broken(builder, split, i, error)) from error
            raise
        yield from examples


def _broken(builder: tfds.core.DatasetBuilder, split: str, index: int, error: Exception) -> str:
    """What to say of a record that cannot be read."""
    position = index
    for shard in builder.info.splits[split].file_instructions:
        if position < shard.take:
            break
        position -= shard.take
    return (
        f"record {index} of the {split} split of {builder.info.full_name} cannot be read from "
        f"{shard.filename} ({error!r:.200}): delete its folder and prepare the set again."
    )
