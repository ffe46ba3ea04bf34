"""What training goes from step to step with."""

from typing import Any, NamedTuple

import jax

METRICS = ("loss", "accuracy", "gradient_norm", "direction_norm", "sam_fraction", "rise")


class TrainState(NamedTuple):
    """All that a step changes, and all that a checkpoint needs.

    Attributes:
      step: int32, the steps taken; with the seed it fixes the batch and its augmentation.
      seed: uint32, what every random number of the run follows from.
      params: the model's parameters.
      model_state: its batch statistics.
      method_state: the state of the method's link; with a leading axis of devices where each
        perturbs for itself.
      base_state: the state of the rest of the chain.
      metrics: sums over the steps of this epoch, float32 by the names in METRICS.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    model_state: Any
    method_state: Any
    base_state: Any
    metrics: dict[str, jax.Array]


def ascents(method_state: Any) -> jax.typing.ArrayLike:
    """The second gradients that a method has taken."""
    return getattr(method_state, "ascents", 0)


def tells_rise(method_state: Any) -> bool:
    """Whether the first pass is at the parameters, so that its loss is the one to rise from."""
    return not hasattr(getattr(method_state, "start", None), "offset")


def rise(method_state: Any) -> jax.typing.ArrayLike:
    """The loss at the last second point over that of the first pass."""
    return getattr(method_state, "rise", 0.0)
