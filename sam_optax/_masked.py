"""A method on a part of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from sam_optax import _fit, _parts, _second
from sam_optax._contracts import Tree, foresight, transformation
from sam_optax._parts import MaskedState


def masked(
    link: optax.GradientTransformation, mask: Tree | Callable[[Tree], Tree]
) -> optax.GradientTransformationExtraArgs:
    """The link on a part of the parameters, as if the rest were a constant of the loss.

    Gradients, offsets, norms, products, averages and random draws are those of the part alone, and
    so is the state. The updates of the rest pass through, as in `optax.masked`. To freeze it, put
    `optax.masked(optax.set_to_zero(), rest)` behind the link::

        tx = optax.chain(
            sam_optax.masked(sam_optax.looksam(0.05), trained),
            optax.sgd(0.1),
            optax.masked(optax.set_to_zero(), frozen))

    `grad_fn` stays a function of all parameters, with the gradient of all; under jit XLA removes
    what the method does not need of it. An extra argument of the structure and shapes of the
    parameters, such as a direction, is cut to the part. To perturb a part and train all with the
    second gradient, take `sam_optax.perturb.only`.

    Args:
      link: a sharpness-aware method, or a chain with one inside.
      mask: true for the leaves of the part: a tree of booleans that is a prefix of the parameters,
        or a function of the parameters that returns one; None counts as false. A mask that is true
        everywhere is the neutral setting.

    Returns:
      A link with state `MaskedState`, without a copy of the rest.

    Raises:
      ValueError: at init or update, mask is no prefix of the parameters; at update, the updates do
        not fit the parameters, or the state is of another mask.
      TypeError: link is no Optax transformation, or mask neither a function nor a tree of booleans;
        at init or update, the function returns no such tree.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> params = {"backbone": jnp.array([3.0, 4.0]), "head": jnp.array([0.75, 1.0])}
      >>> link = sam_optax.masked(sam_optax.sam(1.25), {"backbone": False, "head": True})
      >>> grad_fn = jax.grad(lambda p: 0.5 * sum(jnp.sum(x**2) for x in p.values()))
      >>> state = link.init(params)
      >>> updates, state = link.update(grad_fn(params), state, params, grad_fn=grad_fn)
      >>> print(updates["backbone"], updates["head"])
      [3. 4.] [1.5 2. ]
    """
    if not isinstance(link, optax.GradientTransformation):
        raise TypeError(
            f"link must be a sharpness-aware method such as sam_optax.sam(), got {link!r}."
        )
    _parts.check_mask("mask", mask)
    link = optax.with_extra_args_support(link)

    def init(params: Tree) -> MaskedState:
        part = _parts.chosen("mask", mask, params)
        return MaskedState(link.init(part.prune(params)), part.mark())

    def update(
        updates: Tree, state: MaskedState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, MaskedState]:
        if params is None:
            raise ValueError(
                "sam_optax.masked needs the parameters: call update(grads, opt_state, params, "
                "grad_fn=grad_fn)."
            )
        part = _parts.chosen("mask", mask, params)
        _check_state(state, part.mark())
        _fit.check("updates", updates, part, params)
        extra = part.prune_alike(params, extra)
        if (grad_fn := extra.get("grad_fn")) is not None:
            extra["grad_fn"] = _second.gradient_within(grad_fn, part, params)
        if (both := extra.get("value_and_grad_fn")) is not None:
            extra["value_and_grad_fn"] = _second.both_within(both, part, params)
        for name in ("example_loss_fn", "value_fn"):
            if (loss_fn := extra.get(name)) is not None:
                extra[name] = part.within(loss_fn, params)
        inner: tuple[Tree, Any] = link.update(
            part.prune(updates), state.inner_state, part.prune(params), **extra
        )
        direction, inner_state = inner
        return part.merge(direction, updates), MaskedState(inner_state, state.part)

    return transformation(init, update, foresight(link))


def _check_state(state: object, mark: Tree) -> None:
    """Raises unless the state is one of this mask."""
    if not isinstance(state, MaskedState):
        raise ValueError(
            f"sam_optax.masked needs a sam_optax.MaskedState, got {type(state).__name__}: pass the "
            "state of this link, or make one by init(params)."
        )
    wanted: object = jax.tree.structure(mark)
    if jax.tree.structure(state.part) != wanted:
        raise ValueError(
            "the state is of another mask or of other parameters: pass the state of this link, or "
            "make one by init(params)."
        )
