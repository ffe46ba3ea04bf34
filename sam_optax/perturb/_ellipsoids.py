"""Ellipsoids: balls in a norm that follows the parameters or the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam_optax import _checks, _given, _names, _parts, _tree
from sam_optax._contracts import Schedulable, State, Tree, transformation, value_at
from sam_optax._promotion import callers
from sam_optax._purity import ours


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


def over_precision(rho: Schedulable) -> optax.GradientTransformationExtraArgs:
    """ε = ρ g / s, s the precision that `sam_optax.start.precision` keeps.

    Args:
      rho: ρ ≥ 0, or a schedule of it. 0 is the neutral setting.

    Returns:
      A stateless transformation, for a method with that start.

    Raises:
      ValueError: rho is negative; at update, the method has another start.
      TypeError: rho is neither a number nor a schedule.

    References:
      Möllenhoff and Khan, SAM as an Optimal Relaxation of Bayes (bSAM), 2023, Algorithm 1.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")

    @ours()
    def update(
        first: Tree,
        state: State,
        params: Tree | None = None,
        *,
        step: jax.Array,
        slots: Any,
        **extra: Any,
    ) -> tuple[Tree, State]:
        del params, extra
        radius = value_at(rho, step)
        learned = _given.learned(slots, "s", part="over_precision", start="precision")
        s = _tree.placed_like(_parts.hide_as(first, learned.s), first)
        return _tree.combine(lambda g, s: radius * g / s, first, s), state

    return transformation(optax.init_empty_state, update)
