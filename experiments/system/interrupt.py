"""Stopping cleanly: a signal is noted, and acted on between two steps."""

from collections.abc import Callable, Iterator
import contextlib
import functools
import math
from multiprocessing import resource_tracker
import os
import signal
import sys
import threading
import time

import experiments

MOMENT = 2.0  # seconds in which a command that is interrupted ends


class InterruptedRunError(Exception):
    """A run that a signal ended, with all it had done saved.

    Attributes:
      signal: the number of the signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class TerminatedError(KeyboardInterrupt):
    """SIGTERM where nothing notes it; who stops for a Ctrl-C stops for it."""


def status(error: KeyboardInterrupt) -> int:
    """The exit status of a command that a signal ended."""
    return 128 + (signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT)


@contextlib.contextmanager
def heeded() -> Iterator[Callable[[bool], None]]:
    """Within, Ctrl-C and SIGTERM end the process, unless the shell has them ignored.

    One that comes within a moment of another does nothing, so that the first one's end is no other.

    Yields:
      A function that tells whether they are to raise, as where there is somebody to catch it.
    """
    before, raised, caught = {}, [-math.inf], [False]

    def leave(number, frame):
        if time.monotonic() - raised[0] < MOMENT:
            return
        if not caught[0]:
            experiments.leave(number, frame)
        raised[0] = time.monotonic()
        raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt

    def again(number):
        raised[0] = -math.inf
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = functools.partial(_unraisable, again)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, leave)
    try:
        yield functools.partial(caught.__setitem__, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unraisable(again, swallowed):
    """Sends a signal anew that came in a collection of garbage, where nothing can be raised."""
    if issubclass(swallowed.exc_type, KeyboardInterrupt):
        again(signal.SIGTERM if swallowed.exc_type is TerminatedError else signal.SIGINT)
    # Behind a write that failed, tensorstore's threads answer to a loop that is no more.
    elif str(swallowed.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(swallowed)


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Within, the first Ctrl-C or SIGTERM is noted and a second one has its usual effect.

    Yields:
      A function that tells the number of the signal noted, or 0.
    """
    received = []

    def note(number, frame):
        del frame
        received.append(number)
        restore()
        # Not by print, whose buffer the signal may have come in the middle of.
        if sys.stderr is not None:
            with contextlib.suppress(OSError):  # as where it is a pipe that nobody reads
                os.write(2, b"\nstopping after this step; once more to stop at once\n")

    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, note) for number in signals}

    def restore():
        for number, handler in handlers.items():
            signal.signal(number, handler)

    try:
        yield lambda: received[0] if received else 0
    finally:
        restore()


@contextlib.contextmanager
def unseen(*signals: int) -> Iterator[None]:
    """What this thread starts within never sees these signals, which are the parent's to act on."""
    resource_tracker.ensure_running()  # where it is not, starting it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
