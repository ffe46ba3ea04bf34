"""A base optimizer fed the clean gradient, and the sharpness beside it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _tree
from sam_optax._contracts import Combine, Schedulable, Tree, value_at
from sam_optax._promotion import callers
from sam_optax._purity import ours
from sam_optax._signs import turns_around


class WeighState(NamedTuple):
    """State of `weigh`.

    Attributes:
      base: the state of the base transformation.
    """

    base: optax.OptState


def weigh(gamma: Schedulable, base: optax.GradientTransformation | None = None) -> Combine:
    """d = base(g) + γ/(1 − γ) (g' − g), the base fed the clean gradient alone.

    Without a second gradient d = base(g).

    Args:
      gamma: the weight γ of the sharpness in [0, 1), or a schedule of it. ½ hands on
        base(g) + g' − g, 0 (the neutral setting) base(g).
      base: an Optax transformation that gives a direction, without the learning rate; None for the
        identity, with which this is the coupled form. The sign of a part that is to climb belongs
        into grad_fn.

    Returns:
      A `Combine` with state `WeighState`.

    Raises:
      ValueError: gamma is outside [0, 1); at init, base hands on the negative of a direction in
        some leaf, as far as its first steps show on a small quadratic.
      TypeError: gamma is no number or schedule, or base no Optax transformation.

    References:
      Yue et al., Sharpness-Aware Minimization Revisited, 2023, Algorithms 2 and 4.
    """
    gamma = _checks.interval("gamma", gamma, "[0, 1)")
    if base is None:
        base = optax.identity()
    if not isinstance(base, optax.GradientTransformation):
        raise TypeError(
            "base must be an Optax transformation without the learning rate, such as "
            f"optax.trace(0.9) or optax.scale_by_adam(), got {base!r}."
        )
    base = optax.with_extra_args_support(base)
    descends: dict[Any, bool] = {}  # by the structure of the parameters

    @ours(base)
    def init(params: Tree) -> WeighState:
        structure = jax.tree.structure(params), *map(jnp.ndim, jax.tree.leaves(params))
        if structure not in descends:
            descends[structure] = turns_around(base, params)
        if descends[structure]:
            raise ValueError(
                "base must hand on a direction along the gradient, and this one hands on its "
                "negative, as an optimizer with a learning rate does: pass it without, such as "
                "optax.trace(0.9) for SGD or optax.scale_by_adam() for Adam, or "
                "optax.chain(base, optax.scale(-1)) where the learning rate belongs into it."
            )
        with callers():
            return WeighState(base.init(params))

    @ours(base)
    def stale(
        first: Tree, state: WeighState, params: Tree, **extra: Any
    ) -> tuple[Tree, WeighState]:
        with callers():
            direction, base_state = base.update(first, state.base, params, **extra)
        return direction, WeighState(base_state)

    @ours(base)
    def fresh(
        first: Tree, second: Tree, state: WeighState, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, WeighState]:
        direction, state = stale(first, state, params, step=step, **extra)
        gamma_t = value_at(gamma, step)
        weight = gamma_t / (1 - gamma_t)
        return _tree.combine(lambda u, g, h: u + weight * (h - g), direction, first, second), state

    return Combine(init, fresh, stale)
