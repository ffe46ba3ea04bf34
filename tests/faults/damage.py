"""Ways in which a file is not what was written."""

from collections.abc import Callable, Iterator
import json
from pathlib import Path
import random
import shutil
from typing import Any

WRONG = (None, True, -1, 0, 2**70, 1e308, float("nan"), float("inf"), "", "x", "1", [], {}, [1])
# A list that is nested deeper than the parser can follow.
DEEP = b"[" * 100_000


def damage(path: Path, rng: random.Random, other: Path | None) -> str:
    """Damages a file; says how.

    Args:
      path: of the file.
      rng: draws.
      other: a file that may take its place.
    """
    ways: list[Callable[[Path, random.Random], str]] = [truncated, flipped, inserted, emptied]
    ways += [absent, a_folder, zeros]
    if path.suffix == ".json":
        ways += [retyped] * 4 + [without_a_key, with_a_key] * 2 + [deep]
    if path.suffix == ".jsonl":
        ways += [without_a_line, doubled, retyped_line, retyped_line]
    if other is not None and other.is_file():
        ways += [lambda path, rng: replaced(path, other)] * 2
    return rng.choice(ways)(path, rng)


def truncated(path: Path, rng: random.Random) -> str:
    """Cut to some length."""
    content = path.read_bytes()
    length = rng.randrange(len(content) + 1)
    path.write_bytes(content[:length])
    return f"cut to {length} of {len(content)} bytes"


def flipped(path: Path, rng: random.Random) -> str:
    """One bit, or some."""
    content = bytearray(path.read_bytes())
    places = (
        [rng.randrange(8 * len(content)) for _ in range(rng.choice([1, 1, 8]))] if content else []
    )
    for place in places:
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return f"bits {' '.join(map(str, places))} flipped"


def inserted(path: Path, rng: random.Random) -> str:
    """Bytes in the middle or at an end."""
    content = path.read_bytes()
    place = rng.choice([0, len(content), rng.randrange(len(content) + 1)])
    more = rng.choice([b"\0", b"\n", b" ", b"\xff\xfe", rng.randbytes(9), b"{}\n", b"garbage\n"])
    path.write_bytes(content[:place] + more + content[place:])
    return f"{more!r} inserted at {place}"


def emptied(path: Path, rng: random.Random) -> str:
    """No bytes."""
    del rng
    path.write_bytes(b"")
    return "emptied"


def zeros(path: Path, rng: random.Random) -> str:
    """Of its length, as a crash of the machine leaves it."""
    del rng
    path.write_bytes(bytes(path.stat().st_size))
    return "all zeros"


def absent(path: Path, rng: random.Random) -> str:
    """Gone."""
    del rng
    path.unlink()
    return "removed"


def a_folder(path: Path, rng: random.Random) -> str:
    """A folder of its name."""
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "inside").write_text("mine")
    return "replaced by a folder"


def replaced(path: Path, other: Path) -> str:
    """That of another run."""
    shutil.copy(other, path)
    return f"replaced by {other.parent.name}/{other.name}"


def deep(path: Path, rng: random.Random) -> str:
    """JSON that no parser follows."""
    del rng
    path.write_bytes(DEEP)
    return "replaced by 100,000 brackets"


def _edited(path, edit):
    """A file of JSON with its value edited, laid out as before; damaged files stay."""
    value = json.loads(path.read_bytes())
    said = edit(value)
    path.write_text(json.dumps(value, indent=2) + "\n")
    return said


def _places(value: Any, where: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Each place inside a value: what holds it, its key, and its name."""
    if isinstance(value, dict):
        pairs: Any = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return
    for key, item in pairs:
        yield value, key, f"{where}/{key}"
        yield from _places(item, f"{where}/{key}")


def _retype(value, rng):
    places = list(_places(value))
    if not places:
        return "nothing to change"
    # Those near the top are few, and matter most.
    top = [place for place in places if place[2].count("/") == 1]
    holder, key, name = rng.choice(top if rng.random() < 0.5 else places)
    held = holder[key]
    wrong = [*WRONG, [held], {"x": held}, str(held)]
    if isinstance(held, int | float) and not isinstance(held, bool):
        wrong += [held + 1, -held, held * 0.5]
    holder[key] = rng.choice(wrong)
    return f"{name} is {json.dumps(holder[key])[:60]}"


def retyped(path: Path, rng: random.Random) -> str:
    """A value of another type or size, or the whole of another type."""
    if rng.random() < 0.1:
        wrong = rng.choice(WRONG)
        path.write_text(json.dumps(wrong))
        return f"all is {json.dumps(wrong)}"
    return _edited(path, lambda value: _retype(value, rng))


def without_a_key(path: Path, rng: random.Random) -> str:
    """A key is gone."""

    def edit(value):
        holders = [place for place in _places(value) if isinstance(place[0], dict)]
        holder, key, name = rng.choice(holders)
        del holder[key]
        return f"{name} removed"

    return _edited(path, edit)


def with_a_key(path: Path, rng: random.Random) -> str:
    """A key too many."""

    def edit(value):
        if not isinstance(value, dict):
            return "nothing to add to"
        value[rng.choice(["", "x", "seed ", "Epochs"])] = rng.choice(WRONG)
        return "a key added"

    return _edited(path, edit)


def without_a_line(path: Path, rng: random.Random) -> str:
    """A line is gone."""
    lines = path.read_bytes().splitlines(keepends=True)
    number = rng.randrange(len(lines)) if lines else 0
    path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
    return f"line {number + 1} removed"


def doubled(path: Path, rng: random.Random) -> str:
    """A line stands twice."""
    lines = path.read_bytes().splitlines(keepends=True)
    number = rng.randrange(len(lines)) if lines else 0
    path.write_bytes(b"".join(lines[: number + 1] + lines[number:]))
    return f"line {number + 1} doubled"


def retyped_line(path: Path, rng: random.Random) -> str:
    """A value in a line."""
    lines = path.read_bytes().splitlines(keepends=True)
    number = rng.randrange(len(lines)) if lines else 0
    value = json.loads(lines[number])
    said = _retype(value, rng)
    lines[number] = json.dumps(value).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    return f"line {number + 1}: {said}"
