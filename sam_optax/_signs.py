"""Whether a transformation has the minus of an optimizer in it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sam_optax._contracts import Tree
from sam_optax._promotion import callers


def turns_around(base: optax.GradientTransformationExtraArgs, params: Tree) -> bool:
    """Whether it hands on the negative of the gradient's direction in some leaf, in two steps.

    It is tried on parameters of the same structure, with one number a leaf. False where that cannot
    be done, as for a base that asks for more than the gradient.
    """
    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"), callers():
        small = jax.tree.map(lambda w: jnp.zeros((1,) * jnp.ndim(w), jnp.result_type(w)), params)
        ones = optax.tree.ones_like(small)
        try:
            # Noise that is added is the same in both, and cancels.
            odd = optax.tree.sub(
                _two_steps(base, ones, small),
                _two_steps(base, optax.tree.scale(-1, ones), small),
            )
            return any(bool((leaf < 0).any()) for leaf in jax.tree.leaves(odd))
        except Exception:  # what the caller's code may raise where it is not meant to run
            return False


def _two_steps(base: optax.GradientTransformationExtraArgs, gradient: Tree, params: Tree) -> Any:
    """The sum over two: a learning rate may begin at 0."""
    state = base.init(params)
    first, state = base.update(gradient, state, params)
    second, _ = base.update(gradient, state, params)
    return optax.tree.add(first, second)
