"""Where the second gradient is taken: first gradient ↦ ε, each an ordinary Optax transformation.

A direction in front of a ball is a chain, `optax.chain(ema(0.9), ball(0.05))`, and any Optax
transformation is a geometry. `update` gets the engine's extra arguments: `step` (the link's step
count), `offset` (δ0, or None where the first gradient is taken at the parameters) and `grad_fn`. ε
comes in float32 at least and is added in the parameters' dtype.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam_optax import _checks, _decision, _finite, _fit, _names, _parts, _random, _shards, _tree
from sam_optax._contracts import GradFn, Schedulable, State, Tree, transformation, value_at
from sam_optax._promotion import callers
from sam_optax._purity import ours
from sam_optax._random import Key

__all__ = [
    "EigenBallState",
    "EmaState",
    "LossBallState",
    "RandomCoordinatesState",
    "adaptive_ball",
    "ball",
    "eigen_ball",
    "ema",
    "fisher_ball",
    "loss_ball",
    "noisy_ball",
    "only",
    "random_coordinates",
    "subtract_ema",
]


def ball(rho: Schedulable) -> optax.GradientTransformationExtraArgs:
    """ε = ρ unit(g): the steepest ascent in a Euclidean ball over the whole tree.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters, or a schedule of it. 0 is the neutral
        setting.

    Returns:
      A stateless transformation; a zero gradient gives ε = 0.

    Raises:
      ValueError: rho is negative.
      TypeError: rho is neither a number nor a schedule.

    References:
      Foret et al., Sharpness-Aware Minimization, 2021, Equation 2 with p = 2.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")

    @ours()
    def update(
        first: Tree, state: State, params: Tree | None = None, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del params, extra
        return _tree.towards(first, value_at(rho, step)), state

    return transformation(optax.init_empty_state, update)


def adaptive_ball(
    rho: Schedulable,
    eta: Schedulable = 0.01,
    weights: Callable[[tuple[Any, ...]], bool] | Any = None,
) -> optax.GradientTransformationExtraArgs:
    """ε = ρ T² g / ‖T g‖, T being `|w| + η` in the weights and 1 elsewhere.

    The steepest ascent in an ellipsoid, ‖T⁻¹ ε‖ ≤ ρ, that follows the scale of each weight.

    Args:
      rho: the radius ρ ≥ 0, in units relative to the weights, or a schedule of it. 0 is the neutral
        setting.
      eta: η ≥ 0, in the units of the parameters, or a schedule of it.
      weights: which leaves are weights: a function of a leaf's key path (the tuple of
        `jax.tree_util.tree_map_with_path`), or a tree of booleans that is a prefix of the
        parameters. By default the leaves with two or more axes that are no biases (named "b" or
        "offset", or with "bias" at the beginning or end), and those named "scale" or "weight"
        (normalisation layers); the name is the last on the key path, behind boxes, list indices,
        dots and slashes. Where no leaf has a name that Flax, Equinox, PyTorch or Haiku give, it has
        to be told. Not to be injected.

    Returns:
      A stateless transformation; a zero gradient gives ε = 0.

    Raises:
      ValueError: rho or eta is negative; at the update, weights is no prefix of the parameters, or
        None where no leaf has a known name.
      TypeError: rho or eta is neither a number nor a schedule, or weights neither a function nor a
        tree of booleans; at the update, weights returns no boolean.

    References:
      Kwon et al., ASAM, 2021. The authors' code takes each tensor whose name has "weight" in it.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")
    eta = _checks.interval("eta", eta, "[0, inf)")
    _check_weights(weights)

    @ours(weights)
    def update(
        first: Tree, state: State, params: Tree, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del extra
        scale = value_at(eta, step)

        def normalizer(is_weight: jax.Array, w: jax.Array) -> jax.Array:
            return jnp.where(is_weight, jnp.abs(w) + scale, jnp.ones_like(w))

        t = _tree.combine(normalizer, _weight_mask(weights, params), params)
        return _ellipsoid(first, t, value_at(rho, step)), state

    return transformation(optax.init_empty_state, update)


def _check_weights(weights: object) -> None:
    """Raises unless weights is a function, a tree of booleans or None."""
    if _parts.is_function(weights):
        return
    for leaf in jax.tree.leaves(weights):
        if not isinstance(leaf, bool) and getattr(leaf, "dtype", None) != np.bool_:
            raise TypeError(
                "weights must be a function of a leaf's key path that returns True or False, or a "
                f"tree of booleans, got {weights!r}: for the leaves with a name, pass "
                "lambda path: name in jax.tree_util.keystr(path)."
            )


def _weight_mask(weights: Callable[[tuple[Any, ...]], bool] | Any, params: Tree) -> Any:
    """A boolean for each leaf of the parameters."""
    if weights is None:
        _check_names(params)
        return jax.tree_util.tree_map_with_path(_is_weight, params)
    if _parts.is_function(weights):
        return jax.tree_util.tree_map_with_path(lambda path, w: _chosen(weights, path), params)
    try:
        return jax.tree.broadcast(weights, params)
    except ValueError as error:
        raise ValueError(
            "weights must be a tree of booleans that is a prefix of the parameters, got "
            f"{weights!r}: {error}"
        ) from error


def _chosen(weights: Callable[[tuple[Any, ...]], bool], path: tuple[Any, ...]) -> bool:
    """What the function says of one leaf."""
    with callers():
        chosen = weights(path)
    if not isinstance(chosen, bool):
        raise TypeError(
            "weights must return True or False for the key path of one leaf, got "
            f"{chosen!r} for {jax.tree_util.keystr(path)}: pass a tree of booleans for a mask."
        )
    return chosen


def _check_names(params: Tree) -> None:
    """Raises where the names of the leaves say nothing."""
    names = [_names.last(path) for path, _ in jax.tree.leaves_with_path(params)]
    if names and not any(map(_names.is_known, names)):
        raise ValueError(
            f"weights=None goes by the names of the leaves, and none of {names[:5]} is one of "
            f"{', '.join(_names.KNOWN)}: pass weights=lambda path: True for all leaves, or a tree "
            "of booleans."
        )


def _is_weight(path: tuple[Any, ...], w: jax.typing.ArrayLike) -> bool:
    """Whether a leaf is a kernel, an embedding or the scale of a normalisation layer."""
    name = _names.last(path)
    return name in ("scale", "weight") or (jnp.ndim(w) > 1 and not _names.is_bias(name))


def fisher_ball(rho: Schedulable, eta: Schedulable = 1.0) -> optax.GradientTransformationExtraArgs:
    """ε = ρ F⁻¹ g / √⟨g, F⁻¹ g⟩, F⁻¹ = 1 / (1 + η g²).

    The steepest ascent in an ellipsoid, ⟨ε, F ε⟩ ≤ ρ², of the diagonal Fisher information as the
    squared gradient estimates it.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters, or a schedule of it. 0 is the neutral
        setting.
      eta: η ≥ 0, in the units of 1 / g², or a schedule of it. 0 is `ball`. Not invariant to the
        scale of the loss.

    Returns:
      A stateless transformation; a zero gradient gives ε = 0.

    Raises:
      ValueError: rho or eta is negative.
      TypeError: rho or eta is neither a number nor a schedule.

    References:
      Kim et al., Fisher SAM, 2022.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")
    eta = _checks.interval("eta", eta, "[0, inf)")

    @ours()
    def update(
        first: Tree, state: State, params: Tree | None = None, *, step: jax.Array, **extra: Any
    ) -> tuple[Tree, State]:
        del params, extra
        weight = value_at(eta, step)
        root = _tree.combine(lambda g: jax.lax.rsqrt(1 + weight * jnp.square(g)), first)
        return _ellipsoid(first, root, value_at(rho, step)), state

    return transformation(optax.init_empty_state, update)


def _ellipsoid(first: Tree, axes: Tree, rho: jax.typing.ArrayLike) -> Tree:
    """ρ axes² g / ‖axes g‖: the steepest ascent where ‖ε / axes‖ ≤ ρ."""
    ascent = _tree.combine(jnp.multiply, axes, first)
    return _tree.combine(jnp.multiply, axes, _tree.towards(ascent, rho))


class LossBallState(NamedTuple):
    """State of `loss_ball`.

    Attributes:
      rho: ρ_t, the radius in force at the last step, 0 before the first; float32, or float64 for
        float64 parameters.
    """

    rho: jax.Array


def loss_ball(
    budget: Schedulable, rho_max: Schedulable | None = None
) -> optax.GradientTransformationExtraArgs:
    """ε = ρ_t g / N, ρ_t = min(budget_t / N, ρ_max), N = √(‖g‖² + 1e-12).

    The radius that raises the linearised loss by the budget: ⟨g, ε⟩ = budget where ρ_max does not
    bind.

    Args:
      budget: the loss budget ≥ 0, in the units of the loss, or a schedule of it. 0 is the neutral
        setting. Not invariant to the scale of the loss.
      rho_max: the largest radius, in the units of the parameters, or a schedule of it; None for no
        bound.

    Returns:
      A transformation whose state holds ρ_t as `rho`; a zero gradient gives ε = 0.

    Raises:
      ValueError: budget or rho_max is negative.
      TypeError: budget or rho_max is neither a number nor a schedule.

    References:
      Wang et al., Fix the Loss, Not the Radius (LE-SAM), 2026, Equations 11 and 12, Sections 4.3
      and B.1.
    """
    budget = _checks.interval("budget", budget, "[0, inf)")
    if rho_max is not None:
        rho_max = _checks.interval("rho_max", rho_max, "[0, inf)")

    @ours()
    def init(params: Tree) -> LossBallState:
        return LossBallState(rho=_tree.scalar(0, params))

    @ours()
    def update(
        first: Tree,
        state: LossBallState,
        params: Tree | None = None,
        *,
        step: jax.Array,
        **extra: Any,
    ) -> tuple[Tree, LossBallState]:
        del state, extra
        n = jnp.sqrt(_tree.vdot(first, first) + 1e-12)
        rho = value_at(budget, step) / n
        if rho_max is not None:
            rho = jnp.minimum(rho, value_at(rho_max, step))
        epsilon = _tree.combine(lambda g: rho / n * g, first)
        return epsilon, LossBallState(rho=_tree.scalar(rho, params))

    return transformation(init, update)


def noisy_ball(
    rho: Schedulable, lambda_: Schedulable = 1.0, *, normalize_gradient: bool = False
) -> optax.GradientTransformationExtraArgs:
    """ε = ρ unit(δ0 + λ g), around the parameters, with g taken at the parameters + δ0.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters, or a schedule of it.
      lambda_: the weight λ ≥ 0 of the gradient against the noise, or a schedule of it.
      normalize_gradient: whether λ weighs unit(g) in place of g.

    Returns:
      A stateless transformation. Without an offset it is `ball`, where λ > 0.

    Raises:
      ValueError: rho or `lambda_` is negative.
      TypeError: rho or `lambda_` is neither a number nor a schedule.

    References:
      Liu et al., Random Sharpness-Aware Minimization, 2022, Equation 7; the normalised gradient is
      the reading of Section 4.6.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")
    lambda_ = _checks.interval("lambda_", lambda_, "[0, inf)")
    _checks.flag("normalize_gradient", normalize_gradient)

    @ours()
    def update(
        first: Tree,
        state: State,
        params: Tree | None = None,
        *,
        step: jax.Array,
        offset: Tree | None = None,
        **extra: Any,
    ) -> tuple[Tree, State]:
        del params, extra
        weight = value_at(lambda_, step)
        if normalize_gradient:
            ascent = _tree.towards(first, weight)
        else:
            ascent = _tree.combine(lambda g: weight * g, first)
        if offset is not None:  # of all parameters, where a group is perturbed
            ascent = _tree.combine(jnp.add, _parts.hide_as(ascent, offset), ascent)
        return _tree.towards(ascent, value_at(rho, step)), state

    return transformation(optax.init_empty_state, update)


class EigenBallState(NamedTuple):
    """State of `eigen_ball`.

    Attributes:
      key_data: uint32[2], the key of the first start of the power iteration.
      v: the estimate of the Hessian's top eigenvector, of norm 1, or 0 before there is one; shaped
        and typed like the parameters.
    """

    key_data: jax.Array
    v: optax.Updates


def eigen_ball(
    rho: Schedulable,
    alpha: Schedulable = 0.2,
    period: int = 100,
    power_iterations: int = 5,
    *,
    key: Key = 0,
) -> optax.GradientTransformationExtraArgs:
    """ε = ρ (ĝ + α sign⟨g, v⟩ reject(v, ĝ)), ĝ = unit(g), v the top eigenvector of the Hessian.

    Every `period` steps, step 0 excluded, v ← unit(H v), `power_iterations` times, H the Hessian of
    the loss on the batch at the parameters; it starts from a normal draw, and later from the last
    v. H v is the Jacobian-vector product of grad_fn, which costs about two gradients and must be
    differentiable in forward mode; outside jit step 0 lowers it once to see that it is. ε is not
    renormalised.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters, or a schedule of it.
      alpha: the weight α ≥ 0 of the eigenvector, or a schedule of it. 0 is `ball`.
      period: the steps between two estimates, ≥ 1.
      power_iterations: the products of an estimate, ≥ 1. Not to be injected.
      key: an int or a `jax.random.key`, of the first start.

    Returns:
      A transformation with state `EigenBallState`, one copy of the parameters; before the first
      estimate it is `ball`, and a zero gradient gives ε = 0. Inside jit, lowered for CPU with a
      convolution in grad_fn, it takes the products at every step, and warns.

    Raises:
      ValueError: rho or alpha is negative, or a count is less than 1; at the update, parameters are
        hidden from it by `optax.masked` or `optax.partition`.
      TypeError: rho or alpha is neither a number nor a schedule, a count no integer, or key no int
        or key; at step 0, outside jit, a `jax.custom_vjp` in grad_fn is in the way of forward mode.
        (JAX's own errors tell of it inside jit, and of other functions without forward mode.)

    References:
      Luo et al., Explicit Eigenvalue Regularization Improves Sharpness-Aware Minimization
      (Eigen-SAM), 2024.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")
    alpha = _checks.interval("alpha", alpha, "[0, inf)")
    _checks.whole("period", period, 1)
    _checks.static("power_iterations", power_iterations)
    _checks.whole("power_iterations", power_iterations, 1)
    _random.check(key)

    @ours()
    def init(params: Tree) -> EigenBallState:
        return EigenBallState(_random.key_data(key, stream=1), optax.tree.zeros_like(params))

    @ours()
    def update(
        first: Tree,
        state: EigenBallState,
        params: Tree,
        *,
        step: jax.Array,
        grad_fn: GradFn,
        **extra: Any,
    ) -> tuple[Tree, EigenBallState]:
        del extra
        _check_whole(params)
        old = _tree.placed_like(state.v, params)

        def estimate(gradient: GradFn, repeat: _decision.Repeat) -> Tree:
            def iterate(v: Tree) -> Tree:
                product = _hessian_product(gradient, params, v)
                return _tree.cast_like(_tree.towards(product, 1.0), v)

            normal = _random.draw_like(jax.random.normal, state.key_data, step, params)
            exists = _tree.norm(old) > 0
            v = _tree.combine(lambda v, z: jnp.where(exists, v, z), old, normal)
            found = repeat(power_iterations, iterate, _tree.cast_like(v, old))
            return _finite.choose(_finite.is_finite(found, params), lambda: found, lambda: old)

        due = (step > 0) & (step % period == 0)
        at_first = step == 0  # traced, though step is not, inside another's conditional
        if not isinstance(at_first, jax.core.Tracer) and at_first:
            _check_forward(grad_fn, params)
        v = _decision.branch(due, estimate, lambda: old, grad_fn, params)
        epsilon = _lean(first, v, value_at(rho, step), value_at(alpha, step))
        return epsilon, state._replace(v=_tree.placed_like(v, state.v))

    return transformation(init, update)


def _check_whole(params: Tree) -> None:
    """Raises where parameters are hidden that grad_fn needs."""
    for path, node in jax.tree.leaves_with_path(params, is_leaf=_parts.is_masked):
        if _parts.is_masked(node):
            raise ValueError(
                f"eigen_ball needs the parameters that grad_fn takes, and its params"
                f"{jax.tree_util.keystr(path)} is an optax.MaskedNode: in place of optax.masked or "
                "optax.partition around it take sam_optax.perturb.only(mask, "
                "sam_optax.perturb.eigen_ball(...))."
            )


def _hessian_product(gradient: GradFn, params: Tree, v: Tree) -> Tree:
    """H v, the derivative of the gradient along v."""
    product: Tree = jax.jvp(gradient, (params,), (v,))[1]
    return product


def _check_forward(grad_fn: GradFn, params: Tree) -> None:
    """Raises now, rather than a period of steps later, where grad_fn has no forward derivative."""
    try:
        # A custom_vjp that does not come to bear is no fault; what does, lowering tells.
        jax.jit(functools.partial(_hessian_product, grad_fn)).lower(params, params)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "eigen_ball needs a grad_fn that can be differentiated in forward mode, and there is a "
            "jax.custom_vjp in the way: define its derivative by jax.custom_jvp instead."
        ) from error


@_shards.compiled  # on the host path, where the rest runs op by op because of grad_fn
def _lean(first: Tree, v: Tree, rho: jax.typing.ArrayLike, alpha: jax.typing.ArrayLike) -> Tree:
    """ρ (ĝ + α sign⟨g, v⟩ reject(v, ĝ))."""
    ascent = _tree.towards(first, 1.0)
    weight = alpha * jnp.sign(_tree.along(v, first))
    rejected = _tree.reject(v, ascent)
    return _tree.combine(lambda a, r: rho * (a + weight * r), ascent, rejected)


# Directions, in front of a ball or behind one.


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


def only(
    mask: Tree | Callable[[Tree], Tree], perturb: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """ε of a perturbation in a part of the parameters, and 0 in the rest, which is trained too.

    The perturbation sees the part alone: its norms, draws and products with the Hessian are those
    of the loss with the rest held fixed. Everything else of a method, such as its averages behind
    `combine` and the offset of a start, is that of all parameters; for a method that lives on the
    part alone take `sam_optax.masked`. In a chain it stands around all that makes ε. An extra
    argument of the structure and shapes of the parameters is cut to the part.

    Args:
      mask: true for the leaves that are perturbed: a tree of booleans that is a prefix of the
        parameters, or a function of the parameters that returns one; None counts as false. A mask
        that is true everywhere is the neutral setting.
      perturb: an Optax transformation, gradient ↦ ε.

    Returns:
      A transformation with the state of the one inside, on the part.

    Raises:
      ValueError: at init or update, mask is no prefix of the parameters.
      TypeError: perturb is no Optax transformation, or mask neither a function nor a tree of
        booleans; at init or update, the function returns no such tree.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> is_norm = {"kernel": False, "scale": True}
      >>> link = sam_optax.sharpness_aware(
      ...     sam_optax.perturb.only(is_norm, sam_optax.perturb.ball(0.5)))

    References:
      Müller et al., Normalization Layers Are All That Sharpness-Aware Minimization Needs (SAM-ON),
      2023.
    """
    if not isinstance(perturb, optax.GradientTransformation):
        raise TypeError(
            "perturb must be an Optax transformation, such as sam_optax.perturb.ball(0.05), got "
            f"{perturb!r}."
        )
    _parts.check_mask("mask", mask)
    perturb = optax.with_extra_args_support(perturb)

    @ours(mask, perturb)
    def init(params: Tree) -> optax.OptState:
        with callers():
            return perturb.init(_parts.chosen("mask", mask, params).prune(params))

    @ours(mask, perturb)
    def update(
        first: Tree,
        state: optax.OptState,
        params: Tree,
        *,
        grad_fn: GradFn | None = None,
        offset: Tree | None = None,
        **extra: Any,
    ) -> tuple[Tree, optax.OptState]:
        part = _parts.chosen("mask", mask, params)
        extra = part.prune_alike(params, extra)
        extra["offset"] = None if offset is None else part.prune(offset)
        if grad_fn is not None:  # a ball on its own needs none
            extra["grad_fn"] = _fit.gradient_within(grad_fn, part, params)
        with callers():
            epsilon, state = perturb.update(part.prune(first), state, part.prune(params), **extra)
        return part.merge(epsilon, _tree.combine(jnp.zeros_like, first)), state

    return transformation(init, update)
