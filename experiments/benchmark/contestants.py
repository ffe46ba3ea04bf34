"""The steps that are measured: ours, decided on the device, the host or ahead, and the peers'."""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.benchmark.bars import SKIPPING, WINDOWS
from experiments.benchmark.problems import Problem
from experiments.training.optimizers import SGD, is_decoupled
import sam_optax

# So small that every turn meets the same gradients.
LEARNING_RATE = 1e-6
MOMENTUM, RHO = 0.9, 0.05


class Carry(NamedTuple):
    """What a step changes, donated to it where it is one program."""

    params: Any
    model_state: Any
    opt_state: Any


class Contestant(NamedTuple):
    """A step and where it begins.

    Attributes:
      init: params -> the optimizer's state.
      step: (carry, batch) -> carry.
      whole: whether step is one function for `jax.jit`, or several that are compiled already.
      uncounted: second gradients of a step that no `ascents` in the state counts.
      cycle: the fewest steps that hold each kind of step about as often as many do.
    """

    init: Callable[[Any], Any]
    step: Callable[[Carry, Any], Carry]
    whole: bool = True
    uncounted: int = 0
    cycle: int = 1


def base() -> optax.GradientTransformation:
    """The optimizer behind every method."""
    return optax.sgd(LEARNING_RATE, MOMENTUM)


def link(name: str) -> optax.GradientTransformationExtraArgs:
    """A method of `sam_optax`, with its base inside where it takes one, or none."""
    if name == SGD:
        return optax.with_extra_args_support(optax.identity())
    if name == WINDOWS:
        return sam_optax.sharpness_aware(sam_optax.perturb.ball(RHO), when=_windows())
    function = getattr(sam_optax, name)
    offered = {
        "base": optax.trace(MOMENTUM),
        "total_steps": 10_000,
        "ess": 50_000.0,
        "updates_at": "gradient_point",
    }
    offered |= {"lambda_1": 0.0, "lambda_2": 0.0}  # about every other gradient is above the mean
    asked = inspect.signature(function).parameters
    return function(**{name: value for name, value in offered.items() if name in asked})


def _windows():
    """Open at five of ten steps, so that a turn holds as many as the next."""

    def update(first, state, params, *, step, **extra):
        return step % 10 < 5, state

    return sam_optax.When(optax.init_empty_state, update, ahead=True)


def rest(name: str) -> optax.GradientTransformation:
    """What stands behind the link."""
    decoupled = name != WINDOWS and is_decoupled(name)
    return optax.scale_by_learning_rate(LEARNING_RATE) if decoupled else base()


def on_device(problem: Problem, name: str) -> Contestant:
    """SGD, or a method in one compiled step."""
    return _whole(problem, name, link(name))


def _whole(problem, name, method):
    tx, extra = optax.chain(method, rest(name)), _extra(problem, method, _second(problem))

    def step(carry, batch, fire=None):
        params, model_state, opt_state = carry
        grads, model_state, losses = _first(problem, opt_state, params, model_state, batch)
        arguments = extra(carry.model_state, batch, losses)
        updates, opt_state = tx.update(grads, opt_state, params, fire=fire, **arguments)
        return Carry(optax.apply_updates(params, updates), model_state, opt_state)

    return Contestant(tx.init, step, cycle=_cycle(name))


def ahead(problem: Problem, name: str) -> Contestant:
    """A method that is told its decisions, in a program for each of the two."""
    method = link(name)
    contestant = _whole(problem, name, method)
    told = jax.jit(contestant.step, donate_argnums=0, static_argnames="fire")
    coming: list[bool] = []

    def step(carry, batch):
        if not coming:
            coming.extend(sam_optax.decisions(method, carry.opt_state, 1000).tolist())
        return told(carry, batch, fire=coming.pop(0))

    return contestant._replace(step=step, whole=False)


def on_host(problem: Problem, name: str) -> Contestant:
    """A method whose update is called outside jit, between compiled pieces."""
    method, behind = link(name), rest(name)
    first = jax.jit(functools.partial(_first, problem))
    extra = _extra(problem, method, jax.jit(_second(problem)))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def apply(params, state, direction):
        updates, state = behind.update(direction, state, params)
        return optax.apply_updates(params, updates), state

    def step(carry, batch):
        params, model_state, (method_state, rest_state) = carry
        grads, model_state, losses = first(method_state, params, model_state, batch)
        arguments = extra(carry.model_state, batch, losses)
        direction, method_state = method.update(grads, method_state, params, **arguments)
        params, rest_state = apply(params, rest_state, direction)
        return Carry(params, model_state, (method_state, rest_state))

    def init(params):
        return method.init(params), behind.init(params)

    return Contestant(init, step, whole=False, cycle=_cycle(name))


def hand_written(problem: Problem, *, falls_back: bool = False) -> Contestant:
    """SAM in the fewest lines: the least that a second gradient can cost.

    One that falls back hands on the first gradient where the second is not finite. So it has to
    hold the first one until it has seen all of the second, as every method here.
    """
    tx = base()

    def step(carry, batch):
        params, model_state, opt_state = carry
        gradient = jax.grad(problem.loss, has_aux=True)
        first, (model_state, _) = gradient(params, carry.model_state, batch)
        scale = RHO / optax.tree.norm(first)
        point = jax.tree.map(lambda w, g: w + scale * g, params, first)
        grads, _ = gradient(point, carry.model_state, batch)
        if falls_back:
            leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)]
            grads = optax.tree.where(functools.reduce(jnp.logical_and, leaves), grads, first)
        updates, opt_state = tx.update(grads, opt_state, params)
        return Carry(optax.apply_updates(params, updates), model_state, opt_state)

    return Contestant(tx.init, step, uncounted=1)


def optax_opaque(problem: Problem) -> Contestant:
    """`optax.contrib.sam`, which takes the second gradient by itself."""
    tx = _optax_sam(opaque_mode=True)

    def step(carry, batch):
        params, model_state, opt_state = carry
        grads, model_state, _ = _gradient(problem, params, model_state, batch)

        def grad_fn(p, _):
            return _gradient(problem, p, carry.model_state, batch)[0]

        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        return Carry(optax.apply_updates(params, updates), model_state, opt_state)

    return Contestant(tx.init, step, uncounted=1)


def optax_transparent(problem: Problem) -> Contestant:
    """`optax.contrib.sam` in its other mode: two updates, on the same batch, are one step."""
    tx = _optax_sam(opaque_mode=False)

    def step(carry, batch):
        params, model_state, opt_state = carry
        grads, model_state, _ = _gradient(problem, params, model_state, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        grads, _, _ = _gradient(problem, params, carry.model_state, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return Carry(optax.apply_updates(params, updates), model_state, opt_state)

    return Contestant(tx.init, step, uncounted=1)


def rollfast_sam(problem: Problem) -> Contestant:
    """SAM by `rollfast.sam_perturbation`, as the steps of that package have it."""
    from rollfast import sam_perturbation  # needs an extra

    tx = base()

    def step(carry, batch):
        params, model_state, opt_state = carry
        first, model_state, _ = _gradient(problem, params, model_state, batch)
        epsilon, _ = sam_perturbation(first, rho=RHO)
        point = optax.tree.add(params, epsilon)
        grads, _, _ = _gradient(problem, point, carry.model_state, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return Carry(optax.apply_updates(params, updates), model_state, opt_state)

    return Contestant(tx.init, step, uncounted=1)


def _cycle(name):
    """A period of `looksam`, wherever it begins; enough coins and decisions of the others."""
    return {"looksam": 5}.get(name, 10 if name in (*SKIPPING, WINDOWS) else 1)


def _optax_sam(*, opaque_mode):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    return optax.contrib.sam(base(), ascent, sync_period=2, opaque_mode=opaque_mode)


def _gradient(problem, params, model_state, batch):
    """The gradient, the new batch statistics and the losses."""
    grads, (model_state, losses) = jax.grad(problem.loss, has_aux=True)(params, model_state, batch)
    return grads, model_state, losses


def _first(problem, state, params, model_state, batch):
    """The first gradient, where the method takes it."""
    return _gradient(problem, sam_optax.gradient_point(state, params), model_state, batch)


def _second(problem):
    """(model_state, batch, params, indices of the examples) -> the gradient on those examples."""

    def second(model_state, batch, params, kept=None):
        if kept is not None:
            batch = jax.tree.map(lambda x: x[kept], batch)
        return _gradient(problem, params, model_state, batch)[0]

    return second


def _extra(problem, method, second):
    """(model_state, batch, losses) -> the extra arguments of a method's update."""
    selects = "example_losses" in inspect.signature(method.update).parameters

    def extra(model_state, batch, losses):
        arguments = {"grad_fn": functools.partial(second, model_state, batch)}
        if selects:
            arguments["example_loss_fn"] = lambda params: problem.losses(
                params, model_state, batch
            )[0]
            arguments["example_losses"] = losses
        return arguments

    return extra
