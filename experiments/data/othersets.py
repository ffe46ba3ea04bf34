"""Test sets other than a model's own: how they are read, and which of its classes theirs are."""

from collections.abc import Sequence
import contextlib
import functools
from pathlib import Path

import numpy as np

from experiments.data import augment, disk, reading, streams
from experiments.data.pipeline.records import TfdsRecords
from experiments.data.pipeline.stream import Stream
from experiments.recipes.base import Recipe

# The corruptions of each benchmark; four more are in the catalogue, for tuning against them.
CORRUPTIONS = {
    "imagenet2012_corrupted": (
        *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur"),
        *("motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast"),
        *("elastic_transform", "pixelate", "jpeg_compression"),
    ),
    "cifar10_corrupted": (
        *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "frosted_glass_blur"),
        *("motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast"),
        *("elastic", "pixelate", "jpeg_compression"),
    ),
}
SEVERITIES = range(1, 6)

# Their features name all classes of ImageNet, and their images are of 200.
OF_SOME_CLASSES = ("imagenet_r", "imagenet_a")


def benchmark(name: str) -> list[str]:
    """The 75 sets whose mean is told of a benchmark of corruptions; none for another set."""
    return [f"{name}/{kind}_{s}" for kind in CORRUPTIONS.get(name, ()) for s in SEVERITIES]


def expanded(names: Sequence[str], data_dir: Path) -> list[str]:
    """Each name once; in place of a benchmark's those of its 75 sets that are prepared, if any."""
    found = []
    for name in (name.rstrip("/") for name in names):  # as a shell completes that of a folder
        found += [one for one in benchmark(name) if disk.is_prepared(one, data_dir)] or [name]
    return list(dict.fromkeys(found))


class OtherSet:
    """The test split of a set of TFDS, or else its validation split.

    Where there are several right classes of an image, as in `imagenet2012_real`, they are its
    feature `real_label`.

    Attributes:
      name: as it was asked for.
      full_name: with its version.
      records: what is read, images not decoded.
      digest: another one where the set is another, as `TfdsRecords.digest` tells.
      class_names: by label; numbers where it has none.
      shape: of its images, with None for the sides that differ.
    """

    def __init__(self, name: str, data_dir: Path):
        """Reads the description.

        Raises:
          ValueError, NotPreparedError, CorruptedError: as `TfdsRecords`.
        """
        builder = disk.opened(name, data_dir)
        split, splits = reading.tested_split(builder), builder.info.splits
        if split not in splits:
            raise ValueError(
                f"{name} has no test or validation split, but {', '.join(splits)}: pass another "
                "set."
            )
        features = dict(builder.info.features.items())
        label = "real_label" if "real_label" in features else "label"
        self.name, self.full_name = name, builder.info.full_name
        self.records = TfdsRecords(name, split, data_dir=data_dir, label=label)
        self.digest = self.records.digest["sha256"][:16]
        self.class_names = self.records.class_names
        self.shape: tuple[int | None, ...] = features["image"].shape
        self._of_some_classes = builder.name in OF_SOME_CLASSES
        self._data_dir = data_dir

    def places(self, names: Sequence[str]) -> np.ndarray:
        """The place of each of its classes, int [K], among the classes of a model, by name.

        Where one of the two has no names, their numbers are the same.

        Args:
          names: of the model's classes.

        Raises:
          ValueError: the model has not all of these classes.
        """
        own = self.class_names
        if _numbered(own) or _numbered(names):
            if len(own) != len(names):
                raise ValueError(
                    f"{self.name} has {len(own)} classes and the model {len(names)}, and not all "
                    "have names to find them by: pass a set of as many classes."
                )
            return np.arange(len(own))
        place = {name: i for i, name in enumerate(names)}
        if unknown := [name for name in own if name not in place]:
            raise ValueError(
                f"{self.name} has {len(unknown)} of {len(own)} classes that the model was not "
                f"trained on, such as {', '.join(unknown[:3])}: pass a set of classes that it was."
            )
        return np.array([place[name] for name in own])

    @functools.cached_property
    def among(self) -> np.ndarray:
        """The labels, int, that a prediction is chosen among: all but where some have no image."""
        if not self._of_some_classes:
            return np.arange(self.records.classes)
        found = set()
        for i in range(len(self.records)):
            with contextlib.suppress(disk.CorruptedError):  # for the evaluation to tell
                found.add(self.records[i].label)
        return np.array(sorted(found))

    def check(self, recipe: Recipe, shape: tuple[int | None, ...]) -> None:
        """Raises unless a model trained on a set in memory can take the images.

        Args:
          recipe: of the model.
          shape: of the images that it was trained on.

        Raises:
          ValueError: they have other sizes, or differ in size.
        """
        seen = [augment.shape(image, recipe.image_size) for image in (self.shape, shape)]
        if None in self.shape or seen[0] != seen[1]:
            said, own = (
                " x ".join(str(s or "any") for s in sizes) for sizes in (self.shape, shape)
            )
            raise ValueError(
                f"{self.name} has images of {said}, and the model was trained on {own} "
                f"({recipe.dataset}): pass a set of the same size."
            )

    def split(self, examples: int | None) -> reading.Split:
        """The images in memory, the first so many or all.

        Raises:
          ValueError, CorruptedError: as `experiments.data.sets.load`.
        """
        found = reading.load_tested(self.name, data_dir=self._data_dir)
        return reading.Split(*(array[:examples] for array in found))

    def stream(
        self, size: int, examples: int | None, *, workers: int | None, skip_corrupt: bool
    ) -> Stream:
        """The images as a stream, the first so many or all.

        Images that are squares of one size, as in `imagenet2012_corrupted`, are central crops
        already: the whole of each is seen.

        Args:
          size: of the images that the model sees.
          examples: how many.
          workers: processes that decode; None for one for each core.
          skip_corrupt: whether images that cannot be decoded are left out.
        """
        height, width, _ = self.shape
        whole = {"fraction": 1.0} if height is not None and height == width else {}
        return Stream(
            self.records,
            size=size,
            classes=self.records.classes,
            indices=np.arange(len(self.records))[:examples],
            workers=streams.processes(workers),
            skip_corrupt=skip_corrupt,
            **whole,
        )


def _numbered(names):
    """Whether classes have no names, which TFDS tells as their numbers."""
    return list(names) == [str(i) for i in range(len(names))]
