"""Compare methods on the same seeds, data order and initial weights.

    python -m experiments.compare [RECIPE] --methods sgd sam ae_sam … [--seeds 10] [options]

Writes <out>/<name>/: config.json, table.json, table.md, comparison.png; after each method, so that
an interrupted comparison keeps what is done.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import statistics
from typing import Any, Literal

import rich
from rich import box
from rich.table import Table

from experiments import cli, plots, runs
from experiments.fit import DivergedError, train
from experiments.optimizers import SGD
from experiments.recipes.base import UNTRAINED


@dataclasses.dataclass(frozen=True)
class Options(cli.Options):
    """Compare methods on the same seeds, data order and initial weights."""

    methods: tuple[str, ...] = (SGD, "sam", "ae_sam")
    """sgd and methods of sam_optax, with the recipe's settings; sgd is added where missing."""
    seeds: int = 10
    """Seeds 0 to this number less one."""
    on: Literal["test", "held-out"] = "test"
    """The split to compare on; a part is held out by --validation or by the recipe."""
    equal_gradients: bool = False
    """Compare at equal numbers of gradients too: sgd gets twice the epochs of sam. A second
    gradient of part of the batch counts as one, and Hessian products do not count."""
    name: str | None = None
    """The comparison's folder inside --out; RECIPE-comparison where left out."""
    overwrite: bool = False
    """Replace a comparison of the same name that had other options."""


def main(options: Options) -> None:
    """Runs the command."""
    if options.seeds < 2:
        raise cli.UserError(f"--seeds must be at least 2 for a deviation, got {options.seeds}.")
    recipe = options.resolve()
    if options.on == "held-out" and not recipe.validation:
        raise cli.UserError("--on held-out needs a held-out part: pass --validation 0.1.")
    names = options.methods if SGD in options.methods else (SGD, *options.methods)
    settings = {name: cli.method_settings(recipe, name) for name in names}
    config = {
        **dataclasses.asdict(options),
        **dataclasses.asdict(recipe),
        "methods": settings,
    }
    for ignored in (*UNTRAINED, "overwrite", "out", "data_dir", "name", "workers"):
        config.pop(ignored)
    config["weights"] = options.digest
    name = options.name or f"{options.recipe}-comparison"
    data = [options.load(recipe, seed) for seed in range(options.seeds)]
    options.check([(recipe, method, settings[method]) for method in names], data[0])
    path = runs.folder(options.out, name, config, overwrite=options.overwrite)
    finished = {"equal epochs": {}}
    for method in names:
        finished["equal epochs"][method] = _runs(options, recipe, method, settings[method], data)
        _write(path, options, config, finished)
    if options.equal_gradients:
        finished["equal gradients"] = {}
        for method in names:
            per_step = _mean(finished["equal epochs"][method], "gradients_per_step")
            longer = dataclasses.replace(recipe, epochs=round(2 * recipe.epochs / per_step))
            result = _runs(options, longer, method, settings[method], data)
            finished["equal gradients"][method] = result
            _write(path, options, config, finished)
    for budget, results in finished.items():
        rich.print(_table(f"{options.recipe}, at {budget}", summarize(results, _accuracy(options))))
    print(f"written to {path}/")


def summarize(
    results: Mapping[str, Sequence[Mapping[str, Any]]], accuracy: str = "test_accuracy"
) -> list[dict[str, Any]]:
    """A row a method: accuracy, paired difference from SGD and its standard error, cost.

    Accuracies and differences are in percent; the deviation is that of a sample. A run that
    diverged counts with the accuracy of a guess.
    """
    baseline = [100 * run[accuracy] for run in results[SGD]]
    rows = []
    for method, method_runs in results.items():
        accuracies = [100 * run[accuracy] for run in method_runs]
        pairs = zip(accuracies, baseline, strict=True)
        differences = [own - base for own, base in pairs]
        mean = statistics.fmean(differences)
        error = statistics.stdev(differences) / len(differences) ** 0.5
        rows.append(
            {
                "method": method,
                "test_accuracy_mean": statistics.fmean(accuracies),
                "test_accuracy_std": statistics.stdev(accuracies),
                "difference_mean": mean,
                "difference_error": error,
                "beats_sgd": _verdict(method, mean, error),
                "epochs": method_runs[0]["epochs"],
                "gradients_per_step": _mean(method_runs, "gradients_per_step"),
                "sam_fraction": _mean(method_runs, "sam_fraction"),
                # the median leaves out the compilation, which the first run pays
                "seconds": statistics.median(run["seconds"] for run in method_runs),
                "diverged": sum(run["diverged"] for run in method_runs),
            }
        )
    return rows


def _accuracy(options):
    """The name of the figure to compare."""
    return "test_accuracy" if options.on == "test" else "validation_accuracy"


def _verdict(method, mean, error):
    """Whether a method beats SGD by more than two standard errors of the paired difference."""
    if method == SGD:
        return "baseline"
    if mean > 2 * error:
        return "yes"
    return "no" if mean < -2 * error else "not shown"


def _runs(options, recipe, method, settings, data):
    """One run a seed, by one compiled trainer."""
    trainer = options.trainer(recipe, method, settings, data[0])
    results = []
    for seed, seed_data in enumerate(data):
        try:
            figures = train(trainer, seed_data, seed=seed)
            results.append({**figures, "diverged": False})
        except DivergedError:
            guess = 1 / seed_data.classes
            splits = ("test", "train", "validation")
            failed = {**{f"{split}_accuracy": guess for split in splits}, "seconds": 0.0}
            plain = {"gradients_per_step": 1.0, "sam_fraction": 0.0}
            results.append(
                {"seed": seed, "epochs": recipe.epochs, "diverged": True} | failed | plain
            )
        rich.print(f"{method}, seed {seed}: {100 * results[-1][_accuracy(options)]:.2f} %")
    return results


def _write(path: Path, options, config, finished):
    tables = {
        budget: summarize(results, _accuracy(options)) for budget, results in finished.items()
    }
    flipped = f", {100 * config['label_noise']:g} % of the training labels flipped"
    title = f"{options.recipe}, {options.seeds} seeds{flipped if config['label_noise'] else ''}"
    runs.write_json(
        path / "table.json",
        {"config": config, "tables": tables, "runs": finished, **runs.provenance()},
    )
    runs.write_text(path / "table.md", markdown(title, config, tables))
    plots.comparison(path / "comparison.png", tables, title=title)


HEADINGS = (
    "method",
    "epochs",
    "accuracy (%)",
    "minus SGD",
    "beats SGD",
    "grads/step",
    "seconds",
)


def _cells(row):
    """A row of `summarize` under the headings, as text."""
    error = f"{row['difference_mean']:+.2f} ± {row['difference_error']:.2f}"
    return (
        row["method"],
        str(row["epochs"]),
        f"{row['test_accuracy_mean']:.2f} ± {row['test_accuracy_std']:.2f}",
        "" if row["method"] == SGD else error,
        row["beats_sgd"] + (f", {row['diverged']} diverged" if row["diverged"] else ""),
        f"{row['gradients_per_step']:.2f}",
        f"{row['seconds']:.1f}",
    )


def _table(title, rows):
    table = Table(title=title, box=box.SIMPLE, padding=0)
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=True, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown(title: str, config: Mapping[str, Any], tables: Mapping[str, Sequence[Any]]) -> str:
    """The tables as Markdown, with the settings and what the columns mean."""
    lines = [f"# {title}", ""]
    for budget, rows in tables.items():
        lines += [
            f"## At {budget}",
            "",
            f"| {' | '.join(HEADINGS)} |",
            "|---|--:|--:|--:|---|--:|--:|",
            *(f"| {' | '.join(_cells(row))} |" for row in rows),
            "",
        ]
    lines += [
        f"{config['on'].capitalize()} accuracy after the last epoch: mean ± "
        "standard deviation over the seeds. Every method has the same seeds, data order, flipped "
        "labels and initial weights; the difference from SGD is paired by seed, ± its standard "
        "error, and a method beats SGD where it exceeds two of them. Seconds are the median over "
        "the runs.",
        "",
        f"Shared: learning rate {config['learning_rate']}, momentum {config['momentum']}, weight "
        f"decay {config['weight_decay']}, batch {config['batch_size']}{_weights(config)}.",
        "",
        "Settings: "
        + "; ".join(
            f"{method} " + (", ".join(f"{k} {v}" for k, v in kwargs.items()) or "none")
            for method, kwargs in config["methods"].items()
        )
        + ".",
        "",
    ]
    return "\n".join(lines)


def _weights(config):
    digest = config.get("weights")
    return f", pretrained weights {digest[:12]}" if digest else ""


def _mean(results, key):
    """The mean over the runs that reached their end, or over all where none did."""
    finished = [run for run in results if not run["diverged"]] or results
    return statistics.fmean(run[key] for run in finished)


if __name__ == "__main__":
    cli.run(main, Options)
