"""What only an accelerator can tell: every method's step and epoch there, and its memory.

    python -m experiments.gpu_check [--out runs] [options]

Trains ResNet-18 in bfloat16 on CIFAR-10, or on made images of its shapes where it is not prepared.
Every method trains on the same images, in one process and in turns, each beside SGD, after a
warm-up; ratios are medians over the turns. Writes gpu_check.json and gpu_check.md to
<out>/<name>/.
"""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
from pathlib import Path
import statistics
import time
from typing import Any, Literal

import jax
import numpy as np
import rich

from experiments import models
from experiments.benchmark.measure import Turn, over, over_ideal, take_turns
from experiments.cli import command
from experiments.cli.settings import METHODS
from experiments.data import disk, reading, sets
from experiments.data.feeds import arrays
from experiments.models import sizes
from experiments.recipes import RECIPES
from experiments.recipes.base import Recipe
from experiments.results import files, folders, provenance
from experiments.system.errors import UserError
from experiments.system.words import known, positive
from experiments.training.optimizers import SGD
from experiments.training.state import ascents
from experiments.training.trainer import Trainer

# Whole epochs are timed of these; the last two settings never and always take a second gradient.
EPOCHS = (SGD, "sam", "le_sam", "ae_sam", "ae_looksam")
INFINITY = float("inf")
BOUNDS = {
    "ae_sam, never": {"lambda_1": INFINITY, "lambda_2": INFINITY},
    "ae_sam, always": {"lambda_1": -INFINITY, "lambda_2": -INFINITY},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What only an accelerator can tell: every method's step and epoch there, and its memory."""

    methods: tuple[str, ...] = METHODS
    """The methods whose step is measured; those whose epochs are timed are added."""
    model: str = "resnet18"
    width: int | None = None
    """Width of the model's narrowest layer."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the model's computations."""
    batch_size: int = 128
    examples: int = 50_000
    """Images of an epoch."""
    seconds: float = 0.5
    """What a method, and SGD beside it, trains in a turn; ten steps at least."""
    turns: int = 5
    """Turns; a ratio is the median over them."""
    epochs: int = 3
    """Epochs that are timed after the first."""
    workers: int = 8
    """Programs that are compiled at a time."""
    name: str = "gpu_check"
    """The folder inside --out."""
    data_dir: Path = disk.DATA_DIR
    """The TFDS directory."""
    out: Path = Path("runs")
    """The folder of all results."""
    overwrite: bool = False
    """Replace a result of other options."""


class Contestant:
    """A method that trains a few steps at a time, with its compiled program."""

    cycle = 10

    def __init__(self, recipe: Recipe, name: str, loaded: sets.Data, train: Any):
        """Compiles the program."""
        self.name = name
        method = name.partition(",")[0]
        settings = {**recipe.settings.get(method, {}), **BOUNDS.get(name, {})}
        self.trainer = Trainer(recipe, method, settings, data=loaded, on_host=False)
        self.state = self.trainer.init(loaded.train.shape, seed=0)
        self.train, self.order = train, self.trainer.jit_order(self.state.seed, 0)
        start = time.perf_counter()
        lowered = self.trainer.jit_steps.lower(self.state, train, self.order, 0, 1)
        self._program = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.temp_bytes = self._program.memory_analysis().temp_size_in_bytes
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

    def run(self, steps: int) -> Turn:
        """Takes so many steps."""
        before = int(ascents(self.state.method_state))
        start = time.perf_counter()
        self.state = self._program(self.state, self.train, self.order, 0, steps)
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - start
        taken = int(ascents(self.state.method_state)) - before
        return Turn(seconds / steps, taken / steps)


def main(options: Options) -> None:
    """Runs the command."""
    if options.turns < 2:
        raise UserError(f"--turns must be at least 2, got {options.turns}.")
    if options.workers < 1:
        raise UserError(f"--workers must be at least 1, got {options.workers}.")
    positive("seconds", options.seconds)
    if options.examples < options.batch_size:
        raise UserError("--examples must be at least --batch-size.")
    known("model", options.model, models.MODELS)
    sizes.check(options.model, options.width, 10, (32, 32, 3), options.examples)
    path = folders.path_of(options.out, options.name)
    folders.check(path, "gpu_check")
    recipe = dataclasses.replace(
        RECIPES["cifar10_resnet18_ae_sam"],
        model=options.model,
        width=options.width,
        dtype=options.dtype,
        batch_size=options.batch_size,
        train_examples=options.examples,
        validation=0.0,
    )
    chosen = [known("method", name, METHODS) for name in options.methods]
    start = time.perf_counter()
    loaded, real = _load(recipe, options)
    train = arrays(loaded)
    config = {name: str(value) for name, value in folders.config_of(options).items()}
    with folders.anew(path, "gpu_check", config, overwrite=options.overwrite) as folder:
        names = list(dict.fromkeys([*EPOCHS, *chosen, *BOUNDS]))
        with ThreadPoolExecutor(options.workers) as pool:
            made = pool.map(lambda name: Contestant(recipe, name, loaded, train), names)
            contestants = dict(zip(names, made, strict=True))
        report = {
            "images": "CIFAR-10" if real else "made, of the shapes of CIFAR-10",
            "steps": _steps(contestants, options),
            "epochs": _epochs(contestants, options),
            "options": config,
            "seconds": time.perf_counter() - start,
            **provenance.provenance(),
        }
        files.write_json(folder.file("gpu_check.json"), report)
        files.write_text(folder.file("gpu_check.md"), markdown(report))
    rich.print(markdown(report))
    print(f"written to {path}/")


def _load(recipe, options):
    """CIFAR-10, or images and labels at random where it is not prepared."""
    try:
        return sets.load(
            "cifar10", data_dir=options.data_dir, train_examples=options.examples
        ), True
    except ValueError as error:
        raise UserError(f"--examples: {error}") from error
    except disk.NotPreparedError:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (options.examples, 32, 32, 3), np.uint8)
        made = reading.Split(images, rng.integers(0, 10, options.examples, np.int32))
        level = np.full(3, 128, np.float32)
        return sets.Data(made, made, None, 10, 0.0, level, level / 2), False


def _steps(contestants, options):
    """A row a method: time and memory over SGD's, in turns."""
    rivals = {name: [] if name == SGD else [SGD] for name in contestants}
    taken = take_turns(contestants, rivals, turns=options.turns, seconds=options.seconds)
    sgd = contestants[SGD]
    rows = []
    for name, contestant in contestants.items():
        turns = taken[name]
        loss = float(contestant.state.metrics["loss"])
        rows.append(
            {
                "method": name,
                "milliseconds": 1000 * statistics.median(turn[name].seconds for turn in turns),
                "time_ratio": over(turns, name, SGD).median,
                "ideal_ratio": over_ideal(turns, name, SGD).median,
                "sam_fraction": statistics.fmean(turn[name].ascents for turn in turns),
                "temp_bytes": contestant.temp_bytes,
                "temp_bytes_ratio": contestant.temp_bytes / sgd.temp_bytes,
                "state_bytes": contestant.state_bytes,
                "compile_seconds": contestant.compile_seconds,
                "finite": bool(np.isfinite(loss)),
            }
        )
    return rows


def _epochs(contestants, options):
    """Whole epochs in turns: seconds, and how far from (1 + ζ) times SGD's."""
    steps = options.examples // options.batch_size
    chosen = {name: contestants[name] for name in EPOCHS}
    timed = {name: [] for name in chosen}
    for _ in range(options.epochs + 1):
        for name, contestant in chosen.items():
            timed[name].append(contestant.run(steps))
    unit = statistics.median(turn.seconds for turn in timed[SGD][1:])
    rows = []
    for name in chosen:
        seconds = statistics.median(turn.seconds for turn in timed[name][1:])
        share = statistics.fmean(turn.ascents for turn in timed[name][1:])
        rows.append(
            {
                "method": name,
                "seconds": seconds * steps,
                "images_per_second": options.batch_size / seconds,
                "time_ratio": seconds / unit,
                "sam_fraction": share,
                "ideal_ratio": seconds / unit / (1 + share),
            }
        )
    return rows


def markdown(report: dict[str, Any]) -> str:
    """The report as two tables."""
    versions, options = report["versions"], report["options"]
    lines = [
        f"# {options['model']} on {report['device']}",
        "",
        f"{report['images']}, {options['dtype']}, batch {options['batch_size']}; jax "
        f"{versions['jax']}, flax {versions['flax']}, optax {versions['optax']}; the whole check "
        f"took {report['seconds']:.0f} s.",
        "",
        "| method | seconds an epoch | images/s | time / SGD | share of SAM steps | over (1 + ζ) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in report["epochs"]:
        lines.append(
            f"| {row['method']} | {row['seconds']:.2f} | {row['images_per_second']:,.0f} | "
            f"{row['time_ratio']:.3f} | {100 * row['sam_fraction']:.1f} % | "
            f"{row['ideal_ratio']:.3f} |"
        )
    lines += [
        "",
        "| method | ms a step | time / SGD | share of SAM steps | over (1 + ζ) | temporaries (MB) "
        "| over SGD's | state (MB) | compiled in (s) | finite |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in report["steps"]:
        lines.append(
            f"| {row['method']} | {row['milliseconds']:.2f} | {row['time_ratio']:.3f} | "
            f"{100 * row['sam_fraction']:.1f} % | {row['ideal_ratio']:.3f} | "
            f"{row['temp_bytes'] / 1e6:.0f} | "
            f"{row['temp_bytes_ratio']:.2f} | {row['state_bytes'] / 1e6:.0f} | "
            f"{row['compile_seconds']:.1f} | {'yes' if row['finite'] else 'NO'} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    command.run(main, Options)
