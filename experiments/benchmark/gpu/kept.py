"""The rows of several calls, each written as it comes."""

from collections.abc import Mapping
import datetime
from pathlib import Path
from typing import Any

from experiments.benchmark.gpu.setup import Row
from experiments.results.lines import Lines

Parts = dict[str, list[Row]]


class Kept:
    """The rows of a file, which one call at a time adds to."""

    def __init__(self, path: Path, commit: str | None):
        """Reads those of earlier calls.

        Args:
          path: of the file.
          commit: of the code that measures from now on.

        Raises:
          UserError: a line is damaged.
        """
        self._lines = Lines(path, key=lambda row: (row["part"], row["name"]))
        self._commit = commit
        self._begun: set[tuple[str, str]] = set()  # of this call

    def add(self, part: str, row: Mapping[str, Any]) -> None:
        """Writes a row; what this call has measured of it before stays, as the same code's.

        Raises:
          WriteError: it cannot be written.
        """
        key = part, row["name"]
        known = self._lines[key] if key in self._begun else {}
        self._begun.add(key)
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        mark = {"part": part, "commit": self._commit, "at": at}
        self._lines.add({**known, **row, **mark})

    def parts(self) -> Parts:
        """All rows by their part, in the order in which they first came."""
        found: Parts = {}
        for row in self._lines.values():
            found.setdefault(row["part"], []).append(
                {name: value for name, value in row.items() if name != "part"}
            )
        return found
