"""What is promised of every case, and where a case broke it."""

from collections.abc import Iterable, Mapping
import hashlib
from pathlib import Path
import re
from typing import Any, NamedTuple

from . import figures
from .process import Ended

# What no command may say.
FORBIDDEN = {
    "traceback": r"Traceback \(most recent call last",
    "exception ignored": "Exception ignored",
    "task exception": "Task exception was never retrieved",
    "warning": r"\b[A-Z]\w*Warning: ",
    "fatal": r"Fatal Python error|Segmentation fault|terminate called|Check failure",
}
STOPPING = "stopping after this step"
HALF = re.compile(r"\.part$|\.orbax-checkpoint-tmp")


class Broken(NamedTuple):
    """A promise that a case broke: its kind, and what was seen."""

    kind: str
    seen: str


def of_end(ended: Ended, *, allowed: Iterable[int]) -> list[Broken]:
    """Exit status and standard error.

    Args:
      ended: the command.
      allowed: the statuses that it may have, beside 0 and 2.
    """
    if ended.code is None:
        return [Broken("hang", f"more than {ended.seconds:.0f} s; {_innermost(ended.stack)}")]
    broken = []
    for kind, pattern in FORBIDDEN.items():
        if found := re.search(pattern, ended.err):
            rest = ended.err[found.start() :]
            if kind == "traceback":
                seen = _raised(rest)  # told by its type, so that the same ones stand together
                broken.append(Broken(f"{kind}: {seen.partition(':')[0]:.60}", seen))
            else:
                broken.append(Broken(kind, rest.partition("\n")[0]))
    if not broken and ended.code not in {0, 2, *allowed}:
        broken.append(Broken(f"exit status {ended.code}", ended.err.strip()[-300:]))
    if not broken and ended.code:
        broken += _of_lines(ended)
    if ended.left:
        broken.append(Broken("a process is left", ""))
    return broken


def _raised(err):
    """The last line of the first traceback in a text, and where in this project it was raised."""
    lines = err.splitlines()[1:]
    length = next((i for i, line in enumerate(lines) if line[:1].strip()), len(lines) - 1)
    own = [line.strip() for line in lines[:length] if "/experiments/" in line]
    at = re.sub(r'File "[^"]*/(experiments/[\w/]+\.py)"', r"\1", own[-1]) if own else "elsewhere"
    return f"{lines[length][:300] if lines else ''} ({at})"


def _innermost(stack):
    """Where a command was, of what faulthandler wrote: the first line of this project's."""
    files = [line.strip() for line in stack.splitlines() if "File " in line]
    own = [line for line in files if "/experiments/" in line or "/sam_optax/" in line]
    return " < ".join((own or files)[:2])


def _of_lines(ended):
    """One line that says what is wrong, or that it was interrupted."""
    said = [line for line in ended.err.splitlines() if line.strip() and STOPPING not in line]
    if ended.code == 2 and said and said[0].startswith(("╭", "usage: ")):
        return []  # the parser's own message
    beginning = "error: " if ended.code == 2 else "interrupted"
    if ended.code < 0 or ended.code == 1:
        return []  # allowed, as before its first line
    if sum(line.startswith(beginning) for line in said) != 1:
        return [Broken(f"no line that begins with {beginning.strip()}", ended.err.strip()[-300:])]
    if len(said) != 1:
        return [Broken("more than one line", ended.err.strip()[-300:])]
    return []


Snapshot = Mapping[str, bytes]


def snapshot(*folders: Path) -> Snapshot:
    """A digest of each file in folders, by its path."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*") if folder.is_dir() else [folder]:
            if path.is_symlink() or not path.exists():
                found[str(path)] = b"link"
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).digest()
    return found


def of_files(before: Snapshot, after: Snapshot, kind: str = "foreign file") -> list[Broken]:
    """Files that are to be as they were."""
    broken = []
    for path, digest in before.items():
        if path not in after:
            broken.append(Broken(f"{kind} lost", path))
        elif after[path] != digest:
            broken.append(Broken(f"{kind} changed", path))
    return broken


def of_halves(out: Path) -> list[Broken]:
    """Files that were begun and not ended."""
    left = [str(path.relative_to(out)) for path in out.rglob("*") if HALF.search(path.name)]
    return [Broken("half-written file left", " ".join(left[:3]))] if left else []


def of_figures(
    found: Mapping[str, Any], expected: Mapping[str, Any], *, whole: bool = True
) -> list[Broken]:
    """Results that are those of an undisturbed run.

    Args:
      found: the figures.
      expected: those of the reference.
      whole: whether all are to be there; else what is there is to be right, as far as it goes.
    """
    if not whole:
        ended = {n for n in found if n in expected and not n.endswith(("l", "config.json"))}
        found, expected = ({n: side[n] for n in ended} for side in (found, expected))
    words = figures.differences(found, expected, part=not whole)
    kind = "wrong figures" if whole else "wrong figures claimed"
    return [Broken(kind, "; ".join(words[:4]))] if words else []
