"""Evaluate trained models on other test sets than their own.

    python -m experiments.evaluate RUN… --on SET… [options]

RUN is a folder that experiments.train wrote; of an unfinished one the last checkpoint counts. SET
is a set of TFDS such as imagenet2012_real, imagenet_v2/matched-frequency or imagenet_r; of a
benchmark of corruptions, such as imagenet2012_corrupted, all that is prepared. Its classes must be
among those trained on: they are found by name, and predictions are chosen among them alone.

Writes <out>/<name>/: evaluation.md with the accuracies and with likelihood and calibration of the
probabilities, reliability.png with their picture, evaluation.json with all numbers, and runs.jsonl
with each set as it ends, so that the same command goes on where it was stopped, with more runs and
more sets too. Runs that differ in their seeds alone are one row, mean ± deviation.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import statistics
from typing import Annotated, Any, NamedTuple

import numpy as np
import rich
import tyro

from experiments.analysis import kept, pictures, table
from experiments.analysis.calibration import BINS
from experiments.analysis.evaluated import Model, Reading
from experiments.analysis.trained import Trained
from experiments.cli import command
from experiments.data import disk, streams
from experiments.data.othersets import OtherSet, benchmark, expanded
from experiments.recipes.r_sam import ELSEWHERE
from experiments.results import files, folders, numerics, plots, provenance
from experiments.results.markdown import escaped
from experiments.system.errors import UserError

COMMAND = "evaluate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(kept.Options):
    """Evaluate trained models on other test sets than their own."""

    on: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="SET", help="Sets of TFDS, each prepared under --data-dir."),
    ]
    reading: tyro.conf.OmitArgPrefixes[Reading] = dataclasses.field(default_factory=Reading)
    posterior_samples: int | None = None
    """Average the probabilities over so many draws of the posterior of bsam and ivon; left out
    they are those at its mean."""
    name: str = "evaluation"
    """The folder of the table inside --out."""


def main(options: Options) -> None:
    """Runs the command."""
    _check(options)
    trained = kept.opened(options)
    asked = _asked(options, trained)
    path = folders.path_of(options.out, options.name)
    folders.check(path, COMMAND)
    config = {"examples": options.reading.examples, "posterior_samples": options.posterior_samples}
    about = [{**kept.about(run), "paper": paper(run), "evaluated": {}} for run in trained]
    with folders.held(path, COMMAND) as folder:
        folder.open({**config, "jax": numerics.recorded()}, overwrite=options.overwrite)
        failed = _measure(options, trained, asked, about, folder.file(folders.RUNS))
        found = {
            "config": config,
            "sets": [one.name for one, _ in asked[trained[0]]],
            "runs": about,
            **provenance.provenance(),
        }
        files.write_text(folder.file("evaluation.md"), markdown(found))
        files.write_json(folder.file("evaluation.json"), found)
        plots.reliability(folder.file("reliability.png"), _panels(found))
        folder.done()
    rich.print(table.shown(*_cells(found)))
    rich.print(table.shown(*_calibration(found)))
    print(f"written to {path}/")
    if failed:
        raise UserError("not everything could be measured: " + " ".join(failed))


def _check(options):
    """Raises where an option makes no sense, before anything is read."""
    if not options.on:
        raise UserError("--on needs the name of a set or more, such as --on imagenet_r.")


def _asked(options, trained):
    """For each run the sets, and the places of their classes among those of the run.

    Raises:
      UserError: a set is not there, or a run cannot be evaluated on it.
    """
    try:
        data_dir = disk.directory(options.data_dir)
        sets = [OtherSet(name, data_dir) for name in expanded(options.on, data_dir)]
        asked = {}
        for run in trained:
            names = streams.class_names(run.recipe, data_dir)
            asked[run] = [(one, one.places(names)) for one in sets]
            if not run.is_streamed:
                features = disk.opened(run.recipe.dataset, data_dir).info.features
                for one in sets:
                    one.check(run.recipe, features["image"].shape)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return asked


def paper(run: Trained) -> Mapping[str, float]:
    """What the paper of a run's recipe gives for its method, in percent, by set.

    Nothing unless the run is finished and changed nothing of the recipe.
    """
    if not run.summary.get("papers_protocol") or run.config["then"]:
        return {}
    return ELSEWHERE.get(run.config["recipe"], {}).get(run.method, {})


def _measure(options, trained, asked, about, kept_in):
    """Fills in the figures of each run: those kept in a file, and others, kept as they end.

    Returns:
      What could not be measured, a sentence each.
    """
    with kept.progress("batches") as tell:
        lines = kept.Kept(kept_in, tell)
        for run, said in zip(trained, about, strict=True):
            samples = options.posterior_samples
            opened = functools.partial(Model, run, options.reading, tell, posterior_samples=samples)
            model = functools.cache(opened)
            for one, places in asked[run]:
                measure = functools.partial(_of, model, one, places)
                key = (*kept.marks(said), one.full_name, one.digest)
                line = lines.once(key, f"{said['name']}, {one.name}", measure)
                if line is not None:
                    figures = {**line["measured"], "seconds": line["seconds"]}
                    said["evaluated"][one.name] = figures
                elif not model.cache_info().currsize:
                    break  # no set can be evaluated on it
            run.forget()
    return lines.failed


def _of(model, one, places):
    return model().measure(one, places)


class Group(NamedTuple):
    """What one column of the table is the mean of.

    Attributes:
      name: of the set, or of the benchmark.
      sets: its names.
      of: how many sets the whole benchmark has.
    """

    name: str
    sets: Sequence[str]
    of: int

    @property
    def heading(self) -> str:
        """Of the columns."""
        return f"{self.name}{f', {len(self.sets)} of {self.of}' if self.of > 1 else ''}"

    def mean(self, quantity: str, run: Mapping[str, Any]) -> float:
        """Of a figure of the run over the sets; KeyError where one is missing."""
        return statistics.fmean(run["evaluated"][name][quantity] for name in self.sets)

    def percent(self, quantity: str, run: Mapping[str, Any]) -> float:
        """The same of a share, in percent."""
        return 100 * self.mean(quantity, run)


def grouped(names: Sequence[str]) -> list[Group]:
    """The sets in their order, with those of a benchmark of corruptions together."""
    groups: dict[str, list[str]] = {}
    wholes = {}
    for name in names:
        family = name.partition("/")[0]
        whole = benchmark(family)
        title = family if name in whole else name
        groups.setdefault(title, []).append(name)
        wholes[title] = len(whole) if name in whole else 1
    return [Group(title, members, wholes[title]) for title, members in groups.items()]


def _cells(found):
    """Headings and rows as text, the paper's figure beside ours."""
    groups = grouped(found["sets"])
    columns = [
        ("own test set (%)", lambda run: 100 * run["figures"]["test_accuracy"], ".2f"),
        *((f"{g.heading} (%)", functools.partial(g.percent, "accuracy"), ".2f") for g in groups),
    ]
    headings, body = table.cells(table.summarize(found["runs"], columns), columns)
    papers = [run["paper"] for run in pictures.first_of_each(found["runs"])]
    for group in groups:
        figures = [figures.get(group.name) for figures in papers]
        heading = f"{group.heading} (%)"
        if heading not in headings or len(group.sets) < group.of or not any(figures):
            continue
        beside = headings.index(heading) + 1
        headings.insert(beside, "in the paper")
        for row, figure in zip(body, figures, strict=True):
            row.insert(beside, "" if figure is None else f"{figure:.1f}")
    return headings, body


def _calibration(found):
    """Headings and rows of the table of likelihood and calibration."""
    columns = []
    for group in grouped(found["sets"]):
        columns += [
            (f"NLL, {group.heading}", functools.partial(group.mean, "nll"), ".4f"),
            (f"ECE (%), {group.heading}", functools.partial(group.percent, "ece"), ".2f"),
        ]
    return table.cells(table.summarize(found["runs"], columns), columns)


def _panels(found):
    """For each group of sets the bins of each group of seeds, all images together, by its title."""
    panels = {}
    runs = pictures.titled(found["runs"])
    for group in grouped(found["sets"]):
        lines = panels[group.heading] = {}
        for run in runs:
            for name in group.sets:
                if name in run["evaluated"]:
                    bins = np.array(run["evaluated"][name]["bins"])
                    lines[run["title"]] = lines.get(run["title"], 0) + bins
    return panels


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, and what their columns mean."""
    which = ""
    if found["config"]["examples"] is not None:
        which = f" on the first {found['config']['examples']:,} images of each set"
    return "\n".join(
        [
            *table.markdown(*_cells(found)),
            "",
            f"Accuracy in %{which}: mean ± standard deviation over the seeds.",
            "",
            *_notes(found),
            "",
            *table.markdown(*_calibration(found)),
            "",
            "NLL: the mean of -log of the probability of what is right, in nats. ECE: the expected "
            f"calibration error, abs(accuracy - confidence) over {BINS} bins of equal width.",
            *_sampled(found),
            "",
        ]
    )


def _sampled(found):
    """Whose probabilities are means over samples."""
    samples = found["config"]["posterior_samples"]
    if samples is None:
        return
    of = {
        one["label"]
        for one in found["runs"]
        if any(figures["samples"] for figures in one["evaluated"].values())
    }
    yield ""
    if of:
        yield (
            f"Of {', '.join(map(escaped, sorted(of)))} all figures but those of the own test set "
            f"are of the mean of the probabilities at {samples} samples of the posterior; of the "
            "others, of the parameters."
        )
    else:
        yield "No method here has learned a posterior: all figures are of the parameters."


def _notes(found):
    """What was counted of each set, a line each."""
    for group in grouped(found["sets"]):
        figures = [
            run["evaluated"][name]
            for run in found["runs"]
            for name in group.sets
            if name in run["evaluated"]
        ]
        if not figures:
            continue
        counts = sorted({one["examples"] for one in figures})
        said = [f"{' or '.join(f'{count:,}' for count in counts)} images"]
        if group.of > 1:
            said = [f"the mean over {len(group.sets)} of its {group.of} sets, of {said[0]} each"]
        if left_out := max(one["left_out"] for one in figures):
            said.append(f"{left_out:,} without a right class left out")
        if corrupt := max(len(one["corrupt"]) for one in figures):
            said.append(f"{corrupt:,} left out that cannot be decoded")
        among, classes = figures[0]["among"], figures[0]["classes"]
        if among < classes:
            said.append(f"predictions among {among} of the {classes:,} classes")
        yield f"- {escaped(group.name)}: {'; '.join(said)}"


if __name__ == "__main__":
    command.run(main, Options)
