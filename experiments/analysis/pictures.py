"""Pictures of an analysis, each from the numbers in its file: runs side by side on one scale."""

from collections.abc import Callable, Mapping, Sequence
import math
from pathlib import Path
import statistics
import textwrap
from typing import Any

import matplotlib as mpl
import numpy as np

from experiments.analysis.hessian import Density
from experiments.analysis.parts import SHOWN, spread
from experiments.results import plots

from matplotlib import pyplot as plt  # isort: skip  (behind the choice of a backend in plots)

# Okabe and Ito's colours, told apart by the colour-blind, with a line style for black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = "osv^DPX"

Run = Mapping[str, Any]


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
        titles = {run["group"]: _plain(run[key]) for run in shown}
        if len(set(titles.values())) == len(shown):
            break
    return [{**run, "title": titles[run["group"]]} for run in runs]


def _plain(text):
    """Without the sign that would make formulas of it."""
    return text.replace("$", r"\$")


def _has(run, part):
    return bool(run["rows"]) if part == "rows" else part in run["parts"]


def _caption(runs, measures, part):
    for run in runs:
        yield _plain(f"{run['name']}: {run['label']}, code {run['commit']}")
    if part not in ("rows", "steps"):
        examples = "all" if measures["examples"] is None else f"{measures['examples']:,}"
        yield f"On {examples} training images, {measures['dtype']}."


def _modes(runs, part):
    """Each mode with the runs that were looked at in it."""
    modes = dict.fromkeys(mode for run in runs for mode in run["parts"][part])
    return {mode: [run for run in runs if mode in run["parts"][part]] for mode in modes}


def _figure(lines, columns, width=4.4, height=3.4, **more):
    return plt.subplots(
        lines,
        columns,
        figsize=(width * columns, height * lines),
        layout="constrained",
        squeeze=False,
        **more,
    )


def _legend(figure, axis):
    """One for all panels, beside them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")


def _styled(runs):
    """Each run with what tells its line apart."""
    for i, run in enumerate(runs):
        yield run, {"color": COLOURS[i % 7], "linestyle": STYLES[i % 7], "label": run["title"]}


def spectrum(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """Largest eigenvalues, and density of all, a row for each mode."""
    del found
    modes = _modes(runs, "hessian")
    figure, axes = _figure(len(modes), 2, 5.4, 3.8)
    for (eigenvalues, density), (mode, those) in zip(axes, modes.items(), strict=True):
        parts = [run["parts"]["hessian"][mode] for run in those]
        values = np.concatenate([np.ravel(part["density"]["values"]) for part in parts])
        low, high = values.min(), values.max()
        margin = 0.05 * (high - low) or 1.0
        grid = np.linspace(low - margin, high + margin, 1000)
        for (_, style), part, marker in zip(_styled(those), parts, MARKERS * 9, strict=False):
            ranks = range(1, 1 + len(part["eigenvalues"]))
            eigenvalues.plot(ranks, part["eigenvalues"], marker=marker, **style)
            of_run = Density(*(np.array(part["density"][k]) for k in ("values", "weights")))
            density.plot(grid, of_run.smooth(grid, margin / 5), **style)
        eigenvalues.set(xlabel="rank", ylabel="eigenvalue λ", title=f"largest, {mode} mode")
        eigenvalues.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        smallest = 0.1 / parts[0]["parameters"]  # a tenth of one eigenvalue's share
        density.set(
            yscale="log",
            xlabel="eigenvalue λ",
            ylabel="density",
            title=f"all of them, {mode} mode",
            ylim=(smallest / margin, 3 * density.dataLim.y1),
        )
        for axis in (eigenvalues, density):
            axis.grid(alpha=0.3)
            axis.legend()
    figure.suptitle("Hessian of the training loss")
    return figure


def increases(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """Five measures of sharpness against their radius, a row for each mode."""
    measures = found["config"]["measures"]
    panels = (
        ("ascent", "radii", "radius ρ", "along SAM's ascent"),
        ("worst", "radii", "radius ρ", "at worst in the ball"),
        ("parts", "radii", "radius ρ", f"at worst for each {measures['m']} images"),
        ("adaptive", "adaptive_radii", "radius ρ in ASAM's norm", "along ASAM's ascent"),
        ("average", "sigmas", "standard deviation σ", "on average, normal noise"),
    )
    modes = _modes(runs, "sharpness")
    figure, axes = _figure(2 * len(modes), 3, 4.2, 3.3)
    for row, (mode, those) in zip(axes.reshape(len(modes), 6), modes.items(), strict=True):
        for axis, (name, radii, label, title) in zip(row, panels, strict=False):
            parts = [run["parts"]["sharpness"][mode] for run in those]
            for part, (_, style), marker in zip(parts, _styled(those), MARKERS * 9, strict=False):
                errors = part.get(f"{name}_error")
                points = (measures[radii], part[name])
                axis.errorbar(*points, yerr=errors, marker=marker, capsize=2, **style)
            axis.set(xscale="log", xlabel=label, ylabel="increase of the loss", title=title)
            axis.set_xticks(measures[radii], [f"{r:g}" for r in measures[radii]])
            axis.xaxis.minorticks_off()
            if min(min(part[name]) for part in parts) > 0:
                axis.set_yscale("log")
            else:
                axis.set_yscale("symlog", linthresh=1e-3)
            axis.grid(alpha=0.3)
        row[5].axis("off")
        row[5].legend(*row[0].get_legend_handles_labels(), loc="center", title=f"{mode} mode")
    figure.suptitle("How much higher the training loss is near the parameters (± standard error)")
    return figure


def lines(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """The loss from the first run to each other one."""
    figure, axes = _figure(1, 1, 8.0, 4.2)
    axis = axes[0, 0]
    for i, line in enumerate(found["lines"]):
        style = {"color": COLOURS[i % 7], "linestyle": STYLES[i % 7]}
        axis.plot(
            line["at"], line["losses"], label=_plain(f"{line['from']} to {line['to']}"), **style
        )
    for end in (0, 1):
        axis.axvline(end, color="grey", linewidth=0.8)
    axis.set(
        xlabel="share of the way t: 0 is the first run, 1 the other",
        ylabel="training loss",
        yscale="log",
    )
    figure.suptitle(f"Loss on the line between runs, {found['lines'][0]['mode']} mode")
    axis.grid(alpha=0.3)
    _legend(figure, axis)
    del runs
    return figure


# Of each plane the labels of its axes.
_PLANES = {
    "random": ("first random direction", "second random direction"),
    "steepest": ("along the gradient", "eigenvector"),
}


def _levels(runs, name):
    """Of the loss, on one logarithmic scale for all runs."""
    losses = np.array([run["parts"]["landscape"][name] for run in runs])
    finite = losses[np.isfinite(losses) & (losses > 0)]
    low, high = finite.min(initial=1.0), finite.max(initial=1e-12)
    return np.geomspace(low, max(high, 1.1 * low), 22)


def _panels(runs, kinds, width, height, **more):
    """A figure, and for each kind the axes of the runs, at most four in a line."""
    columns = min(len(runs), 4)
    lines = math.ceil(len(runs) / columns)
    figure, axes = _figure(lines * len(kinds), columns, width, height, **more)
    by_kind = [own.ravel() for own in np.split(axes, len(kinds))]
    for own in by_kind:
        for axis in own[len(runs) :]:
            axis.remove()
    return figure, dict(zip(kinds, (own[: len(runs)] for own in by_kind), strict=True))


def _span(found):
    """What the planes reach."""
    return (
        f"random directions in lengths of the filters, gradient and the part of the top "
        f"eigenvector at a right angle to it in units of the parameters, all from "
        f"−{found['config']['measures']['span']:g} to {found['config']['measures']['span']:g}"
    )


def contours(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """Both planes of each run, seen from above."""
    figure, panels = _panels(runs, _PLANES, 3.3, 3.4)
    for name, (x, y) in _PLANES.items():
        levels = _levels(runs, name)
        norm = mpl.colors.LogNorm(levels[0], levels[-1])
        for axis, run in zip(panels[name], runs, strict=True):
            part = run["parts"]["landscape"]
            heights = (part["ticks"], part["ticks"], np.clip(part[name], levels[0], levels[-1]))
            shown = axis.contourf(*heights, levels, norm=norm, cmap="cividis")
            axis.contour(*heights, levels[::3], colors="white", linewidths=0.5)
            axis.plot(0, 0, "+", color="red", markersize=9)
            axis.set(title=run["title"], xlabel=x, ylabel=y)
            axis.set_box_aspect(1)
        bar = figure.colorbar(shown, ax=list(panels[name]), label="training loss", shrink=0.8)
        bar.ax.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%.2g"))
        bar.set_ticks(levels[::7])
        bar.ax.minorticks_off()
    mode = runs[0]["parts"]["landscape"]["mode"]
    figure.suptitle(f"Training loss around the parameters (+), {mode} mode: {_span(found)}")
    return figure


def surfaces(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """Both planes of each run, as surfaces."""
    figure, panels = _panels(runs, _PLANES, 3.8, 4.2, subplot_kw={"projection": "3d"})
    for name, (x, y) in _PLANES.items():
        levels = _levels(runs, name)
        low, high = np.log10(levels[[0, -1]])
        for axis, run in zip(panels[name], runs, strict=True):
            ticks = run["parts"]["landscape"]["ticks"]
            across, up = np.meshgrid(ticks, ticks)
            height = np.log10(np.clip(run["parts"]["landscape"][name], levels[0], levels[-1]))
            shown = axis.plot_surface(across, up, height, cmap="cividis", vmin=low, vmax=high)
            axis.set(title=run["title"], xlabel=x, ylabel=y.removeprefix("second "))
            axis.set_xticks([ticks[0], 0, ticks[-1]])
            axis.set_yticks([ticks[0], 0, ticks[-1]])
            axis.set_zlim(low, high)
            axis.set_box_aspect(None, zoom=0.8)
        label = "log₁₀ of the training loss"
        figure.colorbar(shown, ax=list(panels[name]), label=label, shrink=0.6, pad=0.06)
    mode = runs[0]["parts"]["landscape"]["mode"]
    figure.suptitle(f"Training loss around the parameters, {mode} mode: {_span(found)}")
    return figure


def _checkpoint_grid(runs, draw_one, title, **labels):
    """A panel for each run and some of its checkpoints."""
    columns = max(min(SHOWN, len(run["parts"]["gradients"]["checkpoints"])) for run in runs)
    figure, axes = _figure(len(runs), columns, 3.8, 2.9)
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
    figure, axes = _figure(1, 3, 4.4, 3.6)
    for axis, (name, title) in zip(axes[0], panels.items(), strict=True):
        for (run, style), marker in zip(_styled(runs), MARKERS * 9, strict=False):
            at = run["parts"]["gradients"]["checkpoints"]
            axis.plot([c["epoch"] for c in at], [c[name] for c in at], marker=marker, **style)
        axis.set(yscale="log", xlabel="epoch", title=title)
        axis.grid(alpha=0.3)
    _legend(figure, axes[0, 0])
    figure.suptitle(f"Gradients over the epochs, at the checkpoints; {_batches(runs)}")
    return figure


def turning(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """How the gradient turns, and the loss rises, along SAM's ascent from noisy parameters."""
    measures = found["config"]["measures"]
    rows = {"cosines": "cos(g(w), g(w + ρ unit g))", "losses": "L(w + ρ unit g)"}
    figure, panels = _panels(runs, rows, 3.8, 3.1)
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
    _legend(figure, panels["cosines"][0])
    mode = runs[0]["parts"]["gradients"]["mode"]
    figure.suptitle(f"Along SAM's ascent, from w + normal noise of variance γ²; {mode} mode")
    return figure


_COURSES = {
    "test_accuracy": ("test accuracy (%)", 100),
    "train_loss": ("training loss", 1),
    "sam_fraction": ("share of SAM steps (%)", 100),
    "gradient_norm": ("‖g‖, mean", 1),
    "rho": ("ρ_t", 1),
    "lambda_k": ("λ_k", 1),
}


def courses(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """Accuracy, loss and the methods' own quantities over the epochs."""
    del found
    names = [name for name in _COURSES if any(name in run["rows"][-1] for run in runs)]
    figure, axes = _figure(math.ceil(len(names) / 3), 3, 4.4, 3.2)
    for axis, name in zip(axes.flat, names, strict=False):
        label, scale = _COURSES[name]
        for run, style in _styled(runs):
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
    figure, axes = _figure(len(runs), columns, 4.6, 2.9)
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


# Each picture with the part whose numbers it shows, and what a reader is to see in it.
PICTURES: dict[str, tuple[Callable[..., Any], str, str]] = {
    "spectrum": (
        spectrum,
        "hessian",
        "Large eigenvalues are steep directions; a flatter minimum has smaller ones. The density "
        "counts all eigenvalues; most lie near 0.",
    ),
    "increases": (
        increases,
        "sharpness",
        "Lower is flatter. The first two agree to first order, ρ times the length of the gradient; "
        "the last says what random noise does, half its variance times the trace while the loss is "
        "quadratic.",
    ),
    "contours": (
        contours,
        "landscape",
        "Wide valleys are flat minima. One scale for all runs.",
    ),
    "surfaces": (surfaces, "landscape", "The same numbers as surfaces."),
    "lines": (
        lines,
        "lines",
        "A barrier between two runs says that they lie in different valleys.",
    ),
    "norms": (
        norms,
        "gradients",
        "AE-SAM models ‖g‖² as normal, so that its threshold μ + c σ chooses a share of the steps.",
    ),
    "quantiles": (quantiles, "gradients", "The same: on the line where the normal model holds."),
    "variance": (
        variance,
        "gradients",
        "AE-SAM's argument: where the gradient is large, the loss is sharp.",
    ),
    "turning": (
        turning,
        "gradients",
        "R-SAM's argument: a gradient that turns less along the ascent is a better guide, and "
        "noise smooths it.",
    ),
    "courses": (courses, "rows", "Over the epochs, as the runs wrote them."),
    "steps": (
        steps,
        "steps",
        "Epochs trained once more from the checkpoints: the decisions of the adaptive policy, λ_k "
        "and r_k of SAMAR, ρ_t of LE-SAM.",
    ),
}
