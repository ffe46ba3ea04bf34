"""What the pictures of an analysis share: colours, panels and legends."""

from collections.abc import Collection, Iterator, Mapping, Sequence
import math
from typing import Any

import numpy as np

from experiments.results import plots  # noqa: F401 - chooses the backend

from matplotlib import pyplot as plt  # isort: skip  (behind the choice of a backend in plots)

# Okabe and Ito's colours, told apart by the colour-blind, with a line style for black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = "osv^DPX"

Run = Mapping[str, Any]


def subplots(
    lines: int, columns: int, width: float = 4.4, height: float = 3.4, **more: Any
) -> tuple[Any, np.ndarray]:
    """A figure, and its panels [lines, columns], each of this size in inches."""
    return plt.subplots(
        lines,
        columns,
        figsize=(width * columns, height * lines),
        layout="constrained",
        squeeze=False,
        **more,
    )


def panels_of(
    runs: Sequence[Run], kinds: Collection[str], width: float, height: float, **more: Any
) -> tuple[Any, dict[str, np.ndarray]]:
    """A figure, and for each kind the axes of the runs, at most four in a line."""
    columns = min(len(runs), 4)
    lines = math.ceil(len(runs) / columns)
    figure, axes = subplots(lines * len(kinds), columns, width, height, **more)
    by_kind = [own.ravel() for own in np.split(axes, len(kinds))]
    for own in by_kind:
        for axis in own[len(runs) :]:
            axis.remove()
    return figure, dict(zip(kinds, (own[: len(runs)] for own in by_kind), strict=True))


def legend(figure: Any, axis: Any) -> None:
    """One for all panels, beside them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")


def styled(runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Each run with what tells its line apart."""
    for i, run in enumerate(runs):
        yield run, {"color": COLOURS[i % 7], "linestyle": STYLES[i % 7], "label": run["title"]}


def plain(text: str) -> str:
    """Without the sign that would make formulas of it."""
    return text.replace("$", r"\$")
