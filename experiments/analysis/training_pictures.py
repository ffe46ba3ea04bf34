"""Pictures of training: the gradients at the checkpoints, and the course of the runs."""

from collections.abc import Mapping, Sequence
import math
import statistics
from typing import Any

import numpy as np

from experiments.analysis.figures import (
    COLOURS,
    MARKERS,
    STYLES,
    Run,
    legend,
    panels_of,
    styled,
    subplots,
)
from experiments.analysis.parts import SHOWN, spread


def _checkpoint_grid(runs, draw_one, title, **labels):
    """A panel for each run and some of its checkpoints."""
    columns = max(min(SHOWN, len(run["parts"]["gradients"]["checkpoints"])) for run in runs)
    figure, axes = subplots(len(runs), columns, 3.8, 2.9)
    for row, run in zip(axes, runs, strict=True):
        shown = spread(run["parts"]["gradients"]["checkpoints"], columns)
        for axis, at in zip(row, shown, strict=False):
            draw_one(axis, np.array(at["squared_norms"]))
            axis.set(title=f"{run['title']}, epoch {at['epoch']:g}", **labels)
            axis.ticklabel_format(axis="both", style="sci", scilimits=(-2, 3))
        for axis in row[len(shown) :]:
            axis.remove()
    figure.suptitle(f"{title}; {_batches(runs)}")
    return figure


def _batches(runs):
    """What the gradients are of."""
    part = runs[0]["parts"]["gradients"]
    sizes = sorted({run["parts"]["gradients"]["batch_size"] for run in runs})
    return f"batches of {' or '.join(map(str, sizes))} training images, {part['mode']} mode"


def norms(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """The distribution of ‖g‖² over batches, and a normal one."""
    del found

    def draw_one(axis, squared):
        axis.hist(squared, bins="auto", density=True, color="#56B4E9", edgecolor="white")
        mean, std = squared.mean(), squared.std(ddof=1)
        if std > 0:
            grid = np.linspace(squared.min() - std, squared.max() + std, 200)
            normal = statistics.NormalDist(mean, std)
            axis.plot(grid, [normal.pdf(x) for x in grid], color="#D55E00")

    title = "Squared norms of the batches' gradients, and a normal fit (line)"
    return _checkpoint_grid(runs, draw_one, title, xlabel="‖g‖²", ylabel="density")


def quantiles(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """The same against the quantiles of a normal distribution."""
    del found

    def draw_one(axis, squared):
        places = (np.arange(len(squared)) + 0.5) / len(squared)
        normal = np.array([statistics.NormalDist().inv_cdf(p) for p in places])
        axis.plot(normal, np.sort(squared), ".", color="#0072B2")
        line = squared.mean() + squared.std(ddof=1) * normal[[0, -1]]
        axis.plot(normal[[0, -1]], line, color="#D55E00")

    title = "Quantiles of the squared norms against normal ones; on the line where normal"
    return _checkpoint_grid(runs, draw_one, title, xlabel="normal quantile", ylabel="‖g‖²")


def variance(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """Length and variance of the gradients over the epochs; None with one checkpoint a run."""
    del found
    if max(len(run["parts"]["gradients"]["checkpoints"]) for run in runs) < 2:
        return None
    panels = {
        "mean": "E ‖∇L(B)‖²: a batch's gradient",
        "whole": "‖∇L(D)‖²: that of all batches",
        "variance": "E ‖∇L(B) − ∇L(D)‖²: variance",
    }
    figure, axes = subplots(1, 3, 4.4, 3.6)
    for axis, (name, title) in zip(axes[0], panels.items(), strict=True):
        for (run, style), marker in zip(styled(runs), MARKERS * 9, strict=False):
            at = run["parts"]["gradients"]["checkpoints"]
            axis.plot([c["epoch"] for c in at], [c[name] for c in at], marker=marker, **style)
        axis.set(yscale="log", xlabel="epoch", title=title)
        axis.grid(alpha=0.3)
    legend(figure, axes[0, 0])
    figure.suptitle(f"Gradients over the epochs, at the checkpoints; {_batches(runs)}")
    return figure


def turning(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """How the gradient turns, and the loss rises, along SAM's ascent from noisy parameters."""
    measures = found["config"]["measures"]
    rows = {"cosines": "cos(g(w), g(w + ρ unit g))", "losses": "L(w + ρ unit g)"}
    figure, panels = panels_of(runs, rows, 3.8, 3.1)
    for name, label in rows.items():
        for axis, run in zip(panels[name], runs, strict=True):
            for i, gamma in enumerate(measures["gammas_squared"]):
                axis.plot(
                    measures["radii"],
                    run["parts"]["gradients"][name][i],
                    marker=MARKERS[i % 7],
                    color=COLOURS[i % 7],
                    linestyle=STYLES[i % 7],
                    label=f"γ² = {gamma:g}",
                )
            axis.set(xscale="log", title=run["title"], xlabel="radius ρ", ylabel=label)
            axis.set_xticks(measures["radii"], [f"{r:g}" for r in measures["radii"]])
            axis.xaxis.minorticks_off()
            if name == "losses":
                axis.set_yscale("log")
            axis.grid(alpha=0.3)
        lows, highs = zip(*(axis.get_ylim() for axis in panels[name]), strict=True)
        for axis in panels[name]:
            axis.set_ylim(min(lows), max(highs))
    legend(figure, panels["cosines"][0])
    mode = runs[0]["parts"]["gradients"]["mode"]
    figure.suptitle(f"Along SAM's ascent, from w + normal noise of variance γ²; {mode} mode")
    return figure


_COURSES = {
    "test_accuracy": ("test accuracy (%)", 100),
    "train_loss": ("training loss", 1),
    "sam_fraction": ("share of SAM steps (%)", 100),
    "gradient_norm": ("‖g‖, mean", 1),
    "rise": ("L(w + ε) − L(w), mean", 1),
    "rho": ("ρ_t", 1),
    "lambda_k": ("λ_k", 1),
}


def courses(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """Accuracy, loss and the methods' own quantities over the epochs."""
    del found
    names = [name for name in _COURSES if any(name in run["rows"][-1] for run in runs)]
    figure, axes = subplots(math.ceil(len(names) / 3), 3, 4.4, 3.2)
    for axis, name in zip(axes.flat, names, strict=False):
        label, scale = _COURSES[name]
        for run, style in styled(runs):
            rows = [row for row in run["rows"] if name in row]
            if rows:
                marker = "o" if len(rows) == 1 else None
                axis.plot(
                    [row["epoch"] for row in rows],
                    [scale * row[name] for row in rows],
                    marker=marker,
                    **style,
                )
        axis.set(xlabel="epoch", title=label)
        if name in ("train_loss", "gradient_norm"):
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in axes.flat[len(names) :]:
        axis.remove()
    figure.suptitle("The courses of the runs")
    return figure


def steps(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """What each method did in some epochs, step by step; None where none was replayed."""
    del found
    runs = [run for run in runs if run["parts"]["steps"]["epochs"]]
    if not runs:
        return None
    columns = max(len(run["parts"]["steps"]["epochs"]) for run in runs)
    figure, axes = subplots(len(runs), columns, 4.6, 2.9)
    for row, run in zip(axes, runs, strict=True):
        epochs = run["parts"]["steps"]["epochs"]
        for axis, epoch in zip(row, epochs, strict=False):
            _steps(axis, epoch["rows"])
            axis.set(title=f"{run['title']}, after epoch {epoch['epoch']:g}", xlabel="step")
            axis.grid(alpha=0.3)
        for axis in row[len(epochs) :]:
            axis.remove()
    figure.suptitle("Step by step")
    return figure


def _steps(axis, rows):
    """Of one epoch: the quantities that the method goes by, each on its own scale."""
    x = [row["step"] for row in rows]
    if "threshold" in rows[0]:
        squares = [row["gradient_norm"] ** 2 for row in rows]
        axis.plot(x, squares, color=COLOURS[0], label="‖g‖²")
        threshold = [row["threshold"] for row in rows]
        axis.plot(x, threshold, color=COLOURS[1], linestyle="--", label="threshold μ + c σ")
        fired = [i for i, row in enumerate(rows) if row["sam_fraction"] > 0.5]
        steps = ([x[i] for i in fired], [squares[i] for i in fired])
        axis.plot(*steps, "o", color=COLOURS[2], markersize=4, label="SAM step")
        axis.set_yscale("log")
        axis.margins(y=0.3)  # room for the legend
        axis.legend(fontsize="x-small", ncols=3)
        return
    if "lambda_k" in rows[0]:
        shown = {"lambda_k": "λ_k", "ratio": "r_k"}
    elif "rho" in rows[0]:
        shown = {"rho": "ρ_t", "gradient_norm": "‖g‖"}
    else:
        shown = {"gradient_norm": "‖g‖", "direction_norm": "‖direction‖"}
    for i, ((name, label), own) in enumerate(zip(shown.items(), (axis, axis.twinx()), strict=True)):
        values = [row.get(name, math.nan) for row in rows]
        own.plot(x, values, color=COLOURS[i], linestyle=STYLES[i])
        own.set_ylabel(label, color=COLOURS[i])
        own.tick_params(axis="y", labelcolor=COLOURS[i])
