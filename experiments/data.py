"""Image sets from TFDS as bytes in memory: held out, noisy, long-tailed or smaller as asked."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import difflib
import logging
import os
from pathlib import Path
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from experiments import digits  # noqa: F401, registers the set with TFDS
from experiments.pipeline import digests

if TYPE_CHECKING:
    from experiments.pipeline.stream import Stream

DATA_DIR = Path("~/tensorflow_datasets")  # as not everyone has a home, see `directory`
BLOCK = 1024  # records read at once
MOST_CLASSES = 10**6  # more than any set has, and fewer than names would fill the memory
UNLABELLED = ("imagenet2012", "imagenet2012_corrupted")  # in their test splits


class NotPreparedError(FileNotFoundError):
    """The set is not in the TFDS directory; the message says how to prepare it."""


class CorruptedError(ValueError):
    """The set is in the TFDS directory but cannot be read; the message says where it breaks."""


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

    train: "Split | Stream"
    test: "Split | Stream | dict[str, Stream]"
    validation: "Split | Stream | None"
    classes: int
    flipped: float
    mean: np.ndarray
    std: np.ndarray
    read: Mapping[str, Any] = {}


class _Raw(NamedTuple):
    """A set in memory as it was read, in arrays that cannot be written."""

    train: Split
    test: Split
    classes: int
    read: dict[str, digests.Entry]


# The set that was read last, by where it lies and the state of its files: what draws many seeds,
# one after the other, from one set is to read it once.
_last: dict[tuple, _Raw] = {}


def load(
    name: str,
    *,
    data_dir: Path = DATA_DIR,
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
    train, test, classes, read = _raw(_builder(name, data_dir))
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


def load_tested(name: str, *, data_dir: Path = DATA_DIR) -> Split:
    """Reads the test split alone of a set that fits in memory, or else its validation split.

    Raises:
      ValueError, NotPreparedError, CorruptedError, OSError: as `load`.
    """
    builder = _builder(name, data_dir)
    if (raw := _last.get(_state(builder))) is not None:
        return raw.test
    return _read(builder, tested_split(builder))


def directory(data_dir: Path) -> Path:
    """The TFDS directory, its `~` replaced.

    Raises:
      ValueError: nobody knows the home directory, as in a container with a user of no name.
    """
    try:
        return Path(data_dir).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"the home directory in {data_dir} cannot be determined: pass the path of the TFDS "
            "directory by --data-dir."
        ) from error


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


def tested_split(builder: tfds.core.DatasetBuilder) -> str:
    """The split to test on: the test split where there is one with labels, or else validation."""
    labelled = "test" in builder.info.splits and builder.name not in UNLABELLED
    return "test" if labelled else "validation"


def is_prepared(name: str, data_dir: Path) -> bool:
    """Whether a set was prepared to the end.

    Raises:
      ValueError: as `directory`.
    """
    return _newest(directory(data_dir) / name) is not None


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


def opened(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """What reads the newest prepared version of a set, whatever its features.

    Raises:
      ValueError: the set is unknown to TFDS, its path is no UTF-8, or there is no such directory as
        `directory` says.
      NotPreparedError: it is not prepared, or not as array_record.
      CorruptedError: its description cannot be read.
      OSError: data_dir cannot be read or written.
    """
    data_dir = directory(data_dir)
    try:
        str(data_dir / name).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the path {str(data_dir / name)!r} is no UTF-8, as TFDS needs it: pass another "
            "directory by --data-dir."
        ) from error
    logging.getLogger("absl").setLevel(logging.ERROR)  # how images are decoded is of no interest
    folder = _newest(data_dir / name)
    if folder is None and name == "digits":
        _prepare_digits(data_dir)
        folder = _newest(data_dir / name)
    if folder is None:
        raise _not_found(name, data_dir)
    try:
        builder = tfds.builder_from_directory(folder)
        _look_at(builder.info)
    except Exception as error:  # JSON, protobuf and TFDS each raise their own
        raise CorruptedError(
            f"the description of {name} in {folder} cannot be read ({error!r:.200}): delete that "
            "folder and prepare the set again."
        ) from error
    formats = [file_format.value for file_format in builder.info.available_file_formats()]
    if "array_record" not in formats:
        raise NotPreparedError(
            f"{name} is prepared as {' and '.join(formats)} in {folder}, not as array_record: "
            f"delete that folder or choose another directory. {_how(name, data_dir)}"
        )
    return builder


def _look_at(info: tfds.core.DatasetInfo) -> None:
    """Raises where a description is not whole, which TFDS itself finds when it is asked for it."""
    for feature in dict(info.features.items()).values():
        if isinstance(feature, tfds.features.ClassLabel):
            if not 0 <= (feature.num_classes or 0) <= MOST_CLASSES:
                raise ValueError(f"there are {feature.num_classes} classes")
            list(feature.names)
    for split in info.splits.values():
        if min(split.shard_lengths, default=0) < 0:
            raise ValueError(f"a file of {split.name} has {min(split.shard_lengths)} images")
        if 0 < split.num_bytes < split.num_examples:  # as no images take
            raise ValueError(f"{split.num_examples} images take {int(split.num_bytes)} bytes")
        if split.num_examples:
            list(split.file_instructions)


def _builder(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """What reads the newest prepared version of a set of byte images with a label each."""
    builder = opened(name, data_dir)
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


def _prepare_digits(data_dir: Path) -> None:
    tfds.disable_progress_bar()
    builder = tfds.builder("digits", data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare(file_format="array_record")
    except OSError:
        # another process may have prepared it in the meantime: its folder is not replaced
        if _newest(data_dir / "digits") is None:
            raise


def _newest(folder: Path) -> Path | None:
    """The newest version in a set's folder, None if none was prepared to the end.

    TFDS prepares in a folder `incomplete.…` and writes the two descriptions last.
    """
    complete = [
        path
        for path in folder.glob("*")
        if tfds.core.Version.is_valid(path.name)
        and (path / "dataset_info.json").is_file()
        and (path / "features.json").is_file()
    ]
    return max(complete, key=lambda path: tfds.core.Version(path.name), default=None)


def _not_found(name: str, data_dir: Path) -> Exception:
    """Why no version of a set was found: unknown, a configuration is missing, or not prepared."""
    known, set_name = tfds.list_builders(with_community_datasets=False), name.split("/")[0]
    if set_name not in known:
        near = difflib.get_close_matches(set_name.lower(), known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see tensorflow.org/datasets."
        return ValueError(
            f"unknown data set {name!r}: it is neither in the catalogue of TFDS nor prepared under "
            f"{data_dir}; {hint}"
        )
    folders = sorted((data_dir / name).glob("*"))
    if configurations := [f"{name}/{path.name}" for path in folders if _newest(path)]:
        return NotPreparedError(
            f"{name} is prepared under {data_dir} in {len(configurations)} configurations: pass "
            f"one of them, such as {', '.join(configurations[:3])}."
        )
    what = f"{name} is not prepared under {data_dir}."
    if unfinished := [path for path in folders if tfds.core.Version.is_valid(path.name)]:
        what = f"{name} is not prepared to the end in {unfinished[-1]}: delete that folder."
    return NotPreparedError(f"{what} {_how(name, data_dir)}")


def _how(name: str, data_dir: Path) -> str:
    """How a set gets prepared."""
    if name == "digits":
        return "Then load it again: it prepares itself."
    return (
        "Prepare it once with: python -m pip install 'sam_optax[prepare]' && "
        f"tfds build {name} --file_format=array_record --data_dir={shlex.quote(str(data_dir))}"
    )


def _raw(builder: tfds.core.DatasetBuilder) -> _Raw:
    """Both splits of a set, read anew unless they were the last that were."""
    state = _state(builder)
    if state not in _last:
        _last.clear()  # before the next one needs the memory
        tested, label = tested_split(builder), builder.info.features["label"]
        train = _read(builder, "train")
        splits = {"train": train, tested: _read(builder, tested, train.shape)}
        read = {name: _entry(split, label.names) for name, split in splits.items()}
        _last[state] = _Raw(train, splits[tested], label.num_classes, read)
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
    """What `Data.read` tells of a split."""
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
        raise CorruptedError(
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
                    raise CorruptedError(_broken(builder, split, i, error)) from error
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
