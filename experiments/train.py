"""Train one model with one method, evaluate it, and write what came of it.

    python -m experiments.train [RECIPE] [--method NAME] [options]

Writes <out>/<name>/: config.json, metrics.jsonl (a line an epoch), curves.png, summary.json, and
checkpoints/ with the whole state. Ctrl-C and SIGTERM save and stop; the same command with --resume
goes on, and ends where an uninterrupted run ends.

On several devices: --mesh data=8. In several processes: the same command in each, with --mesh,
--coordinator, --num-processes and its --process-id.
"""

import dataclasses
import math
from typing import Annotated, Literal

import tyro

from experiments.cli import command
from experiments.cli.options import TrainingOptions
from experiments.cli.settings import MethodName, method_settings
from experiments.results import files, folders, watch
from experiments.system import interrupt, mesh, processes
from experiments.system.errors import UserError
from experiments.training.group import DivergedRunError, Group
from experiments.training.optimizers import is_decoupled
from experiments.training.runs import Plan, Run


@dataclasses.dataclass(frozen=True)
class Options(TrainingOptions):
    """Train one model with one method."""

    method: MethodName | None = None
    set: tuple[str, ...] = ()
    """Settings of the method, such as rho=0.1 gamma=0.9; the recipe's where left out."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """Each draws the weights, the order of the data, the label noise and the method's numbers."""
    vmap_seeds: bool = False
    """Train the seeds at once, on one device, in place of one after the other."""
    switch_at: int | None = None
    """The epoch from which on another method trains."""
    then: str | None = None
    """That other method."""
    then_set: tuple[str, ...] = ()
    """Its settings."""
    name: str | None = None
    """The run's folder inside --out; RECIPE-METHOD-SEED where left out."""
    resume: bool = False
    """Go on with an unfinished run from its last checkpoint."""
    overwrite: bool = False
    """Train anew, and remove what the folder holds."""
    checkpoint_minutes: float = 1.0
    """Minutes between two checkpoints; 0 for one after each dispatch."""
    keep_epochs: int | None = None
    """Keep a checkpoint of every so many epochs, to look at later; else the last two alone stay."""
    steps_per_dispatch: int = 100
    """Steps that an accelerator takes at a time."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too; needs the package tensorboardX."""
    mesh: str | None = None
    """Devices to train on, such as data=8, or data=4,model=2 with the parameters divided over two;
    on CPU they are virtual ones."""
    perturbation: Literal["global", "device"] = "global"
    """One perturbation of the whole batch, or each device one of its part (m-sharpness)."""
    coordinator: str | None = None
    """Of several processes the address of number 0, host:port; auto on Slurm and cloud TPUs."""
    process_id: int | None = None
    """The number of this process, from 0."""
    num_processes: int | None = None
    """How many processes there are; each starts with the same command."""


def main(options: Options) -> None:
    """Runs the command."""
    layout = _layout(options)
    plan = _plan(options, layout)
    if len(set(options.seeds)) < len(options.seeds) or not options.seeds:
        raise UserError(f"--seeds must be different numbers, got {options.seeds}.")
    if options.resume and options.overwrite:
        raise UserError("--resume goes on and --overwrite begins again: pass one of them.")
    together = options.vmap_seeds and len(options.seeds) > 1
    if together and layout is not None:
        raise UserError("--vmap-seeds trains on one device: leave it or --mesh away.")
    all_runs = [Run(options, plan, seed) for seed in options.seeds]
    unfinished = [run for run in all_runs if not run.finished]
    # Seeds that are trained at once go on together, also where only some have their results.
    groups = [all_runs] if together and unfinished else [[run] for run in unfinished]
    trained = [run for group in groups for run in group]
    diverged = {}
    with interrupt.noted() as stopped:
        for group in groups:
            try:
                Group(options, plan, group, stopped).train()
            except DivergedRunError as error:  # the other seeds may not
                diverged.update(dict.fromkeys(group, error))
    for run in all_runs:
        if run in diverged or not processes.is_first():
            continue
        summary = files.read_json(run.path / folders.SUMMARY)
        watch.table(f"{options.recipe}, {plan.method}, seed {run.seed}", _figures(summary))
        said = "written" if run in trained else "already finished (--overwrite trains it again)"
        print(f"{said}: {run.path}/")
    if diverged:
        raise UserError(" ".join(dict.fromkeys(map(str, diverged.values()))))


def _layout(options):
    """The mesh, and all processes on it; None for the default device."""
    several = (options.coordinator, options.process_id, options.num_processes)
    if options.mesh is None:
        if any(value is not None for value in several):
            raise UserError("several processes need --mesh, the devices of all of them.")
        if options.perturbation == "device":
            raise UserError("--perturbation device needs --mesh, such as --mesh data=8.")
        return None
    try:
        sizes = mesh.parse(options.mesh)
        if options.perturbation == "device" and sizes.get(mesh.MODEL, 1) > 1:
            raise ValueError(
                "with --perturbation device each device holds all parameters: leave model away."
            )
        processes.connect(*several, devices=math.prod(sizes.values()))
        own = {"process_id": None, "out": None, "data_dir": None, "workers": None, "weights": None}
        processes.check_alike(f"{dataclasses.replace(options, **own)} {options.digest}")
        processes.check_shared(options.out)
        return mesh.Layout(sizes)
    except (ValueError, processes.NoConnectionError) as error:
        raise UserError(f"--mesh {options.mesh}: {error}") from error
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be used: {error}.") from error


def _plan(options, layout):
    """The recipe and the methods that train it."""
    recipe = options.resolve()
    if layout is not None and recipe.batch_size % layout.size:
        raise UserError(
            f"--batch-size {recipe.batch_size} cannot be divided over {layout.size} devices: pass "
            "a multiple of them."
        )
    method = recipe.method if options.method is None else options.method
    if options.epochs is None and options.then is None:
        recipe = recipe.of(method)
    methods = [(0, method, method_settings(recipe, method, options.set))]
    if (options.switch_at is None) != (options.then is None):
        raise UserError("--switch-at and --then go together: the epoch and the method.")
    if options.then is not None:
        if not 0 < options.switch_at < recipe.epochs:
            raise UserError(
                f"--switch-at must lie between 0 and the {recipe.epochs} epochs, got "
                f"{options.switch_at}."
            )
        settings = method_settings(recipe, options.then, options.then_set)
        if is_decoupled(method) or is_decoupled(options.then):
            raise UserError(
                "a decoupled method such as wsam keeps the base optimizer's momentum inside, so "
                "there is no switching to it or from it: switch to another method."
            )
        methods.append((options.switch_at, options.then, settings))
    elif options.then_set:
        raise UserError("--then-set is for the method of --then, and there is none.")
    apart = options.perturbation == "device"
    if apart and options.decide == "host":
        raise UserError("--perturbation device decides on the device: leave --decide away.")
    return Plan(recipe, methods, layout, apart)


def _figures(summary):
    """The figures of a run as text, the paper's beside ours."""
    splits = {"test": "test", "validation": "held-out", "train": "train"}
    figures = {
        f"{said} accuracy": f"{100 * summary[f'{split}_accuracy']:.2f} %"
        for split, said in splits.items()
        if f"{split}_accuracy" in summary
    }
    if summary["paper"] is not None:
        where = "" if summary["papers_protocol"] else ", at its own options"
        if summary["paper_reports"] == "best":
            figures["best test accuracy"] = f"{100 * summary['test_accuracy_best']:.2f} %"
            where = f", best{where}"
        figures[f"test accuracy in the paper{where}"] = f"{summary['paper']:.2f} %"
    if summary.get("corrupt"):
        figures["images left out that cannot be decoded"] = f"{len(summary['corrupt']):,}"
    return {
        **figures,
        "test loss": f"{summary['test_loss']:.4f}",
        "gradients per step": f"{summary['gradients_per_step']:.2f}",
        "share of SAM steps": f"{100 * summary['sam_fraction']:.1f} %",
        "seconds": f"{summary['seconds']:.1f}",
    }


if __name__ == "__main__":
    command.run(main, Options)
