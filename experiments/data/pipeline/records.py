"""Encoded images with their labels, read at random: prepared sets of TFDS, and image folders."""

from collections.abc import Sequence
import functools
import os
from pathlib import Path
import stat
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import disk
from experiments.data.pipeline import digests

IMAGES = (".jpg", ".jpeg", ".png")


class Record(NamedTuple):
    """An image as it is stored.

    Attributes:
      image: the encoded bytes.
      label: its class; a tuple of all its right classes, maybe of none, where there are several.
      name: says which record it is.
    """

    image: bytes
    label: int | tuple[int, ...]
    name: str


class Records(Protocol):
    """What a stream reads.

    Attributes:
      classes: their number.
      several: whether a label is a tuple of classes.
    """

    classes: int
    several: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str:
        """Says which record it is, without reading it."""
        ...


class TfdsRecords:
    """One split of a set that TFDS prepared as array_record; images are not decoded.

    A copy in another process opens the files anew.
    """

    def __init__(
        self, name: str, split: str, *, data_dir: Path = disk.DATA_DIR, label: str = "label"
    ):
        """Finds the set.

        Args:
          name: `set` or `set/configuration`, prepared under data_dir.
          split: one of its splits, or a part such as `train[:99%]`.
          data_dir: the TFDS directory.
          label: the feature with the class, or with a sequence of right classes, such as
            `real_label` of imagenet2012_real.

        Raises:
          ValueError: the set is unknown to TFDS, or has no such split, or no such features.
          NotPreparedError: it is not prepared, or not as array_record.
          CorruptedError: its description cannot be read.
        """
        builder = disk.opened(name, data_dir)
        features = dict(builder.info.features.items())
        self.several = isinstance(features.get(label), tfds.features.Sequence)
        kind = features[label].feature if self.several else features.get(label)
        if not (
            isinstance(features.get("image"), tfds.features.Image)
            and isinstance(kind, tfds.features.ClassLabel)
            and kind.num_classes
        ):
            raise ValueError(
                f"{name} has the features {', '.join(sorted(features))}, and not images under "
                f"`image` and classes under `{label}`: pass the name of another feature or set."
            )
        try:
            self._length = builder.info.splits[split].num_examples
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{name} has no split {split!r}, but {', '.join(builder.info.splits)}: pass one of "
                "them."
            ) from error
        self.classes = kind.num_classes
        self._builder = builder  # as the property would find it
        self._folder, self._split, self._label = str(builder.data_path), split, label
        self._full_name = builder.info.full_name

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        """The record at an index from 0 on.

        Raises:
          CorruptedError: it cannot be read.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"there are {self._length} records, and no record {index}.")
        try:
            source, features = self._opened
            decoders = {"image": tfds.decode.SkipDecoding()}
            example = features.deserialize_example_np(source[index], decoders=decoders)
            label = example[self._label]
            label = tuple(map(int, label)) if self.several else int(label)
            image, file = example["image"], example.get("file_name")
        except Exception as error:  # the reader and protobuf each raise their own
            raise disk.CorruptedError(
                f"{self.name(index)} cannot be read from {self._folder} ({error!r:.200}): delete "
                "that folder and prepare the set again."
            ) from error
        name = self.name(index)
        if isinstance(file, bytes) and file:
            name += f" ({file.decode(errors='backslashreplace')})"  # any bytes may be a file's name
        return Record(image, label, name)

    def name(self, index: int) -> str:
        """Says which record it is, without reading it."""
        return f"record {index} of {self._full_name} {self._split}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; numbers where the set gives none."""
        kind = self._builder.info.features[self._label]
        return tuple(kind.feature.names if self.several else kind.names)

    @functools.cached_property
    def digest(self) -> digests.Entry:
        """Its entry in `sets.Data.read`, by what the set's description tells of it.

        And by the sizes of its files, which TFDS makes multiples of 64 KiB. No record is read, so
        that a file that was changed by hand and is as large as before goes unnoticed.

        Raises:
          CorruptedError: a file is not there.
        """
        parts = [*digests.words((self._full_name, self._split, self._label))]
        split = self._builder.info.splits[self._split]
        parts += digests.words((split.num_bytes, *self.class_names))
        for file in split.file_instructions if self._length else ():
            try:
                size = os.stat(file.filename).st_size
            except OSError as error:
                raise disk.CorruptedError(
                    f"a file of {self._full_name} cannot be read ({error}): delete its folder and "
                    "prepare the set again."
                ) from error
            parts += digests.words((os.path.basename(file.filename), file.examples_in_shard, size))
        return digests.entry(parts, examples=self._length, classes=self.classes)

    @functools.cached_property
    def _builder(self):
        """What reads the set, in this process."""
        return tfds.builder_from_directory(self._folder)

    @functools.cached_property
    def _opened(self):
        """The files, open in this process, and the features that are of interest."""
        features = dict(self._builder.info.features.items())
        wanted = ("image", self._label, "file_name")
        kept = {key: features[key] for key in wanted if key in features}
        source = self._builder.as_data_source(
            self._split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            file_format="array_record",
        )
        return source, tfds.features.FeaturesDict(kept)

    def __getstate__(self):
        return {k: value for k, value in self.__dict__.items() if k not in ("_builder", "_opened")}


class FolderRecords:
    """Images in folders root/split/class/image.jpg, the layout of `tfds.ImageFolder`.

    That builder itself lists folders by TensorFlow. The split of PACS and VLCS is the domain. In
    the order of the splits as given, of the classes by name and of the files by name.

    Attributes:
      splits: all splits in the root, by name.
      class_names: in the order of the labels, by name.
    """

    several = False

    def __init__(self, root: Path, split: str | Sequence[str]):
        """Lists the files.

        Args:
          root: the folder of the splits.
          split: one of them, or several, one after the other.

        Raises:
          ValueError: there is no such split, or no image in it, or splits differ in their
            classes.
          NotPreparedError: there is no such folder, or it has no splits with classes.
          OSError: a folder cannot be read.
        """
        self._root = disk.directory(root)
        if not self._root.is_dir():
            raise disk.NotPreparedError(
                f"there is no folder {self._root}: pass that of the image folders, in which images "
                "lie as split/class/image.jpg."
            )
        names = {path.name: tuple(_folders(path)) for path in _folders(self._root).values()}
        if not any(names.values()):
            raise disk.NotPreparedError(
                f"{self._root} has no folders split/class: put images there as "
                "split/class/image.jpg."
            )
        self.splits = tuple(names)
        self.class_names = names[self.splits[0]]
        for other, found in names.items():
            if differing := sorted(set(found) ^ set(self.class_names)):
                raise ValueError(
                    f"the splits {self.splits[0]} and {other} of {self._root} differ in the "
                    f"classes {', '.join(differing[:5])}: give every split a folder for each class."
                )
        chosen = (split,) if isinstance(split, str) else tuple(split)
        if unknown := [name for name in chosen if name not in names]:
            raise ValueError(
                f"{self._root} has no split {unknown[0]!r}, but {', '.join(self.splits)}: pass one "
                "of them."
            )
        self.classes = len(self.class_names)
        self._files: list[str] = []
        labels: list[int] = []
        for name in chosen:
            for label, class_name in enumerate(self.class_names):
                files = sorted(filter(_is_image, os.listdir(self._root / name / class_name)))
                self._files += [f"{name}/{class_name}/{file}" for file in files]
                labels += [label] * len(files)
        if not self._files:
            raise ValueError(
                f"{self._root} has no images in {', '.join(chosen) or 'no split'}: put files "
                f"there that end in {', '.join(IMAGES)}."
            )
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        """The record at an index from 0 on.

        Raises:
          CorruptedError: it cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} records, and no record {index}.")
        try:
            image = (self._root / self._files[index]).read_bytes()
        except OSError as error:
            raise disk.CorruptedError(f"{self.name(index)} cannot be read: {error}.") from error
        return Record(image, int(self._labels[index]), self.name(index))

    def name(self, index: int) -> str:
        """Says which record it is, without reading it."""
        return f"{self._files[index]} in {self._root}"

    @functools.cached_property
    def digest(self) -> digests.Entry:
        """Its entry in `experiments.data.sets.Data.read`, by the names and the sizes of its files.

        No file is read, so that one that was changed and is as large as before goes unnoticed.
        """
        return digests.entry(self._parts(), examples=len(self), classes=self.classes)

    def _parts(self):
        """Bytes that the digest is of."""
        yield str(self.classes).encode()
        yield from map(os.fsencode, self.class_names)
        for file in self._files:
            yield os.fsencode(file)
            yield str(_size(f"{self._root}/{file}")).encode()


def _folders(root: Path) -> dict[str, Path]:
    """The folders in a folder by name, hidden ones aside."""
    found = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return {path.name: path for path in sorted(found)}


def _is_image(name: str) -> bool:
    """Whether a file is one, and none of those that some systems hide beside it."""
    return os.path.splitext(name)[1].lower() in IMAGES and not name.startswith(".")


def _size(path: str) -> int:
    """The bytes of a file; -1 of what is none, which is told where it is read."""
    try:
        found = os.stat(path)
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
