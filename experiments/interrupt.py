"""Stopping cleanly: a signal is noted, and acted on between two steps."""

from collections.abc import Callable, Iterator
import contextlib
from multiprocessing import resource_tracker
import os
import signal
import sys
import threading


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


def ready() -> None:
    """From now on Ctrl-C and SIGTERM raise, unless the shell has them ignored."""

    def terminate(number, frame):
        del number, frame
        raise TerminatedError

    def unraisable(swallowed):
        """Sends anew what came in the middle of a collection of garbage, where nothing raises."""
        if issubclass(swallowed.exc_type, KeyboardInterrupt):
            number = signal.SIGTERM if swallowed.exc_type is TerminatedError else signal.SIGINT
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        # Behind a write that failed, tensorstore's threads answer to a loop that is no more.
        elif str(swallowed.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(swallowed)

    sys.unraisablehook = unraisable
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, terminate),
    ):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


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
