"""Compare methods on the same seeds, data order and initial weights.

    python -m experiments.compare [RECIPE] --methods sgd sam ae_sam … [--seeds 10] [options]

Writes <out>/<name>/: config.json, runs.jsonl (a line for each finished run) and, at the end,
table.json, table.md and comparison.png. After Ctrl-C, SIGTERM or a crash the same command goes on;
with more methods or seeds it trains the runs that are missing.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import statistics
from typing import Any, Literal

import rich
from rich import box
from rich.table import Table

from experiments.cli import command, limits
from experiments.cli.options import TrainingOptions
from experiments.cli.settings import method_settings
from experiments.recipes.base import UNTRAINED
from experiments.results import files, folders, numerics, plots, provenance
from experiments.results.lines import Lines
from experiments.results.markdown import escaped
from experiments.system import interrupt
from experiments.system.errors import UserError
from experiments.training.fit import DivergedError, train
from experiments.training.optimizers import SGD


@dataclasses.dataclass(frozen=True)
class Options(TrainingOptions):
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
    """Begin again, and remove what the folder holds."""


# What the table shows of the runs, whichever there are.
_SHOWN = ("methods", "seeds", "on", "equal_gradients")


def main(options: Options) -> None:
    """Runs the command."""
    if not 2 <= options.seeds <= limits.SEEDS:
        raise UserError(
            f"--seeds must be at least 2 for a deviation, and at most {limits.SEEDS:,}, got "
            f"{options.seeds}."
        )
    recipe = options.resolve()
    if options.on == "held-out" and not recipe.validation:
        raise UserError("--on held-out needs a held-out part: pass --validation 0.1.")
    names = list(dict.fromkeys([SGD, *options.methods]))
    settings = {name: method_settings(recipe, name) for name in names}
    name = f"{options.recipe}-comparison" if options.name is None else options.name
    path = folders.path_of(options.out, name)
    folders.check(path, "compare")
    first = options.load(recipe, 0)
    options.check([(recipe, method, settings[method]) for method in names], first)
    config = _config(options, recipe, settings)
    with folders.held(path, "compare") as folder:
        kept = {key: value for key, value in config.items() if key not in _SHOWN}
        shared = {**kept, "data": first.read, "jax": numerics.recorded()}
        folder.open(shared, overwrite=options.overwrite)
        comparison = _Comparison(options, recipe, config, folder)
        finished = comparison.run(names, settings)
    for budget, results in finished.items():
        rich.print(_table(f"{options.recipe}, at {budget}", summarize(results, _accuracy(options))))
    said = "written to" if comparison.wrote else "already finished (--overwrite trains again):"
    print(f"{said} {path}/")


def _config(options, recipe, settings):
    """What the runs depend on, and what of them the table shows."""
    config = {**dataclasses.asdict(options), **dataclasses.asdict(recipe), "methods": settings}
    for ignored in (*UNTRAINED, "overwrite", "out", "data_dir", "name", "workers"):
        config.pop(ignored)
    return {**config, "weights": options.digest}


class _Comparison:
    """The runs of a comparison, each kept as it ends."""

    def __init__(self, options, recipe, config, folder):
        self._options, self._recipe, self._config, self._folder = options, recipe, config, folder
        for name in ("table.json", "table.md", "comparison.png"):
            folder.file(name)  # which may be another's, as is better known now
        self._lines = Lines(folder.file(folders.RUNS), lambda run: run["key"])
        self._stopped = lambda: 0
        self.wrote = not self._is_written()

    def run(self, names, settings):
        """The runs of each method by the budget that they are compared at."""
        recipe = self._recipe
        finished = {"equal epochs": {}}
        with interrupt.noted() as self._stopped:
            for method in names:
                results = self._runs(recipe, method, settings[method])
                finished["equal epochs"][method] = results
            if self._options.equal_gradients:
                finished["equal gradients"] = {}
                for method in names:
                    per_step = _mean(finished["equal epochs"][method], "gradients_per_step")
                    longer = dataclasses.replace(recipe, epochs=round(2 * recipe.epochs / per_step))
                    results = self._runs(longer, method, settings[method])
                    finished["equal gradients"][method] = results
        self._write(finished)
        self._folder.done()
        return finished

    def _runs(self, recipe, method, settings):
        """One run a seed, by one compiled trainer."""
        results, trainer = [], None
        for seed in range(self._options.seeds):
            key = json.dumps([method, files.plain(settings), recipe.epochs, seed], sort_keys=True)
            if key not in self._lines:
                self.wrote = True
                self._check()
                data = self._options.load(recipe, seed)
                trainer = trainer or self._options.trainer(recipe, method, settings, data)
                figures = _run(trainer, data, seed, self._check)
                self._lines.add({"key": key, "figures": figures})
                accuracy = 100 * figures[_accuracy(self._options)]
                print(f"{method}, seed {seed}: {accuracy:.2f} %")
            results.append(self._lines[key]["figures"])
        return results

    def _check(self, *_):
        if number := self._stopped():
            again = ", without --overwrite" if self._options.overwrite else ""
            raise interrupt.InterruptedRunError(
                f"{len(self._lines)} runs are kept in {self._folder.path}; the same command goes "
                f"on{again}.",
                number,
            )

    def _is_written(self):
        """Whether the table is there already, of the same methods and seeds."""
        try:
            held = files.read_json(self._folder.path / "table.json")
        except (FileNotFoundError, files.DamagedError):
            return False
        return held["config"] == files.unplain(files.plain(self._config))

    def _write(self, finished):
        """The table, unless it is there."""
        if not self.wrote:
            return
        options, config = self._options, self._config
        tables = {
            budget: summarize(results, _accuracy(options)) for budget, results in finished.items()
        }
        flipped = f", {100 * config['label_noise']:g} % of the training labels flipped"
        title = f"{options.recipe}, {options.seeds} seeds{flipped if config['label_noise'] else ''}"
        found = {"config": config, "tables": tables, "runs": finished, **provenance.provenance()}
        files.write_text(self._folder.file("table.md"), markdown(title, config, tables))
        plots.comparison(self._folder.file("comparison.png"), tables, title=title)
        files.write_json(self._folder.file("table.json"), found)


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


def _run(trainer, data, seed, check):
    """The figures of one run; a diverged one has the accuracy of a guess."""
    try:
        return {**train(trainer, data, seed=seed, on_dispatch=check), "diverged": False}
    except DivergedError:
        guess = 1 / data.classes
        splits = ("test", "train", "validation")
        failed = {**{f"{split}_accuracy": guess for split in splits}, "seconds": 0.0}
        plain = {"gradients_per_step": 1.0, "sam_fraction": 0.0}
        return {"seed": seed, "epochs": trainer.recipe.epochs, "diverged": True} | failed | plain


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
            f"{method} " + (escaped(", ".join(f"{k} {v}" for k, v in kwargs.items())) or "none")
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
    command.run(main, Options)
