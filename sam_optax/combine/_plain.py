"""What is handed on without a state: sums and arcs of the two gradients, and your own."""

from __future__ import annotations

from collections.abc import Callable
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _tree
from sam_optax._contracts import Combine, Schedulable, State, Tree, value_at
from sam_optax._promotion import callers
from sam_optax._purity import ours


@ours()
def _hand_on_first(first: Tree, state: State, params: Tree, **extra: Any) -> tuple[Tree, State]:
    """The stale step of the base optimizer alone: d = g."""
    del params, extra
    return first, state


def perturbed() -> Combine:
    """d = g'; without a second gradient d = g.

    Returns:
      A stateless `Combine`.

    References:
      Foret et al., Sharpness-Aware Minimization, 2021, Equation 3.
    """

    @ours()
    def fresh(
        first: Tree, second: Tree, state: State, params: Tree, **extra: Any
    ) -> tuple[Tree, State]:
        del first, params, extra
        return second, state

    return Combine(optax.init_empty_state, fresh, _hand_on_first)


def stateless(function: Callable[..., Tree]) -> Combine:
    """d = function(g, g', w, ...), a combination of your own; without a second gradient d = g.

    Args:
      function: `function(first, second, params, *, step, grad_fn, epsilon, second_value, slots,
        **extra) -> direction`, a tree like the gradient. It names what it takes of the keyword
        arguments, and takes the rest as `**extra`: `grad_fn`, for gradients at further points;
        `epsilon`, ε as perturb made it; `second_value`, L(w + ε), or None where the update is not
        given `value_and_grad_fn`; `slots`, the state of the method; the extra arguments of the
        update, such as `value`. `epsilon` is there only where it is named.

    Returns:
      A stateless `Combine`. Outside jit it is run in Python at each update.

    Raises:
      TypeError: function is none, or does not take these arguments.

    Example:
      Descend along the mean of the gradients on both sides.

      >>> import optax, sam_optax
      >>> from sam_optax import combine, perturb
      >>> def both_sides(first, second, params, *, grad_fn, epsilon, **extra):
      ...     behind = grad_fn(optax.tree.sub(params, epsilon))
      ...     return optax.tree.scale(0.5, optax.tree.add(second, behind))
      >>> link = sam_optax.sharpness_aware(
      ...     perturb.ball(0.1), combine=combine.stateless(both_sides))
    """
    if not callable(function):
        raise TypeError(
            "function must combine two gradients, as lambda first, second, params, **extra: "
            f"second does, got {function!r}."
        )
    try:
        signature = inspect.signature(function)  # which tells what it asks for
        signature.bind_partial(None, None, None)
        if all(p.kind != p.VAR_KEYWORD for p in signature.parameters.values()):
            raise TypeError
    except (TypeError, ValueError):  # the latter of a callable without a signature
        raise TypeError(
            "function must take two gradients and the parameters, and whatever else it is handed "
            f"by name, got {function!r}: write lambda first, second, params, **extra: ..."
        ) from None

    def fresh(
        first: Tree, second: Tree, state: State, params: Tree, **extra: Any
    ) -> tuple[Tree, State]:
        with callers():
            return function(first, second, params, **extra), state

    vars(fresh)["__signature__"] = signature
    return Combine(optax.init_empty_state, ours(function)(fresh), _hand_on_first)


def interpolate(alpha: Schedulable) -> Combine:
    """d = (1 − α) g + α g'; without a second gradient d = g.

    Args:
      alpha: the share α in [0, 1] of the second gradient, or a schedule of it. 1 hands on g', 0
        (the neutral setting) g.

    Returns:
      A stateless `Combine`.

    Raises:
      ValueError: alpha is outside [0, 1].
      TypeError: alpha is neither a number nor a schedule.

    References:
      Zhao et al., Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
      Learning (PGN), 2022, Equation 12.
    """
    alpha = _checks.interval("alpha", alpha, "[0, 1]")

    @ours()
    def fresh(
        first: Tree, second: Tree, state: State, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del params, extra
        share = value_at(alpha, step)
        return _tree.combine(lambda g, h: (1 - share) * g + share * h, first, second), state

    return Combine(optax.init_empty_state, fresh, _hand_on_first)


def slerp(alpha: Schedulable) -> Combine:
    """d = ‖g'‖ (sin((1 − α)ψ) unit(g) + sin(αψ) unit(g')) / sin ψ, ψ the angle between g and g'.

    Along the great circle through the two directions; without a second gradient d = g. Where ψ is 0
    or π up to rounding there is no one circle, and d = g'.

    Args:
      alpha: the place α on the circle, or a schedule of it: 0 is the direction of g, 1 (the neutral
        setting) hands on g', and beyond 1 it leads on from g to g' and farther.

    Returns:
      A stateless `Combine`.

    Raises:
      ValueError: alpha is not finite.
      TypeError: alpha is neither a number nor a schedule.

    References:
      The spherical interpolation of XSAM (2026), with g in place of its direction of ascent.
    """
    alpha = _checks.interval("alpha", alpha, "(-inf, inf)")

    @ours()
    def fresh(
        first: Tree, second: Tree, state: State, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del params, extra
        place = value_at(alpha, step)
        begin, end = _tree.towards(first, 1.0), _tree.towards(second, 1.0)
        # By the half angle, which keeps its digits where the two directions are close.
        apart = _tree.norm(_tree.combine(jnp.subtract, end, begin))
        along = _tree.norm(_tree.combine(jnp.add, end, begin))
        # Both are 0 only where a gradient is, and arctan2 has no derivative there.
        angle = 2 * jnp.arctan2(apart, jnp.where(apart + along > 0, along, 1))
        sine = jnp.sin(angle)
        is_circle = sine > 10 * jnp.finfo(sine.dtype).eps
        some = jnp.where(is_circle, sine, 1)
        length = _tree.norm(second)
        share = length * jnp.sin((1 - place) * angle) / some
        other = length * jnp.sin(place * angle) / some

        def turned(u: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.where(is_circle, share * u + other * v, g)

        return _tree.combine(turned, begin, end, second), state

    return Combine(optax.init_empty_state, fresh, _hand_on_first)


def extrapolate(alpha: Schedulable) -> Combine:
    """d = g' − α g, without rescaling; without a second gradient d = g.

    Args:
      alpha: the weight α ≥ 0 of the clean gradient, or a schedule of it. 0 is the neutral setting.

    Returns:
      A stateless `Combine`.

    Raises:
      ValueError: alpha is negative.
      TypeError: alpha is neither a number nor a schedule.

    References:
      Wang et al., Fix the Loss, Not the Radius (LE-SAM+), 2026, Section 6.1.
    """
    alpha = _checks.interval("alpha", alpha, "[0, inf)")

    @ours()
    def fresh(
        first: Tree, second: Tree, state: State, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del params, extra
        weight = value_at(alpha, step)
        return _tree.combine(lambda g, h: h - weight * g, first, second), state

    return Combine(optax.init_empty_state, fresh, _hand_on_first)
