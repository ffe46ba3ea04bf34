"""Where the first gradient of the coming step is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import optax

from sam_optax import _first, _parts, _shards
from sam_optax._contracts import Tree
from sam_optax._parts import MaskedState, Part
from sam_optax._states import SharpnessAwareState


def gradient_point(
    opt_state: optax.OptState, params: optax.Params, *, param_specs: Any = None
) -> optax.Params:
    """The parameters at which the coming update expects its first gradient.

    They are w + δ0 for a method with a start (r_sam, r_gsam, lpf_sgd, msam, s2_sam, bsam, ivon),
    and w itself for every other optimizer. With `updates_at="gradient_point"` the caller takes its
    gradient there, and no gradient is wasted; with "params", the default, a method with a start
    takes that gradient by itself, and wants `updates` at w::

        grads = grad_fn(sam_optax.gradient_point(opt_state, params))
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)

    Args:
      opt_state: the state of the whole optimizer, with the method's state anywhere inside.
      params: the current parameters.
      param_specs: as the update takes it, inside `jax.shard_map` or `jax.pmap`.

    Returns:
      Parameters of the same structure, shapes and dtypes.

    Raises:
      ValueError: more than one sharpness-aware method is inside; as at the update, it cannot be
        known how the parameters are divided, or param_specs does not fit.
      TypeError: param_specs holds what is no PartitionSpec.
    """
    found = list(methods(opt_state))
    if len(found) > 1:
        raise ValueError(
            f"gradient_point found {len(found)} sharpness-aware methods in opt_state; pass the "
            "state of one."
        )
    return of(*found[0], params, param_specs) if found else params


def methods(
    opt_state: optax.OptState, *parts: Part
) -> Iterator[tuple[tuple[Part, ...], SharpnessAwareState]]:
    """The states of sharpness-aware methods, with the parts of the tree around each."""

    def is_ours(node: object) -> bool:
        return isinstance(node, SharpnessAwareState | MaskedState)

    for node in jax.tree.leaves(opt_state, is_leaf=is_ours):
        if isinstance(node, MaskedState):
            yield from methods(node.inner_state, *parts, _parts.marked(node.part))
        elif isinstance(node, SharpnessAwareState):
            yield parts, node


def of(
    parts: Sequence[Part], state: SharpnessAwareState, params: Tree, param_specs: Any
) -> optax.Params:
    """w + δ0 for one method, with the parts of the tree around it."""
    if not parts:
        part = _parts.trainable(params)
        own = part.prune(params)
        with _shards.laid_out(_shards.found(own, None, state.steps, param_specs)):
            return part.merge(_first.point(state.start, own, state.steps), params)
    inner = of(parts[1:], state, parts[0].prune(params), param_specs)
    return parts[0].merge(inner, params)
