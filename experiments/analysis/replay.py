"""An epoch trained once more from a checkpoint, to see what the method does at each step."""

import itertools
from typing import Any

from experiments import cli, fit
from experiments.analysis.trained import Trained
from experiments.checkpoints import CheckpointError
from experiments.training import METRICS, arrays


def replay(trained: Trained, step: int) -> list[dict[str, float]]:
    """A row for each step of the epoch that begins at a checkpoint, or is under way there.

    Args:
      trained: the run.
      step: of the checkpoint, before the run's last.

    Returns:
      Rows with the step, the figures of the step itself (loss, accuracy, ‖g‖, ‖direction‖, whether
      a second gradient was taken) and the scalars of the method's state after it. Where they can be
      told, also r_k = ‖g_k‖ / ‖g_{k−1}‖, and μ + c σ and ‖g‖² of an adaptive policy.

    Raises:
      UserError: each device perturbed for itself, so that the step is not one device's.
    """
    config, data = trained.config, trained.data
    if config["device_perturbations"] is not None:
        raise cli.UserError(
            f"{trained.path} was trained with --perturbation device, and cannot be replayed on one "
            "device: leave the part steps away."
        )
    options = cli.Options(decide=config["decide"])
    per_epoch = len(data.train.labels) // trained.recipe.batch_size
    epoch = step // per_epoch
    phases = [(0, config["method"], config["method_kwargs"]), *config["then"]]
    ends = [*(first for first, _, _ in phases[1:]), trained.recipe.epochs]
    (first, method, settings), last = next(
        (phase, end) for phase, end in zip(phases, ends, strict=True) if epoch < end
    )
    trainer = options.trainer(trained.recipe, method, settings, data, epochs=(first, last))
    try:
        state = trained.checkpoints.restore(step, trainer.init(data.train.images, trained.seed))
    except CheckpointError as error:
        raise cli.UserError(str(error)) from error
    rows, before = [], dict.fromkeys(METRICS, 0.0)
    for _, after in trainer.dispatches(state.state, arrays(data), most=1):
        sums = {name: float(after.metrics[name]) for name in METRICS}
        begins = (int(after.step) - 1) % per_epoch == 0
        own = {name: sums[name] - (0.0 if begins else before[name]) for name in METRICS}
        rows.append({"step": int(after.step), **own, **fit.quantities(after.method_state)})
        before = sums
    return rows


def with_ratio(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """The rows with r_k = ‖g_k‖ / ‖g_{k−1}‖ from the second on."""
    return [
        {**row, "ratio": row["gradient_norm"] / last["gradient_norm"]}
        for last, row in itertools.pairwise(rows)
    ]
