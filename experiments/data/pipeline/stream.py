"""Batches of augmented images from records on disk, made by worker processes or threads."""

from collections.abc import Iterator, Sequence
import copy
import functools
import math

import numpy as np

from experiments.data.pipeline.batches import Batches
from experiments.data.pipeline.maker import Maker, Plan, Raw
from experiments.data.pipeline.records import Records

AUGMENTATIONS = ("inception", "flip", "jitter", "grayscale")


class Stream:
    """Batches of a set for training, without end, and for evaluation, once.

    With workers each is a process of its own, which costs a few seconds to start and reads the
    records anew; without, threads of this process do the work, as many as there are cores.
    What comes does not depend on their number. They hand over pieces of up to 32 images, and W
    workers make at most B + 128 W + 32 images ahead of the batch of B that is put together from as
    many while the caller has the one before: beside what the workers need to run, at most
    (3 B + 128 W + 32) · 3 · size² bytes are held. Threads make a batch or a piece each ahead.

    Attributes:
      examples: their number.
      shape: of an image.
      classes: their number.
      workers: processes; 0 for threads.
      corrupt: names of the records that could not be read or decoded and were left out, each once,
        in the order in which their batches were handed out.
    """

    def __init__(
        self,
        records: Records,
        *,
        size: int,
        classes: int,
        indices: np.ndarray | None = None,
        augmentation: Sequence[str] = ("inception", "flip"),
        crop_area: tuple[float, float] = (0.08, 1.0),
        randaugment: tuple[int, float] | None = None,
        fraction: float = 0.875,
        workers: int = 0,
        skip_corrupt: bool = False,
    ):
        """Opens nothing yet.

        Args:
          records: what is read; it is sent to the workers, so it must be picklable.
          size: the side of the square images in pixels.
          classes: their number; each label is less.
          indices: of the records that are used, in the order of evaluation; None for all.
          augmentation: for training, any of `inception` (a random resized crop; a central one where
            it is missing), `flip`, `jitter` (brightness, contrast, saturation and hue by 0.3) and
            `grayscale` (of one in ten); done in this order.
          crop_area: the smallest and the largest share of the area that `inception` crops.
          randaugment: for training the layers and the magnitude of RandAugment, done last; or None.
          fraction: of the shorter side that a central crop keeps.
          workers: processes that read, decode and augment; 0 for threads.
          skip_corrupt: whether a record that cannot be decoded is left out instead of an error: in
            training the next good one of the epoch's order takes its place.

        Raises:
          ValueError: an argument is out of range.
        """
        _check(size, classes, augmentation, crop_area, randaugment, fraction, workers)
        if records.classes > classes:
            raise ValueError(
                f"classes must be at least the {records.classes} of the records, got {classes}: "
                "pass their number."
            )
        if indices is None:
            indices = np.arange(len(records))
        indices = np.asarray(indices)
        if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
            raise ValueError(
                f"indices must be a vector of integers, got {indices.dtype} of shape "
                f"{indices.shape}: pass at least one index."
            )
        if indices.min() < 0 or indices.max() >= len(records):
            raise ValueError(
                f"indices must lie in [0, {len(records)}), got {indices.min()} to {indices.max()}: "
                "pass those of records that exist."
            )
        self.examples = len(indices)
        self.shape = (size, size, 3)
        self.classes = classes
        self.corrupt: list[str] = []
        self.workers = workers
        self._maker = functools.partial(
            Maker,
            records=records,
            indices=indices,
            size=size,
            classes=classes,
            augmentation=frozenset(augmentation),
            crop_area=crop_area,
            randaugment=randaugment,
            fraction=fraction,
            skip_corrupt=skip_corrupt,
        )

    def batches(
        self,
        *,
        seed: int,
        batch_size: int,
        first_step: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> Iterator[Raw]:
        """Batches for training, without end.

        The order of epoch e follows from (seed, e) alone and what an image goes through from
        (seed, e, its place in that order), so that the batch of a step is the same whichever step
        is the first. Of an epoch's last images those that fill no batch are dropped. A process gets
        the p-th of equal parts of each batch.

        The workers end with the iterator: close it, or drop it.

        Args:
          seed: in [0, 2³²).
          batch_size: images a step over all processes.
          first_step: the step of the first batch.
          process: p, from 0 on.
          processes: how many share the batch.

        Yields:
          Batches of batch_size/processes images.

        Raises:
          ValueError: an argument is out of range, or a label is.
          CorruptedError: a record cannot be decoded, or none of them where they are skipped.
          LostWorkerError: a worker was killed.
        """
        _check_batch(batch_size, process, processes)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32), got {seed}: pass such an integer.")
        if first_step < 0:
            raise ValueError(f"first_step must not be negative, got {first_step}: pass 0 or more.")
        if batch_size > self.examples:
            raise ValueError(
                f"batch_size must be at most the {self.examples} images, got {batch_size}: pass a "
                "smaller one."
            )
        plan = Plan(self.examples, batch_size, process, processes, first_step, seed)
        return self._run(plan)

    def once(self, *, batch_size: int, process: int = 0, processes: int = 1) -> Iterator[Raw]:
        """All images for evaluation, cropped centrally and in the order of the indices.

        The last batch is padded with black images that are not valid, so that each process gets as
        many batches as another.

        Args:
          batch_size: images a batch over all processes.
          process: which part of each batch this process gets, from 0 on.
          processes: how many share the batch.

        Yields:
          ceil(examples/batch_size) batches of batch_size/processes images.

        Raises:
          ValueError: an argument is out of range, or a label is.
          CorruptedError: a record cannot be decoded, and is not to be skipped.
          LostWorkerError: a worker was killed.
        """
        _check_batch(batch_size, process, processes)
        return self._run(Plan(self.examples, batch_size, process, processes))

    def part(self, places: np.ndarray) -> "Stream":
        """The stream of some of the images; what is corrupt among them is told by both.

        Args:
          places: theirs in the order of evaluation here, in the order of evaluation there.
        """
        part = copy.copy(self)
        part.examples = len(places)
        indices = self._maker.keywords["indices"][places]
        part._maker = functools.partial(self._maker, indices=indices)
        return part

    def _run(self, plan):
        return Batches(
            plan, self._maker(plan=plan, shared=self.workers > 0), self.workers, self.corrupt
        )


def _check(size, classes, augmentation, crop_area, randaugment, fraction, workers):
    """Raises unless the arguments of a stream are in range."""
    for name, value, least in (("size", size, 1), ("classes", classes, 1), ("workers", workers, 0)):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(
                f"{name} must be an integer of at least {least}, got {value!r}: pass such a one."
            )
    if unknown := set(augmentation) - set(AUGMENTATIONS):
        raise ValueError(
            f"unknown augmentation {', '.join(map(repr, sorted(unknown)))}: pass any of "
            f"{', '.join(AUGMENTATIONS)}."
        )
    if not (len(crop_area) == 2 and 0 < crop_area[0] <= crop_area[1] <= 1):
        raise ValueError(
            f"crop_area must be two shares in (0, 1], the smaller first, got {crop_area}: pass the "
            "smallest and the largest share."
        )
    if randaugment is not None and not (
        len(randaugment) == 2 and randaugment[0] >= 1 and 0 <= randaugment[1] < math.inf
    ):
        raise ValueError(
            f"randaugment must be at least one layer and a magnitude of at least 0, got "
            f"{randaugment}: pass such as (2, 10), or None."
        )
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}: pass a share.")


def _check_batch(batch_size, process, processes):
    """Raises unless a batch can be shared by the processes."""
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(
            f"process must lie in [0, processes), got {process} of {processes}: pass which of how "
            "many this is."
        )
    if batch_size < 1 or batch_size % processes:
        raise ValueError(
            f"batch_size must be a positive multiple of the {processes} processes, got "
            f"{batch_size}: pass such a one."
        )
