"""Draws from a Gaussian posterior that is learned along the way: bSAM's and IVON's.

The start keeps its precision; perturbation and direction are divided by it, and read it there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _random, _rounding, _shards, _tree
from sam_optax._contracts import Start, Tree
from sam_optax._promotion import standard
from sam_optax._purity import ours
from sam_optax._random import Key


def _draw(key_data: jax.Array, draw: jax.Array, precision: Tree, params: Tree) -> Tree:
    """z / √precision, redrawn from the counter, in float32 at least."""
    normal = _random.draw_like(jax.random.normal, key_data, draw, params)
    return _tree.combine(lambda z, p: z / jnp.sqrt(p), normal, precision)


def _full_like(value: float, params: Tree) -> Tree:
    return _tree.combine(lambda x: jnp.full_like(x, value), _tree.zeros_like(params))


def _start(
    kind: type[PrecisionState] | type[HessianState],
    learned: str,
    initial: float,
    numbers_of: Callable[[Tree], dict[str, jax.Array]],
    key: Key,
) -> Start:
    """A start that moves one field of its state at each step, and draws with it."""

    @ours(learned)
    def init(params: Tree) -> PrecisionState | HessianState:
        return kind(
            _full_like(initial, params),
            key_data=_random.key_data(key),
            draw=jnp.zeros([], jnp.int32),
            **numbers_of(params),
        )

    @ours(learned)
    def update(
        direction: Tree,
        state: PrecisionState | HessianState,
        params: Tree,
        *,
        first: Tree,
        step: jax.Array,
        **extra: Any,
    ) -> PrecisionState | HessianState:
        del direction, extra
        learning: Tree = state.following(first, params, step)
        moved: dict[str, Any] = {learned: learning, "draw": state.draw + 1}
        return state._replace(**moved).with_numbers(numbers_of(params))

    return Start(init, update)


class PrecisionState(NamedTuple):
    """State of `precision`.

    Attributes:
      s: the precision of one example's loss, shaped like the parameters, in float32 at least.
      ess: N, the number of examples; float32, or float64 for float64 parameters.
      least: δ + γ, to which s goes where gradients are 0, of the same dtype.
      decay: β₂, of the same dtype.
      key_data: uint32[2], the key of the stream of draws.
      draw: int32, the number of the coming draw.
    """

    s: optax.Updates
    ess: jax.Array
    least: jax.Array
    decay: jax.Array
    key_data: jax.Array
    draw: jax.Array

    @standard
    @_shards.compiled
    def offset(self, params: optax.Params) -> optax.Updates:
        """δ0 = z / √(N s), in float32 at least; redrawn from the counter, never stored."""
        precision = _tree.combine(lambda s: self.ess * s, _tree.placed_like(self.s, params))
        return _draw(self.key_data, self.draw, precision, params)

    def with_numbers(self, numbers: dict[str, jax.Array]) -> PrecisionState:
        """The state with the numbers of the coming step."""
        return self._replace(**numbers)

    def following(self, first: Tree, params: Tree, step: jax.typing.ArrayLike) -> Tree:
        """s at the coming step, from the first gradient of this one."""
        del params, step

        def move(s: jax.Array, g: jax.Array) -> jax.Array:
            moved = self.decay * s + (1 - self.decay) * (jnp.sqrt(s) * jnp.abs(g) + self.least)
            # One overflow would stay in a moving average for ever.
            return jnp.where(jnp.isfinite(moved), moved, s)

        placed = _tree.placed_like(first, self.s)
        return _tree.cast_like(_tree.combine(move, self.s, placed), self.s)


def precision(
    ess: float,
    *,
    beta_2: float = 0.999,
    weight_decay: float = 5e-4,
    damping: float = 0.1,
    initial_precision: float = 1.0,
    key: Key = 0,
) -> Start:
    """δ0 ~ N(0, 1 / (N s)), s ← β₂ s + (1 − β₂)(√s abs(g) + δ + γ), g the first gradient.

    Args:
      ess: N > 0, the effective sample size: the number of examples to train on. Under
        `optax.inject_hyperparams` it and the others take effect one step later.
      beta_2: β₂ in [0, 1).
      weight_decay: δ ≥ 0, the precision of the prior over N.
      damping: γ ≥ 0, at least one of δ and γ above 0.
      initial_precision: s before the first step, > 0.
      key: an int or a `jax.random.key`; draw number t is split over the leaves as in `noise`.

    Returns:
      A `Start` with state `PrecisionState`, one copy of the parameters in float32 at least.

    Raises:
      ValueError: an argument is out of its range.
      TypeError: an argument is no number, or key no int or key.

    References:
      Möllenhoff and Khan, SAM as an Optimal Relaxation of Bayes (bSAM), 2023, Algorithm 1.
    """
    _checks.interval("ess", ess, "(0, inf)", schedule=False)
    _checks.interval("beta_2", beta_2, "[0, 1)", schedule=False)
    _checks.interval("weight_decay", weight_decay, "[0, inf)", schedule=False)
    _checks.interval("damping", damping, "[0, inf)", schedule=False)
    _checks.interval("initial_precision", initial_precision, "(0, inf)", schedule=False)
    _random.check(key)
    numbers = (weight_decay, damping)
    if all(isinstance(number, _checks.NUMBERS) for number in numbers) and sum(numbers) == 0:
        raise ValueError(
            "weight_decay and damping must not both be 0, got 0 and 0: where a gradient is 0 the "
            "precision would go to 0, and the noise beyond all bounds. Pass damping=0.1."
        )

    def numbers_of(params: Tree) -> dict[str, jax.Array]:
        return {
            "ess": _tree.scalar(ess, params),
            "least": _tree.scalar(weight_decay + damping, params),
            "decay": _tree.scalar(beta_2, params),
        }

    return _start(PrecisionState, "s", initial_precision, numbers_of, key)


class HessianState(NamedTuple):
    """State of `hessian`.

    Attributes:
      h: the diagonal of the Hessian, shaped like the parameters, in float32 at least.
      ess: λ, the effective sample size; float32, or float64 for float64 parameters.
      weight_decay: δ, of the same dtype.
      decay: β₂, of the same dtype.
      key_data: uint32[2], the key of the stream of draws.
      draw: int32, the number of the coming draw.
    """

    h: optax.Updates
    ess: jax.Array
    weight_decay: jax.Array
    decay: jax.Array
    key_data: jax.Array
    draw: jax.Array

    @standard
    @_shards.compiled
    def offset(self, params: optax.Params) -> optax.Updates:
        """δ0 = z / √(λ (h + δ)), in float32 at least; redrawn from the counter, never stored."""
        h = _tree.placed_like(self.h, params)
        precision = _tree.combine(lambda h: self.ess * (h + self.weight_decay), h)
        return _draw(self.key_data, self.draw, precision, params)

    def with_numbers(self, numbers: dict[str, jax.Array]) -> HessianState:
        """The state with the numbers of the coming step.

        h may lie between -δ and 0. Where δ has fallen h + δ stays as it was, above 0.
        """
        fallen = self.weight_decay - numbers["weight_decay"]
        h = _tree.combine(
            lambda h: jnp.where(h + numbers["weight_decay"] > 0, h, h + fallen), self.h
        )
        return self._replace(h=_tree.cast_like(h, self.h), **numbers)

    def following(self, first: Tree, params: Tree, step: jax.typing.ArrayLike) -> Tree:
        """h at the coming step, from the first gradient of this one."""
        share, delta = 1 - self.decay, self.weight_decay

        def move(h: jax.Array, g: jax.Array, noise: jax.Array) -> jax.Array:
            seen = self.ess * (h + delta) * noise * g
            corrected = share**2 / 2 * jnp.square(h - seen) / (h + delta)
            moved = self.decay * h + share * seen + corrected
            # One overflow would stay in a moving average for ever.
            return jnp.where(jnp.isfinite(moved), moved, h)

        taken = _rounding.displacement(params, self.offset(params), step, _rounding.FIRST)
        placed = [_tree.placed_like(tree, self.h) for tree in (first, taken)]
        return _tree.cast_like(_tree.combine(move, self.h, *placed), self.h)


def hessian(
    ess: float,
    *,
    beta_2: float = 0.99999,
    weight_decay: float = 1e-4,
    initial_hessian: float = 1.0,
    key: Key = 0,
) -> Start:
    """δ0 ~ N(0, 1 / (λ(h + δ))), h led by f = λ(h + δ) δ0 g, the Hessian's diagonal in expectation.

    h ← β₂ h + (1 − β₂) f + ½ (1 − β₂)² (h − f)² / (h + δ), so that h + δ > 0 always, also where δ
    falls. In f stands the δ0 that parameters of fewer than 32 bits are moved by, once w + δ0 is
    rounded: far below a unit of w's last place little is learned.

    Args:
      ess: λ > 0, the effective sample size: the number of examples to train on. Under
        `optax.inject_hyperparams` it and the others take effect one step later.
      beta_2: β₂ in [0, 1).
      weight_decay: δ ≥ 0, the precision of the prior over λ.
      initial_hessian: h before the first step, > 0.
      key: an int or a `jax.random.key`; draw number t is split over the leaves as in `noise`.

    Returns:
      A `Start` with state `HessianState`, one copy of the parameters in float32 at least.

    Raises:
      ValueError: an argument is out of its range.
      TypeError: an argument is no number, or key no int or key.

    References:
      Shen et al., Variational Learning is Effective for Large Deep Networks (IVON), 2024,
      Algorithm 1.
    """
    _checks.interval("ess", ess, "(0, inf)", schedule=False)
    _checks.interval("beta_2", beta_2, "[0, 1)", schedule=False)
    _checks.interval("weight_decay", weight_decay, "[0, inf)", schedule=False)
    _checks.interval("initial_hessian", initial_hessian, "(0, inf)", schedule=False)
    _random.check(key)

    def numbers_of(params: Tree) -> dict[str, jax.Array]:
        return {
            "ess": _tree.scalar(ess, params),
            "weight_decay": _tree.scalar(weight_decay, params),
            "decay": _tree.scalar(beta_2, params),
        }

    return _start(HessianState, "h", initial_hessian, numbers_of, key)
