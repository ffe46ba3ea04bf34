"""Taking a decision: on the host where it is known there, else on the device.

XLA for CPU compiles a convolution's gradient inside a conditional or a loop to naive code. Lowered
for CPU, what needs such a gradient is taken always, its loops unrolled, and selected.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, Protocol, TypeVar
import warnings

import jax
import jax.numpy as jnp
import optax

from sam_optax import _axes, _callers, _shards, _tree
from sam_optax._contracts import GradFn, Tree

T = TypeVar("T")
CONVOLUTION = "conv_general_dilated"


class Repeat(Protocol):
    """How a function is applied n times."""

    def __call__(self, n: int, function: Callable[[T], T], x: T) -> T:
        """function(... function(x))."""


def branch(
    fire: jax.typing.ArrayLike,
    yes: Callable[[Callable[[Tree], Any], Repeat], T],
    no: Callable[[], T],
    gradient: Callable[[Tree], Any],
    point: Tree,
) -> T:
    """yes(gradient, repeat) where fire is true, else no().

    Args:
      fire: a boolean; traced inside jit.
      yes: what needs the gradient; repeat(n, function, x) applies a function n times.
      no: what does not; its result has the structure and dtypes of the other.
      gradient: a function of parameters, with what a pass returns besides.
      point: parameters to look inside the gradient with, or their types.

    Raises:
      ValueError: fire may differ between devices.
    """
    if not isinstance(fire, jax.core.Tracer):
        return yes(gradient, _unroll) if fire else no()
    _check_equal(fire)
    gradient = jax.jit(gradient)  # traced once, for the branches and for the look inside

    def conditional(fire: jax.Array) -> T:
        branches = [lambda: yes(gradient, _loop), no]
        if any(map(_axes.varying, jax.tree.leaves(point))):
            branches = _of_one_type(*branches)
        taken: T = jax.lax.cond(fire, *branches)
        return taken

    def select(fire: jax.Array) -> T:
        taken: T = optax.tree.where(fire, yes(gradient, _unroll), no())
        return taken

    if not _has(jax.make_jaxpr(gradient)(point).jaxpr, CONVOLUTION):
        return conditional(fire)
    # Inside another's conditional that would be the wrong advice, and the right one is given.
    if jax.default_backend() == "cpu" and not _callers.in_conditional():
        warnings.warn(
            "A convolution's gradient inside a conditional runs about 40 times slower on CPU, so "
            "this update takes at every step what it may not need, and selects. To skip it for "
            "real, pass the decision as fire=, where sam_optax.decisions knows it ahead, or "
            "compile grad_fn and call the optimizer's update outside jit: the decision is then "
            "taken on the host.",
            stacklevel=2,
        )
    taken: T = jax.lax.platform_dependent(fire, cpu=select, default=conditional)
    return taken


def apart(
    gradient: Callable[..., T], count: jax.Array, behind: Tree | None = None
) -> Callable[..., T]:
    """The gradient, whose loops on CPU hold nothing while another gradient is taken.

    XLA for CPU runs first whatever waits for nothing, such as making the zeros in which the loop
    of `jax.lax.scan` stacks what its backward pass needs: those of a second gradient would be held
    through the first. What is inside a conditional waits for it, and this one's always fires.

    Args:
      gradient: a function of parameters, with what a pass returns besides.
      count: of the steps; no compiler knows that it is not negative.
      behind: the other gradient, where the point does not depend on it.
    """
    if not isinstance(count, jax.core.Tracer) or jax.default_backend() != "cpu":
        return gradient
    if _axes.varying(count):  # what the conditional returns would vary with it
        return gradient

    def waiting(*args: Any, **kwargs: Any) -> T:
        taken: T
        made, shapes = jax.make_jaxpr(gradient, return_shape=True)(*args, **kwargs)
        if made.effects or _has(made.jaxpr, CONVOLUTION) or not _has(made.jaxpr, "scan"):
            return gradient(*args, **kwargs)  # as it is: it may hand something out besides

        def nothing() -> Any:
            zeros = [jnp.zeros(kind.shape, kind.dtype) for kind in made.out_avals]
            placed: Any = _tree.placed_like(zeros, made.out_avals)
            return jax.tree.unflatten(jax.tree.structure(shapes), placed)

        fire = known_after(behind, count)
        taken = jax.lax.cond(fire, lambda: gradient(*args, **kwargs), nothing)
        return taken

    return waiting


def known_after(gradient: Tree | None, count: jax.typing.ArrayLike) -> jax.Array:
    """True, which no compiler knows before the gradient is there: a count is never negative."""
    known = [x for x in jax.tree.leaves(gradient) if x.size and not _axes.varying(x)]
    late = jnp.sum(min(known, key=jnp.size)) > 0 if known else False
    return (jnp.asarray(count) >= 0) | late


def outline(function: Callable[[], Tree]) -> Tree:
    """The types of what a function returns, of which nothing is computed."""
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)()
    types: Tree = jax.tree.unflatten(jax.tree.structure(shapes), jaxpr.out_avals)
    return types


def _of_one_type(yes: Callable[[], T], no: Callable[[], T]) -> list[Callable[[], T]]:
    """Both branches, what they return varying over mapped axes where that of one of them does."""
    types = [map(_axes.varying, jax.make_jaxpr(branch)().out_avals) for branch in (yes, no)]
    wanted = [one | other for one, other in zip(*types, strict=True)]

    def widened(branch: Callable[[], T]) -> T:
        leaves, structure = jax.tree.flatten(branch())
        varied = [_axes.vary(x, axes) for x, axes in zip(leaves, wanted, strict=True)]
        result: T = jax.tree.unflatten(structure, varied)
        return result

    return [functools.partial(widened, branch) for branch in (yes, no)]


def warn_of_conditional(gradient: GradFn, params: Tree) -> None:
    """Warns where a convolution's gradient is about to be taken in another's conditional on CPU."""
    if jax.default_backend() != "cpu" or not _callers.in_conditional():
        return
    if _has(jax.make_jaxpr(gradient)(params).jaxpr, CONVOLUTION):
        warnings.warn(
            "This update takes a convolution's gradient inside a conditional of another's, such as "
            "that of optax.apply_if_finite, optax.conditionally_transform or optax.MultiSteps, "
            "where it runs about 40 times slower on CPU. Leave the wrapper away and select: take "
            "the update always, and parameters and state by optax.tree.where(finite, new, old).",
            stacklevel=3,
        )


def _check_equal(fire: jax.Array) -> None:
    """Raises where `shard_map` does not know fire to be equal on all devices."""
    axes = _axes.varying(fire)
    if divided := axes & _shards.axes():
        raise ValueError(
            "the decision on the second gradient may differ between the devices along "
            f"{_axes.listed(divided)}, over which the parameters are divided: the state "
            "does, as where it was chosen by a test of each device's own part. Make the test one "
            "for all, as jax.lax.pmin(finite.astype(int), axis) > 0."
        )
    if axes:
        names = _axes.ordered(axes)
        raise ValueError(
            "the decision on the second gradient may differ between the devices along "
            f"{_axes.listed(names)}, and devices that wait for each other would wait "
            f"for ever. Let axis_name of ae_sam, ae_looksam or when.adaptive hold "
            f"{'it' if len(names) == 1 else 'them'}, as "
            f"axis_name={names[0] if len(names) == 1 else names!r}, or average the "
            "gradients in front of the link. Where all decide alike by a count or a coin, but the "
            "state is divided over the devices, shard_map cannot see it: pass check_vma=False."
        )


def _loop(n: int, function: Callable[[T], T], x: T) -> T:
    """Function, n times, compiled once."""
    last: T = jax.lax.fori_loop(0, n, lambda _, x: function(x), x)
    return last


def _unroll(n: int, function: Callable[[T], T], x: T) -> T:
    """Function, n times, one after the other."""
    for _ in range(n):
        x = function(x)
    return x


def _has(jaxpr: Any, primitive: str) -> bool:
    """Whether a primitive is anywhere in the jaxpr."""

    def is_jaxpr(node: Any) -> bool:
        return hasattr(node, "eqns") or hasattr(node, "jaxpr")

    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            return True
        for node in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(node) and _has(getattr(node, "jaxpr", node), primitive):
                return True
    return False
