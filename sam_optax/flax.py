"""For Flax: a Linen train state that forwards `grad_fn`, and `grad_fn` from an NNX model.

It needs Flax, which the package itself does not: `pip install "sam_optax[flax]"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import functools
from typing import Any, Self

from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state
import jax
import optax

from sam_optax._contracts import Tree
from sam_optax._functional import functional_grad_fn
from sam_optax._point import gradient_point

__all__ = [
    "TrainState",
    "nnx_functional_grad_fn",
    "nnx_grad_fn",
    "nnx_pure_fn",
]


class TrainState(train_state.TrainState):
    """Flax's `TrainState`, whose `apply_gradients` gives the optimizer what it needs besides.

    Subclass it for more fields, such as batch statistics, as you would Flax's own. The scales of
    Flax's float8 layers are as there no parameters: they have no part in ε, noise and norms, and
    are overwritten by what the first pass returns in place of their gradient.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> from sam_optax.flax import TrainState
      >>> state = TrainState.create(
      ...     apply_fn=None, params={"w": jnp.ones(2)},
      ...     tx=optax.chain(sam_optax.sam(), optax.sgd(0.1)))
      >>> grad_fn = jax.grad(lambda params: jnp.sum(params["w"] ** 2))
      >>> state = state.apply_gradients(grads=grad_fn(state.params), grad_fn=grad_fn)
      >>> int(state.step)
      1
    """

    def apply_gradients(self, *, grads: optax.Updates, **kwargs: Any) -> Self:
        """Updates `step`, `params` and `opt_state`.

        Args:
          grads: gradients with the structure of `params`, taken at `self.gradient_point()` where
            the method was built with updates_at="gradient_point".
          **kwargs: fields of the state are replaced; everything else, `grad_fn` first, goes on to
            `tx.update`.

        Returns:
          The new state.

        Raises:
          TypeError: an argument is almost the name of a field, and so probably a slip.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        replaced = {name: value for name, value in kwargs.items() if name in fields}
        extra = {name: value for name, value in kwargs.items() if name not in fields}
        for name in extra:
            if near := difflib.get_close_matches(name, fields, n=1, cutoff=0.8):
                raise TypeError(
                    f"{name!r} is no field of {type(self).__name__}: did you mean {near[0]!r}? "
                    "Arguments for the optimizer must not look so much like a field."
                )
        if OVERWRITE_WITH_GRADIENT in self.params:
            for name in ("grad_fn", "value_and_grad_fn", "example_loss_fn", "value_fn"):
                if extra.get(name) is not None:
                    extra[name] = _of_params(extra[name], self.params)
            if "param_specs" in extra:
                extra["param_specs"] = _specs_of_params(extra["param_specs"])
        update: Callable[..., tuple[Tree, Tree]] = self.tx.update
        if isinstance(self.tx, optax.GradientTransformation):  # and not such as optax.MultiSteps
            update = optax.with_extra_args_support(self.tx).update
        tx = optax.GradientTransformation(self.tx.init, functools.partial(update, **extra))
        # Flax's own method, so that what it does besides (float8 parameters) stays as it is.
        forwarding: Any = super(TrainState, self.replace(tx=tx))
        state: Self = forwarding.apply_gradients(grads=grads, **replaced)
        return state.replace(tx=self.tx)

    def gradient_point(self, *, param_specs: Any = None) -> optax.Params:
        """Where the first gradient is taken; see `sam_optax.gradient_point`.

        Args:
          param_specs: as the update takes it.

        Returns:
          Parameters like `params`.
        """
        if OVERWRITE_WITH_GRADIENT in self.params:
            specs = _specs_of_params(param_specs)
            point = gradient_point(self.opt_state, self.params["params"], param_specs=specs)
            return {**self.params, "params": point}
        return gradient_point(self.opt_state, self.params, param_specs=param_specs)


def _specs_of_params(specs: Any) -> Any:
    """Of the specs of variables those of what is trained among them."""
    return specs["params"] if isinstance(specs, Mapping) and "params" in specs else specs


def _of_params(function: Callable[..., Any], variables: Any) -> Callable[..., Any]:
    """A function of variables as one of what is trained among them, the rest closed over."""

    @functools.wraps(function)
    def of_params(params: Tree, *args: Any, **kwargs: Any) -> Any:
        result = function({**variables, "params": params}, *args, **kwargs)
        if isinstance(result, tuple) and len(result) == 2:  # with the value of the loss
            return result[0], _without_scales(result[1])
        return _without_scales(result)

    return of_params


def _without_scales(gradient: Any) -> Any:
    """Of the gradient of variables that of what is trained among them; a loss as it is."""
    is_gradient = isinstance(gradient, Mapping) and OVERWRITE_WITH_GRADIENT in gradient
    return gradient["params"] if is_gradient else gradient


def nnx_pure_fn(
    function: Callable[..., Any],
    model: nnx.Module,
    *args: Any,
    wrt: nnx.filterlib.Filter = nnx.Param,
    **kwargs: Any,
) -> Callable[..., Any]:
    """A function of an NNX model as a function of its parameters alone.

    All else that the model and the arguments hold (batch statistics, `nnx.Rngs`, metrics, other
    modules) is fixed as it is now, and what the function changes of it is dropped.

    Args:
      function: `function(model, *args, **kwargs)`.
      model: the model; it is read, and never changed.
      *args: the batch and whatever function takes besides, `nnx.Rngs` and modules too.
      wrt: the variables that are trained, the filter of the `nnx.Optimizer`.
      **kwargs: keyword arguments of function.

    Returns:
      `pure_fn(params, *more)`, for an `nnx.State` of pure arrays such as `nnx.Optimizer` passes to
      Optax; `more` follows args. It raises ValueError where params are not the variables of wrt.
    """
    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=_is_node)
    nodes = [leaf for leaf in leaves if _is_node(leaf)]
    chosen = nnx.filterlib.to_predicate(wrt)
    # Together, since they may share variables; the model's alone are trained.
    graphdef, *states = nnx.split(
        (model, *nodes), lambda path, x: path[0] == 0 and chosen(path[1:], x), ...
    )
    held, variables = jax.tree.flatten(states[1])
    trained = states[0].get(0, states[0])
    places, of_params = _paths(trained), jax.tree.structure(states[0])

    def pure_fn(params: nnx.State[Any, Any], *more: Any) -> Any:
        if different := sorted(places ^ _paths(params)):
            here, there = ("those of the model", "params")[:: 1 if different[0] in places else -1]
            raise ValueError(
                f"params must be the variables of wrt={getattr(wrt, '__name__', wrt)}, and "
                f"{different[0]} is in {here} and not in {there}: give wrt here, in nnx.grad and "
                "in nnx.Optimizer the same filter."
            )
        # New variables, which belong to the trace that is running.
        first = jax.tree.unflatten(of_params, jax.tree.leaves(params))
        merged, *others = nnx.merge(graphdef, first, jax.tree.unflatten(variables, held))
        following = iter(others)
        filled = [next(following) if _is_node(leaf) else leaf for leaf in leaves]
        own_args, own_kwargs = jax.tree.unflatten(structure, filled)
        return function(merged, *own_args, *more, **own_kwargs)

    return pure_fn


def _is_node(x: object) -> bool:
    """Whether it holds state that a function may change: a module, Rngs, metrics, a variable."""
    return isinstance(x, nnx.Pytree | nnx.Variable)


def _paths(state: Any) -> set[str]:
    """Where the arrays are, whether in variables or without."""
    return {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(nnx.as_pure(state))}


def nnx_grad_fn(
    loss_fn: Callable[..., Any],
    model: nnx.Module,
    *args: Any,
    wrt: nnx.filterlib.Filter = nnx.Param,
    has_aux: bool = False,
    **kwargs: Any,
) -> Callable[..., Any]:
    """The gradient of an NNX model's loss as a function of its parameters alone.

    All else that the model and the arguments hold is fixed as it is now: make it BEFORE the first
    gradient, which moves batch statistics and random counts, so that both passes see the same
    dropout masks and statistics move once per step::

        grad_fn = sam_optax.flax.nnx_grad_fn(loss_fn, model, batch)
        grads = nnx.grad(loss_fn)(model, batch)
        optimizer.update(model, grads, grad_fn=grad_fn)

    Args:
      loss_fn: `loss_fn(model, *args, **kwargs)` -> loss, or (loss, aux) where has_aux is true.
      model: the model; it is read, and never changed.
      *args: the batch and whatever loss_fn takes besides, `nnx.Rngs` and modules too.
      wrt: the variables that are trained, the filter of the `nnx.Optimizer`.
      has_aux: whether loss_fn returns aux besides; it is dropped.
      **kwargs: keyword arguments of loss_fn.

    Returns:
      `grad_fn(params, *more)` for an `nnx.State` of pure arrays, such as `nnx.Optimizer` passes to
      Optax; the gradient has the same structure. `more`, such as the indices of `esam`, follows
      args. It raises ValueError where params are not the variables of wrt.
    """
    pure_fn = nnx_pure_fn(loss_fn, model, *args, wrt=wrt, **kwargs)

    def loss(params: nnx.State[Any, Any], *more: Any) -> jax.Array:
        result = pure_fn(params, *more)
        value: jax.Array = result[0] if has_aux else result
        return value

    return jax.grad(loss)


def nnx_functional_grad_fn(
    model_fn: Callable[..., Any],
    loss_fn: Callable[[Any], jax.Array],
    model: nnx.Module,
    *args: Any,
    wrt: nnx.filterlib.Filter = nnx.Param,
    **kwargs: Any,
) -> Callable[[Any], Any]:
    """`sam_optax.functional_grad_fn` of an NNX model: Functional SAM, with any method.

    As `nnx_grad_fn` it fixes all that is no parameter, so make it before the first gradient::

        grad_fn = sam_optax.flax.nnx_functional_grad_fn(
            lambda model, x: model(x), lambda logits: loss(logits, labels), model, images)

    Args:
      model_fn: `model_fn(model, *args, **kwargs)` -> outputs.
      loss_fn: outputs ↦ loss.
      model: the model; it is read, and never changed.
      *args: what model_fn takes besides.
      wrt: the variables that are trained, the filter of the `nnx.Optimizer`.
      **kwargs: keyword arguments of model_fn.

    Returns:
      `grad_fn(params)` for an `nnx.State` of pure arrays, such as `nnx.Optimizer` passes to Optax.
    """
    pure_fn = nnx_pure_fn(model_fn, model, *args, wrt=wrt, **kwargs)
    params = nnx.as_pure(nnx.state(model, wrt))
    return functional_grad_fn(pure_fn, loss_fn, params)
