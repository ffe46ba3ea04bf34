"""An epoch trained once more from a checkpoint, to see what the method does at each step."""

import inspect

from experiments.analysis.trained import Trained
from experiments.cli.options import TrainingOptions
from experiments.data.feeds import feed
from experiments.system.errors import UserError
from experiments.training import fit
from experiments.training.checkpoints import CheckpointError
from experiments.training.optimizers import SGD
from experiments.training.state import METRICS
import sam_optax


def replay(trained: Trained, step: int) -> list[dict[str, float]]:
    """A row for each step of the epoch that begins at a checkpoint, or is under way there.

    Args:
      trained: the run.
      step: of the checkpoint, before the run's last.

    Returns:
      Rows with the step, the figures of the step itself (loss, accuracy, ‖g‖, ‖direction‖, whether
      a second gradient was taken) and the scalars of the method's state after it; the ratio r_k =
      ‖g_k‖ / ‖g_{k−1}‖ from the second row on; and the threshold μ + c σ of an adaptive policy.

    Raises:
      UserError: each device perturbed for itself, so that the step is not one device's.
    """
    config, data = trained.config, trained.data
    if config["device_perturbations"] is not None:
        raise UserError(
            f"{trained.path} was trained with --perturbation device, and cannot be replayed on one "
            "device: leave the part steps away."
        )
    options = TrainingOptions(decide=config["decide"])
    per_epoch = data.train.examples // trained.recipe.batch_size
    phases = [(0, config["method"], config["method_kwargs"]), *config["then"]]
    ends = [*(first for first, _, _ in phases[1:]), trained.recipe.epochs]
    spans = list(zip(phases, ends, strict=True))

    def trainer_of(span):
        (first, method, settings), last = span
        epochs = (first, last)
        return options.trainer(trained.recipe, method, settings, data, epochs=epochs)

    # At the switch to another method the checkpoint still holds the state of the one before.
    saved_by = trainer_of(next(span for span in spans if step <= span[1] * per_epoch))
    span = next(span for span in spans if step < span[1] * per_epoch)
    (first, method, settings), last = span
    trainer = trainer_of(span)
    try:
        like = saved_by.init(data.train.shape, trained.seed)
        state = trained.checkpoints.restore(step, like).state
    except CheckpointError as error:
        raise UserError(str(error)) from error
    if 0 < step == first * per_epoch:
        state = trainer.adopt_one(state)
    policy = _threshold(method, settings, (last - first) * per_epoch)
    rows, before = [], {name: float(state.metrics[name]) for name in METRICS}
    for _, after in trainer.dispatches(state, feed(data, trained.recipe.batch_size), most=1):
        sums = {name: float(after.metrics[name]) for name in METRICS}
        begins = (int(after.step) - 1) % per_epoch == 0
        own = {name: sums[name] - (0.0 if begins else before[name]) for name in METRICS}
        row = {"step": int(after.step), **own, **fit.quantities(after.method_state)}
        if rows:
            row["ratio"] = row["gradient_norm"] / rows[-1]["gradient_norm"]
        if policy is not None:
            c = float(policy(row["steps"] - 1))
            row["threshold"] = row["mean"] + c * row["variance"] ** 0.5
        rows.append(row)
        before = sums
    return rows


def _threshold(method, settings, total_steps):
    """c_t of an adaptive policy by the step, or None."""
    if method == SGD:
        return None
    arguments = inspect.signature(getattr(sam_optax, method)).parameters
    if "lambda_1" not in arguments:
        return None
    ends = (settings.get(name, arguments[name].default) for name in ("lambda_1", "lambda_2"))
    return sam_optax.schedules.linear_threshold(*ends, total_steps)
