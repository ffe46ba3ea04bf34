"""Images a second and what they take of processors and memory: bare processes, and the stream."""

from collections.abc import Iterable
import multiprocessing
import os
from pathlib import Path
import signal
import time
from typing import Any

import numpy as np

from experiments.data.pipeline import transforms
from experiments.data.pipeline.maker import PIECE
from experiments.data.pipeline.records import TfdsRecords
from experiments.data.pipeline.stream import Stream
from experiments.system import interrupt
from experiments.system.errors import UserError


def loop(records: TfdsRecords, size: int, connection: Any) -> None:
    """A bare process: does what it is told of, indices at a time, until it is told nothing.

    It answers with nothing, or with what is wrong with a record.
    """
    images = np.empty((PIECE, size, size, 3), np.uint8)
    while (told := connection.recv()) is not None:
        kind, indices = told
        wrong = None
        for i, index in enumerate(indices):
            try:
                image = transforms.decode(records[index].image)
            except Exception as error:  # Pillow's decoders raise all sorts
                wrong = f"{records.name(index)} cannot be decoded ({error!r:.200})"
                break
            if kind == "bare":
                rng = np.random.default_rng([0, index])
                image = transforms.random_resized_crop(rng, image, size)
                images[i % PIECE] = transforms.flip(rng, image)
        connection.send(wrong)


class Loops:
    """Bare processes that wait for what to do."""

    def __init__(self, records: TfdsRecords, size: int, count: int):
        """Starts them."""
        context = multiprocessing.get_context("spawn")
        self._processes, self._ends = [], []
        with interrupt.unseen(signal.SIGINT):
            for _ in range(count):
                end, other = context.Pipe()
                process = context.Process(target=loop, args=(records, size, other), daemon=True)
                process.start()
                self._processes.append(process)
                self._ends.append(end)

    def run(self, kind: str, indices: np.ndarray) -> tuple[float, float]:
        """Images a second, in equal shares; the processors' seconds an image.

        Raises:
          UserError: a record cannot be decoded.
        """
        pids = [process.pid for process in self._processes]
        start, used = time.perf_counter(), spent(pids)
        for i, end in enumerate(self._ends):
            end.send((kind, indices[i :: len(self._ends)].tolist()))
        if wrong := [said for said in [end.recv() for end in self._ends] if said]:
            raise UserError(f"{wrong[0]}: replace that image, or measure another set.")
        seconds = time.perf_counter() - start
        return len(indices) / seconds, (spent(pids) - used) / len(indices)

    def close(self) -> None:
        """Ends them."""
        for end, process in zip(self._ends, self._processes, strict=True):
            end.send(None)
            process.join()


def run_stream(stream: Stream, batch_size: int, images: int) -> dict[str, float]:
    """Seconds to the first batch; then, when nothing that was made ahead is left, as `Loops.run`.

    The processors' seconds are those of the workers, and of this process.
    """
    others = workers_now()
    start = time.perf_counter()
    batches = stream.batches(seed=0, batch_size=batch_size)
    try:
        next(batches)
        first = time.perf_counter() - start
        for _ in range(ahead(batch_size, stream.workers) // batch_size + 1):
            next(batches)
        workers, parent = workers_now() - others, {os.getpid()}
        count = -(-images // batch_size)
        start, used, used_here = time.perf_counter(), spent(workers), spent(parent)
        for _ in range(count):
            next(batches)
        images = count * batch_size
        return {
            "stream": images / (time.perf_counter() - start),
            "stream_cpu": (spent(workers) - used) / images,
            "parent_cpu": (spent(parent) - used_here) / images,
            "first": first,
        }
    finally:
        batches.close()


def workers_now() -> set[int]:
    """The processes that this one has started and that have not ended."""
    return {child.pid for child in multiprocessing.active_children()}


def spent(processes: Iterable[int]) -> float:
    """Seconds of a processor that all of them have taken, in ticks of 1/100 s or so."""
    ticks = 0
    for process in processes:
        # bytes, as a program may have any name
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in the user's code and in the system's
    return ticks / os.sysconf("SC_CLK_TCK")


def ahead(batch_size: int, workers: int) -> int:
    """The images that are made at most before the caller asks for them, as `Stream` tells."""
    return 2 * batch_size + 128 * workers + PIECE


def resident(process: int) -> float:
    """Megabytes that a process holds in memory now; 0 of one that has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_bytes()
    except FileNotFoundError:
        return 0.0
    return float(status.partition(b"VmRSS:")[2].split()[0]) / 1000
