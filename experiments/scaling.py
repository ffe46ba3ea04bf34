"""What the devices of a mesh send each other in a step of each method, and what that costs.

    python -m experiments.scaling [options]

Compiles the training step of every method for a mesh, counts what it sends, and models a step on
more devices from a measured step on one and a link's speed. Writes <out>/<name>/: scaling.json,
scaling.md, scaling.png.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
from rich.progress import track

from experiments.benchmark import collectives, contestants, problems
from experiments.benchmark.bars import ONE_GRADIENT, SKIPPING
from experiments.benchmark.measure import Program
from experiments.cli import command
from experiments.cli.options import TrainingOptions
from experiments.cli.settings import METHODS
from experiments.data.disk import DATA_DIR
from experiments.data.sets import Data
from experiments.recipes.base import Recipe
from experiments.results import files, folders, plots, provenance
from experiments.system import processes
from experiments.system.errors import UserError
from experiments.system.mesh import DATA, MODEL, Layout
from experiments.system.words import known, positive
from experiments.training.objectives import Batch
from experiments.training.optimizers import SGD
from experiments.training.state import METRICS
from experiments.training.trainer import Trainer
import sam_optax

NUMBER = 4  # bytes
WAYS = {"global": {DATA: 8}, "device": {DATA: 8}, "fsdp": {DATA: 4, MODEL: 2}}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the devices send each other in a step of each method."""

    methods: tuple[str, ...] = METHODS
    """Methods of sam_optax, with their defaults."""
    model: str = "vit_small"
    """Whose step is timed on this device, for the model of the cost."""
    batch_size: int | None = None
    """Images of that step on each device."""
    gigabits: tuple[float, ...] = (10.0, 100.0)
    """Speeds of the links between devices, in Gb/s."""
    microseconds: float = 20.0
    """Latency of a link."""
    data_dir: Path = DATA_DIR
    """The TFDS directory."""
    name: str = "scaling"
    """The folder inside --out."""
    out: Path = Path("runs")
    """The folder of all results."""
    overwrite: bool = False
    """Replace a result of other options."""


class Sent(NamedTuple):
    """Bytes on one device: at every step, and at the steps with a second gradient besides."""

    certain: int
    conditional: int


def sent(hlo: str, *kinds: str) -> Sent:
    """What a compiled step sends by some kinds of collectives."""
    found = [c for c in collectives.found(hlo) if c.kind in kinds]
    behind = sum(c.bytes for c in found if c.conditional)
    return Sent(sum(c.bytes for c in found) - behind, behind)


def formula(method: str, *, parameters: int, later: int, kept: int, apart: bool) -> Sent:
    """The bytes that the training step of a method all-reduces.

    Args:
      method: its name.
      parameters: the bytes of all parameters.
      later: of the kernels behind the first layer, which a product with the Hessian sends twice.
      kept: of the examples that `esam` keeps.
      apart: whether each device perturbs for itself.
    """
    if apart:
        together = "axis_name" in _arguments(method)
        return Sent(parameters + NUMBER * (len(METRICS) + together), 0)
    metrics = 2 * NUMBER  # the means of loss and accuracy
    first = parameters + metrics
    if method == SGD or method in ONE_GRADIENT:
        return Sent(first, 0)
    second = parameters + NUMBER  # and its loss
    if method in SKIPPING:
        return Sent(first, second)
    chosen = kept if method == "esam" else 0
    product = parameters + later if method == "eigen_sam" else 0
    return Sent(first + second + chosen, product)


def _arguments(method):
    return () if method == SGD else inspect.signature(getattr(sam_optax, method)).parameters


def compiled_step(recipe: Recipe, method: str, data: Data, layout: Layout, *, apart: bool) -> str:
    """The HLO of the training step of a method with its defaults, compiled for a mesh."""
    trainer = Trainer(recipe, method, {}, data=data, on_host=False, layout=layout, apart=apart)
    state = trainer.init(data.train.shape, 0)
    images = jnp.zeros((recipe.batch_size, *data.train.shape), jnp.float32)
    batch = Batch(images, jnp.zeros(recipe.batch_size, jnp.int32))
    batch = jax.device_put(batch, layout.batch)
    return trainer.jit_step.lower(state, batch).compile().as_text()


def count(recipe: Recipe, methods: Sequence[str], data: Data) -> list[dict[str, Any]]:
    """A row a method: the bytes of each way, all-reduced and otherwise sent."""
    rows = []
    for method in track(methods, "compiling", transient=True):
        row: dict[str, Any] = {"method": method}
        for way, sizes in WAYS.items():
            layout = Layout(sizes)
            hlo = compiled_step(recipe, method, data, layout, apart=way == "device")
            others = [kind for kind in collectives.KINDS if kind != "all-reduce"]
            row[way] = {
                "all-reduce": sent(hlo, "all-reduce")._asdict(),
                "other": sent(hlo, *others)._asdict(),
            }
        rows.append(row)
    return rows


def seconds(
    *,
    gradients: float,
    reductions: float,
    gradient: float,
    payload: float,
    devices: int,
    speed: float,
    latency: float,
) -> float:
    """The time of a step on many devices, each with the same batch as on one.

    A gradient takes as long as on one device. An all-reduce of b bytes over n devices sends
    2 (n − 1)/n · b over each link, in 2 log₂ n rounds, and nothing of it is hidden behind
    computation.

    Args:
      gradients: of a step, on average.
      reductions: all-reduces of a step, on average.
      gradient: seconds of a gradient.
      payload: bytes of an all-reduce.
      devices: n.
      speed: of a link, in bytes a second.
      latency: of a link, in seconds.
    """
    if devices == 1:
        return gradients * gradient
    transfer = 2 * (devices - 1) / devices * payload / speed
    return gradients * gradient + reductions * (transfer + 2 * math.log2(devices) * latency)


def main(options: Options) -> None:
    """Runs the command."""
    for method in options.methods:
        known("method", method, METHODS)
    known("model", options.model, problems.MODELS)
    for name in ("methods", "gigabits"):
        if not getattr(options, name):
            raise UserError(f"--{name} needs a value or more.")
    positive("microseconds", options.microseconds)
    for speed in options.gigabits:
        positive("gigabits", speed)
    processes.connect(None, None, None, devices=8)
    if jax.device_count() < 8:
        raise UserError(
            f"counting takes 8 devices, and there are {jax.device_count()}: run it with "
            "JAX_PLATFORMS=cpu, which makes virtual ones."
        )
    config = folders.config_of(options)
    path = folders.path_of(options.out, options.name)
    with folders.anew(path, "scaling", config, overwrite=options.overwrite) as folder:
        digits = TrainingOptions(data_dir=options.data_dir)
        recipe = digits.resolve()
        loaded = digits.load(recipe, 0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A convolution's gradient inside a conditional")
            rows = count(recipe, options.methods, loaded)
        problem = problems.of_model(options.model, batch_size=options.batch_size)
        program = Program(problem, contestants.on_device(problem, SGD))
        program.run(2)
        found = {
            "config": config,
            "rows": rows,
            "recipe_parameter_bytes": parameter_bytes(recipe, loaded),
            "model": options.model,
            "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(problem.params)),
            "batch_size": len(problem.batches[0][0]),
            "gradient_seconds": program.run(5).seconds,
            **provenance.provenance(),
        }
        files.write_json(folder.file("scaling.json"), found)
        files.write_text(folder.file("scaling.md"), markdown(found))
        plots.scaling(folder.file("scaling.png"), found, predictions(found))
    print(f"written to {path}/")


def parameter_bytes(recipe: Recipe, data: Data) -> int:
    """Of the recipe's model."""
    trainer = Trainer(recipe, SGD, {}, data=data, on_host=False)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.init(data.train.shape, 0).params))


# What is drawn: gradients and all-reduces of a step.
DRAWN = {
    "SGD": (1, 1),
    "SAM, global perturbation": (2, 2),
    "SAM, one perturbation a device": (2, 1),
    "AE-SAM (ζ = ½), global": (1.5, 1.5),
    "LookSAM (period 5), global": (1.2, 1.2),
    "MSAM": (1, 1),
}
DEVICES = (1, 8, 64, 512, 4096)


def predictions(found: Mapping[str, Any]) -> dict[float, dict[str, list[float]]]:
    """For each speed in Gb/s and each method drawn the seconds of a step on DEVICES."""
    config = found["config"]
    return {
        gigabits: {
            name: [
                seconds(
                    gradients=gradients,
                    reductions=reductions,
                    gradient=found["gradient_seconds"],
                    payload=found["parameter_bytes"],
                    devices=devices,
                    speed=gigabits * 1e9 / 8,
                    latency=config["microseconds"] * 1e-6,
                )
                for devices in DEVICES
            ]
            for name, (gradients, reductions) in DRAWN.items()
        }
        for gigabits in config["gigabits"]
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The table of bytes, and that of the cost."""
    unit = found["recipe_parameter_bytes"]

    def cell(counted):
        certain, behind = (counted[key] / unit for key in ("certain", "conditional"))
        return f"{certain:.3f}" + (f" + {behind:.3f}" if behind else "")

    lines = [
        "# What devices send in a step",
        "",
        "![Seconds of a step over the devices, by the model of the cost below](scaling.png)",
        "",
        f"All-reduced bytes on one device over those of the parameters ({unit:,}), in the training "
        "step of the recipe digits: at every step, + at those behind a conditional. FSDP: of all "
        "collectives.",
        "",
        "| method | global perturbation, data=8 | one a device, data=8 | FSDP, data=4, model=2 |",
        "|---|--:|--:|--:|",
    ]
    for row in found["rows"]:
        whole = {
            key: sum(row["fsdp"][kind][key] for kind in ("all-reduce", "other"))
            for key in ("certain", "conditional")
        }
        cells = [cell(row["global"]["all-reduce"]), cell(row["device"]["all-reduce"]), cell(whole)]
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    size = f"{found['parameter_bytes'] / 1e6:.0f} MB of parameters"
    lines += [
        "",
        "## The model of the cost",
        "",
        f"{found['model']}, {size}, {found['batch_size']} images a device; a gradient takes "
        f"{1000 * found['gradient_seconds']:.0f} ms on {found['device']} (measured); latency "
        f"{found['config']['microseconds']:g} µs. Seconds of a step:",
        "",
        f"| link | method | {' | '.join(f'{n:,} devices' for n in DEVICES)} |",
        f"|---|---|{'--:|' * len(DEVICES)}",
    ]
    for gigabits, methods in predictions(found).items():
        for name, each in methods.items():
            figures = " | ".join(f"{value:.3f}" for value in each)
            lines.append(f"| {gigabits:g} Gb/s | {name} | {figures} |")
    return "\n".join([*lines, "", f"{provenance.versions(found)}.", ""])


if __name__ == "__main__":
    command.run(main, Options)
