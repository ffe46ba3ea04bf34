"""How a command begins and ends: its options, its signals, its output, and its exit status.

0 is done; 2 is a mistake of the user's, or what a message tells, in one line on standard error; 1
the end of another process that trained along; 128 + the number of a signal an interruption.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import inspect
import os
import signal
import sys
import typing
from typing import Any, TextIO

import jax
import tyro

from experiments import data, files, interrupt, limits, numerics, processes
from experiments.errors import UserError
from experiments.pipeline import stream
from experiments.pretrained import WeightsError

# Options that make a command need less memory.
_SMALLER = ("batch_size", "width", "examples", "train_examples", "most", "samples")


def run(main: Callable[[Any], None], options: type) -> None:
    """Runs a command, and leaves with its exit status.

    Args:
      main: does it.
      options: a dataclass, which `tyro` reads from the command line.
    """
    with interrupt.heeded(), _guarded() as output:
        description = inspect.getdoc(sys.modules[main.__module__]) or ""

        def command():
            asked = tyro.cli(options, prog=_called(main), description=description)
            limits.check(asked)
            numerics.pin()
            with processes.together():
                main(limits.expanded(asked))

        code, at_once = _status(command, options)
        code = output.told() or code
        if at_once:
            _leave(code)
    if code:
        sys.exit(code)


def _called(main):
    """The command as it is started."""
    spec = getattr(sys.modules[main.__module__], "__spec__", None)
    name = spec.name if spec else main.__module__
    return f"python -m {name.removesuffix('.__main__')}"


def _status(command, options):
    """The exit status, its reason told, and whether to leave at once."""
    try:
        command()
    except processes.LostProcessError as error:
        _tell(
            f"error: the processes cannot go on together, as where one is gone ({error}): start "
            "all of them again with --resume."
        )
        return 1, True
    except (UserError, data.CorruptedError, WeightsError, stream.LostWorkerError) as error:
        option = "--weights: " if isinstance(error, WeightsError) else ""
        _tell(f"error: {option}{error}")
        # The shutdown would wait for the others, who wait for this process.
        return 2, jax.distributed.is_initialized()
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        smaller = [f"--{name.replace('_', '-')}" for name in _SMALLER if _has(options, name)]
        advice = f": pass a smaller {' or '.join(smaller)}" if smaller else ""
        _tell(f"error: out of memory ({str(error).partition(chr(10))[0]:.200}){advice}.")
        return 2, False
    except interrupt.InterruptedRunError as error:
        _tell(f"interrupted: {error}")
        return 128 + error.signal, True
    except interrupt.TerminatedError:
        _tell("interrupted; what was written before is kept")
        return 128 + signal.SIGTERM, True
    except KeyboardInterrupt:
        _tell("interrupted; what was written before is kept")
        return 128 + signal.SIGINT, True
    except OSError as error:
        _tell(f"error: {f'{error.filename}: ' if error.filename else ''}{files.said(error)}.")
        return 2, False
    return 0, False


def _has(options, name):
    """Whether a command has an option, maybe among those that it shares with others."""
    return any(
        one == name or (dataclasses.is_dataclass(kind) and _has(kind, name))
        for one, kind in typing.get_type_hints(options).items()
    )


def _tell(text):
    """One line on standard error, if that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)


def _leave(code):
    """Ends the process at once: the shutdown can crash while a computation still runs.

    Streams end before, as Python would warn of what their workers leave.
    """
    with contextlib.suppress(KeyboardInterrupt):
        stream.close_all()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    os._exit(code)


class _Output:
    """Standard output, whose failure ends no training: the results are in files."""

    def __init__(self, file: TextIO):
        self._file, self._error = file, None

    def write(self, text: str) -> int:
        """Writes a text, or nothing where that has failed."""
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Writes what is held back."""
        self._try(self._file.flush)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def _try(self, write):
        if self._error is not None:
            return
        try:
            write()
        except (OSError, ValueError) as error:
            self._error = error
            # What Python still holds would fail once more at its end.
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._file.fileno())
                os.close(null)

    def told(self) -> int:
        """The exit status of a failure, which is told; who closes a pipe has seen enough."""
        self.flush()
        if self._error is None or getattr(self._error, "errno", None) == errno.EPIPE:
            return 0
        _tell(f"error: standard output cannot be written ({files.said(self._error)}).")
        return 2


@contextlib.contextmanager
def _guarded() -> Iterator[_Output]:
    """Within, standard output never fails, and takes every letter in every locale."""
    for file in (sys.stdout, sys.stderr):
        if hasattr(file, "reconfigure"):
            file.reconfigure(errors="backslashreplace")
    before = sys.stdout
    sys.stdout = output = _Output(before)
    try:
        yield output
    finally:
        sys.stdout = before
