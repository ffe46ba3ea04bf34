"""What a command has finished, a line of JSON each, so that it goes on where it was stopped."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.results import files
from experiments.system.errors import UserError


class Lines:
    """The lines of a file by their keys, which one command at a time writes."""

    def __init__(self, path: Path, key: Callable[[Mapping[str, Any]], Hashable]):
        """Reads what is there; a line that a killed process left without an end is removed.

        Args:
          path: of the file.
          key: tells a line from others.

        Raises:
          UserError: a line is damaged.
        """
        self._path, self._key = path, key
        try:
            found = files.read_lines(path)
        except files.DamagedError as error:
            raise UserError(f"{error}: remove that line, or pass --overwrite.") from error
        try:
            self._lines = {key(value): value for value in found.values()}
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} holds a line that is no run: remove it, or pass --overwrite."
            ) from error
        whole = b"".join(line + b"\n" for line in found)
        if path.exists() and path.read_bytes() != whole:
            with files.replacing(path) as part:
                part.write_bytes(whole)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._lines

    def __getitem__(self, key: Hashable) -> Mapping[str, Any]:
        return self._lines[key]

    def __len__(self) -> int:
        return len(self._lines)

    def values(self) -> Iterator[Mapping[str, Any]]:
        """The last of each key, in the order in which the keys first came."""
        yield from self._lines.values()

    def add(self, value: Mapping[str, Any]) -> None:
        """One more.

        Raises:
          WriteError: it cannot be written.
        """
        files.append_json(self._path, value)
        self._lines[self._key(value)] = value
