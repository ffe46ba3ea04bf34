"""What a step of every method costs, beside SGD, beside peers, and beside what is promised.

    python -m experiments.benchmark [--models mlp small_cnn] [--methods sam ae_sam] [options]

All in one process and in turns, after a warm-up; a ratio is the median over the turns of times
taken one right after the other. Writes <out>/<name>/: benchmark.json, its rows with FLOPs, times,
bytes and compilation over those of SGD; benchmark.md, the bars first.
"""

import dataclasses
from importlib import metadata
import importlib.util
import os
from pathlib import Path
from typing import Literal

import jax

from experiments.benchmark import bars, problems, report, table
from experiments.cli import command
from experiments.cli.settings import METHODS
from experiments.results import files, folders, provenance
from experiments.system.errors import UserError
from experiments.system.words import known, positive

# What `--peers` adds, and whose versions are told.
PACKAGES = {"optax": (), "torch": ("torch", "pytorch_optimizer"), "rollfast": ("rollfast",)}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a step of every method costs."""

    models: tuple[str, ...] = tuple(problems.MODELS)
    """What to train: mlp, small_cnn, resnet18, vit_small."""
    methods: tuple[str, ...] = METHODS[1:]
    """Methods of sam_optax, with their defaults, but adaptive thresholds at the mean."""
    peers: tuple[Literal["optax", "torch", "rollfast"], ...] = ("optax",)
    """Whom to compare with beside a hand-written SAM: optax always, torch and rollfast (which needs
    Python 3.12) with the extra peers."""
    batch_size: int | None = None
    """Images a step; left out, what two cores train in well under a second."""
    width: int | None = None
    """Width of the models' narrowest layer."""
    turns: int | None = None
    """Turns; a ratio is the median over them. Left out, 11 of slow models, 101 of quick ones; 0
    for what the compiler counts alone, which can be told of a batch too large to train here."""
    seconds: float = 0.02
    """What a method, and each one it is compared with, trains in a turn; one step at least."""
    name: str = "benchmark"
    """The folder inside --out."""
    out: Path = Path("runs")
    """The folder of all results."""
    overwrite: bool = False
    """Replace a result of other options."""


def main(options: Options) -> None:
    """Runs the command."""
    if options.turns not in (None, 0) and options.turns < 2:
        raise UserError(
            f"--turns must be at least 2 for a spread, or 0 for no times, got {options.turns}."
        )
    positive("seconds", options.seconds)
    if not options.models:
        raise UserError(f"--models must name one: {', '.join(problems.MODELS)}.")
    for model in options.models:
        known("model", model, problems.MODELS)
    for method in options.methods:
        known("method", method, METHODS[1:])
    torch = "torch" in options.peers
    if torch and options.turns == 0:
        raise UserError("--peers torch is for times: leave --turns 0 away.")
    if torch and importlib.util.find_spec("pytorch_optimizer") is None:
        raise UserError('--peers torch needs PyTorch: pip install -e ".[peers]".')
    if "rollfast" in options.peers and importlib.util.find_spec("rollfast") is None:
        raise UserError(
            '--peers rollfast needs rollfast, and Python 3.12: pip install -e ".[peers]".'
        )
    if torch and options.width is not None:
        raise UserError("--width is of JAX's models alone: leave it out with --peers torch.")
    config = folders.config_of(options)
    path = folders.path_of(options.out, options.name)
    with folders.anew(path, "benchmark", config, overwrite=options.overwrite) as folder:
        # A cached compilation costs nothing, and is no measurement.
        jax.config.update("jax_enable_compilation_cache", False)
        rows, came_about = [], provenance.provenance()
        for name in (name for peer in options.peers for name in PACKAGES[peer]):
            came_about["versions"][name] = metadata.version(name)
        for model in dict.fromkeys(options.models):
            problem = problems.of_model(model, batch_size=options.batch_size, width=options.width)
            rows += table.measure(
                problem,
                options.methods,
                torch=torch,
                rollfast="rollfast" in options.peers,
                turns=problems.MODELS[model].turns if options.turns is None else options.turns,
                seconds=options.seconds,
            )
            found = {"config": config, "rows": rows, "cores": os.cpu_count(), **came_about}
            files.write_json(folder.file("benchmark.json"), found)
            files.write_text(folder.file("benchmark.md"), report.markdown(found))
    print("\n".join(report.bars(bars.judge(rows))))
    print(f"written to {path}/")


if __name__ == "__main__":
    command.run(main, Options)
