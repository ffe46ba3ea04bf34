"""What a method will decide at the coming steps, where that hangs on no gradient."""

from collections.abc import Iterator, Sequence
import itertools
from typing import Any

import jax
import numpy as np
import optax

import sam_optax

Fires = Sequence[bool | None]


def decisions(link: optax.GradientTransformation, method_state: Any, steps: int) -> Fires:
    """The decisions of so many steps; None where they are not known, or not one for all seeds.

    Args:
      link: the method's.
      method_state: its state; with a leading axis that of several seeds, or of several devices.
      steps: how many.
    """
    if not isinstance(method_state, sam_optax.SharpnessAwareState):  # SGD
        return [False] * steps
    states = [method_state]
    if np.ndim(method_state.steps):
        states = [_number(i, method_state) for i in range(len(_local(method_state.steps)))]
    try:
        sam_optax.decisions(link, states[0], 0)
    except ValueError:  # they hang on the gradients
        return [None] * steps
    first, *others = [sam_optax.decisions(link, state, steps).tolist() for state in states]
    return first if all(other == first for other in others) else [None] * steps


def _number(i: int, states: Any) -> Any:
    """One of several states; of devices one that this process has."""
    return jax.tree.map(lambda leaf: _local(leaf)[i], states)


def _local(leaf: jax.Array) -> jax.Array:
    return leaf.addressable_data(0)


def stretches(fires: Fires, first: int) -> Iterator[tuple[int, int, bool | None]]:
    """The runs of equal decisions: the first step, the one behind the last, the decision."""
    for fire, run in itertools.groupby(enumerate(fires, first), key=lambda pair: pair[1]):
        steps = [step for step, _ in run]
        yield steps[0], steps[-1] + 1, fire
