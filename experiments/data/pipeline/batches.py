"""Batches from the pieces of workers: the thread that puts them together, and its workers' end."""

from collections.abc import Iterator
import gc
import itertools
import math
from multiprocessing import parent_process, util
import os
import queue
import re
import signal
import threading
import weakref

from absl import flags
import grain
import numpy as np

from experiments.data.pipeline import blocks
from experiments.data.pipeline.maker import Maker, Plan, Raw, opened
from experiments.system import interrupt


class LostWorkerError(Exception):
    """A worker process has ended before its work has, as one does that is killed."""


_open = weakref.WeakSet()


def close_all() -> None:
    """Ends the workers of all streams, as where a program is to leave without its usual end."""
    for batches in list(_open):
        batches.close()


class Batches(Iterator[Raw]):
    """The batches of a plan, which a thread puts together ahead of time.

    Between the thread and the caller are simple queues alone, whose locks a Ctrl-C in the caller
    leaves as they are; one within Grain's could leave them locked for ever.
    """

    def __init__(self, plan: Plan, maker: Maker, workers: int, corrupt: list[str]):
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

    def close(self) -> None:
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
            pieces.close()
        del pieces
        opened.forget(maker.stream)
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
