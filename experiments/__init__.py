"""Training scripts that reproduce the papers' experiments with `sam_optax`.

The files here are commands, `python -m experiments.NAME`. Below them lie rooms, from the top:
analysis and benchmark; cli; training; models; data and results; recipes; system. Each may import
those below it alone, and its `__init__` says what is in it. Begin with `train`.
"""

import atexit
import contextlib
import os
import signal
import sys
from typing import Any


def leave(number: int, frame: Any) -> None:
    """Ends a command that is interrupted in its imports or at its end, outside `command.run`."""
    del frame
    with contextlib.suppress(OSError):  # as where it is a pipe that nobody reads
        os.write(2, b"\ninterrupted\n")
    os._exit(128 + number)


# Python calls a module so while it imports its package for `python -m`.
if sys.argv[:1] == ["-m"]:
    for _number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, leave)
            # When all is done: Python gives its handlers up before it has freed its modules.
            atexit.register(signal.signal, _number, signal.SIG_IGN)
