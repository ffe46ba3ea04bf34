"""What a state has to fix for the coming step."""

from __future__ import annotations

import jax

from sam_optax import _tree
from sam_optax._contracts import Schedulable, Tree, value_at


def _following(hyperparameter: Schedulable, step: jax.Array, params: Tree) -> jax.Array:
    """The hyperparameter at the step after this one, whose offset the state has to fix."""
    return _tree.scalar(value_at(hyperparameter, step, ahead=1), params)
