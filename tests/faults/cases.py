"""Cases of a generator, two at a time, and what came of them."""

from collections.abc import Callable, Iterator, Sequence
import json
import os
import select
import signal
import sys
import time
import traceback
from typing import Any, NamedTuple

from .promise import Broken


class UndisturbedError(Exception):
    """A command that failed without a fault.

    Attributes:
      command: its name.
    """

    def __init__(self, command: str, said: str):
        super().__init__(said)
        self.command = command


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
      command: its name.
      ending: how it ended, in a word.
      line: the command line, with what was done to it.
      broken: the promises that it broke.
    """

    command: str
    ending: str
    line: str
    broken: Sequence[Broken]


def outcomes(
    numbers: Sequence[int], jobs: int, case: Callable[[int, int], Outcome]
) -> Iterator[dict[str, Any]]:
    """Each case with what became of it, as it ends.

    Args:
      numbers: of the cases.
      jobs: how many at a time.
      case: runs a case, given its number and that of the process.
    """
    pipes = {}
    for job in range(jobs):
        read, write = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            os.close(read)
            _work(numbers[job::jobs], job, case, write)
        os.close(write)
        pipes[read] = (pid, b"")
    try:
        while pipes:
            for read in select.select(list(pipes), [], [])[0]:
                pid, held = pipes[read]
                got = os.read(read, 2**16)
                *lines, rest = (held + got).split(b"\n")
                pipes[read] = (pid, rest)
                yield from map(json.loads, lines)
                if not got:
                    del pipes[read]
                    os.close(read)
                    os.waitpid(pid, 0)
    finally:
        for pid, _ in pipes.values():
            os.kill(pid, signal.SIGTERM)


def _work(numbers, job, case, write):
    """A process of its own that runs some of the cases; never returns."""
    # Ends with what a case has to undo, such as a disk.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for number in numbers:
            start = time.monotonic()
            try:
                found = case(number, job)
            except UndisturbedError as error:
                broken = [Broken("an undisturbed run fails", f"{error}")]
                found = Outcome(error.command, "error", "", broken)
            except Exception:  # of the generator itself; the other cases go on
                seen = traceback.format_exc().strip()[-600:]
                found = Outcome("?", "error", "", [Broken("the generator failed", seen)])
            record = {
                "case": number,
                **found._asdict(),
                "broken": [one._asdict() for one in found.broken],
                "seconds": round(time.monotonic() - start, 2),
            }
            text = json.dumps(record) + "\n"
            os.write(write, text.encode())
    finally:
        os._exit(0)
