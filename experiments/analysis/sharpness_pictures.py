"""Pictures of sharpness: the Hessian, the loss near the parameters, on lines and on planes."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

from experiments.analysis.figures import (
    COLOURS,
    MARKERS,
    STYLES,
    Run,
    legend,
    panels_of,
    plain,
    styled,
    subplots,
)
from experiments.analysis.hessian import Density


def spectrum(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """Largest eigenvalues, and density of all, a row for each mode."""
    del found
    modes = _modes(runs, "hessian")
    figure, axes = subplots(len(modes), 2, 5.4, 3.8)
    for (eigenvalues, density), (mode, those) in zip(axes, modes.items(), strict=True):
        parts = [run["parts"]["hessian"][mode] for run in those]
        values = np.concatenate([np.ravel(part["density"]["values"]) for part in parts])
        low, high = values.min(), values.max()
        margin = 0.05 * (high - low) or 1.0
        grid = np.linspace(low - margin, high + margin, 1000)
        for (_, style), part, marker in zip(styled(those), parts, MARKERS * 9, strict=False):
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
    figure, axes = subplots(2 * len(modes), 3, 4.2, 3.3)
    for row, (mode, those) in zip(axes.reshape(len(modes), 6), modes.items(), strict=True):
        for axis, (name, radii, label, title) in zip(row, panels, strict=False):
            parts = [run["parts"]["sharpness"][mode] for run in those]
            for part, (_, style), marker in zip(parts, styled(those), MARKERS * 9, strict=False):
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
    figure, axes = subplots(1, 1, 8.0, 4.2)
    axis = axes[0, 0]
    for i, line in enumerate(found["lines"]):
        style = {"color": COLOURS[i % 7], "linestyle": STYLES[i % 7]}
        axis.plot(
            line["at"], line["losses"], label=plain(f"{line['from']} to {line['to']}"), **style
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
    legend(figure, axis)
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


def _span(found):
    """What the planes reach."""
    return (
        f"random directions in lengths of the filters, gradient and the part of the top "
        f"eigenvector at a right angle to it in units of the parameters, all from "
        f"−{found['config']['measures']['span']:g} to {found['config']['measures']['span']:g}"
    )


def contours(runs: Sequence[Run], found: Mapping[str, Any]) -> Any:
    """Both planes of each run, seen from above."""
    figure, panels = panels_of(runs, _PLANES, 3.3, 3.4)
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
    figure, panels = panels_of(runs, _PLANES, 3.8, 4.2, subplot_kw={"projection": "3d"})
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


def _modes(runs, part):
    """Each mode with the runs that were looked at in it."""
    modes = dict.fromkeys(mode for run in runs for mode in run["parts"][part])
    return {mode: [run for run in runs if mode in run["parts"][part]] for mode in modes}
