"""The second gradient on the examples that the perturbation hurts most."""

from __future__ import annotations

from collections.abc import Callable
import inspect
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _fit, _parts, _second
from sam_optax._contracts import Tree, foresight, transformation
from sam_optax._states import SharpnessAwareState
from sam_optax.perturb import EigenBallState

T = TypeVar("T")


def select_examples(
    link: optax.GradientTransformation, gamma: float
) -> optax.GradientTransformationExtraArgs:
    """The link, with its second gradient on the share γ of the batch that is most sensitive.

    With ℓ_i the loss of example i and s_i = ℓ_i(w + ε) − ℓ_i(w), g' is the gradient of the mean
    loss over the K = max(1, ⌊γB⌋) of the B examples with the largest s_i. The update takes more::

        updates, opt_state = tx.update(
            grads, opt_state, params,
            grad_fn=lambda p, indices: jax.grad(loss)(p, batch[indices]),   # indices: int32[K]
            example_loss_fn=lambda p: losses(p, batch),                     # float[B]
            example_losses=losses_of_the_first_pass,                        # float[B], optional
        )

    Where the loss of an example depends on the others, as with batch norm or negatives from the
    batch, the gradient of the examples alone is another function's: within the whole batch it is
    that of `losses(p, batch)[indices].mean()`.

    That costs a forward pass at w + ε, and a gradient on K examples in place of one on B. Without
    `example_losses`, such as aux of the first gradient, it costs another forward pass at w, or what
    XLA does not find in the first gradient's.

    Args:
      link: a sharpness-aware method that takes its first gradient at the parameters, and grad_fn
        for nothing but its second.
      gamma: the share γ in (0, 1]. 1 is the neutral setting: the link itself, for which grad_fn may
        take the parameters alone and the losses are not needed. It sets a shape, so it is not to be
        injected.

    Returns:
      A link with the state of the one inside, in which `rise` is the mean of all s_i. Under
      `jax.pmap` and `jax.shard_map` each device selects among its own examples.

    Raises:
      ValueError: gamma is outside (0, 1]; at init, the link has no sharpness-aware method inside,
        or one with a start or with `eigen_ball`; at the update, example_loss_fn or grad_fn is
        missing, or the losses are not one for each example.
      TypeError: gamma is no Python number, or link no Optax transformation; at the update, grad_fn
        does not take the indices.

    References:
      Du et al., Efficient Sharpness-aware Minimization (ESAM), 2022: sharpness-sensitive data
      selection. Deviation: the authors' code keeps K − 1 examples.
    """
    _checks.static("gamma", gamma)
    _checks.interval("gamma", gamma, "(0, 1]", schedule=False)
    if not isinstance(link, optax.GradientTransformation):
        raise TypeError(
            f"link must be a sharpness-aware method such as sam_optax.sam(), got {link!r}."
        )
    link = optax.with_extra_args_support(link)

    def init(params: Tree) -> optax.OptState:
        state = link.init(params)
        _check_state(state)
        return state

    def update(
        updates: Tree,
        state: optax.OptState,
        params: Tree | None = None,
        *,
        grad_fn: Callable[..., Tree] | None = None,
        value_and_grad_fn: Callable[..., Any] | None = None,
        example_loss_fn: Callable[..., jax.Array] | None = None,
        example_losses: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, optax.OptState]:
        if gamma == 1 and example_loss_fn is None:
            given = {"grad_fn": grad_fn, "value_and_grad_fn": value_and_grad_fn}
            return link.update(updates, state, params, **given, **extra)
        both = _second.evaluation(grad_fn, value_and_grad_fn, {})
        if both is None or example_loss_fn is None:
            missing = "grad_fn" if both is None else "example_loss_fn"
            raise ValueError(
                f"selecting examples needs {missing}: call update(grads, opt_state, params, "
                "grad_fn=lambda params, indices: ..., example_loss_fn=lambda params: ...), the "
                "gradient of the mean loss over the examples at indices, and the loss of each "
                "example; gamma=1 takes the whole batch and needs no example_loss_fn."
            )
        name, evaluate = both
        _check_takes_indices(name, value_and_grad_fn or grad_fn)
        if gamma == 1:
            whole = _checked(jax.eval_shape(example_loss_fn, params)).shape[0]
            given = {name: lambda point: _as_given(name, evaluate(point, jnp.arange(whole)))}
            return link.update(updates, state, params, **given, **extra)

        def second(point: Tree) -> Any:
            clean = example_loss_fn(params) if example_losses is None else example_losses
            losses = _checked(example_loss_fn(point))
            rise = _replicated(losses - _checked(clean))
            # Rounded first: 0.29 · 100 is 28.999… in floating point.
            kept = max(1, math.floor(round(gamma * rise.shape[0], 6)))
            found = evaluate(point, jax.lax.top_k(rise, kept)[1])
            _fit.check(f"what {name} returns", found.gradient, _parts.trainable(point), point)
            # The rise of the whole batch is known, whatever part of it the gradient is of, and
            # whatever the loss holds besides.
            before = extra.get("value")
            value = jnp.mean(losses) if before is None else before + jnp.mean(rise)
            return _as_given(name, found._replace(value=value))

        return link.update(updates, state, params, **{name: second}, **extra)

    return transformation(init, update, foresight(link))


def _check_state(state: optax.OptState) -> None:
    """Raises unless the link takes grad_fn for nothing but its second gradient."""

    def has(node_type: type[T]) -> list[T]:
        def is_node(node: object) -> bool:
            return isinstance(node, node_type)

        return [n for n in jax.tree.leaves(state, is_leaf=is_node) if is_node(n)]

    methods = has(SharpnessAwareState)
    if not methods:
        raise ValueError(
            "selecting examples needs a sharpness-aware method inside the link, such as "
            "sam_optax.sam()."
        )
    if any(hasattr(method.start, "offset") for method in methods) or has(EigenBallState):
        raise ValueError(
            "selecting examples needs a method that takes grad_fn for nothing but its second "
            "gradient, and one with a start (r_sam, msam, ...) or with eigen_ball takes it for "
            "more: leave select_examples away."
        )


def _checked(losses: T) -> T:
    """The losses, if they are one for each example."""
    shape = getattr(losses, "shape", None)
    if shape is None or len(shape) != 1 or shape[0] == 0:
        got = type(losses).__name__ if shape is None else f"shape {list(shape)}"
        raise ValueError(
            "example_loss_fn and example_losses must be one loss for each example, an array [B], "
            f"got {got}: leave out the mean over the batch, and any aux."
        )
    return losses


def _replicated(x: jax.Array) -> jax.Array:
    """x on every device of an explicit mesh, since top_k cannot sort what is sharded."""
    sharding = jax.typeof(x).sharding
    if any(axis is not None for axis in sharding.spec):
        # With its mesh, which need not be the one of a context.
        everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(None))
        replicated: jax.Array = jax.sharding.reshard(x, everywhere)
        return replicated
    return x


def _as_given(name: str, found: _second.Pass) -> Any:
    """A pass as the argument of that name returns it."""
    return found.gradient if name == "grad_fn" else ((found.value, found.aux), found.gradient)


def _check_takes_indices(name: str, function: Any) -> None:
    """Raises unless function(params, indices) is a call that its signature allows."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise TypeError(
            f"{name} must take the indices of the examples to keep: {name}(params, indices) -> "
            "gradient of the mean loss over them; gamma=1 takes the whole batch, without "
            "example_loss_fn."
        ) from None
    except ValueError:  # a callable without a signature
        pass
