"""Look at trained models: Hessian, sharpness, landscapes, gradients, courses, on one page.

    python -m experiments.analyze RUN… [--parts hessian sharpness …] [options]

RUN is a folder that experiments.train wrote; several are put side by side. Writes <out>/<name>/:
report.html, a PNG for each picture, analysis.md with the table, analysis.json with all numbers, and
runs.jsonl with each part as it ends, so that the same command goes on where it was stopped. Runs
that differ in their seeds alone are one row of the table, mean ± deviation; pictures show the first
of them. The page is of the runs given; what was measured of others is kept.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, Literal

import jax
import jinja2
import rich
import tyro

from experiments.analysis import kept, pictures, table
from experiments.analysis.parts import Look, Measures
from experiments.cli import command
from experiments.results import files, folders, numerics, provenance
from experiments.system.errors import UserError
from experiments.system.words import positive

Part = Literal["hessian", "sharpness", "gradients", "landscape", "steps"]
TABLED = ("hessian", "sharpness")
COMMAND = "analyze"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(kept.Options):
    """Look at trained models."""

    parts: tuple[Part, ...] = ("hessian", "sharpness", "gradients", "landscape", "steps")
    """What to measure. Courses are drawn always."""
    measures: tyro.conf.OmitArgPrefixes[Measures] = dataclasses.field(default_factory=Measures)
    name: str = "analysis"
    """The page's folder inside --out."""


def main(options: Options) -> None:
    """Runs the command."""
    _check(options)
    if options.measures.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    trained = kept.opened(options)
    config = dataclasses.asdict(options.measures)
    path = folders.path_of(options.out, options.name)
    folders.check(path, COMMAND)
    about = [{**kept.about(run), "rows": run.rows, "parts": {}, "seconds": {}} for run in trained]
    with folders.held(path, COMMAND) as folder:
        folder.open({**config, "jax": numerics.recorded()}, overwrite=options.overwrite)
        found = {
            "config": {"measures": files.plain(config)},
            "runs": pictures.titled(about),
            "lines": [],
            **provenance.provenance(),
        }
        failed = _measure(options, trained, found, folder.file(folders.RUNS))
        files.write_json(folder.file("analysis.json"), found)
        drawn = pictures.draw(folder.file, found)
        rows = summarize(found)
        files.write_text(folder.file("analysis.md"), markdown(rows, found))
        files.write_text(folder.file("report.html"), _page(rows, found, drawn, failed))
        folder.done()
    rich.print(table.shown(*table.cells(rows, _COLUMNS)))
    for run in trained:
        if run.corrupt:
            print(f"{run.path.name}: {len(run.corrupt):,} images left out that cannot be decoded")
    print(f"written to {path}/: open report.html")
    if failed:
        raise UserError("not everything could be measured: " + " ".join(failed))


def _check(options):
    """Raises where an option makes no sense, before anything is computed."""
    measures = options.measures
    if not options.parts or len(set(options.parts)) < len(options.parts):
        raise UserError(f"--parts must be different ones, got {options.parts}.")
    if not measures.modes or len(set(measures.modes)) < len(measures.modes):
        raise UserError(f"--modes must be different ones, got {measures.modes}.")
    for name in ("radii", "adaptive_radii", "sigmas"):
        values = getattr(measures, name)
        option = f"--{name.replace('_', '-')}"
        proper = all(0 < value < math.inf for value in values)
        if not values or not proper or sorted(set(values)) != list(values):
            raise UserError(f"{option} must be positive and ascending, got {values}.")
    gammas = measures.gammas_squared
    if not gammas or not all(0 <= value < math.inf for value in gammas):
        raise UserError(f"--gammas-squared must not be negative, got {measures.gammas_squared}.")
    positive("span", measures.span)


def _measure(options, trained, found, kept_in):
    """Fills in the parts and lines of found: those kept in a file, and others, kept as they end.

    Pictures show the first run of each group, so that the others need only what the table shows.

    Returns:
      What could not be measured, a sentence each.
    """
    looks = {}
    with kept.progress("passes") as tell:
        lines = kept.Kept(kept_in, tell)

        def look(run):
            if run not in looks:
                looks[run] = Look(run, options.measures, tell)
            return looks[run]

        names = {run["name"] for run in pictures.first_of_each(found["runs"])}
        shown = [run for run in trained if run.path.name in names]
        marks = {about["name"]: kept.marks(about) for about in found["runs"]}
        for run, about in zip(trained, found["runs"], strict=True):
            for part in options.parts:
                if part in TABLED or run in shown:
                    measure = functools.partial(_part, look, run, part)
                    key = (*marks[about["name"]], part)
                    line = lines.once(key, f"{about['name']}, {part}", measure)
                    if line is not None:
                        about["parts"][part] = line["measured"]
                        about["seconds"][part] = line["seconds"]
            if run not in shown:  # with all its data
                looks.pop(run, None)
                run.forget()
        for run in shown[1:] if "landscape" in options.parts else ():
            ends = {"from": shown[0].path.name, "to": run.path.name}
            measure = functools.partial(_line, look, shown[0], run)
            key = (*marks[ends["from"]], *marks[ends["to"]], "line")
            line = lines.once(key, f"{ends['from']} to {ends['to']}", measure)
            if line is not None:
                found["lines"].append({**ends, **line["measured"]})
    return lines.failed


def _part(look, run, part):
    return getattr(look(run), part)()


def _line(look, start, end):
    return look(start).line_to(look(end))


_COLUMNS: tuple[table.Column, ...] = (
    ("test accuracy (%)", lambda run: 100 * run["figures"]["test_accuracy"], ".2f"),
    ("training loss", lambda run: run["figures"]["train_loss"], ".4f"),
    ("λ_max", lambda run: _first_mode(run, "hessian")["eigenvalues"][0], ".3g"),
    ("trace", lambda run: _first_mode(run, "hessian")["trace"], ".4g"),
    ("along the ascent", lambda run: _first_mode(run, "sharpness")["ascent"][-1], ".3g"),
    ("at worst", lambda run: _first_mode(run, "sharpness")["worst"][-1], ".3g"),
    ("on average", lambda run: _first_mode(run, "sharpness")["average"][-1], ".3g"),
)


def _first_mode(run, part):
    """The numbers in the first mode asked for."""
    return next(iter(run["parts"][part].values()))


def summarize(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of the table for each group of seeds."""
    return table.summarize(found["runs"], _COLUMNS)


def _note(rows, found):
    """What the columns mean."""
    measures = found["config"]["measures"]
    rho, sigma = f"{measures['radii'][-1]:g}", f"{measures['sigmas'][-1]:g}"
    meanings = {
        "λ_max": "λ_max: the largest eigenvalue of the Hessian",
        "trace": "trace: that of the Hessian, by random signs",
        "along the ascent": f"along the ascent: how much higher the loss is at SAM's ρ = {rho}",
        "at worst": f"at worst: the same at the worst place found in the ball of radius {rho}",
        "on average": f"on average: the same under normal noise of σ = {sigma}",
    }
    there = [said for h, said in meanings.items() if any(h in row["columns"] for row in rows)]
    return (
        "; ".join(
            [
                "Mean ± standard deviation over the seeds, of the training loss in "
                f"{measures['modes'][0]} mode",
                *there,
            ]
        )
        + "."
    )


def markdown(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    lines = table.markdown(*table.cells(rows, _COLUMNS))
    return "\n".join([*lines, "", _note(rows, found), ""])


def _page(rows, found, drawn, failed):
    """The report, with its pictures beside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    headings, body = table.cells(rows, _COLUMNS)
    return environment.get_template("report.html").render(
        headings=headings,
        body=body,
        short=provenance.short,
        note=_note(rows, found),
        pictures=drawn,
        found=found,
        failed=failed,
    )


if __name__ == "__main__":
    command.run(main, Options)
