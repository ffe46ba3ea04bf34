"""What a command says: standard output that ends nothing by failing, and one line of an error."""

from collections.abc import Iterator
import contextlib
import errno
import os
import sys
from typing import TextIO

from experiments.system import words


def tell(text: str) -> None:
    """One line on standard error, if that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)


class Output:
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
        tell(f"error: standard output cannot be written ({words.said(self._error)}).")
        return 2


@contextlib.contextmanager
def guarded() -> Iterator[Output]:
    """Within, standard output never fails, and takes every letter in every locale."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it is closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as Python runs
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    before = sys.stdout
    sys.stdout = output = Output(before)
    try:
        yield output
    finally:
        sys.stdout = before
