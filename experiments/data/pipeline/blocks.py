"""Shared memory in which a worker hands images over, and which it uses again.

Fresh memory costs more than what is written to it, as the system clears each page at its first
touch. So a block begins with a byte that the worker sets and the receiver clears, when it has
copied what it wanted. The name of a block is gone as soon as the receiver has opened it: none is
left, whoever ends when.
"""

import math
from multiprocessing.shared_memory import SharedMemory
import threading

import numpy as np

HEAD = 64  # bytes before the images, the first of which tells whether the block is taken

# Held from the making of shared memory until what cleans up behind dead processes knows its name.
NAMING = threading.Lock()


def images(memory: SharedMemory, shape: tuple[int, ...]) -> np.ndarray:
    """The images uint8 of this shape in a block."""
    return np.ndarray(shape, np.uint8, memory.buf, HEAD)


def let_go(memory: SharedMemory) -> None:
    """Tells the worker that the block may be used again."""
    memory.buf[0] = 0


class Blocks:
    """The blocks of a worker."""

    def __init__(self):
        """None so far."""
        self._all, self._unsent = [], set()

    def take(self, shape: tuple[int, ...]) -> SharedMemory:
        """A block for images of this shape that nobody needs, or a new one."""
        size = HEAD + math.prod(shape)
        for memory in self._all:
            if memory.size >= size and not memory.buf[0]:
                break
        else:
            with NAMING:
                memory = SharedMemory(create=True, size=size)
            self._all.append(memory)
            self._unsent.add(memory.name)
        memory.buf[0] = 1
        return memory

    def sent(self, memory: SharedMemory) -> None:
        """Notes that the receiver is told the name, and removes it."""
        self._unsent.discard(memory.name)

    def kept(self, memory: SharedMemory) -> None:
        """Takes a block back that is not sent, as where a record of its images is broken."""
        let_go(memory)
        if memory.name in self._unsent:
            self._unsent.discard(memory.name)
            self._all.remove(memory)
            memory.unlink()


class Opened:
    """The blocks that a receiver has opened, of each stream."""

    def __init__(self):
        """None so far."""
        self._streams: dict[str, dict[str, SharedMemory]] = {}

    def get(self, stream: str, name: str) -> SharedMemory:
        """A block by its name, which is removed when it is first asked for."""
        blocks = self._streams.setdefault(stream, {})
        if name not in blocks:
            blocks[name] = SharedMemory(name)
            blocks[name].unlink()
        return blocks[name]

    def forget(self, stream: str) -> None:
        """Lets go of all blocks of a stream that has ended."""
        self._streams.pop(stream, None)
