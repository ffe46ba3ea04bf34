"""A perturbation of a part of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from sam_optax import _parts, _second, _tree
from sam_optax._contracts import GradFn, Tree, transformation
from sam_optax._promotion import callers
from sam_optax._purity import ours


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
        extra["slots"] = part.prune_inside(params, extra.get("slots"))
        if grad_fn is not None:  # a ball on its own needs none
            extra["grad_fn"] = _second.gradient_within(grad_fn, part, params)
        with callers():
            epsilon, state = perturb.update(part.prune(first), state, part.prune(params), **extra)
        return part.merge(epsilon, _tree.combine(jnp.zeros_like, first)), state

    return transformation(init, update)
