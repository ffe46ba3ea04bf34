"""From a state to the end of a run, epoch by epoch, with one method or with two in turn."""

from collections.abc import Callable, Sequence
import math
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.feeds import feed
from experiments.data.sets import Data
from experiments.training.state import METRICS, TrainState, tells_rise
from experiments.training.trainer import Trainer


class Phase(NamedTuple):
    """The epochs from first to last, last excluded, and what trains them."""

    first: int
    last: int
    trainer: Trainer


class DivergedError(Exception):
    """The loss is no longer finite."""


def fit(
    phases: Sequence[Phase],
    state: TrainState,
    train: Any,
    *,
    most: int = 100,
    on_epoch: Callable[[Phase, int, TrainState], None] = lambda phase, epoch, state: None,
    on_dispatch: Callable[[Phase, int, TrainState], None] = lambda phase, steps, state: None,
) -> TrainState:
    """Trains from where the state is to the end of the last phase.

    Args:
      phases: what trains which epochs, in order and without gaps.
      state: the state to begin with, which is donated.
      train: the training set, as `experiments.data.feeds.feed` gives it.
      most: the most steps of a dispatch.
      on_epoch: told the phase, the number of epochs done and the state at the end of each.
      on_dispatch: told the phase, the number of steps done and the state after each dispatch, after
        `on_epoch` where both are due. The state lives until the next dispatch.

    Returns:
      The state after the last step.
    """
    per_epoch = phases[0].trainer.steps_per_epoch
    for phase in phases:
        done = int(np.min(state.step))
        if 0 < done == phase.first * per_epoch:
            state = phase.trainer.adopt(state)
        for _ in range(done // per_epoch, phase.last):
            for steps, state in phase.trainer.dispatches(state, train, most=most):  # noqa: B020
                done += steps
                if done % per_epoch == 0:
                    on_epoch(phase, done // per_epoch, state)
                on_dispatch(phase, done, state)
    return jax.block_until_ready(state)


def means(state: TrainState, steps: int) -> dict[str, float]:
    """The means of the metrics over the steps of an epoch; that of `rise` over its SAM steps.

    Raises:
      DivergedError: the loss or a parameter is not finite.
    """
    found = {name: float(state.metrics[name]) / steps for name in METRICS}
    for name, value in (("loss", found["loss"]), ("norm of the parameters", _norm(state.params))):
        if not math.isfinite(value):
            raise DivergedError(
                f"the {name} is {float(value)} at step {int(state.step)}: lower the learning rate "
                "or the perturbation, and begin again with --overwrite or another --name."
            )
    rise, share = found.pop("rise"), found["sam_fraction"]
    return found | {"rise": rise / share} if share and tells_rise(state.method_state) else found


_norm = jax.jit(optax.tree.norm)


def quantities(method_state: Any, *, apart: bool = False) -> dict[str, float]:
    """The scalars of a method's state by their names: ascents, rho, lambda_k, mean and more.

    But `rise`, whose mean over an epoch is told by `means`.

    Args:
      method_state: the state.
      apart: whether it has a leading axis of devices, whose mean is told.
    """
    leaves = jax.tree_util.tree_leaves_with_path(method_state)
    scalars = {
        jax.tree_util.keystr(path[-1:], simple=True): leaf
        for path, leaf in leaves
        if np.ndim(leaf) == int(apart)
    }
    scalars.pop("rise", None)
    return {name: leaf.item() for name, leaf in (_mean(scalars) if apart else scalars).items()}


@jax.jit
def _mean(scalars):
    """Of each over the devices."""
    return jax.tree.map(jnp.mean, scalars)


def evaluation(trainer: Trainer, state: TrainState, train: Any, data: Data) -> dict[str, float]:
    """Loss and accuracy on the test split, and on the held-out part where there is one.

    Of several test domains each is told, and as `test` their mean, in which each counts alike.
    """
    domains = isinstance(data.test, dict)
    tests = {f"test_{name}": split for name, split in data.test.items()} if domains else {}
    splits = {**(tests or {"test": data.test}), "validation": data.validation}
    found = {
        name: trainer.evaluate(state, split, train)
        for name, split in splits.items()
        if split is not None
    }
    if domains:
        found["test"] = {
            quantity: statistics.fmean(found[name][quantity] for name in tests)
            for quantity in ("loss", "accuracy")
        }
    return {
        f"{name}_{quantity}": value
        for name, quantities in found.items()
        for quantity, value in quantities.items()
    }


def costs(
    fractions: Sequence[float], steps_per_epoch: int, samples: Sequence[int]
) -> dict[str, float]:
    """What the run cost in gradients.

    Args:
      fractions: the share of SAM steps in each epoch.
      steps_per_epoch: steps of an epoch.
      samples: how many gradients the first of a step was the mean of, in each epoch.
    """
    steps = len(fractions) * steps_per_epoch
    ascents = round(sum(fractions) * steps_per_epoch)
    return {
        "epochs": len(fractions),
        "steps": steps,
        "ascents": ascents,
        "sam_fraction": ascents / steps,
        "gradients_per_step": sum(samples) / len(samples) + ascents / steps,
    }


def train(
    trainer: Trainer,
    data: Data,
    *,
    seed: int,
    on_dispatch: Callable[[Phase, int, TrainState], None] = lambda phase, steps, state: None,
) -> dict[str, Any]:
    """Trains from a seed and returns the figures of the last epoch.

    Args:
      trainer: what trains.
      data: what it trains and is evaluated on.
      seed: draws the weights, the order of the data and the method's numbers.
      on_dispatch: as in `fit`.

    Raises:
      DivergedError: the loss of an epoch is not finite.
    """
    start = time.perf_counter()
    fractions, on_device = [], feed(data, trainer.recipe.batch_size)

    def on_epoch(phase, epoch, state):
        del phase, epoch
        fractions.append(means(state, trainer.steps_per_epoch)["sam_fraction"])

    phases = [Phase(0, trainer.recipe.epochs, trainer)]
    state = trainer.init(data.train.shape, seed)
    state = fit(phases, state, on_device, on_epoch=on_epoch, on_dispatch=on_dispatch)
    seconds = time.perf_counter() - start
    on_train = trainer.evaluate(state, data.train, on_device)
    return {
        "seed": seed,
        **costs(fractions, trainer.steps_per_epoch, [trainer.samples] * len(fractions)),
        **{f"train_{name}": value for name, value in on_train.items()},
        **evaluation(trainer, state, on_device, data),
        "seconds": seconds,
    }
