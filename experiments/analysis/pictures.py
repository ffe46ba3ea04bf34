"""Pictures of an analysis, each from the numbers in its file: runs side by side on one scale."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
import textwrap
from typing import Any

from experiments.analysis import sharpness_pictures, training_pictures
from experiments.analysis.figures import Run, plain
from experiments.results import plots


def draw(file: Callable[[str], Path], found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every picture that the numbers are there for.

    Args:
      file: the path to write a file of a name to.
      found: what `experiments.analyze` writes to analysis.json.

    Returns:
      File name and explanation of each.
    """
    shown = first_of_each(found["runs"])
    drawn = []
    for name, (picture, part, said) in PICTURES.items():
        runs = [run for run in shown if _has(run, part)]
        if part == "lines" and found["lines"]:
            runs = shown
        figure = picture(runs, found) if runs else None
        if figure is None:
            continue
        letters = int(11 * figure.get_figwidth())
        figure.suptitle("\n".join(textwrap.wrap(figure.get_suptitle(), letters)))
        caption = "\n".join(_caption(runs, found["config"]["measures"], part))
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color="0.35")
        plots.save(figure, file(f"{name}.png"))
        drawn.append((f"{name}.png", said))
    return drawn


def first_of_each(runs: Sequence[Run]) -> list[Run]:
    """The first run of each group of seeds."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run["group"], run)
    return list(first.values())


def titled(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs with the shortest titles that tell groups apart: method, with settings, or name."""
    shown = first_of_each(runs)
    for key in ("method", "label", "name"):
        titles = {run["group"]: plain(run[key]) for run in shown}
        if len(set(titles.values())) == len(shown):
            break
    return [{**run, "title": titles[run["group"]]} for run in runs]


def _has(run, part):
    return bool(run["rows"]) if part == "rows" else part in run["parts"]


def _caption(runs, measures, part):
    for run in runs:
        yield plain(f"{run['name']}: {run['label']}, code {run['commit']}")
    if part not in ("rows", "steps"):
        examples = "all" if measures["examples"] is None else f"{measures['examples']:,}"
        yield f"On {examples} training images, {measures['dtype']}."


# Each picture with the part whose numbers it shows, and what a reader is to see in it.
PICTURES: dict[str, tuple[Callable[..., Any], str, str]] = {
    "spectrum": (
        sharpness_pictures.spectrum,
        "hessian",
        "Large eigenvalues are steep directions; a flatter minimum has smaller ones. The density "
        "counts all eigenvalues; most lie near 0.",
    ),
    "increases": (
        sharpness_pictures.increases,
        "sharpness",
        "Lower is flatter. The first two agree to first order, ρ times the length of the gradient; "
        "the last says what random noise does, half its variance times the trace while the loss is "
        "quadratic.",
    ),
    "contours": (
        sharpness_pictures.contours,
        "landscape",
        "Wide valleys are flat minima. One scale for all runs.",
    ),
    "surfaces": (sharpness_pictures.surfaces, "landscape", "The same numbers as surfaces."),
    "lines": (
        sharpness_pictures.lines,
        "lines",
        "A barrier between two runs says that they lie in different valleys.",
    ),
    "norms": (
        training_pictures.norms,
        "gradients",
        "AE-SAM models ‖g‖² as normal, so that its threshold μ + c σ chooses a share of the steps.",
    ),
    "quantiles": (
        training_pictures.quantiles,
        "gradients",
        "The same: on the line where the normal model holds.",
    ),
    "variance": (
        training_pictures.variance,
        "gradients",
        "AE-SAM's argument: where the gradient is large, the loss is sharp.",
    ),
    "turning": (
        training_pictures.turning,
        "gradients",
        "R-SAM's argument: a gradient that turns less along the ascent is a better guide, and "
        "noise smooths it.",
    ),
    "courses": (training_pictures.courses, "rows", "Over the epochs, as the runs wrote them."),
    "steps": (
        training_pictures.steps,
        "steps",
        "Epochs trained once more from the checkpoints: the decisions of the adaptive policy, λ_k "
        "and r_k of SAMAR, ρ_t of LE-SAM.",
    ),
}
