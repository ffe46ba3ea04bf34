"""The table of trained runs: a row for each group of seeds, mean ± deviation of each column."""

from collections.abc import Callable, Mapping, Sequence
import statistics
from typing import Any

from rich.table import Table
from rich.text import Text

from experiments.results.markdown import escaped

# Heading, the number of a run, which raises KeyError where there is none, and its format.
Column = tuple[str, Callable[[Mapping[str, Any]], float], str]


def summarize(runs: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """A row for each group of seeds: its label, seeds, and of each column mean and deviation.

    The deviation is that of a sample, None for a single run; a column that not all runs of a group
    have is left out.
    """
    groups: dict[str, list[Any]] = {}
    for run in runs:
        groups.setdefault(run["group"], []).append(run)
    rows = []
    for members in groups.values():
        row = {"method": members[0]["label"], "seeds": len(members), "columns": {}}
        for heading, number, form in columns:
            try:
                values = [number(run) for run in members]
            except KeyError:
                continue
            spread = statistics.stdev(values) if len(values) > 1 else None
            row["columns"][heading] = (statistics.fmean(values), spread, form)
        rows.append(row)
    return rows


def cells(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]
) -> tuple[list[str], list[list[str]]]:
    """Headings and the rows as text, without the columns that no row has."""
    headings = [h for h, _, _ in columns if any(h in row["columns"] for row in rows)]

    def text(row, heading):
        if heading not in row["columns"]:
            return ""
        mean, spread, form = row["columns"][heading]
        return f"{mean:{form}}" + ("" if spread is None else f" ± {spread:.2g}")

    return (
        ["method", "seeds", *headings],
        [[row["method"], str(row["seeds"]), *(text(row, h) for h in headings)] for row in rows],
    )


def markdown(headings: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of the table as Markdown."""
    return [
        f"| {' | '.join(map(escaped, headings))} |",
        f"|{'---|' + '--:|' * (len(headings) - 1)}",
        *(f"| {' | '.join(map(escaped, row))} |" for row in body),
    ]


def shown(
    headings: Sequence[str], body: Sequence[Sequence[str]], title: str | None = None
) -> Table:
    """The table for a terminal."""
    table = Table(title=title)
    for heading in headings:
        table.add_column(Text(heading))
    for row in body:
        table.add_row(*map(Text, row))
    return table
