"""Try a grid of settings of one method, over seeds.

    python -m experiments.sweep [RECIPE] --method sam --over rho=0.05,0.1,0.2 [--seeds 5] [options]

Writes <out>/<name>/sweep.json, after each cell, and prints the cells, best first. Settings are
chosen on a held-out part of the training set (--validation 0.2), so that the test set stays unseen.
Besides a method's own settings, learning_rate, momentum and weight_decay can be swept.
"""

import dataclasses
import itertools
import statistics

import rich
from rich.table import Table

from experiments import cli, runs
from experiments.train import DivergedError, train

SHARED = ("learning_rate", "momentum", "weight_decay")


@dataclasses.dataclass(frozen=True)
class Options(cli.Options):
    """Try a grid of settings of one method, over seeds."""

    method: cli.MethodName = "sam"
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
    axes = [[f"{axis.partition('=')[0]}={value}" for value in axis.partition("=")[2].split(",")]
            for axis in options.over]  # fmt: skip
    cells = [(cell, *_apply(recipe, options.method, cell)) for cell in itertools.product(*axes)]
    config = dataclasses.asdict(options)
    for ignored in ("overwrite", "out", "data_dir", "name"):
        config.pop(ignored)
    name = options.name or f"{options.recipe}-{options.method}-sweep"
    path = runs.folder(options.out, name, config, overwrite=options.overwrite)
    seeds = range(1000, 1000 + options.seeds)
    data = {seed: options.load(recipe, seed) for seed in seeds}
    rows = []
    for cell, cell_recipe, settings in cells:
        trainer = options.trainer(cell_recipe, options.method, settings, data[seeds[0]])
        accuracies = []
        for seed in seeds:
            try:
                figures = train(trainer, data[seed], epochs=cell_recipe.epochs, seed=seed)
                accuracies.append(100 * figures["test_accuracy"])
            except DivergedError:
                accuracies.append(0.0)
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        rows.append({"cell": list(cell), "accuracy": statistics.fmean(accuracies), "std": spread})
        runs.write_json(path / "sweep.json", {"config": config, "rows": rows, **runs.provenance()})
    held_out = "held-out" if options.validation else "test"
    table = Table(
        "setting", f"{held_out} accuracy (%)", title=f"{options.recipe}, {options.method}"
    )
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        table.add_row(" ".join(row["cell"]), f"{row['accuracy']:.2f} ± {row['std']:.2f}")
    rich.print(table)
    rich.print(f"written to {path}/")


def _apply(recipe, method, cell):
    """The recipe and the method's settings in a cell such as ("rho=0.1", "learning_rate=0.05")."""
    shared = dict(change.split("=") for change in cell if change.partition("=")[0] in SHARED)
    own = [change for change in cell if change.partition("=")[0] not in SHARED]
    changed = dataclasses.replace(recipe, **{k: cli.parse(v) for k, v in shared.items()})
    return changed, cli.method_settings(recipe, method, own)


if __name__ == "__main__":
    cli.run(main, Options)
