"""What a step of a method costs, in units of a step of SGD.

    python -m experiments.benchmark [RECIPE] [--methods ae_sam …] [options]

Each method trains by the host decision and by a jitted step, SGD by a jitted step, all in one
process and in turns, after a warm-up. Ratios are medians over the turns, since a machine's speed
drifts. Writes <out>/<name>/benchmark.json: rows with model, method, dispatch, time_ratio,
ideal_ratio (1 + ζ, ζ the share of steps with a second gradient), over_ideal, and the interquartile
spread of the time ratio.
"""

import dataclasses
import itertools
import statistics
import time
import warnings

import jax
import rich
from rich.table import Table

from experiments import augment, cli, runs
from experiments.optimizers import SGD
from experiments.training import Batch, arrays


@dataclasses.dataclass(frozen=True)
class Options(cli.Options):
    """What a step of a method costs, in units of a step of SGD."""

    methods: tuple[str, ...] = ("sam", "ae_sam")
    """Methods of sam_optax, with the recipe's settings."""
    turns: int = 15
    """Turns; a ratio is the median over them."""
    steps: int = 40
    """Steps of each method in a turn."""
    name: str | None = None
    """The folder inside --out; RECIPE-benchmark where left out."""


class Contestant:
    """A method that trains a few steps at a time, decided on the host or inside jit."""

    def __init__(self, options, recipe, method, data, *, on_host):
        """Compiles its steps by taking some."""
        decide = dataclasses.replace(options, decide="host" if on_host else "device")
        settings = cli.method_settings(recipe, method)
        self.trainer = decide.trainer(recipe, method, settings, data)
        self.state = self.trainer.init(data.train.images, seed=0)
        train = arrays(data)
        images = augment.normalize(train.images, train.mean, train.std)
        size = recipe.batch_size
        starts = range(0, len(train.labels) - size + 1, size)
        self.batches = itertools.cycle(
            [Batch(images[i : i + size], train.labels[i : i + size]) for i in starts]
        )
        self.step = self.trainer.host_step if on_host else self.trainer.jit_step
        self.run(10)

    def run(self, steps: int) -> tuple[float, int]:
        """Seconds and second gradients of so many steps."""
        before = self._ascents()
        start = time.perf_counter()
        for batch in itertools.islice(self.batches, steps):
            self.state = self.step(self.state, batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - start, self._ascents() - before

    def _ascents(self):
        return int(getattr(self.state.method_state, "ascents", 0))


def main(options: Options) -> None:
    """Runs the command."""
    if options.turns < 1 or options.steps < 1:
        raise cli.UserError("--turns and --steps must be at least 1.")
    if not options.methods:
        raise cli.UserError("--methods must name a method.")
    recipe = options.resolve()
    data = options.load(recipe, seed=0)
    config = {"recipe": options.recipe, "turns": options.turns, "steps": options.steps}
    name = options.name or f"{options.recipe}-benchmark"
    path = runs.folder(options.out, name, config, overwrite=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A convolution's gradient inside a conditional")
        sgd = Contestant(options, recipe, SGD, data, on_host=False)
        others = {
            (method, "host" if on_host else "jit"): Contestant(
                options, recipe, method, data, on_host=on_host
            )
            for method in options.methods
            for on_host in (True, False)
        }
    turns = {key: [] for key in others}
    for _ in range(options.turns):
        unit, _ = sgd.run(options.steps)
        for key, other in others.items():
            seconds, ascents = other.run(options.steps)
            turns[key].append((seconds / unit, 1 + ascents / options.steps))
    rows = [
        {
            "model": recipe.model,
            "method": method,
            "dispatch": dispatch,
            **_ratios(turns[method, dispatch]),
        }
        for method, dispatch in others
    ]
    runs.write_json(path / "benchmark.json", {**config, "rows": rows, **runs.provenance()})
    rich.print(_table(options.recipe, rows))
    print(f"written to {path}/")


def _ratios(turns):
    ratios = [ratio for ratio, _ in turns]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "time_ratio": statistics.median(ratios),
        "ideal_ratio": statistics.fmean(ideal for _, ideal in turns),
        "over_ideal": statistics.median(ratio / ideal for ratio, ideal in turns),
        "spread": quartiles[2] - quartiles[0],
    }


def _table(title, rows):
    table = Table("method", "decided", "time / SGD", "1 + ζ", "time / ideal", "spread", title=title)
    for row in rows:
        figures = (row[k] for k in ("time_ratio", "ideal_ratio", "over_ideal", "spread"))
        table.add_row(row["method"], row["dispatch"], *(f"{figure:.3f}" for figure in figures))
    return table


if __name__ == "__main__":
    cli.run(main, Options)
