"""Whether a transformation has the minus of an optimizer in it."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam_optax._contracts import Tree
from sam_optax._promotion import callers

# Of a base that does nothing at first, as in a warm-up or between the steps of `optax.MultiSteps`.
_MOST_STEPS = 64

# Of parameters that are cheap to try a base on.
_MOST_NUMBERS = 100_000


def turns_around(base: optax.GradientTransformationExtraArgs, params: Tree) -> bool:
    """Whether its first steps go along the negative of the gradient in some leaf.

    It is tried on zeros of the same structure, with the shapes of the parameters where these are
    few, else with axes no longer than 2. False where that cannot be done, as for a base that asks
    for more than the gradient and the loss.
    """
    numbers = sum([math.prod(_shape(w)) for w in jax.tree.leaves(params)])
    longest = 2 if numbers > _MOST_NUMBERS else _MOST_NUMBERS
    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"), callers():
        small = jax.tree.map(functools.partial(_zeros, longest), params)

        def update(gradient: Tree, state: Any, w: Tree, step: int) -> tuple[Tree, Any]:
            # A line search hands the other arguments on, by these names.
            def value_fn(p: Tree, step: Any = None, obj_fn: Any = None) -> Any:
                del step, obj_fn
                return 1 + optax.tree.vdot(gradient, p) + optax.tree.norm(p, squared=True) / 2

            loss = {"value": value_fn(w), "value_fn": value_fn, "obj_fn": value_fn}
            return base.update(gradient, state, w, grad=gradient, step=step, **loss)

        # One program of many leaves is cheap; not all that a caller writes is one.
        for run in (jax.jit, lambda function: function):
            try:
                return _turns(run(update), run(base.init)(small), small)
            except Exception:  # what the caller's code may raise where it is not meant to run
                continue
        return False


def _turns(update: Any, state: Any, params: Tree) -> bool:
    """Looks at two steps at least, since one group may begin with a learning rate of 0.

    The sums are NumPy's: JAX would compile each of them for each shape.
    """
    there = back = state
    gradient = jax.tree.map(_varied, params)
    forth, reverse = (jax.tree.map(lambda g, s=s: jax.device_put(s * g), gradient) for s in (1, -1))
    odd = [np.zeros_like(g) for g in jax.tree.leaves(gradient)]
    for step in range(_MOST_STEPS):
        up, there = update(forth, there, params, step)
        down, back = update(reverse, back, params, step)
        # Noise is equal in both, and cancels.
        pairs = zip(odd, jax.tree.leaves(up), jax.tree.leaves(down), strict=True)
        odd = [total + (np.asarray(u) - np.asarray(d)) for total, u, d in pairs]
        if step and any(leaf.any() for leaf in odd):
            break
    along = zip(odd, jax.tree.leaves(gradient), strict=True)
    return any((o * g).sum() < 0 for o, g in along)


def _zeros(longest: int, w: jax.typing.ArrayLike) -> jax.Array:
    shape = [min(size, longest) for size in _shape(w)]
    zeros: jax.Array = jax.device_put(np.zeros(shape, jnp.result_type(w)))
    return zeros


def _shape(w: Any) -> tuple[int, ...]:
    """Of an array, a number, or what tells of an array."""
    shape: tuple[int, ...] = getattr(w, "shape", ())
    return shape


def _varied(w: jax.Array) -> np.ndarray[Any, Any]:
    """A gradient that has a rest when its mean is taken off."""
    return np.linspace(1, 2, w.size).reshape(w.shape).astype(w.dtype)
