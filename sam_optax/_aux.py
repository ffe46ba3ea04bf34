"""What the loss at the second point returns besides, kept in the state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sam_optax._contracts import Tree
from sam_optax._states import SharpnessAwareState


def keep_aux(
    link: optax.GradientTransformation, like: Any
) -> optax.GradientTransformationExtraArgs:
    """The link, whose state keeps aux of the last second pass as `aux`.

    Without it aux is dropped, as most of it is at hand from the first pass::

        link = sam_optax.keep_aux(sam_optax.sam(0.05), {"accuracy": jnp.zeros([])})
        both = jax.value_and_grad(loss, has_aux=True)
        (value, aux), grads = both(params)
        updates, state = link.update(
            grads, state, params, value=value, value_and_grad_fn=both)
        sam_optax.read(state, "aux")["accuracy"]

    Args:
      link: a sharpness-aware method with a second gradient, inside `sam_optax.masked` if in any.
      like: a tree of arrays, numbers or `jax.ShapeDtypeStruct`, with the structure, shapes and
        dtypes of aux; the state begins with zeros. It is no gradient's place: what is large stays
        there. Where aux differs between devices, as far as `jax.shard_map` keeps count of that, the
        mean of its floats is kept, and another dtype is an error.

    Returns:
      The link, with the same state but for `aux`. Its update asks for `value_and_grad_fn` with aux
      like that. A step without a second gradient, or with one that is not finite, leaves it.

    Raises:
      ValueError: like holds no array; at the update, aux is not like it.
      TypeError: link is no Optax transformation; at init, its state is no `SharpnessAwareState`.
    """
    if not isinstance(link, optax.GradientTransformation):
        raise TypeError(
            f"link must be a sharpness-aware method such as sam_optax.sam(), got {link!r}."
        )
    if not jax.tree.leaves(like):
        raise ValueError(
            f"like must hold an array for each of aux, got {like!r}: pass aux of the first pass, "
            "or jax.eval_shape of the loss."
        )
    link = optax.with_extra_args_support(link)

    def init(params: Tree) -> SharpnessAwareState:
        state: Any = link.init(params)
        if not isinstance(state, SharpnessAwareState):
            raise TypeError(
                "keep_aux needs a sharpness-aware method such as sam_optax.sam() itself, got a "
                f"link with a {type(state).__name__}: put it inside, as chain(keep_aux(sam(), "
                "like), sgd(0.1)), masked(keep_aux(sam(), like), mask) or "
                "inject_hyperparams(lambda rho: keep_aux(sam(rho), like))(0.1)."
            )
        return state._replace(aux=jax.tree.map(_zeros, like))

    return optax.GradientTransformationExtraArgs(init, link.update)


def _zeros(like: Any) -> jax.Array:
    return jnp.zeros(jnp.shape(like), jnp.result_type(like))
