"""Pictures of runs."""

from collections.abc import Mapping, Sequence
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # pictures are written, never shown
from matplotlib import pyplot as plt

from experiments.results.files import replacing

# Counters and settings that a method's state holds beside the paper's quantities.
_PLAIN = {"epoch", "steps", "ascents", "notfinite", "draw", "gamma", "power"}
_PLAIN |= {"ess", "least", "decay", "weight_decay"}
_SPLITS = {"train": "train", "test": "test", "validation": "held-out"}
_TITLES = {
    "learning_rate": "learning rate",
    "gradient_norm": "‖g‖, mean",
    "direction_norm": "‖direction‖, mean",
    "sam_fraction": "share of SAM steps",
    "rise": "L(w + ε) − L(w), mean",
    "rho": "ρ",
    "lambda_k": "λ",
    "mean": "μ of ‖g‖²",
    "variance": "σ² of ‖g‖²",
}


def curves(path: Path, rows: Sequence[Mapping[str, float]], *, title: str) -> None:
    """Loss, accuracy and all else that a row an epoch holds, over the epochs."""
    names = dict.fromkeys(name for row in rows for name in row)
    split = {f"{s}_{quantity}" for s in _SPLITS for quantity in ("loss", "accuracy")}
    own = [name for name in names if name not in _PLAIN | split]
    columns = 4
    lines = math.ceil((2 + len(own)) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.0 * columns, 3.1 * lines), layout="constrained", squeeze=False
    )
    marker = "o" if len(rows) == 1 else None  # a line of one point would be invisible

    def draw(axis, name, scale=1, **style):
        points = [(row["epoch"], scale * row[name]) for row in rows if name in row]
        axis.plot(*zip(*points, strict=True), marker=marker, **style)

    for axis, quantity in zip(axes.flat, ("loss", "accuracy"), strict=False):
        for name, label in _SPLITS.items():
            if f"{name}_{quantity}" in names:
                draw(axis, f"{name}_{quantity}", 100 if quantity == "accuracy" else 1, label=label)
        axis.set(xlabel="epoch", title="accuracy (%)" if quantity == "accuracy" else quantity)
        axis.legend()
    for axis, name in zip(axes.flat[2:], own, strict=False):
        draw(axis, name, color="tab:green")
        axis.set(xlabel="epoch", title=_TITLES.get(name, name))
    for axis in axes.flat[2 + len(own) :]:
        axis.remove()
    figure.suptitle(title)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a PNG whole or not at all, and closes the figure."""
    try:
        with replacing(path) as part:
            figure.savefig(part, dpi=120, format="png")
    finally:
        plt.close(figure)


# How a row's `beats_sgd` is shown: colour, marker, words.
_VERDICTS = {
    "yes": ("#009E73", "o", "better than SGD"),
    "not shown": ("0.45", "s", "no clear difference"),
    "no": ("#D55E00", "v", "worse than SGD"),
    "baseline": ("black", "D", "SGD"),
}


def comparison(
    path: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str
) -> None:
    """Accuracy of each method, mean and deviation; its mark tells whether it beats SGD."""
    count = len(next(iter(tables.values())))
    with plt.rc_context({"font.size": 14}):
        figure, axes = plt.subplots(
            1,
            len(tables),
            figsize=(10, 2.6 + 0.34 * count),
            layout="constrained",
            sharey=True,
            squeeze=False,
        )
        shown = {}
        for axis, (budget, rows) in zip(axes[0], tables.items(), strict=True):
            for verdict, (color, marker, label) in _VERDICTS.items():
                own = [(i, row) for i, row in enumerate(rows) if row["beats_sgd"] == verdict]
                if not own:
                    continue
                shown[label] = axis.errorbar(
                    [row["test_accuracy_mean"] for _, row in own],
                    [i for i, _ in own],
                    xerr=[row["test_accuracy_std"] for _, row in own],
                    fmt=marker,
                    color=color,
                    markersize=8,
                    linewidth=2,
                    capsize=4,
                )
                if verdict == "baseline":
                    axis.axvline(own[0][1]["test_accuracy_mean"], color=color, linestyle="--")
            axis.set(title=f"at {budget}", xlabel="accuracy (%): higher is better")
            axis.grid(axis="x", alpha=0.3)
        names = [f"{row['method']} ({row['gradients_per_step']:.2g})" for row in rows]
        axes[0, 0].set_yticks(range(count), names)
        axes[0, 0].invert_yaxis()
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(
            f"{title}\nmean ± standard deviation; gradients a step in brackets", fontsize="medium"
        )
        save(figure, path)


def growth(path: Path, rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Time over the ideal, a panel for each quantity that grows, a line for each method."""
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = plt.subplots(
        1, len(axes_names), figsize=(4.4 * len(axes_names), 4.2), layout="constrained", sharey=True
    )
    for axis, name in zip(np.atleast_1d(axes), axes_names, strict=True):
        for method, marker in zip(methods, "osv^DPX", strict=False):
            own = [row for row in rows if row["axis"] == name and row["method"] == method]
            axis.errorbar(
                [row[name] for row in own],
                [row["ideal_ratio"] for row in own],
                yerr=[row["spread"] / 2 for row in own],
                marker=marker,
                linestyle="--" if "host" in method else "-",
                capsize=2,
                label=method,
            )
        axis.axhline(1, color="grey", linewidth=0.8)
        first = next(row for row in rows if row["axis"] == name)
        fixed = {k: first[k] for k in ("parameters", "leaves", "batch") if k != name}
        subtitle = ", ".join(f"{k} {v:,}" for k, v in fixed.items())
        unit = " (images)" if name == "batch" else ""
        axis.set(xscale="log", yscale="log", xlabel=name + unit, title=subtitle)
        axis.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.yaxis.set_major_locator(mpl.ticker.FixedLocator([0.7, 1, 1.5, 2, 3, 5, 7, 10]))
        axis.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("time / ((1 + ζ) · time of SGD), lower is better")
    np.atleast_1d(axes)[0].legend()
    figure.suptitle(f"Time of a step over that of its gradients ({title})")
    save(figure, path)


def scaling(
    path: Path, found: Mapping[str, Any], predicted: Mapping[float, Mapping[str, Sequence[float]]]
) -> None:
    """Modelled time of a step over SGD's on one device, against devices, a panel for each link."""
    devices = [8**n for n in range(5)]
    figure, axes = plt.subplots(
        1, len(predicted), figsize=(5.2 * len(predicted), 4.4), layout="constrained", sharey=True
    )
    for axis, (gigabits, methods) in zip(np.atleast_1d(axes), predicted.items(), strict=True):
        for (name, seconds), marker in zip(methods.items(), "osv^DP", strict=True):
            ratios = [value / found["gradient_seconds"] for value in seconds]
            style = "--" if name == "MSAM" else "-"  # it lies on SGD
            axis.plot(devices, ratios, marker=marker, linestyle=style, label=name)
        axis.set(
            xscale="log", xlabel="devices", title=f"links of {gigabits:g} Gb/s", ylim=(0, None)
        )
        axis.set_xticks(devices, [f"{n:,}" for n in devices])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("time of a step / gradient on one device,\nlower is better")
    np.atleast_1d(axes)[0].legend(fontsize="small")
    size = f"{found['parameter_bytes'] / 1e6:.0f} MB of parameters"
    figure.suptitle(
        f"Model: {found['model']}, {size}, {found['batch_size']} images a device, a gradient in "
        f"{1000 * found['gradient_seconds']:.0f} ms ({found['device']})"
    )
    save(figure, path)


def robustness(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float | None]]]],
    *,
    title: str,
) -> None:
    """Accuracy against the radius of attacks.

    Args:
      path: the file.
      panels: for the label of each panel's radii its lines, by their titles: radius, mean accuracy
        in percent, deviation or None.
      title: above all panels.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels) + 2, 4.2), layout="constrained", squeeze=False
    )
    for axis, (label, lines) in zip(axes[0], panels.items(), strict=True):
        styles = zip(itertools.cycle("osv^DPX"), itertools.cycle(("-", "--", "-.", ":")))
        for (name, points), (marker, style) in zip(lines.items(), styles, strict=False):
            if points:
                radii, means, spreads = zip(*points, strict=True)
                spreads = [spread or 0 for spread in spreads]
                axis.errorbar(
                    radii, means, spreads, marker=marker, linestyle=style, capsize=3, label=name
                )
        axis.set(xlabel=label, ylim=(-3, 103))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy (%), mean ± std")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(title)
    save(figure, path)


def reliability(path: Path, panels: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """How often predictions are right, by their confidence.

    Args:
      path: the file.
      panels: for the name of a test set its lines, by their labels: for each bin of the confidence
        images, hits and the sum of the confidences, [bins, 3].
    """
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.4 * columns + 1.2, 4.2 * rows),
        layout="constrained",
        squeeze=False,
    )
    shown: dict[str, Any] = {}
    for axis, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        axis.plot((0, 100), (0, 100), color="0.6", linestyle="--")
        styles = zip(itertools.cycle("osv^DPX"), itertools.cycle(("-", "--", "-.", ":")))
        for (label, bins), (marker, style) in zip(lines.items(), styles, strict=False):
            images, hits, confidences = bins[bins[:, 0] > 0].T
            points = 100 * confidences / images, 100 * hits / images
            (line,) = axis.plot(*points, linestyle=style, linewidth=1)
            # Small where few images are behind it.
            sizes = 12 + 300 * images / images.sum()
            axis.scatter(*points, sizes, color=line.get_color(), marker=marker, alpha=0.8)
            key = {"color": line.get_color(), "marker": marker, "linestyle": style}
            shown[label] = mpl.lines.Line2D([], [], **key)
        axis.set(title=name, xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
        axis.grid(alpha=0.3)
        axis.text(3, 97, "too cautious", color="0.45", va="top")
        axis.text(97, 3, "too sure", color="0.45", ha="right")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.supxlabel("confidence of the prediction (%)")
    figure.supylabel("accuracy (%)")
    figure.legend(shown.values(), shown.keys(), loc="outside right center")
    save(figure, path)


def toy(
    path: Path,
    loss: Any,
    paths: Mapping[tuple[str, float | None], np.ndarray],
    ends: Sequence[Mapping[str, Any]],
    minima: Mapping[str, tuple[float, float]],
    *,
    note: str,
) -> None:
    """Contours of the loss over (μ, σ), a panel a path."""
    mu, sigma = np.meshgrid(np.linspace(-45, 45, 181), np.linspace(2, 55, 161))
    surface = jax.vmap(jax.vmap(loss))(np.stack([mu, sigma], -1))
    figure, axes = plt.subplots(
        2, 3, figsize=(12, 7.2), layout="constrained", sharex=True, sharey=True
    )
    for axis, ((method, gamma), points), end in zip(axes.flat, paths.items(), ends, strict=True):
        levels = axis.contourf(mu, sigma, surface, levels=np.linspace(0.25, 1.6, 28), extend="both")
        axis.plot(*points.T, color="white", linewidth=1.2, marker=".", markersize=3)
        axis.plot(*points[0], "o", color="white", markersize=7, label="start")
        axis.plot(*points[-1], "*", color="red", markersize=14, label="end")
        for name, place in minima.items():
            axis.annotate(
                name, place, color="orange", xytext=(-14, -18), textcoords="offset points"
            )
            axis.plot(*place, "x", color="orange", markersize=8)
        label = method if gamma is None else f"{method}, γ = {gamma}"
        axis.set(title=f"{label}: loss {end['loss']:.3f}", xlim=(-45, 45), ylim=(2, 55))
    axes[0, 0].legend(loc="upper left")
    for axis in axes[-1]:
        axis.set_xlabel("μ")
    for axis in axes[:, 0]:
        axis.set_ylabel("σ")
    figure.colorbar(levels, ax=axes, label="loss", shrink=0.8)
    figure.suptitle(note)
    save(figure, path)
