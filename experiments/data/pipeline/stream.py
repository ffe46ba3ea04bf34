"""Batches of augmented images from records on disk, made by worker processes or threads."""

from collections.abc import Iterator, Sequence
import contextlib
import copy
import functools
import gc
import itertools
import math
from multiprocessing import parent_process, util
import os
import queue
import re
import signal
import sys
import threading
from typing import NamedTuple
import uuid
import weakref

from absl import flags
import grain
import numpy as np

from experiments.data.disk import CorruptedError
from experiments.data.pipeline import blocks, transforms
from experiments.data.pipeline.records import Records
from experiments.system import interrupt

AUGMENTATIONS = ("inception", "flip", "jitter", "grayscale")
PIECE = 32  # images that a worker hands over at once

# The last word of the order's seed, where the augmentations have theirs. To NumPy words of 0 at the
# end are none: [seed, epoch] would draw what the first crop draws, and what divides the set.
_ORDER = 5

_opened = blocks.Opened()


class LostWorkerError(Exception):
    """A worker process has ended before its work has, as one does that is killed."""


class Raw(NamedTuple):
    """A batch on the host, or a piece of one.

    Attributes:
      images: uint8 [B, size, size, 3].
      labels: int32 [B]; where several classes are right, uint8 [B, classes] with ones for these.
      valid: bool [B]; False where there is nothing to be right about: the padding of the last
        batch, and in evaluation a record that cannot be decoded or has no right class.
    """

    images: np.ndarray
    labels: np.ndarray
    valid: np.ndarray


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
            _Maker,
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
        plan = _Plan(self.examples, batch_size, process, processes, first_step, seed)
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
        return self._run(_Plan(self.examples, batch_size, process, processes))

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
        return _Batches(
            plan, self._maker(plan=plan, shared=self.workers > 0), self.workers, self.corrupt
        )


_open = weakref.WeakSet()


def close_all() -> None:
    """Ends the workers of all streams, as where a program is to leave without its usual end."""
    for batches in list(_open):
        batches.close()


class _Batches(Iterator[Raw]):
    """The batches of a plan, which a thread puts together ahead of time.

    Between the thread and the caller are simple queues alone, whose locks a Ctrl-C in the caller
    leaves as they are; one within Grain's could leave them locked for ever.
    """

    def __init__(self, plan, maker, workers, corrupt):
        self._corrupt, self._ended = corrupt, False
        self._wanted, self._ready = queue.SimpleQueue(), queue.SimpleQueue()
        arguments = (plan, maker, workers, self._wanted, self._ready)
        thread = threading.Thread(target=_put_together, args=arguments, daemon=True)
        thread.start()
        self._wanted.put(True)
        self._close = weakref.finalize(self, _end, thread, self._wanted)
        _open.add(self)

    def __next__(self):
        if self._ended or not self._close.alive:
            raise StopIteration
        self._wanted.put(True)
        made = self._ready.get()
        if made is None or isinstance(made, Exception):
            self._ended = True
            raise made or StopIteration
        batch, corrupt = made
        for name in corrupt:
            if name not in self._corrupt:
                self._corrupt.append(name)
        return batch

    def close(self):
        """Ends the workers; there are no more batches."""
        self._close()


def _end(thread, wanted):
    wanted.put(False)
    if thread is not threading.current_thread():  # which may be the one that collects the garbage
        thread.join()


@interrupt.unseen(signal.SIGINT, signal.SIGTERM)
def _put_together(plan, maker, workers, wanted, ready):
    """Puts a batch and the names of what is corrupt for each True that is wanted.

    None at the end, or else an error.
    """
    pieces = iter(())
    try:
        pieces = _started(plan, maker, workers)
        while wanted.get():
            found = list(itertools.islice(pieces, plan.pieces))
            if not found:
                ready.put(None)
                return
            batch = Raw(*map(np.concatenate, zip(*(piece.raw for piece in found), strict=True)))
            for piece in found:
                piece.let_go()
            ready.put((batch, [name for piece in found for name in piece.corrupt]))
            del found, batch
    except Exception as error:  # the caller's to raise
        ready.put(_lost(error) or error)
    finally:
        if hasattr(pieces, "close"):
            # Grain closes those workers alone whose pieces, or state, it has been asked for.
            with contextlib.suppress(Exception):
                pieces.get_state()
            pieces.close()
        del pieces
        _opened.forget(maker.stream)
        if workers:
            gc.collect()  # Grain's iterators are cycles, and hold eight open files for each worker


def _lost(error):
    """What to say where Grain says that a worker was killed; else None."""
    if not (found := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))):
        return None
    code = int(found[1])
    how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return LostWorkerError(
        f"a process that decodes images has ended unexpectedly ({how}), as where memory, or shared "
        "memory in /dev/shm, is short: pass fewer --workers, or 0 for threads."
    )


class _Plan:
    """Which images are in which piece: a random-access source of places in the epochs' orders.

    A piece is an epoch and places of it, −1 for padding; of an evaluation the epoch is None.
    """

    def __init__(self, examples, batch_size, process, processes, first_step=0, seed=None):
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.local = batch_size // processes
        self.start = process * self.local
        self.first_step = first_step
        self.pieces = math.ceil(self.local / PIECE)

    def __len__(self):
        # as many as Grain can count where there is no end
        if self.seed is None:
            return math.ceil(self.examples / self.batch_size) * self.pieces
        return sys.maxsize

    def __getitem__(self, index):
        step, piece = divmod(int(index), self.pieces)
        step += self.first_step
        epoch = None
        if self.seed is not None:
            epoch, step = divmod(step, self.examples // self.batch_size)
        first = step * self.batch_size + self.start
        # equally large ones, as each worker gets one in turn
        low, high = (k * self.local // self.pieces for k in (piece, piece + 1))
        places = np.arange(first + low, first + high)
        return epoch, np.where(places < self.examples, places, -1)


class _Piece:
    """What a worker hands over: a piece of a batch, and the names of what is corrupt in it.

    Its images lie in a block of shared memory. As this is no tree to Grain, Grain leaves it as it
    is; it would copy the images once more.
    """

    def __init__(self, raw, corrupt, memory=None, maker=None):
        self.raw, self.corrupt, self._memory, self._maker = raw, corrupt, memory, maker

    @classmethod
    def received(cls, stream, name, shape, rest, corrupt):
        """The piece in the process that it was sent to."""
        memory = _opened.get(stream, name)
        return cls(Raw(blocks.images(memory, shape), *rest), corrupt, memory)

    def let_go(self):
        """Tells the worker that the images have been copied."""
        if self._memory is not None:
            blocks.let_go(self._memory)

    def __reduce__(self):
        maker, self._maker = self._maker, None
        maker.blocks.sent(self._memory)
        images, *rest = self.raw
        name, shape = self._memory.name, images.shape
        return _Piece.received, (maker.stream, name, shape, rest, self.corrupt)

    def __del__(self):
        if self._maker is not None:  # not sent, as where a record is broken or the stream closed
            self._maker.blocks.kept(self._memory)


class _Maker:
    """Makes a piece of a plan: reads, decodes, augments."""

    def __init__(self, *, plan, shared, records, indices, size, classes, **how):
        self.seed, self.records, self.indices = plan.seed, records, indices
        self.size, self.classes, self.how = size, classes, how
        self.blocks = blocks.Blocks() if shared else None
        self.stream = uuid.uuid4().hex

    def __call__(self, piece):
        """(epoch, places) -> what is there."""
        epoch, places = piece
        made = self._empty(len(places))
        raw, several = made.raw, self.records.several
        for i, place in enumerate(places):
            image, record = None, None
            if place >= 0:
                image, record = self._image(epoch, int(place), made.corrupt)
            raw.images[i] = 0 if image is None else image
            if image is None:
                continue
            self._check_label(record)
            if several:
                raw.labels[i, list(record.label)] = 1
            else:
                raw.labels[i] = record.label
            raw.valid[i] = not several or bool(record.label)
        return made

    def _empty(self, count):
        """A piece of so many images, to be filled."""
        shape, several = (count, self.size, self.size, 3), self.records.several
        labels = ((count, self.classes), np.uint8) if several else (count, np.int32)
        rest = np.zeros(*labels), np.zeros(count, bool)
        if self.blocks is None:
            return _Piece(Raw(np.empty(shape, np.uint8), *rest), [])
        memory = self.blocks.take(shape)
        return _Piece(Raw(blocks.images(memory, shape), *rest), [], memory, self)

    def _image(self, epoch, place, corrupt):
        """The image at a place, and its record; of a corrupt one the next good one's, or None."""
        order = self.indices if epoch is None else self._order(epoch)
        tries = 1 if epoch is None else len(order)
        for i in range(tries):
            index = int(order[(place + i) % len(order)])
            name = self.records.name(index)
            try:
                record = self.records[index]
                name = record.name
                image = transforms.decode(record.image)
            except Exception as error:  # Pillow's decoders raise all sorts
                if isinstance(error, MemoryError):
                    raise
                if self.how["skip_corrupt"]:
                    corrupt.append(name)
                    continue
                if isinstance(error, CorruptedError):
                    raise
                raise CorruptedError(
                    f"{name} cannot be decoded ({error!r:.200}): replace that image, or have such "
                    "skipped (--skip-corrupt)."
                ) from error
            if epoch is None:
                return transforms.centre_crop(image, self.size, self.how["fraction"]), record
            return self._augmented(image, epoch, place), record
        if epoch is None:
            return None, None
        raise CorruptedError(
            f"none of the {tries} records can be decoded, such as {name}: prepare the set again."
        )

    def _augmented(self, image, epoch, place):
        """What training makes of an image; each augmentation draws from a stream of its own."""
        names, size = self.how["augmentation"], self.size

        def rng(i):
            return np.random.default_rng([self.seed, epoch, place, i])

        if "inception" in names:
            image = transforms.random_resized_crop(rng(0), image, size, self.how["crop_area"])
        else:
            image = transforms.centre_crop(image, size, self.how["fraction"])
        if "flip" in names:
            image = transforms.flip(rng(1), image)
        if "jitter" in names:
            image = transforms.color_jitter(rng(2), image)
        if "grayscale" in names:
            image = transforms.grayscale(rng(3), image)
        if self.how["randaugment"]:
            image = transforms.rand_augment(rng(4), image, *self.how["randaugment"])
        return image

    def _order(self, epoch):
        """A permutation of the indices; kept for the last epoch asked for.

        Not Grain's shuffle: of 5 elements its permutations are not equally likely, and those of
        epoch e + 1 of a seed are those of epoch e of the next seed.
        """
        kept = getattr(self, "_kept", (None, None))
        if kept[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch, 0, _ORDER])
            order = rng.permutation(self.indices)
            kept = self._kept = (epoch, order)
        return kept[1]

    def _check_label(self, record):
        labels = record.label if self.records.several else (record.label,)
        if any(not 0 <= label < self.classes for label in labels):
            raise ValueError(
                f"{record.name} has the label {record.label}, and not a class in "
                f"[0, {self.classes}): pass a split whose images have labels."
            )


def _started(plan, maker, workers):
    """The iterator over the pieces."""
    made = grain.MapDataset.source(plan).map(maker)
    if not workers:
        threads = os.cpu_count() or 1
        reading = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(threads, plan.pieces)
        )
        return iter(made.to_iter_dataset(reading))
    pieces = made.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=math.ceil(plan.pieces / (2 * workers))
    )
    _parse_flags()
    return iter(pieces.mp_prefetch(options, worker_init_fn=_prepare_worker))


def _prepare_worker(worker, workers):
    """Lets a worker end when its parent is gone, however that ended, and end quickly."""
    del worker, workers
    _parse_flags()
    # after all that has to be done at the end: taking the interpreter down is no use
    util.Finalize(None, os._exit, args=(0,), exitpriority=-100)

    def wait():
        parent_process().join()
        with blocks.NAMING:
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _parse_flags():
    """Grain reads flags of Abseil, which only Abseil's own `app.run` parses; none is given."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


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
