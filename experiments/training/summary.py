"""What is left of a run at its end: the summary and the picture of its curves."""

from collections.abc import Mapping, Sequence
import statistics
from typing import Any

import jax

from experiments.data.pipeline.stream import Stream
from experiments.data.sets import Data
from experiments.results import files, folders, plots, provenance
from experiments.results.collected import differences
from experiments.system import processes
from experiments.training import fit
from experiments.training.runs import Plan, Run


def write(
    options: Any,
    plan: Plan,
    phases: Sequence[fit.Phase],
    run: Run,
    data: Data,
    on_train: Mapping[str, float],
) -> None:
    """Summary and picture of a run whose last epoch is over; the first process writes them.

    Args:
      options: those of the command.
      plan: what was trained.
      phases: what trained it.
      run: the run.
      data: its data.
      on_train: loss and accuracy on the training set.
    """
    corrupt = processes.union({name for split in _streams(data) for name in split.corrupt})
    if not processes.is_first():
        return
    recipe, last = plan.recipe, run.rows[-1]
    accuracies = [row["test_accuracy"] for row in run.rows]
    fractions = [row["sam_fraction"] for row in run.rows]
    (_, method, settings), *then = plan.methods
    samples = [phase.trainer.samples for phase in phases for _ in range(phase.first, phase.last)]
    plots.curves(
        run.folder.file("curves.png"),
        run.rows,
        title=f"{options.recipe}, {plan.method}",
    )
    summary = {
        "recipe": options.recipe,
        "method": plan.method,
        "method_kwargs": settings,
        "then": then,
        "seed": run.seed,
        **fit.costs(fractions, phases[0].trainer.steps_per_epoch, samples),
        **{f"train_{name}": value for name, value in on_train.items()},
        **{name: last[name] for name in last if name.startswith(("test_", "validation_"))},
        "test_accuracy_best": max(accuracies),
        "test_accuracy_last_ten": statistics.fmean(accuracies[-10:]),
        "paper": None if then else recipe.paper.get(method),
        "paper_reports": recipe.reports,
        "papers_protocol": not any(differences(run.config())),
        "seconds": run.seconds,
        "label_noise": recipe.label_noise,
        "flipped": data.flipped,
        "corrupt": corrupt,
        "validation": recipe.validation,
        "weights": _weights(options, phases),
        "decided_on": "host" if phases[0].trainer.on_host else "device",
        "mesh": None if plan.layout is None else dict(plan.layout.mesh.shape),
        "processes": jax.process_count(),
        "config": run.checkpoints.of,
        "metrics": files.checksum(run.rows),
        **provenance.provenance(),
    }
    files.write_json(run.folder.file(folders.SUMMARY), summary)
    run.folder.done()


def _weights(options, phases):
    """What is known of the weights that the runs began with."""
    source = phases[0].trainer.source
    if source is None:
        return None
    return {"file": options.weights.name, **source._asdict()}


def _streams(data):
    """The streams among the splits of a set."""
    tests = data.test.values() if isinstance(data.test, dict) else [data.test]
    return [split for split in (data.train, data.validation, *tests) if isinstance(split, Stream)]
