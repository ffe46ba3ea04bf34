"""What the parts of a sharpness-aware method look like.

Every function of a part takes `step`, the link's own step count (int32, from 0), which its
schedules are evaluated at, and `slots`, the `SharpnessAwareState` as far as the step has come, so
that one part can read what another keeps (`slots.start`, ...). It accepts the extra arguments of
the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from typing import Any, Concatenate, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from sam_optax import _purity

# A number, or a function of the link's own step count.
Schedulable = optax.ScalarOrSchedule

# A tree of arrays: parameters, updates or a state, which Optax's types do not tell apart.
Tree = optax.Params

# A gradient as a function of the parameters.
GradFn = Callable[[Tree], Tree]

# The state of one part.
State = TypeVar("State")

# Whether a method takes a second gradient, at so many coming steps from a state.
Foresee = Callable[[Any, int], list[jax.typing.ArrayLike]]


class Start(NamedTuple):
    """Where the first gradient is taken.

    Attributes:
      init: `init(params) -> state`, a NamedTuple with a method `offset(params)`, δ0 from the state
        and the current parameters alone; `offset(params, sample)` where there are several.
      update: `update(direction, state, params, *, first, step, slots, **extra) -> state`, called at
        the end of each step with the direction that is handed on; first is the first gradient.
      samples: the number of offsets over which the first gradient is averaged; `perturb` is told
        the first of them.
    """

    init: Callable[[optax.Params], Any]
    update: Callable[..., Any]
    samples: int = 1


class When(NamedTuple):
    """Whether the second gradient is worth its cost at this step.

    Attributes:
      init: `init(params) -> state`.
      update: `update(first, state, params, *, step, slots, **extra) -> (fire, state)`; fire is a
        boolean scalar, and must be equal on all devices.
      ahead: whether fire follows from state and step alone, so that `decisions` can ask for it
        before there is a gradient; update is then called with None for first, params and slots.
    """

    init: Callable[[optax.Params], Any]
    update: Callable[..., tuple[jax.typing.ArrayLike, Any]]
    ahead: bool = False


class Combine(NamedTuple):
    """What is handed on to the rest of the chain.

    Attributes:
      init: `init(params) -> state`.
      fresh: `fresh(first, second, state, params, *, step, grad_fn, epsilon, second_value, slots,
        **extra) -> (direction, state)`, at the steps with a second gradient. It may take gradients
        at further points by grad_fn; where its direction is not finite then, stale takes its place.
        epsilon is ε, where fresh has an argument of that name; second_value is L(w + ε), None where
        the update is not given `value_and_grad_fn`. None for a part that acts on the first gradient
        alone, in a method without a second.
      stale: `stale(first, state, params, *, step, slots, **extra) -> (direction, state)`, at the
        other steps.
    """

    init: Callable[[optax.Params], Any]
    fresh: Callable[..., tuple[optax.Updates, Any]] | None
    stale: Callable[..., tuple[optax.Updates, Any]]


def transformation(
    init: Callable[[Tree], State],
    update: Callable[Concatenate[Tree, State, ...], tuple[Tree, State]],
    foresee: Foresee | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that knows its state, and may ask for extra arguments.

    Optax's types give it any tree for a state, and let it ask for nothing.

    Args:
      init: its init.
      update: its update.
      foresee: tells the coming decisions of a method with this update.
    """
    marked: Any = update
    marked.foresee = foresee
    return optax.GradientTransformationExtraArgs(init, marked)  # type: ignore[arg-type]


def foresight(link: optax.GradientTransformation) -> Foresee | None:
    """What tells the coming decisions of a link; None where nothing does."""
    found: Foresee | None = getattr(link.update, "foresee", None)
    return found


# Answers for the value of a schedule, so many steps ahead, while a piece of a step is compiled.
Answer = Callable[[optax.Schedule, int], jax.typing.ArrayLike]
_answer: contextvars.ContextVar[Answer | None] = contextvars.ContextVar("answer", default=None)


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """Inside it the caller's schedules are not called, but answered for."""
    token = _answer.set(answer)
    try:
        yield
    finally:
        _answer.reset(token)


def some_number() -> jax.Array:
    """An answer where only shapes are asked for: traced, so that no division by it can fail."""
    return jnp.asarray(1.0)


def value_at(
    hyperparameter: Schedulable, step: jax.typing.ArrayLike, ahead: int = 0
) -> jax.typing.ArrayLike:
    """The hyperparameter at a step, or so many steps ahead of it."""
    if not callable(hyperparameter):
        return hyperparameter
    answer = _answer.get()
    if answer is None or _purity.is_pure(hyperparameter):
        return scheduled(hyperparameter, step, ahead)
    return answer(hyperparameter, ahead)


def scheduled(
    schedule: optax.Schedule, step: jax.typing.ArrayLike, ahead: int
) -> jax.typing.ArrayLike:
    """The value of a schedule so many steps ahead."""
    for _ in range(ahead):
        step = optax.safe_increment(step)
    return schedule(step)
