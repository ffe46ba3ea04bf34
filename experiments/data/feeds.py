"""What a trainer takes its batches from: a set on the device, or a stream from worker processes."""

from collections.abc import Iterator
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.pipeline.stream import Stream
from experiments.data.reading import Split
from experiments.data.sets import Data
from experiments.system.mesh import Layout, place


class Arrays(NamedTuple):
    """A training set on the device: images uint8, labels int32, mean and deviation a channel."""

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array

    @property
    def examples(self) -> int:
        """How many images a seed has."""
        return self.labels.shape[-1]

    @property
    def scale(self) -> tuple[jax.Array, jax.Array]:
        """Mean and deviation."""
        return self.mean, self.std


class Feed:
    """A streamed training set.

    Its workers go on from one epoch to the next, so that they are started once.

    Attributes:
      examples: how many images there are.
      scale: mean and deviation a channel, float32 [C], on the device.
    """

    def __init__(self, data: Data, batch_size: int, layout: Layout | None):
        """Starts nothing yet.

        Args:
          data: whose training set is a stream.
          batch_size: images a step, over all processes.
          layout: the mesh that the batch is divided over; None for the default device.
        """
        self._stream, self._batch_size, self._layout = data.train, batch_size, layout
        self.examples = data.train.examples
        self.scale = jax.tree.map(jnp.asarray, (data.mean, data.std))
        if layout is not None:
            self.scale = place(self.scale, layout.everywhere(self.scale))
        self._next: tuple[int, int] | None = None
        self._batches: Any = None

    def batches(self, seed: int, first: int, steps: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Images uint8 and labels int32 of so many steps, on the device.

        Args:
          seed: of the order and of the workers' augmentation.
          first: the step to begin with.
          steps: how many.
        """
        if self._next != (seed, first):
            self._batches = self._stream.batches(
                seed=seed,
                batch_size=self._batch_size,
                first_step=first,
                process=jax.process_index(),
                processes=jax.process_count(),
            )
        for step, raw in enumerate(itertools.islice(self._batches, steps), first + 1):
            self._next = (seed, step)
            yield _on_devices((raw.images, raw.labels), self._layout)

    def close(self) -> None:
        """Ends the workers; other batches begin with others."""
        if self._batches is not None:
            self._batches.close()
            self._next = None


def feed(data: Data, batch_size: int, layout: Layout | None = None) -> Arrays | Feed:
    """The training set of the data as a trainer takes it."""
    return (
        Feed(data, batch_size, layout) if isinstance(data.train, Stream) else arrays(data, layout)
    )


def arrays(data: Data, layout: Layout | None = None) -> Arrays:
    """A training set in memory, on the device, or on every device of a mesh."""
    found = Arrays(*data.train, data.mean, data.std)
    if layout is None:
        return jax.tree.map(jnp.asarray, found)
    return place(found, layout.everywhere(found))


def evaluated(
    split: Split | Stream, batch_size: int, layout: Layout | None = None
) -> Iterator[tuple[Any, Any, Any]]:
    """All images of a split in order: uint8 images, int32 labels, and which of them count."""
    if isinstance(split, Stream):
        # A batch that the devices can divide.
        devices = 1 if layout is None else layout.size
        batch_size = -(-batch_size // devices) * devices
        process, processes = jax.process_index(), jax.process_count()
        for raw in split.once(batch_size=batch_size, process=process, processes=processes):
            yield _on_devices(tuple(raw), layout)
        return
    for i in range(0, split.examples, batch_size):
        images, labels = (a[i : i + batch_size] for a in split)
        yield images, labels, np.ones(len(labels), bool)


def decoded(stream: Stream, batch_size: int = 256) -> Split:
    """The images of a stream in memory, as it evaluates them, without those that are not valid.

    Raises:
      CorruptedError: one cannot be decoded, and is not to be skipped.
    """
    images = np.empty((stream.examples, *stream.shape), np.uint8)
    labels = np.empty(stream.examples, np.int32)
    count = 0
    for raw in stream.once(batch_size=batch_size):
        end = count + int(raw.valid.sum())
        images[count:end], labels[count:end] = raw.images[raw.valid], raw.labels[raw.valid]
        count = end
    return Split(images[:count], labels[:count])


def _on_devices(arrays, layout):
    """Arrays of this process's part of a batch, divided over the devices of all."""
    if layout is None:
        return jax.tree.map(jnp.asarray, arrays)
    return jax.tree.map(
        lambda part: jax.make_array_from_process_local_data(layout.batch, part), arrays
    )
