"""A step on the host: a few compiled pieces around the method's own Python branch.

The way to train convolutions on CPU, whose gradients XLA compiles to slow code inside loops and
conditionals.
"""

from typing import Any

import jax

from experiments.training.state import TrainState
from experiments.training.step import Step


class Pieces:
    """The pieces of a step, each compiled for itself."""

    def __init__(self, step: Step):
        """Compiles nothing before it is called.

        Args:
          step: what they compute.
        """
        self._step = step
        self.first = jax.jit(step.first)
        self.second = jax.jit(step.second)
        self.losses = jax.jit(step.losses)
        self._applied = jax.jit(step.applied, donate_argnums=0)

    def __call__(self, state: TrainState, batch: Any) -> TrainState:
        """One step on a batch of the objective's. State is donated."""
        updates, state, metrics = self._step.update(
            state, batch, self.first, self.second, self.losses
        )
        method_state = state.method_state
        # Not donated: what a method hands on may be part of its own state.
        rest = state._replace(method_state=())
        return self._applied(rest, updates, metrics)._replace(method_state=method_state)
