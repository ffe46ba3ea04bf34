"""How the overhead of a step grows: with parameters, with leaves, with the batch, on the host.

    python -m experiments.benchmark.growth [options]

Writes <out>/<name>/: growth.json and growth.png, the time over (1 + ζ) times that of SGD.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from experiments.benchmark import contestants
from experiments.benchmark.measure import Program, over_ideal, take_turns
from experiments.benchmark.problems import Problem
from experiments.cli import command
from experiments.results import files, folders, plots, provenance
from experiments.system import memory
from experiments.system.errors import UserError
from experiments.system.words import positive
from experiments.training.optimizers import SGD

# What each axis varies, and what the others are meanwhile: parameters, leaves, batch.
AXES = {
    "parameters": [(10**n, 10, 128) for n in (5, 6, 7, 8)],
    "leaves": [(10**6, leaves, 128) for leaves in (10, 100, 1000, 3000)],
    "batch": [(10**6, 10, 4**n) for n in (1, 3, 5, 7)],
}
# Beyond so many leaves XLA takes more than half an hour over the compiled pieces of a host step.
MOST_LEAVES_ON_HOST = 1000
CONTESTANTS = {
    "hand-written SAM": contestants.hand_written,
    "sam": lambda problem: contestants.on_device(problem, "sam"),
    "r_sam": lambda problem: contestants.on_device(problem, "r_sam"),
    "looksam": lambda problem: contestants.on_device(problem, "looksam"),
    "sam on the host": lambda problem: contestants.on_host(problem, "sam"),
    "looksam on the host": lambda problem: contestants.on_host(problem, "looksam"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How the overhead of a step grows."""

    most: int = 10**8
    """Parameters of the largest problem; each needs about 50 bytes of memory."""
    turns: int = 15
    """Turns; a ratio is the median over them."""
    seconds: float = 0.05
    """What a method, and SGD beside it, trains in a turn; one step at least."""
    name: str = "growth"
    """The folder inside --out."""
    out: Path = Path("runs")
    """The folder of all results."""
    overwrite: bool = False
    """Replace a result of other options."""


def layers(parameters: int, leaves: int, batch: int) -> Problem:
    """Square layers side by side, so that none waits for another: mean (1/L) Σ |tanh(x W_i)|²."""
    width = max(1, round((parameters / leaves) ** 0.5))
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape, scale=0.1), jnp.float32)

    params = {f"layer_{i}": normal(width, width) for i in range(leaves)}

    def losses(params, model_state, x):
        each = [(jnp.tanh(x @ w) ** 2).sum(axis=1) for w in params.values()]
        return sum(each) / leaves, model_state

    return Problem("layers", params, {}, [normal(batch, width)], losses, convolutional=False)


def main(options: Options) -> None:
    """Runs the command."""
    if options.turns < 2:
        raise UserError(f"--turns must be at least 2, got {options.turns}.")
    positive("seconds", options.seconds)
    least = min(sizes[0] for found in AXES.values() for sizes in found)
    if options.most < least:
        raise UserError(f"--most must be at least {least}, got {options.most}.")
    memory.check(50 * options.most, f"a problem of --most {options.most:,} parameters")
    config = folders.config_of(options)
    path = folders.path_of(options.out, options.name)
    with folders.anew(path, "benchmark.growth", config, overwrite=options.overwrite) as folder:
        jax.config.update("jax_enable_compilation_cache", False)
        points = [
            (axis, sizes)
            for axis, found in AXES.items()
            for sizes in found
            if sizes[0] <= options.most
        ]
        measured: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
        rows = []
        for axis, sizes in track(points, "measuring"):
            if sizes not in measured:  # the axes cross
                measured[sizes] = _measure(layers(*sizes), options)
            parameters, leaves, batch = sizes
            sizes = {"parameters": parameters, "leaves": leaves, "batch": batch}
            rows += [{"axis": axis, **sizes, **row} for row in measured[parameters, leaves, batch]]
            found = {"config": config, "rows": rows, **provenance.provenance()}
            files.write_json(folder.file("growth.json"), found)
        title = f"{found['device']}, jax {jax.__version__}"
        plots.growth(folder.file("growth.png"), rows, title=title)
    print(f"written to {path}/")


def _measure(problem, options):
    """A row a contestant, of which one at a time is held beside SGD."""
    unit, rows = Program(problem, contestants.on_device(problem, SGD)), []
    for name, make in CONTESTANTS.items():
        if "on the host" in name and len(problem.params) > MOST_LEAVES_ON_HOST:
            continue
        programs = {name: Program(problem, make(problem)), SGD: unit}
        taken = take_turns(programs, {name: [SGD]}, turns=options.turns, seconds=options.seconds)
        found = over_ideal(taken[name], name, SGD)
        rows.append({"method": name, "ideal_ratio": found.median, "spread": found.spread})
    return rows


if __name__ == "__main__":
    command.run(main, Options)
