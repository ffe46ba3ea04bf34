"""Train one model with one method, evaluate it, and write what came of it.

    python -m experiments.train [RECIPE] [--method NAME] [options]

Writes <out>/<name>/: config.json, metrics.jsonl (a line an epoch), curves.png, summary.json.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np
import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments import cli, plots, runs
from experiments.data import Data
from experiments.recipes import Recipe
from experiments.training import Epoch, Trainer


@dataclasses.dataclass(frozen=True)
class Options(cli.Options):
    """Train one model with one method."""

    method: cli.MethodName = "sam"
    set: tuple[str, ...] = ()
    """Settings of the method, such as rho=0.1 gamma=0.9; the recipe's where left out."""
    seed: int = 0
    """Draws the weights, the order of the data, the label noise and the method's numbers."""
    name: str | None = None
    """The run's folder inside --out; RECIPE-METHOD-SEED where left out."""
    overwrite: bool = False
    """Replace a run of the same name that had other options."""


class DivergedError(Exception):
    """The loss is no longer finite."""


def train(
    trainer: Trainer,
    data: Data,
    *,
    epochs: int,
    seed: int,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Trains from a seed and returns the figures of the last epoch.

    Raises:
      DivergedError: the loss of an epoch is not finite.
    """
    start = time.perf_counter()
    state = trainer.init(data.train.images, seed)
    for epoch in trainer.epochs(state, data, epochs=epochs, seed=seed, on_step=on_step):
        if not math.isfinite(epoch.loss):
            raise DivergedError(
                f"the loss is {epoch.loss} in epoch {epoch.epoch + 1}: lower the learning rate or "
                "the perturbation."
            )
        on_epoch(epoch)
    state = jax.block_until_ready(epoch.state)
    seconds = time.perf_counter() - start
    on_train, on_test = (trainer.evaluate(state, split) for split in (data.train, data.test))
    steps = epochs * trainer.steps_per_epoch(len(data.train.labels))
    ascents = int(quantities(state.method_state).get("ascents", 0))
    return {
        "seed": seed,
        "epochs": epochs,
        "steps": steps,
        "ascents": ascents,
        "sam_fraction": ascents / steps,
        "gradients_per_step": 1 + ascents / steps,
        "train_accuracy": on_train["accuracy"],
        "test_accuracy": on_test["accuracy"],
        "train_loss": on_train["loss"],
        "test_loss": on_test["loss"],
        "seconds": seconds,
    }


def quantities(method_state: Any) -> dict[str, float]:
    """The scalars of a method's state by their names: ascents, rho, lambda_k, mean and more."""
    leaves = jax.tree_util.tree_leaves_with_path(method_state)
    return {
        jax.tree_util.keystr(path[-1:], simple=True): leaf.item()
        for path, leaf in leaves
        if np.ndim(leaf) == 0
    }


def main(options: Options) -> None:
    """Runs the command."""
    recipe = options.resolve()
    settings = cli.method_settings(recipe, options.method, options.set)
    data = options.load(recipe, options.seed)
    trainer = options.trainer(recipe, options.method, settings, data)
    name = options.name or f"{options.recipe}-{options.method}-{options.seed}"
    config = _config(options, recipe, settings)
    path = runs.folder(options.out, name, config, overwrite=options.overwrite)
    rows = []

    steps = trainer.steps_per_epoch(len(data.train.labels))
    with _progress() as progress:
        bar = progress.add_task(options.method, total=recipe.epochs * steps, said="")

        def on_epoch(epoch):
            on_test = trainer.evaluate(epoch.state, data.test)
            taken = (epoch.epoch + 1) * steps
            row = {
                "epoch": epoch.epoch + 1,
                "train_loss": epoch.loss,
                "train_accuracy": epoch.accuracy,
                "test_loss": on_test["loss"],
                "test_accuracy": on_test["accuracy"],
                "learning_rate": float(trainer.optimizer.learning_rate(taken - 1)),
                **quantities(epoch.state.method_state),
            }
            rows.append(row)
            runs.append_json(path / "metrics.jsonl", row)
            said = f"loss {epoch.loss:.3f}, test accuracy {100 * on_test['accuracy']:.1f} %"
            progress.update(bar, said=said)

        try:
            figures = train(
                trainer,
                data,
                epochs=recipe.epochs,
                seed=options.seed,
                on_epoch=on_epoch,
                on_step=lambda steps: progress.update(bar, advance=steps),
            )
        except DivergedError as error:
            raise cli.UserError(f"{error} The epochs before are in {path}.") from error

    summary = {
        "recipe": options.recipe,
        "method": options.method,
        "method_kwargs": settings,
        **figures,
        "label_noise": options.label_noise,
        "flipped": data.flipped,
        "validation": options.validation,
        "decided_on": "host" if trainer.on_host else "device",
        **runs.provenance(),
    }
    runs.write_json(path / "summary.json", summary)
    split = "held-out" if options.validation else "test"
    title = f"{options.recipe}, {options.method}"
    plots.curves(path / "curves.png", rows, title=title, evaluated_on=split)
    rich.print(_table(summary, evaluated_on=split))
    rich.print(f"written to {path}/")


def _config(options: Options, recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that the run depends on."""
    base = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    base["model"] = recipe.model.__name__
    del base["settings"]
    return {
        "recipe": options.recipe,
        **base,
        "method": options.method,
        "method_kwargs": dict(settings),
        "seed": options.seed,
        "label_noise": options.label_noise,
        "validation": options.validation,
        "decide": options.decide,
    }


def _progress():
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )


def _table(summary, evaluated_on):
    table = Table(title=f"{summary['recipe']}, {summary['method']}, seed {summary['seed']}")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row(f"{evaluated_on} accuracy", f"{100 * summary['test_accuracy']:.2f} %")
    table.add_row(f"{evaluated_on} loss", f"{summary['test_loss']:.4f}")
    table.add_row("train accuracy", f"{100 * summary['train_accuracy']:.2f} %")
    table.add_row("gradients per step", f"{summary['gradients_per_step']:.2f}")
    table.add_row("share of SAM steps", f"{100 * summary['sam_fraction']:.1f} %")
    table.add_row("seconds", f"{summary['seconds']:.1f}")
    return table


if __name__ == "__main__":
    cli.run(main, Options)
