"""Pictures of a sweep: what each setting tried came to."""

from collections.abc import Mapping, Sequence
import math
import numbers
from pathlib import Path
import textwrap
from typing import Any, NamedTuple

import numpy as np

from experiments.results.plots import plt, save
from experiments.system.words import parse

SYMBOLS = {
    **{"rho": "ρ", "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eta": "η", "theta": "θ"},
    **{"sigma": "σ", "chi": "χ", "lambda_": "λ", "lambda_0": "λ₀", "lambda_1": "λ₁"},
    **{"lambda_2": "λ₂"},
}
BEST = 20  # cells in a picture of three settings or more


class Figure(NamedTuple):
    """A figure of a row: its name and that of its deviation, its label, scale and decimals."""

    name: str
    deviation: str
    label: str
    scale: float
    decimals: int


ACCURACY = Figure("accuracy", "std", "accuracy (%)", 1, 2)
SHARE = Figure("sam_fraction", "sam_fraction_std", "share of SAM steps (%)", 100, 1)


def picture(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    axes: Mapping[str, Sequence[str]],
    *,
    title: str,
    fixed: Mapping[str, Any],
    code: str,
) -> None:
    """A line over one setting, a heat map over two, and of more the best cells in their order.

    The share of SAM steps stands beside the accuracy where it varies.

    Args:
      path: of the PNG.
      rows: those of `experiments.sweep.summarize`.
      axes: the values of each setting, as written; at least one has two or more.
      title: of the picture.
      fixed: the settings that all rows share.
      code: the commit of the code.
    """
    varied = {name: ordered(values) for name, values in axes.items() if len(values) > 1}
    figures = (ACCURACY, SHARE) if _varies(rows, SHARE) else (ACCURACY,)
    draw = {1: _lines, 2: _heat_maps}.get(len(varied), _ranking)
    with plt.rc_context({"font.size": 12, "axes.labelsize": 14}):
        figure = draw(rows, varied, figures)
        figure.suptitle(title)
        caption = textwrap.fill(_caption(rows, fixed), int(13 * figure.get_figwidth()))
        style = {"x": 0.01, "ha": "left", "fontsize": 9, "color": "0.35"}
        figure.supxlabel(f"{caption}\nCode: {code}", **style)
        save(figure, path)


def ordered(values: Sequence[str]) -> list[str]:
    """Numbers from the smallest to the largest, and other values as they were given."""
    return sorted(values, key=parse) if are_numbers(values) else list(values)


def are_numbers(values: Sequence[str]) -> bool:
    """Whether all values are finite numbers, and none True or False."""
    parsed = [parse(value) for value in values]
    return all(
        isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        for value in parsed
    )


def matrix(
    rows: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[str]], name: str
) -> np.ndarray:
    """A figure of the rows over two settings.

    Args:
      rows: those of `experiments.sweep.summarize`.
      axes: the values of the settings: the first across, the second up.
      name: of the figure.

    Returns:
      float64 [values of the second setting, values of the first]; NaN where a row has no figure.
    """
    (across, columns), (up, lines) = axes.items()
    found = np.full((len(lines), len(columns)), np.nan)
    for row in rows:
        settings = _settings(row)
        value = row[name]
        if value is not None:
            found[lines.index(settings[up]), columns.index(settings[across])] = value
    return found


def _settings(row):
    """The values of a row's settings, as written."""
    return dict(setting.split("=", 1) for setting in row["cell"])


def _symbol(name):
    return SYMBOLS.get(name, name.replace("_", " "))


def _varies(rows, figure):
    """Whether the figure would not be printed alike for all rows."""
    values = [row[figure.name] for row in rows if row[figure.name] is not None]
    return len({f"{figure.scale * value:.{figure.decimals}f}" for value in values}) > 1


def _caption(rows, fixed):
    shared = ", ".join(f"{_symbol(name)} = {value}" for name, value in fixed.items())
    over = " Mean ± standard deviation over the seeds."
    guess = (
        " A run that diverged counts with the accuracy of a guess, and has no share of SAM steps."
    )
    return (
        f"Shared: {shared}."
        + (over if any(row["std"] is not None for row in rows) else "")
        + (guess if any(row["diverged"] for row in rows) else "")
    )


def _scaled(rows, figure):
    """The figure and its deviation for each row; NaN where there is none."""
    return [
        figure.scale * np.array([row[name] for row in rows], float)
        for name in (figure.name, figure.deviation)
    ]


def _panels(figures, width, height, *, stacked=False):
    """An empty figure with a panel for each figure, side by side or stacked."""
    lines, columns = (len(figures), 1) if stacked else (1, len(figures))
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(max(6.0, width * columns), height * lines),
        layout="constrained",
        squeeze=False,
    )
    return figure, panels.flat


def _lines(rows, axes, figures):
    """The figures over one setting: a line over numbers, points over other values."""
    ((name, values),) = axes.items()
    rows = sorted(rows, key=lambda row: values.index(_settings(row)[name]))
    are_places = are_numbers(values)
    places = [parse(value) for value in values] if are_places else range(len(values))
    figure, panels = _panels(figures, 5.2, 4.4)
    for panel, shown in zip(panels, figures, strict=True):
        means, deviations = _scaled(rows, shown)
        style = {"marker": "o", "capsize": 4, "linestyle": "-" if are_places else "none"}
        panel.errorbar(places, means, yerr=np.nan_to_num(deviations), **style)
        if not are_places:
            panel.set_xticks(places, values)
            panel.margins(x=0.2)
        elif min(places) > 0 and max(places) > 10 * min(places):
            panel.set_xscale("log")
            panel.set_xticks(places, values)
            panel.minorticks_off()
        panel.set(xlabel=_symbol(name), ylabel=shown.label)
        panel.grid(alpha=0.3)
    return figure


def _heat_maps(rows, axes, figures):
    """The figures over two settings, each cell with its value."""
    (across, columns), (up, lines) = axes.items()
    size = 2.2 + 0.85 * len(columns), 2.6 + 0.6 * len(lines)
    figure, panels = _panels(figures, *size, stacked=len(columns) > 6)
    diverged = matrix(rows, axes, "diverged")
    for panel, shown in zip(panels, figures, strict=True):
        means = shown.scale * matrix(rows, axes, shown.name)
        deviations = shown.scale * matrix(rows, axes, shown.deviation)
        image = panel.imshow(means, cmap="cividis", origin="lower", aspect="auto")
        panel.set_facecolor("lightgrey")  # where there is no value
        for place, mean in np.ndenumerate(means):
            panel.text(
                *reversed(place),
                _annotation(shown, mean, deviations[place], int(diverged[place])),
                ha="center",
                va="center",
                fontsize=10,
                color=_readable_on(image.cmap(image.norm(mean))),
            )
        panel.set_xticks(range(len(columns)), columns)
        panel.set_yticks(range(len(lines)), lines)
        panel.set(xlabel=_symbol(across), ylabel=_symbol(up), title=shown.label)
        figure.colorbar(image, ax=panel)
    return figure


def _annotation(figure, mean, deviation, diverged):
    """The text of a cell."""
    said = ["–" if math.isnan(mean) else f"{mean:.{figure.decimals}f}"]
    if not math.isnan(deviation):
        said.append(f"± {deviation:.{figure.decimals}f}")
    if diverged and figure is ACCURACY:
        said.append(f"{diverged} diverged")
    return "\n".join(said)


def _readable_on(color):
    """Black on a light colour and on the grey behind a missing value, white on a dark one."""
    red, green, blue, opacity = color
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    return "black" if luminance > 0.5 or not opacity else "white"


def _ranking(rows, axes, figures):
    """The figures of the best cells, best on top."""
    best = sorted(rows, key=lambda row: -row["accuracy"])[:BEST]
    labels = [
        ", ".join(f"{_symbol(name)} = {_settings(row)[name]}" for name in axes) for row in best
    ]
    figure, panels = _panels(figures, 6.0, 2.2 + 0.32 * len(best))
    for panel, shown, marker in zip(panels, figures, "os", strict=False):
        means, deviations = _scaled(best, shown)
        panel.errorbar(
            means, range(len(best)), xerr=np.nan_to_num(deviations), fmt=marker, capsize=3
        )
        panel.set_yticks(range(len(best)), labels if shown is ACCURACY else [""] * len(best))
        panel.invert_yaxis()
        panel.set(xlabel=shown.label)
        panel.grid(alpha=0.3)
    figure.axes[0].set_title(f"the best {len(best)} of {len(rows)} cells")
    return figure
