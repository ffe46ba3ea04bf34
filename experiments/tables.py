"""Put finished runs beside the figures of the papers, table by table, and tell what is missing.

    python -m experiments.tables [--runs FOLDER] [--paper NAME…] [--out FOLDER]

Reads the folders that experiments.train wrote, and changes nothing in them. A run counts where it
is its recipe's protocol as that stands now; what else was run of a recipe is listed beneath. With
--out the tables are written too: tables.md, and tables.json with all numbers and each run's commit.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
from pathlib import Path
import statistics
from typing import Annotated, Any

from rich import box
from rich.console import Console
from rich.table import Table
import tyro

from experiments.analysis import table as tabulated
from experiments.cli import command
from experiments.recipes import RECIPES
from experiments.results import files, folders, provenance
from experiments.results.collected import Collected, Run, collect
from experiments.results.markdown import escaped
from experiments.results.paper_tables import PAPERS, Paper, PaperTable
from experiments.system.errors import UserError
from experiments.system.words import known

WIDTH = 100
NO_RUN, NOT_GIVEN = "—", "n/a"
LEGEND = (
    "paper: the published figure in %; ours: mean ± sample deviation over seeds, and how many they "
    f"are; gap: ours − paper. {NO_RUN}: no run yet; {NOT_GIVEN}: no published figure is recorded. "
    "avg: over the columns, ours of the seeds that all of them have."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Put finished runs beside the figures of the papers."""

    runs: Path = Path("runs")
    """The folder of all results."""
    paper: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"Papers to show, of {', '.join(PAPERS)}; all where left out."),
    ] = ()
    out: Path | None = None
    """The folder to write tables.md and tables.json to."""


def main(options: Options) -> None:
    """Runs the command."""
    for name in options.paper:
        known("paper", name, PAPERS)
    if options.out is not None:
        folders.check(options.out, "tables")
    if options.runs.exists() and not options.runs.is_dir():
        raise UserError(f"--runs {options.runs} is no folder: pass that of all results.")
    collected = collect(options.runs) if options.runs.exists() else Collected([], [], [])
    found = gathered(collected, list(dict.fromkeys(options.paper)) or list(PAPERS))
    _print(found)
    if not options.runs.exists():
        print(f"there is no folder {options.runs}: --runs names that of all results.")
    if options.out is not None:
        with folders.anew(options.out, "tables", {"paper": options.paper}) as folder:
            files.write_text(folder.file("tables.md"), markdown(found))
            files.write_json(folder.file("tables.json"), {**found, **provenance.provenance()})
        print(f"written to {options.out}/")


def gathered(collected: Collected, names: Sequence[str]) -> dict[str, Any]:
    """The tables of these papers with what was run, of JSON's values.

    Returns:
      papers, a list with tables and other runs of each; runs_of_no_table; damaged and others, the
      folders that are passed over; filled and cells, how many of the papers' cells have a run; and
      runs, all that was found.
    """
    cells = {place for paper in PAPERS.values() for table in paper.tables for place in _in(table)}
    counted, rest = {}, []
    for run in collected.runs:
        place = (run.recipe, run.method)
        if run.summary is None or run.differences or place not in cells:
            rest.append((run, ""))
            continue
        seeds = counted.setdefault(place, {})
        if run.seed in seeds:
            rest.append((run, ", again with a seed that is counted"))
        elif any(run.weights != other.weights for other in seeds.values()):
            rest.append((run, ", from other weights than those counted"))
        elif any(folders.on_other_data(run.config, other.config) for other in seeds.values()):
            rest.append((run, ", on other data than those counted"))
        else:
            seeds[run.seed] = run
    papers = [_paper(name, PAPERS[name], counted, rest) for name in names]
    shown = [cell for paper in papers for table in paper["tables"] for cell in _cells(table)]
    known = set().union(*(paper.recipes for paper in PAPERS.values()))
    return {
        "papers": papers,
        "runs_of_no_table": _listed([pair for pair in rest if pair[0].recipe not in known]),
        "damaged": collected.damaged,
        "others": [str(path) for path in collected.others],
        "filled": sum(cell["ours"] is not None for cell in shown),
        "cells": len(shown),
        "runs": [_told(run, counted) for run in collected.runs],
    }


def _in(table):
    """The recipe and the method of each cell."""
    return itertools.product(table.columns.values(), table.rows)


def _paper(name, paper: Paper, counted, rest) -> dict[str, Any]:
    own = [(run, note) for run, note in rest if run.recipe in paper.recipes]
    return {
        "name": name,
        "title": paper.title,
        "tables": [_filled(table, counted) for table in paper.tables],
        "other_runs": _listed(own),
    }


def _filled(table: PaperTable, counted) -> dict[str, Any]:
    """A table with the figures of its cells; errors are 100 less the accuracy."""

    def shown(accuracy):
        return 100 - accuracy if table.errors else accuracy

    rows = []
    for method, name in table.rows.items():
        cells = {}
        for heading, recipe in table.columns.items():
            published = RECIPES[recipe].paper.get(method)
            seeds = counted.get((recipe, method), {})
            cells[heading] = _cell(
                None if published is None else shown(published),
                {seed: shown(run.accuracy) for seed, run in sorted(seeds.items())},
            )
        average = _average(list(cells.values())) if table.average else None
        rows.append({"method": method, "name": name, "cells": cells, "average": average})
    best = {RECIPES[recipe].reports for recipe in table.columns.values()} == {"best"}
    return {
        "title": table.title,
        "shows": f"{'best ' if best else ''}test {'error' if table.errors else 'accuracy'}",
        "columns": dict(table.columns),
        "note": table.note,
        "rows": rows,
    }


def _cell(published, by_seed):
    """A published figure and those of our seeds."""
    ours = _mean(by_seed.values()) if by_seed else None
    gap = None if ours is None or published is None else ours["mean"] - published
    return {"paper": published, "ours": ours and {**ours, "by_seed": by_seed}, "gap": gap}


def _average(cells):
    """The mean over the cells, ours of the seeds that each of them has."""
    published = [cell["paper"] for cell in cells]
    ours = [cell["ours"]["by_seed"] if cell["ours"] else {} for cell in cells]
    common = sorted(set.intersection(*map(set, ours)))
    return _cell(
        None if None in published else statistics.fmean(published),
        {seed: statistics.fmean(by_seed[seed] for by_seed in ours) for seed in common},
    )


def _mean(values):
    """Mean and deviation, that of a sample."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation}


def _listed(pairs: Sequence[tuple[Run, str]]) -> list[str]:
    """A line for each group of runs that are no cell, and for each that did not come to its end.

    A group has a seed once, and one file of weights.
    """
    groups, lines = {}, []
    for run, note in pairs:
        if run.summary is None:
            of = run.config["epochs"]
            lines.append(
                f"{run.label}, seed {run.seed}: unfinished or diverged, after {run.epochs} of {of} "
                "epochs"
            )
            continue
        # Whatever a recipe was that is gone, its runs may differ in anything.
        origin = run.weights if run.recipe in RECIPES else run.path
        label = run.label + note
        while run.seed in groups.setdefault((label, origin), {}):
            label += ", again"
        groups[label, origin][run.seed] = run.accuracy
    ended = [
        f"{label}: {_ours(_mean(by_seed.values()), len(by_seed))}"
        for (label, _), by_seed in groups.items()
    ]
    return ended + lines


def _told(run: Run, counted) -> dict[str, Any]:
    """A run's figures and origin, and whether it is in the cells of its recipe and method."""
    summary = run.summary or {}
    names = ("test_accuracy", "test_accuracy_best", "papers_protocol", "weights", "device")
    return {
        "path": str(run.path),
        "recipe": run.recipe,
        "method": run.method,
        "seed": run.seed,
        "differences": run.differences,
        "finished": run.summary is not None,
        "counted": counted.get((run.recipe, run.method), {}).get(run.seed) is run,
        **{name: summary.get(name) for name in (*names, "versions", "commit")},
    }


def _cells(table: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The cells of a filled table, without its averages."""
    return itertools.chain.from_iterable(row["cells"].values() for row in table["rows"])


def _percent(value):
    """Two decimals; a half goes up, as in the papers' averages."""
    return f"{value + 1e-9:.2f}"


def _ours(ours, seeds):
    deviation = "" if ours["deviation"] is None else f" ± {ours['deviation']:.2f}"
    return f"{_percent(ours['mean'])}{deviation} ({seeds})"


def _lines(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table as text: the paper's figures, below them ours, and the gaps."""
    averages = any(row["average"] for row in table["rows"])
    body = []
    for row in table["rows"]:
        cells = [*row["cells"].values(), *([row["average"]] if averages else [])]
        paper = [NOT_GIVEN if c["paper"] is None else _percent(c["paper"]) for c in cells]
        ours = [_ours(c["ours"], len(c["ours"]["by_seed"])) if c["ours"] else NO_RUN for c in cells]
        # Adding 0 makes of a −0 that was rounded a 0.
        gaps = ["" if c["gap"] is None else f"{round(c['gap'], 2) + 0:+.2f}" for c in cells]
        body += [[row["name"], "paper", *paper], ["", "ours", *ours]]
        if any(gaps):
            body.append(["", "gap", *gaps])
    return ["", "", *table["columns"], *(["avg"] if averages else [])], body


def _title(table):
    return f"{table['title']} ({table['shows']}, %)"


def _lists(found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What was found beside the papers' runs, under headings."""
    return [
        ("Runs of no table, test accuracy in %:", found["runs_of_no_table"]),
        ("Damaged, and passed over:", found["damaged"]),
        ("Of other commands, and passed over:", found["others"]),
    ]


OTHER_RUNS = "Other runs of these recipes, test accuracy in %:"


def _ending(found):
    return f"filled {found['filled']} of {found['cells']} cells"


def _print(found):
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, WIDTH)
    for paper in found["papers"]:
        console.rule(paper["title"], align="left", characters="─")
        for table in paper["tables"]:
            console.print("", _title(table), _shown(table), sep="\n")
            if table["note"]:
                console.print(table["note"])
        console.print()
        _print_list(console, OTHER_RUNS, paper["other_runs"])
    for heading, lines in _lists(found):
        _print_list(console, heading, lines)
    console.print(LEGEND)
    console.print(_ending(found))


def _print_list(console, heading, lines):
    if lines:
        console.print(heading, *(f"  {line}" for line in lines), "", sep="\n")


def _shown(table):
    headings, body = _lines(table)
    shown = Table(box=box.SIMPLE, padding=0, show_edge=False)
    for i, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if i < 2 else "right")
    for row in body:
        shown.add_row(*row)
    return shown


def markdown(found: Mapping[str, Any]) -> str:
    """The tables as Markdown, with the other runs of their recipes and what was passed over."""
    lines = ["# The papers' tables", "", LEGEND, "", f"{_ending(found).capitalize()}.", ""]
    for paper in found["papers"]:
        lines += [f"## {paper['title']}", ""]
        for table in paper["tables"]:
            lines += [f"### {_title(table)}", "", *tabulated.markdown(*_lines(table)), ""]
            lines += [table["note"], ""] if table["note"] else []
        lines += _bullets(OTHER_RUNS, paper["other_runs"])
    for heading, listed in _lists(found):
        lines += _bullets(heading, listed)
    return "\n".join(lines)


def _bullets(heading, listed):
    return [heading, "", *(f"- {escaped(line)}" for line in listed), ""] if listed else []


if __name__ == "__main__":
    command.run(main, Options)
