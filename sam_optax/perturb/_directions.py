"""Directions: what stands in front of a ball, or behind one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _random, _tree
from sam_optax._contracts import Schedulable, Tree, transformation, value_at
from sam_optax._kernels import Kernels
from sam_optax._purity import ours
from sam_optax._random import Key
from sam_optax.start import KernelNoiseState
from sam_optax.start import noise as start_noise


class EmaState(NamedTuple):
    """State of `ema` and `subtract_ema`.

    Attributes:
      m: the moving average of the gradient, shaped and typed like the parameters.
    """

    m: optax.Updates


def _init_ema(params: Tree) -> EmaState:
    return EmaState(optax.tree.zeros_like(params))


def _moved(m: Tree, first: Tree, share: jax.typing.ArrayLike, step: jax.Array) -> Tree:
    """m + share (g − m), and g itself at step 0; in the dtype of m."""

    def move(m: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.where(step == 0, g, (1 - share) * m + share * g)

    return _tree.cast_like(_tree.combine(move, m, first), m)


def ema(theta: Schedulable) -> optax.GradientTransformationExtraArgs:
    """g ↦ m, m ← (1 − θ) m + θ g before it is used, m_0 = g: less of the batch's noise.

    Args:
      theta: the weight θ in [0, 1] of the new gradient, or a schedule of it. 1 is the identity.

    Returns:
      A transformation with state `EmaState`, one copy of the parameters. It sees every step.

    Raises:
      ValueError: theta is outside [0, 1].
      TypeError: theta is neither a number nor a schedule.

    References:
      Li and Giannakis, Enhancing Sharpness-Aware Optimization Through Variance Suppression (VaSSO),
      2023.
    """
    theta = _checks.interval("theta", theta, "[0, 1]")

    @ours()
    def update(
        first: Tree, state: EmaState, params: Tree | None = None, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, EmaState]:
        del params, extra
        m = _moved(_tree.placed_like(state.m, first), first, value_at(theta, step), step)
        return m, EmaState(_tree.placed_like(m, state.m))

    return transformation(_init_ema, update)


def subtract_ema(
    sigma: Schedulable, decay: Schedulable = 0.9
) -> optax.GradientTransformationExtraArgs:
    """g ↦ g − σ m with the old m, then m ← decay · m + (1 − decay) g; at step 0 g ↦ g and m = g.

    What is left is the noise of the batch, where m stands for the full gradient.

    Args:
      sigma: the weight σ ≥ 0 of the moving average, or a schedule of it. 0 is the identity.
      decay: of the moving average of the raw gradients, in [0, 1], or a schedule of it.

    Returns:
      A transformation with state `EmaState`, one copy of the parameters. It sees every step.

    Raises:
      ValueError: sigma is negative, or decay outside [0, 1].
      TypeError: one of them is neither a number nor a schedule.

    References:
      Li et al., Friendly Sharpness-Aware Minimization (F-SAM), 2024.
    """
    sigma = _checks.interval("sigma", sigma, "[0, inf)")
    decay = _checks.interval("decay", decay, "[0, 1]")

    @ours()
    def update(
        first: Tree, state: EmaState, params: Tree | None = None, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, EmaState]:
        del params, extra
        weight, share = value_at(sigma, step), 1 - value_at(decay, step)
        m = _tree.placed_like(state.m, first)
        noise = _tree.combine(lambda g, m: g - weight * m, first, m)
        # g itself, but after the noise, which is NaN where g or m are beyond use: else XLA copies
        # m, to change it in place while the noise may still need it.
        after = _tree.combine(lambda g, n: jnp.where(jnp.isnan(n), n, g), first, noise)
        return noise, EmaState(_tree.placed_like(_moved(m, after, share, step), state.m))

    return transformation(_init_ema, update)


class PreviousState(NamedTuple):
    """State of `previous`.

    Attributes:
      previous: the first gradient of the step before, 0 before the first step; shaped and typed
        like the parameters.
    """

    previous: optax.Updates


def previous() -> optax.GradientTransformationExtraArgs:
    """g_t ↦ g_{t−1}, and 0 at step 0: the second gradient need not wait for the first.

    Returns:
      A transformation with state `PreviousState`, one copy of the parameters. It sees every step.
    """

    @ours()
    def init(params: Tree) -> PreviousState:
        return PreviousState(optax.tree.zeros_like(params))

    @ours()
    def update(
        first: Tree, state: PreviousState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, PreviousState]:
        del params, extra
        before = _tree.placed_like(state.previous, first)
        return before, PreviousState(_tree.cast_like(first, state.previous))

    return transformation(init, update)


def noise(
    gamma: Schedulable, *, key: Key = 0, power: float = 1.0, kernels: Kernels = None
) -> optax.GradientTransformationExtraArgs:
    r"""ε ~ N(0, σ_j²) in each kernel j, with σ_j = γ ‖w_j‖^power, whatever the gradient is.

    The second gradient need not wait for the first.

    Args:
      gamma: as `sam_optax.start.noise` takes it; 0 is the neutral setting.
      key: an int or a `jax.random.key`; the stream is another than that of `sam_optax.start.noise`,
        so that the two may have the same.
      power: as there.
      kernels: as there.

    Returns:
      A transformation with the state of `sam_optax.start.noise`.

    Raises:
      ValueError: as there.
      TypeError: as there.

    References:
      Li et al., Efficient Generalization Improvement Guided by Random Weight Perturbation (RWP),
      2022, Section 3.
    """
    start = start_noise(gamma, key=key, power=power, kernels=kernels)

    @ours(start)
    def init(params: Tree) -> Any:
        state, own = start.init(params), {"key_data": _random.key_data(key, stream=4)}
        if isinstance(state, KernelNoiseState):
            return state._replace(noise=state.noise._replace(**own))
        return state._replace(**own)

    @ours(start)
    def update(first: Tree, state: Any, params: Tree, **extra: Any) -> tuple[Tree, Any]:
        return state.offset(params), start.update(first, state, params, **extra)

    return transformation(init, update)


class RandomCoordinatesState(NamedTuple):
    """State of `random_coordinates`.

    Attributes:
      key_data: uint32[2], the key of the stream of masks.
    """

    key_data: jax.Array


def random_coordinates(
    beta: float, *, key: Key = 0, mask: str = "coordinate"
) -> optax.GradientTransformationExtraArgs:
    """x ↦ m x / β, m ~ Bernoulli(β) for each coordinate or each tensor.

    Args:
      beta: the probability β in (0, 1] with which a coordinate is kept. 1 is the identity.
      key: an int or a `jax.random.key`; step t draws with `jax.random.fold_in(fold_in(key, 2), t)`,
        split over the leaves by `optax.tree.random_like`.
      mask: "coordinate", a draw for each coordinate, or "tensor", one for each leaf.

    Returns:
      A transformation with state `RandomCoordinatesState`.

    Raises:
      ValueError: beta is outside (0, 1], or mask is none of the named.
      TypeError: beta is no number, or key no int or key.

    References:
      Du et al., Efficient Sharpness-aware Minimization (ESAM), 2022: stochastic weight
      perturbation.
    """
    _checks.interval("beta", beta, "(0, 1]", schedule=False)
    _checks.choice("mask", mask, ("coordinate", "tensor"))
    _random.check(key)

    @ours()
    def init(params: Tree) -> RandomCoordinatesState:
        del params
        return RandomCoordinatesState(_random.key_data(key, stream=2))

    @ours()
    def update(
        x: Tree,
        state: RandomCoordinatesState,
        params: Tree | None = None,
        *,
        step: jax.Array,
        **extra: Any,
    ) -> tuple[Tree, RandomCoordinatesState]:
        del params, extra
        like = (
            x if mask == "coordinate" else jax.tree.map(lambda leaf: jnp.zeros([], leaf.dtype), x)
        )
        uniform = _random.draw_like(
            jax.random.uniform, state.key_data, step, like, whole=mask == "tensor"
        )
        return _tree.combine(lambda x, u: jnp.where(u < beta, x / beta, 0), x, uniform), state

    return transformation(init, update)
