"""Files that are written whole or not at all, and JSON that shows whether it was damaged."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import math
import numbers
import os
from pathlib import Path
from typing import Any
import zlib

from experiments.system.errors import UserError
from experiments.system.words import said

# In every folder that a command writes: what it wrote there. JSON beside it is sealed.
MANIFEST = ".sam_optax.json"
SEAL = "checksum"

# JSON has no numbers for these words; where a text is one of them, a \ stands in front.
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class WriteError(UserError):
    """A file cannot be written; what was there before is there still."""


class DamagedError(UserError):
    """A file is not what was written; the message says which, and what to do."""


def part_of(path: Path) -> Path:
    """Where a file is written before it is whole."""
    return path.with_name(f".sam_optax.{path.name}.part")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of another at the end, or is removed.

    Raises:
      WriteError: it cannot be written.
    """
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text whole or not at all.

    Raises:
      WriteError: it cannot be written.
    """
    with replacing(path) as part:
        part.write_bytes(_utf8(text))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all; an object is sealed by a checksum of all the rest.

    Raises:
      WriteError: it cannot be written.
    """
    value = plain(value)
    write_text(path, json.dumps(seal(value), indent=2, allow_nan=False) + "\n")


def append_json(path: Path, value: Mapping[str, Any]) -> None:
    """Appends a line of JSON, sealed, or nothing.

    Raises:
      WriteError: it cannot be written.
    """
    try:
        # Without a buffer, whose rest would be written once more as the file is closed.
        with path.open("ab", buffering=0) as file:
            end, rest = file.tell(), _utf8(line(value))
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except BaseException:
                os.ftruncate(file.fileno(), end)
                raise
    except OSError as error:
        raise _unwritten(path, error) from error


def line(value: Mapping[str, Any]) -> str:
    """A line of JSON, sealed."""
    return json.dumps(seal(plain(value)), allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedError: it cannot be read, is no JSON object, or not what was sealed.
    """
    try:
        return unsealed(path.read_bytes(), required=is_sealed(path.parent))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({said(error)})") from error


def read_lines(path: Path) -> dict[bytes, dict[str, Any]]:
    """The lines of a file with the objects that they tell; none where there is no file.

    A last line that a killed process left incomplete is passed over.

    Raises:
      DamagedError: the file cannot be read, or a line is not what was written.
    """
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DamagedError(f"{path} is damaged ({said(error)})") from error
    values, required = {}, is_sealed(path.parent)
    for number, text in enumerate(lines, 1):
        try:
            values[text] = unsealed(text, required=required)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"line {number} of {path} is damaged ({said(error)})") from error
    with contextlib.suppress(ValueError, RecursionError):
        values[last] = unsealed(last, required=required)
    return values


def is_sealed(folder: Path) -> bool:
    """Whether what the folder holds was written with seals, as a manifest beside it tells."""
    return (folder / MANIFEST).exists()


def seal(value: Any) -> Any:
    """JSON's plain values with a checksum of them; what is no object stays as it is."""
    return {**value, SEAL: checksum(value)} if isinstance(value, dict) else value


def unsealed(text: bytes, *, required: bool) -> dict[str, Any]:
    """The object that a text of JSON tells, without its seal.

    Raises:
      ValueError: it is no JSON, no object, or not what was sealed.
    """
    value = json.loads(text.decode())
    if not isinstance(value, dict):
        raise ValueError(f"it holds no JSON object but {value!r:.40}")
    found = value.pop(SEAL, None)
    if found is None and not required:
        return unplain(value)
    if found is None or found != checksum(value):
        raise ValueError("its checksum is not that of what was written")
    return unplain(value)


def plain(value: Any) -> Any:
    """The value as JSON's plain ones: numbers that are not finite are words, tuples are lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, str):
        # As bytes of a name that are no UTF-8 would be no JSON to others, they stand as escapes.
        text = value.encode("utf-8", "backslashreplace").decode()
        return f"\\{text}" if text in _NUMBERS or text.startswith("\\") else text
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if not isinstance(value, numbers.Real):
        return str(value)
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def checksum(value: Any) -> int:
    """Of JSON's values, however they are laid out in a file."""
    return zlib.crc32(json.dumps(plain(value), sort_keys=True).encode())


def unplain(value: Any) -> Any:
    """The value that JSON's plain ones stand for, with the numbers that JSON has no words for."""
    if isinstance(value, dict):
        return {key: unplain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unplain(item) for item in value]
    if isinstance(value, str):
        return _NUMBERS.get(value, value.removeprefix("\\"))
    return value


def _utf8(text):
    """The text in UTF-8; bytes of a file's name that are none stand as escapes."""
    return text.encode("utf-8", "backslashreplace")


def _unwritten(path, error):
    return WriteError(f"cannot write {path}: {said(error)}")
