"""Attack trained models: accuracy on test images that projected gradient descent has moved.

    python -m experiments.robustness RUN… [--linf 1 2 4 8] [--l2 0.25 0.5 1] [options]

RUN is a folder that experiments.train wrote; several are put side by side. Writes <out>/<name>/:
robustness.md with a table for each norm, robustness.png, robustness.json with all numbers, and
runs.jsonl with each attack as it ends, so that the same command goes on where it was stopped, with
more runs and more radii too. Runs that differ in their seeds alone are one row, mean ± deviation.

An image counts where the model, in evaluation mode, is right on it and on each attacked form of it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any

import rich
import tyro

from experiments.analysis import kept, pictures, table
from experiments.analysis.attacked import NORMS, Attack, Target
from experiments.cli import command
from experiments.results import files, folders, numerics, plots, provenance
from experiments.results.markdown import escaped
from experiments.system.errors import UserError
from experiments.system.words import positive

COMMAND = "robustness"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(kept.Options):
    """Attack trained models."""

    linf: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Radii of L∞, in 1/255 of the range of a pixel; none to leave the norm out."""
    l2: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Radii of L2, of images in [0, 1]; none to leave the norm out."""
    attack: tyro.conf.OmitArgPrefixes[Attack] = dataclasses.field(default_factory=Attack)
    batch_size: int = 500
    """Images at a time; the figures do not depend on it."""
    name: str = "robustness"
    """The folder of the tables inside --out."""


def main(options: Options) -> None:
    """Runs the command."""
    _check(options)
    trained = kept.opened(options)
    path = folders.path_of(options.out, options.name)
    folders.check(path, COMMAND)
    config = dataclasses.asdict(options.attack)
    about = [{**kept.about(run), "attacked": {}} for run in trained]
    with folders.held(path, COMMAND) as folder:
        folder.open({**config, "jax": numerics.recorded()}, overwrite=options.overwrite)
        failed = _measure(options, trained, about, folder.file(folders.RUNS))
        found = {
            "config": {"attack": files.plain(config)},
            "radii": {norm: list(getattr(options, norm)) for norm in NORMS},
            "runs": pictures.titled(about),
            "weak": weak(about),
            **provenance.provenance(),
        }
        files.write_text(folder.file("robustness.md"), markdown(found))
        files.write_json(folder.file("robustness.json"), found)
        plots.robustness(folder.file("robustness.png"), _panels(found), title=_attack(found))
        folder.done()
    for norm in _asked(found):
        rich.print(table.shown(*_cells(found, norm), title=f"under {NORMS[norm].sign} attacks"))
    for said in found["weak"]:
        print(said)
    print(f"written to {path}/")
    if failed:
        raise UserError("not everything could be measured: " + " ".join(failed))


def _check(options):
    """Raises where an option makes no sense, before anything is computed."""
    for norm in NORMS:
        values = getattr(options, norm)
        proper = all(0 < value < math.inf for value in values)
        if not proper or sorted(set(values)) != list(values):
            raise UserError(f"--{norm} must be positive and ascending, got {values}.")
    if options.linf and options.linf[-1] > 255:
        raise UserError(f"--linf is in 1/255, and at most 255, got {options.linf[-1]:g}.")
    if not options.linf and not options.l2:
        raise UserError("--linf and --l2 are both empty: pass a radius for one of them.")
    for norm in NORMS:
        positive(f"{norm}-step-size", options.attack.step_size(norm))
    if options.attack.restarts > 1 and not options.attack.random_start:
        raise UserError(
            f"--restarts {options.attack.restarts} would be the same attack again and again: pass "
            "--random-start too."
        )


def _measure(options, trained, about, kept_in):
    """Fills in the figures of each run: those kept in a file, and others, kept as they end.

    Returns:
      What could not be measured, a sentence each.
    """
    with kept.progress("batches") as tell:
        lines = kept.Kept(kept_in, tell)
        for run, said in zip(trained, about, strict=True):
            attack, size = options.attack, options.batch_size
            target = functools.cache(functools.partial(Target, run, attack, size, tell))
            marks = kept.marks(said)
            clean = functools.partial(_of, target, None, None)
            line = lines.once((*marks, "clean"), f"{said['name']}, clean", clean)
            if line is None:  # nor can it be attacked
                continue
            said["clean"] = line["measured"]
            for norm, epsilon in ((n, e) for n in NORMS for e in getattr(options, n)):
                attacked = functools.partial(_of, target, norm, epsilon)
                name = f"{said['name']}, {NORMS[norm].sign} {NORMS[norm].said(epsilon)}"
                line = lines.once((*marks, norm, epsilon), name, attacked)
                if line is not None:
                    figures = {"epsilon": epsilon, **line["measured"], "seconds": line["seconds"]}
                    said["attacked"].setdefault(norm, []).append(figures)
            run.forget()
    return lines.failed


def _of(target, norm, epsilon):
    return target().measure(norm, epsilon)


def weak(about: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a larger radius does less harm, so that its attack cannot be the strongest one."""
    found = []
    for run in about:
        for norm, figures in run["attacked"].items():
            for one, other in itertools.pairwise(figures):
                if other["accuracy"] > one["accuracy"] or other["loss"] < one["loss"]:
                    smaller, larger = (NORMS[norm].said(f["epsilon"]) for f in (one, other))
                    found.append(
                        f"{run['name']}: {NORMS[norm].sign} {larger} does less harm than "
                        f"{smaller}, so more --steps or --restarts would do more."
                    )
    return found


def _asked(found):
    return [norm for norm, radii in found["radii"].items() if radii]


def _clean(key, run):
    return run["clean"][key]


def _at(norm, epsilon, key, run):
    """A figure of a run at a radius."""
    for figures in run["attacked"][norm]:
        if figures["epsilon"] == epsilon:
            return figures[key]
    raise KeyError(epsilon)


def _columns(found, norm) -> list[table.Column]:
    radii, said = found["radii"][norm], NORMS[norm].said

    def percent(number):
        return lambda run: 100 * number(run)

    return [
        ("clean (%)", percent(functools.partial(_clean, "accuracy")), ".2f"),
        *(
            (f"{said(e)} (%)", percent(functools.partial(_at, norm, e, "accuracy")), ".2f")
            for e in radii
        ),
        ("loss", functools.partial(_clean, "loss"), ".3g"),
        (f"loss at {said(radii[-1])}", functools.partial(_at, norm, radii[-1], "loss"), ".3g"),
    ]


def _cells(found, norm):
    columns = _columns(found, norm)
    return table.cells(table.summarize(found["runs"], columns), columns)


def _attack(found):
    """The attack in words."""
    attack = Attack(**found["config"]["attack"])
    sizes = ", ".join(f"{attack.step_size(n):g} ε ({NORMS[n].sign})" for n in _asked(found))
    starts = f"{attack.restarts} random start" + "s" * (attack.restarts > 1)
    return (
        f"PGD with {attack.steps} steps of {sizes}, "
        f"{starts if attack.random_start else 'from the image'}"
    )


def markdown(found: Mapping[str, Any]) -> str:
    """A table for each norm, and what its columns mean."""
    lines = []
    for norm in _asked(found):
        lines += [f"Under {NORMS[norm].sign} attacks:", ""]
        lines += [*table.markdown(*_cells(found, norm)), ""]
    clean = [run["clean"] for run in found["runs"] if "clean" in run]
    counts = sorted({figures["examples"] for figures in clean})
    left_out = max((figures.get("left_out", 0) for figures in clean), default=0)
    said = f" ({left_out:,} left out that cannot be decoded)" if left_out else ""
    lines += [
        "Mean ± standard deviation over the seeds, on "
        f"{' or '.join(f'{count:,}' for count in counts) or 'no'} test images{said}; a radius: the "
        "share of them that the model is right on, clean and attacked; loss: the mean "
        "cross-entropy, clean and at the worst that was found. "
        f"{_attack(found)}: other attacks may do more harm.",
        "",
        *(f"- {escaped(said)}" for said in found["weak"]),
        *([""] if found["weak"] else []),
    ]
    return "\n".join(lines)


def _panels(found):
    """For each norm its lines: title, radii, mean accuracy in percent and deviation."""
    titles = [run["title"] for run in pictures.first_of_each(found["runs"])]
    panels = {}
    for norm in _asked(found):
        columns = _columns(found, norm)[: 1 + len(found["radii"][norm])]
        lines = {}
        rows = table.summarize(found["runs"], columns)
        for title, row in zip(titles, rows, strict=True):
            points = [
                (radius, *row["columns"][heading][:2])
                for radius, (heading, _, _) in zip((0, *found["radii"][norm]), columns, strict=True)
                if heading in row["columns"]
            ]
            lines[title] = points
        unit = " in 1/255" if norm == "linf" else ""
        panels[f"{NORMS[norm].sign} radius ε{unit}"] = lines
    return panels


if __name__ == "__main__":
    command.run(main, Options)
