"""The loss along a line and on a plane through the parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.analysis.objective import AnalysisError, Objective


def line(
    objective: Objective, start: optax.Params, end: optax.Params, at: Sequence[float]
) -> list[float]:
    """The loss at (1 − t) start + t end for each t.

    Raises:
      AnalysisError: start and end are not shaped alike.
    """
    check_alike(start, end)
    direction = optax.tree.sub(end, start)
    return [objective.loss(optax.tree.add_scale(start, t, direction)) for t in at]


def plane(
    objective: Objective,
    center: optax.Params,
    directions: tuple[optax.Params, optax.Params],
    xs: Sequence[float],
    ys: Sequence[float],
) -> np.ndarray:
    """The loss at center + x · first direction + y · second direction.

    Returns:
      float64 [len(ys), len(xs)].

    Raises:
      AnalysisError: a direction is not shaped like the center.
    """
    for direction in directions:
        check_alike(center, direction)
    first, second = directions

    def at(x, y):
        return objective.loss(
            optax.tree.add_scale(optax.tree.add_scale(center, x, first), y, second)
        )

    return np.array([[at(x, y) for x in xs] for y in ys])


def filter_normalized(params: optax.Params, key: jax.Array) -> optax.Params:
    """A random direction of which each filter is as long as that of the parameters.

    A filter is what leads to one output: a slice along the last axis of a kernel. Biases and scales
    (arrays of one axis or none) keep still.

    References:
      Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018, Section 4.
    """

    def scaled(leaf, noise):
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        length, own = (jnp.linalg.norm(a.reshape(-1, a.shape[-1]), axis=0) for a in (leaf, noise))
        return noise * length / own

    return jax.tree.map(scaled, params, optax.tree.random_like(key, params))


def orthonormal(first: optax.Params, second: optax.Params) -> tuple[optax.Params, optax.Params]:
    """Two directions of length 1 at a right angle that span the same plane.

    Raises:
      AnalysisError: one is zero, or they are parallel.
    """
    x = _unit(first)
    return x, _unit(optax.tree.add_scale(second, -optax.tree.vdot(x, second), x), second)


def check_alike(one: Any, other: Any) -> None:
    """Raises an `AnalysisError` where two pytrees of parameters differ in structure or shapes."""
    shapes = [
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(t)}
        for t in (one, other)
    ]
    if shapes[0] != shapes[1]:
        differs = sorted(
            k for k in {**shapes[0], **shapes[1]} if shapes[0].get(k) != shapes[1].get(k)
        )
        name = differs[0]
        raise AnalysisError(
            f"parameters of different models cannot share a landscape: {name} is "
            f"{' and '.join(str(s.get(name, 'missing')) for s in shapes)}."
        )


def _unit(tree, whole=None):
    """The tree at length 1; whole is what it is left of."""
    length = optax.tree.norm(tree)
    if not length > 1e-6 * optax.tree.norm(tree if whole is None else whole):
        raise AnalysisError(
            "a direction is zero or parallel to the other: choose two that span a plane."
        )
    return optax.tree.scale(1 / length, tree)
