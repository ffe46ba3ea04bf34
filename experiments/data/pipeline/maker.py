"""What a worker does: images that are read, decoded and augmented, a piece of a batch at a time."""

import math
import sys
from typing import NamedTuple
import uuid

import numpy as np

from experiments.data.disk import CorruptedError
from experiments.data.pipeline import blocks, transforms

PIECE = 32  # images that a worker hands over at once

# The last word of the order's seed, where the augmentations have theirs. To NumPy words of 0 at the
# end are none: [seed, epoch] would draw what the first crop draws, and what divides the set.
_ORDER = 5

opened = blocks.Opened()  # by this process, of the workers' blocks


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


class Plan:
    """Which images are in which piece: a random-access source of places in the epochs' orders.

    A piece is an epoch and places of it, −1 for padding; of an evaluation the epoch is None.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        process: int,
        processes: int,
        first_step: int = 0,
        seed: int | None = None,
    ):
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


class Piece:
    """What a worker hands over: a piece of a batch, and the names of what is corrupt in it.

    Its images lie in a block of shared memory. As this is no tree to Grain, Grain leaves it as it
    is; it would copy the images once more.
    """

    def __init__(self, raw, corrupt, memory=None, maker=None):
        self.raw, self.corrupt, self._memory, self._maker = raw, corrupt, memory, maker

    @classmethod
    def received(cls, stream, name, shape, rest, corrupt):
        """The piece in the process that it was sent to."""
        memory = opened.get(stream, name)
        return cls(Raw(blocks.images(memory, shape), *rest), corrupt, memory)

    def let_go(self) -> None:
        """Tells the worker that the images have been copied."""
        if self._memory is not None:
            blocks.let_go(self._memory)

    def __reduce__(self):
        maker, self._maker = self._maker, None
        maker.blocks.sent(self._memory)
        images, *rest = self.raw
        name, shape = self._memory.name, images.shape
        return Piece.received, (maker.stream, name, shape, rest, self.corrupt)

    def __del__(self):
        if self._maker is not None:  # not sent, as where a record is broken or the stream closed
            self._maker.blocks.kept(self._memory)


class Maker:
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
            return Piece(Raw(np.empty(shape, np.uint8), *rest), [])
        memory = self.blocks.take(shape)
        return Piece(Raw(blocks.images(memory, shape), *rest), [], memory, self)

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
