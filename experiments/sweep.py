"""Try a grid of settings of one method, over seeds.

    python -m experiments.sweep [RECIPE] --method sam --over rho=0.05,0.1,0.2 [--seeds 5] [options]

Writes <out>/<name>/sweep.json, after each cell, and prints the cells, best first. Settings are
chosen on a held-out part of the training set (--validation), so that the test set stays unseen.
Besides a method's own settings, learning_rate, momentum and weight_decay can be swept.
"""

import dataclasses
import itertools
import statistics

import rich
from rich.table import Table

from experiments import cli, runs
from experiments.fit import DivergedError, evaluated, train

SHARED = ("learning_rate", "momentum", "weight_decay")


@dataclasses.dataclass(frozen=True)
class Options(cli.Options):
    """Try a grid of settings of one method, over seeds."""

    method: cli.MethodName = "sam"
    validation: float = 0.2
    """Share of the training set to hold out and evaluate on, in [0, 1); 0 for the test set."""
    over: tuple[str, ...] = ()
    """Values to try, such as rho=0.05,0.1 gamma=0.5,0.9: every combination of them."""
    seeds: int = 5
    """Seeds 1000 and up, apart from those of the comparisons."""
    name: str | None = None
    """The sweep's folder inside --out; RECIPE-METHOD-sweep where left out."""
    overwrite: bool = False
    """Replace a sweep of the same name that had other options."""


def main(options: Options) -> None:
    """Runs the command."""
    recipe = options.resolve()
    if options.seeds < 1:
        raise cli.UserError(f"--seeds must be at least 1, got {options.seeds}.")
    swept = [axis.partition("=") for axis in options.over]
    for axis, (_, equals, values) in zip(options.over, swept, strict=True):
        if not equals or len(set(values.split(","))) < len(values.split(",")):
            raise cli.UserError(
                f"--over must read name=value,value with different values, got {axis!r}."
            )
    names = [name for name, _, _ in swept]
    if len(set(names)) < len(names):
        raise cli.UserError(f"--over names a setting twice: {' '.join(names)}.")
    axes = [[f"{name}={value}" for value in values.split(",")] for name, _, values in swept]
    cells = [(cell, *_apply(recipe, options.method, cell)) for cell in itertools.product(*axes)]
    config = dataclasses.asdict(options)
    for ignored in ("overwrite", "out", "data_dir", "name"):
        config.pop(ignored)
    name = options.name or f"{options.recipe}-{options.method}-sweep"
    seeds = range(1000, 1000 + options.seeds)
    data = {seed: options.load(recipe, seed) for seed in seeds}
    for _, cell_recipe, settings in cells:
        options.trainer(cell_recipe, options.method, settings, data[seeds[0]])  # tells a mistake
    path = runs.folder(options.out, name, config, overwrite=options.overwrite)
    rows = []
    for cell, cell_recipe, settings in cells:
        trainer = options.trainer(cell_recipe, options.method, settings, data[seeds[0]])
        accuracies, diverged = [], 0
        for seed in seeds:
            try:
                figures = train(trainer, data[seed], seed=seed)
                accuracies.append(100 * evaluated(figures))
            except DivergedError:
                accuracies.append(100 / data[seed].classes)  # that of a guess
                diverged += 1
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        mean = statistics.fmean(accuracies)
        rows.append({"cell": list(cell), "accuracy": mean, "std": spread, "diverged": diverged})
        runs.write_json(path / "sweep.json", {"config": config, "rows": rows, **runs.provenance()})
    held_out = "held-out" if recipe.validation else "test"
    table = Table(
        "setting", f"{held_out} accuracy (%)", title=f"{options.recipe}, {options.method}"
    )
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        note = f", {row['diverged']} diverged" if row["diverged"] else ""
        table.add_row(" ".join(row["cell"]), f"{row['accuracy']:.2f} ± {row['std']:.2f}{note}")
    rich.print(table)
    print(f"written to {path}/")


def _apply(recipe, method, cell):
    """The recipe and the method's settings in a cell such as ("rho=0.1", "learning_rate=0.05")."""
    parts = [setting.partition("=") for setting in cell]
    shared = {name: cli.parse(value) for name, _, value in parts if name in SHARED}
    own = [setting for setting in cell if setting.partition("=")[0] not in SHARED]
    return cli.change(recipe, shared), cli.method_settings(recipe, method, own)


if __name__ == "__main__":
    cli.run(main, Options)
