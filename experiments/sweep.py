"""Try a grid of settings of one method, over seeds.

    python -m experiments.sweep [RECIPE] --method sam --over rho=0.05,0.1,0.2 [--seeds 5] [options]

Writes <out>/<name>/: config.json, runs.jsonl (a line for each finished run) and, at the end,
sweep.json, sweep.md and sweep.png, and prints the cells, best first. After Ctrl-C, SIGTERM or a
crash the same command goes on; with more seeds or values it trains the runs that are missing.

Settings are chosen on a held-out part of the training set (--validation), so that the test set
stays unseen. Besides a method's own settings, learning_rate, momentum and weight_decay can be
swept.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math
import statistics
from typing import Annotated, Any

import rich
from rich import box
from rich.table import Table
from rich.text import Text
import tyro

from experiments.cli import command, limits
from experiments.cli.options import TrainingOptions
from experiments.cli.settings import MethodName, change, method_settings
from experiments.recipes.base import UNTRAINED
from experiments.results import files, folders, numerics, provenance, sweep_plots, watch
from experiments.results.collected import evaluated
from experiments.results.lines import Lines
from experiments.results.markdown import escaped
from experiments.system import interrupt
from experiments.system.errors import UserError
from experiments.system.words import parse
from experiments.training.fit import DivergedError, train

SHARED = ("learning_rate", "momentum", "weight_decay")
COSTS = ("sam_fraction", "gradients_per_step", "seconds")


@dataclasses.dataclass(frozen=True)
class Options(TrainingOptions):
    """Try a grid of settings of one method, over seeds."""

    method: MethodName = "sam"
    validation: float = 0.2
    """Share of the training set to hold out and evaluate on, in [0, 1); 0 for the test set."""
    over: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Values to try, such as rho=0.05,0.1 gamma=0.5,0.9: every combination of them."""
    seeds: int = 5
    """Seeds 1000 and up, apart from those of the comparisons."""
    name: str | None = None
    """The sweep's folder inside --out; RECIPE-METHOD-sweep where left out."""
    overwrite: bool = False
    """Begin again, and remove what the folder holds."""


def main(options: Options) -> None:
    """Runs the command."""
    recipe = options.resolve()
    axes = _axes([axis for given in options.over for axis in given])
    settings = [[f"{name}={value}" for value in values] for name, values in axes.items()]
    if not 1 <= options.seeds <= limits.SEEDS:
        raise UserError(
            f"--seeds must be at least 1 and at most {limits.SEEDS:,}, got {options.seeds}."
        )
    asked = math.prod(map(len, settings)) * options.seeds
    if asked > limits.RUNS:
        raise UserError(
            f"--over and --seeds ask for {asked:,} runs, and a sweep has at most {limits.RUNS:,}: "
            "try fewer values at once."
        )
    cells = {cell: _apply(recipe, options.method, cell) for cell in itertools.product(*settings)}
    seeds = range(1000, 1000 + options.seeds)
    default = f"{options.recipe}-{options.method}-sweep"
    path = folders.path_of(options.out, default if options.name is None else options.name)
    folders.check(path, "sweep")
    first = options.load(recipe, seeds[0])
    options.check([(of, options.method, kwargs) for of, kwargs in cells.values()], first)
    config = {**_config(options, recipe), "data": first.read, "jax": numerics.recorded()}
    with folders.held(path, "sweep") as folder:
        folder.open(config, overwrite=options.overwrite)
        for name in ("sweep.json", "sweep.md", *(["sweep.png"] if len(cells) > 1 else [])):
            folder.file(name)  # which may be another's, as is better known now
        lines = Lines(folder.file(folders.RUNS), lambda run: _key(run["cell"], run["seed"]))
        trained = _train(options, path, cells, seeds, lines)
        grid = {cell: [lines[_key(cell, seed)] for seed in seeds] for cell in cells}
        config |= {"over": axes, "seeds": options.seeds}
        rows = [summarize(cell, cell_runs) for cell, cell_runs in grid.items()]
        wrote = trained or not _is_written(path, config)
        every = [run for cell_runs in grid.values() for run in cell_runs]
        _write(folder, config, rows, every, anew=wrote)
        folder.done()
    rich.print(_table(config, rows))
    said = "written to" if wrote else "already finished (--overwrite trains again):"
    print(f"{said} {path}/")


def _is_written(path, config):
    """Whether the result is there already, of the same cells and seeds."""
    try:
        held = files.read_json(path / "sweep.json")
    except (FileNotFoundError, files.DamagedError):
        return False
    return held["config"] == files.unplain(files.plain(config))


def summarize(cell: Sequence[str], cell_runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row for a cell: accuracy and what a run cost, over the seeds.

    The accuracy is in percent, and a run that diverged counts with that of a guess; the costs are
    those of the runs that reached their end. Deviations are those of a sample. None stands for a
    figure that there are too few runs for.
    """
    ended = [run for run in cell_runs if not run["diverged"]]
    accuracies = [run["accuracy"] for run in cell_runs]
    fractions, gradients, seconds = ([run[cost] for run in ended] for cost in COSTS)
    return {
        "cell": list(cell),
        "accuracy": statistics.fmean(accuracies),
        "std": _deviation(accuracies),
        "sam_fraction": statistics.fmean(fractions) if ended else None,
        "sam_fraction_std": _deviation(fractions),
        "gradients_per_step": statistics.fmean(gradients) if ended else None,
        # the median leaves out the compilation, which the first of many runs pays
        "seconds": statistics.median(seconds) if ended else None,
        "diverged": len(cell_runs) - len(ended),
    }


def _config(options, recipe):
    """All that the runs depend on beside their cell and seed."""
    shared = dataclasses.asdict(recipe)
    for other in UNTRAINED:
        del shared[other]
    return {
        "recipe": options.recipe,
        **shared,
        "method": options.method,
        "method_kwargs": method_settings(recipe, options.method),
        "decide": options.decide,
        "weights": options.digest,
    }


def _deviation(values):
    return statistics.stdev(values) if len(values) > 1 else None


def _axes(given):
    """The values of each setting, as written, from words such as "rho=0.05,0.1"."""
    axes = {}
    for axis in given:
        name, equals, listed = axis.partition("=")
        values = listed.split(",")
        if not equals or len({str(parse(value)) for value in values}) < len(values):
            raise UserError(
                f"--over must read name=value,value with different values, got {axis!r}."
            )
        if name in axes:
            raise UserError(f"--over names a setting twice: {' '.join([*axes, name])}.")
        axes[name] = values
    return axes


def _apply(recipe, method, cell):
    """The recipe and the method's settings in a cell such as ("rho=0.1", "learning_rate=0.05")."""
    parts = [setting.partition("=") for setting in cell]
    shared = {name: parse(value) for name, _, value in parts if name in SHARED}
    own = [setting for setting in cell if setting.partition("=")[0] not in SHARED]
    return change(recipe, shared), method_settings(recipe, method, own)


def _key(cell, seed):
    """A run by its cell, in whatever order and form the settings were given, and its seed."""
    parts = (setting.partition("=") for setting in cell)
    return frozenset((name, repr(parse(value))) for name, _, value in parts), seed


def _train(options, path, cells, seeds, lines):
    """Trains the runs of the cells that are missing, each kept as it ends; whether there were any.

    One compiled trainer serves the seeds of a cell.
    """
    keys = [_key(cell, seed) for cell in cells for seed in seeds]
    missing = [key for key in keys if key not in lines]
    commit = provenance.provenance()["commit"]
    kept = len(keys) - len(missing)

    def check(*_):
        if stopped():
            again = ", without --overwrite" if options.overwrite else ""
            raise interrupt.InterruptedRunError(
                f"{kept} of {len(keys)} runs are kept in {path}; the same command goes on{again}.",
                stopped(),
            )

    with (
        interrupt.noted() as stopped,
        watch.tally(options.method, total=len(keys), done=kept) as count,
    ):
        for cell, (recipe, kwargs) in cells.items():
            trainer = None
            for seed in seeds:
                if _key(cell, seed) in lines:
                    continue
                check()
                data = options.load(recipe, seed)
                trainer = trainer or options.trainer(recipe, options.method, kwargs, data)
                run = {"cell": cell, "seed": seed, **_run(trainer, data, seed, check)}
                lines.add({**run, "commit": commit})
                kept += 1
                count(f"{' '.join(cell)}, seed {seed}: {run['accuracy']:.2f} %")
    return bool(missing)


def _run(trainer, data, seed, check):
    """The figures of one run; a diverged one has the accuracy of a guess, and no costs."""
    try:
        figures = train(trainer, data, seed=seed, on_dispatch=check)
    except DivergedError:
        return {"accuracy": 100 / data.classes, "diverged": True, **dict.fromkeys(COSTS)}
    costs = {cost: figures[cost] for cost in COSTS}
    return {"accuracy": 100 * evaluated(figures), "diverged": False, **costs}


def _write(folder, config, rows, grid_runs, *, anew):
    """The result, its table, and its picture where more than one value of a setting was tried."""
    if not anew:
        return
    files.write_text(folder.file("sweep.md"), markdown(config, rows))
    if len(rows) > 1:
        # Code may have changed between the runs of a sweep that went on; "-dirty" stands behind 40.
        commits = dict.fromkeys(run["commit"] or "unknown" for run in grid_runs)
        code = ", ".join(commit[:12] + commit[40:] for commit in commits)
        sweep_plots.picture(
            folder.file("sweep.png"),
            rows,
            config["over"],
            title=f"{_title(config)}\n{_split(config)}",
            fixed=_fixed(config),
            code=code,
        )
    found = {"config": config, "rows": rows, "runs": grid_runs, **provenance.provenance()}
    files.write_json(folder.file("sweep.json"), found)


def _title(config):
    seeds = "1 seed" if config["seeds"] == 1 else f"{config['seeds']} seeds"
    return f"{config['recipe']}, {config['method']}, {seeds}"


def _split(config):
    """What the accuracy was measured on."""
    if config["validation"]:
        return f"accuracy on a held-out {100 * config['validation']:.3g} % of the training set"
    return "accuracy on the test set"


def _fixed(config):
    """The settings that all cells share."""
    over = config["over"]
    shared = {name: config[name] for name in (*SHARED, "batch_size", "epochs")}
    noise = {"label_noise": config["label_noise"]} if config["label_noise"] else {}
    alone = {name: values[0] for name, values in over.items() if len(values) == 1}
    weights = {"weights": config["weights"][:12]} if config["weights"] else {}
    fixed = {**config["method_kwargs"], **shared, **noise, **weights, **alone}
    return {name: value for name, value in fixed.items() if len(over.get(name, ())) < 2}


HEADINGS = ("setting", "accuracy (%)", "SAM steps (%)", "grads/step", "seconds")


def _lines(rows):
    """The rows under the headings as text, best first."""
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        deviation = "" if row["std"] is None else f" ± {row['std']:.2f}"
        note = f", {row['diverged']} diverged" if row["diverged"] else ""
        share = None if row["sam_fraction"] is None else 100 * row["sam_fraction"]
        yield (
            " ".join(row["cell"]),
            f"{row['accuracy']:.2f}{deviation}{note}",
            *(
                "" if value is None else f"{value:.{digits}f}"
                for value, digits in (
                    (share, 1),
                    (row["gradients_per_step"], 2),
                    (row["seconds"], 1),
                )
            ),
        )


def _table(config, rows):
    table = Table(title=f"{_title(config)}, {_split(config)}", box=box.SIMPLE, padding=0)
    for heading in HEADINGS:
        justify = "left" if heading == "setting" else "right"
        table.add_column(heading, no_wrap=heading != "setting", justify=justify)
    for line in _lines(rows):
        table.add_row(*map(Text, line))
    return table


def markdown(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The cells as a Markdown table, best first, with what they share and what the columns mean."""
    fixed = ", ".join(f"{name} {value}" for name, value in _fixed(config).items())
    return "\n".join(
        [
            f"# {_title(config)}",
            "",
            f"| {' | '.join(HEADINGS)} |",
            "|---|--:|--:|--:|--:|",
            *(f"| {' | '.join(map(escaped, line))} |" for line in _lines(rows)),
            "",
            f"{_split(config).capitalize()} after the last epoch: mean ± standard deviation over "
            "the seeds. A run that diverged counts with the accuracy of a guess, and not in the "
            "columns behind. Seconds are the median over the runs, of which the first of a cell "
            "compiles too.",
            "",
            f"Shared: {escaped(fixed)}.",
            "",
        ]
    )


if __name__ == "__main__":
    command.run(main, Options)
