"""What a command found, to compare with what it should have found."""

import json
from pathlib import Path
from typing import Any

# What differs from one undisturbed run to the next.
PASSING = {
    *("seconds", "commit", "versions", "device", "checksum", "path", "cores", "out", "data_dir"),
    *("milliseconds", "compile_seconds", "resumed", "runs_dir", "at"),
}
UNREAD = {"checkpoints", "tensorboard"}


def of(out: Path, *, exact: bool = True) -> dict[str, Any]:
    """The values in all JSON under a folder, by file; of those that are times the kinds alone."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*.json*")):
        name = path.relative_to(out)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or UNREAD & set(name.parts) or not path.is_file():
            continue
        if path.suffix == ".json":
            found[str(name)] = plain(read(path), exact)
        elif path.suffix == ".jsonl":
            lines = [json.dumps(plain(one, exact), sort_keys=True) for one in _lines(path)]
            found[str(name)] = sorted(set(lines))
    return found


def read(path: Path) -> Any:
    """The value in a file; the text of what is no JSON, which equals no value."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return {"no JSON": path.read_bytes()[:100].decode(errors="replace")}


def _lines(path):
    for text in path.read_bytes().splitlines():
        try:
            yield json.loads(text)
        except ValueError:
            yield {"no JSON": text[:100].decode(errors="replace")}


def plain(value: Any, exact: bool) -> Any:
    """The value without what passes."""
    match value:
        case dict():
            kept = {key: item for key, item in value.items() if key not in PASSING}
            return {key: plain(item, exact) for key, item in kept.items()}
        case list():
            return [plain(item, exact) for item in value]
        case bool() | None | str():
            return value
    return value if exact else "number"


def differences(found: Any, expected: Any, where: str = "", *, part: bool = False) -> list[str]:
    """Where values differ, in words.

    Args:
      found: the value.
      expected: what it should be.
      where: its name.
      part: whether what is not there yet is no difference.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        words = []
        for key in sorted({*found, *expected}):
            at = f"{where}/{key}"
            if key in found and key in expected:
                words += differences(found[key], expected[key], at, part=part)
            elif key in found or not part:
                words.append(f"{at} {'is missing' if key not in found else 'is too much'}")
        return words
    lists = isinstance(found, list) and isinstance(expected, list)
    if lists and (len(found) == len(expected) or (part and len(found) < len(expected))):
        words = []
        for i, (one, other) in enumerate(zip(found, expected, strict=False)):
            words += differences(one, other, f"{where}/{i}", part=part)
        return words
    same = found == expected and type(found) is type(expected)
    return [] if same else [f"{where}: {found!r:.80} for {expected!r:.80}"]
