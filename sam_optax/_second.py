"""The pass at the second point: its gradient, and loss and aux where the caller hands them out."""

from __future__ import annotations

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sam_optax import _axes, _fit, _tree
from sam_optax._contracts import GradFn, Tree
from sam_optax._parts import Part
from sam_optax._promotion import callers
from sam_optax._states import SharpnessAwareState


class Pass(NamedTuple):
    """What a pass at a point comes to.

    Attributes:
      gradient: at the point.
      value: the loss there, None where it is not known.
      aux: what the loss function returns besides, None where it is nothing.
    """

    gradient: Tree
    value: Any = None
    aux: Any = None


Evaluate = Callable[..., Pass]


class Told(NamedTuple):
    """What a step tells of the second point: two fields of the method's state."""

    rise: jax.Array
    aux: Any


def evaluation(
    grad_fn: GradFn | None, value_and_grad_fn: Callable[..., Any] | None, extra: dict[str, Any]
) -> tuple[str, Evaluate] | None:
    """The pass by the name of the argument that it is taken from; None where there is none.

    A loss as value_fn takes other extra arguments by their names, as in Optax.
    """
    if value_and_grad_fn is not None:
        return _together(value_and_grad_fn)
    if grad_fn is not None:
        return _alone(grad_fn)
    if (value_fn := extra.get("value_fn")) is not None:
        asked = list(inspect.signature(value_fn).parameters)[1:]
        by_name = {name: extra[name] for name in asked if name in extra}
        of_loss = jax.value_and_grad(lambda p: value_fn(p, **by_name), allow_int=True)
        return "value_fn", lambda p: _unpacked(of_loss(p))
    return None


def _together(both: Callable[..., Any]) -> tuple[str, Evaluate]:
    return "value_and_grad_fn", lambda *args, **kwargs: _unpacked(both(*args, **kwargs))


def _alone(grad_fn: Callable[..., Tree]) -> tuple[str, Evaluate]:
    return "grad_fn", lambda *args, **kwargs: Pass(grad_fn(*args, **kwargs))


def _unpacked(found: Any) -> Pass:
    """(value, gradient) or ((value, aux), gradient), as `jax.value_and_grad` returns them."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(
            "value_and_grad_fn must return (value, gradient), or ((value, aux), gradient), as "
            f"jax.value_and_grad(loss) does, got {type(found).__name__}: pass a function that "
            "returns the gradient alone as grad_fn."
        )
    value, gradient = found
    value, aux = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    return Pass(gradient, _one_number("the value of value_and_grad_fn", value), aux)


def _one_number(name: str, value: Any) -> Any:
    """The value of a loss, if it is one."""
    is_real = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
    if not (is_real and value.shape == ()) and not isinstance(value, float):
        shape = list(getattr(value, "shape", ()))
        raise ValueError(
            f"{name} must be one real number, got "
            f"{getattr(value, 'dtype', type(value).__name__)}{shape}: take the mean over the "
            "examples, and hand over anything else as aux."
        )
    return value


def within(given: tuple[str, Evaluate], part: Part, params: Tree) -> Evaluate:
    """The pass as one over a part, the rest closed over."""
    name, evaluate = given

    def of_part(pruned: Tree, *args: Any, **kwargs: Any) -> Pass:
        with callers():
            found = evaluate(part.merge(pruned, params), *args, **kwargs)
        _fit.check(f"what {name} returns", found.gradient, part, params)
        return found._replace(gradient=part.prune(found.gradient))

    return of_part


def like(evaluate: Evaluate, updates: Tree) -> Evaluate:
    """The pass with its gradient in the dtypes of the updates."""

    def cast(*args: Any, **kwargs: Any) -> Pass:
        found = evaluate(*args, **kwargs)
        return found._replace(gradient=_tree.cast_like(found.gradient, updates))

    return cast


def gradient_of(evaluate: Evaluate) -> GradFn:
    """The gradient of a pass alone."""
    return lambda *args, **kwargs: evaluate(*args, **kwargs).gradient


def wanted(second: Pass, state: SharpnessAwareState) -> Pass:
    """The pass without aux that is not kept, which may be anything."""
    return second if jax.tree.leaves(state.aux) else second._replace(aux=None)


def gradient_within(grad_fn: GradFn, part: Part, params: Tree) -> GradFn:
    """grad_fn as the gradient of a part with respect to a part, the rest closed over."""
    evaluate = within(_alone(grad_fn), part, params)
    return functools.wraps(grad_fn)(gradient_of(evaluate))


def both_within(both: Callable[..., Any], part: Part, params: Tree) -> Callable[..., Any]:
    """value_and_grad_fn likewise."""
    evaluate = within(_together(both), part, params)

    @functools.wraps(both)
    def of_part(*args: Any, **kwargs: Any) -> Any:
        found = evaluate(*args, **kwargs)
        return (found.value, found.aux), found.gradient

    return of_part


def told(second: Pass, value: Any, state: SharpnessAwareState, params: Tree) -> Told:
    """Rise and aux after a second pass; as they were, where it does not tell them."""
    rise, aux = state.rise, state.aux
    if second.value is not None and value is not None:
        before = _tree.widen(_one_number("value", value))
        rise = of_all(_tree.scalar(_tree.widen(second.value) - before, params), state)
    if jax.tree.leaves(aux):
        aux = _checked(second.aux, aux, state)
    return Told(rise, aux)


def of_all(number: Any, state: SharpnessAwareState) -> Any:
    """The mean over devices that each have a loss of their own, and one state."""
    axes = _axes.varying(number) - _axes.varying(state.rise)
    return jax.lax.pmean(number, _axes.ordered(axes)) if axes else number


def _checked(found: Any, kept: Any, state: SharpnessAwareState) -> Any:
    """The aux of this step, if it is like what the state keeps."""
    if _described(found) != _described(kept):
        raise ValueError(
            "keep_aux keeps the aux of value_and_grad_fn, which must be as it was told: expected "
            f"{_described(kept)}, got {_described(found)}. Pass value_and_grad_fn="
            "jax.value_and_grad(loss, has_aux=True) with that aux, or tell keep_aux another."
        )

    def same(x: Any, y: jax.Array) -> Any:
        # Of the very type that the state keeps, where it is a number of Python.
        array = jnp.asarray(x, y.dtype)
        if jnp.issubdtype(y.dtype, jnp.floating):
            return of_all(array, state)
        if axes := _axes.varying(array) - _axes.varying(state.rise):
            raise ValueError(
                f"aux of {y.dtype} differs between the devices along {_axes.listed(axes)}, and the "
                "state is one for all: take its sum over them inside the loss, by jax.lax.psum, or "
                "hand over a float, of which the mean is kept."
            )
        return array

    return jax.tree.map(same, found, kept)


def _described(aux: Any) -> Any:
    return jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", aux)
