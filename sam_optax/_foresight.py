"""What a policy that looks at no gradient will decide."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam_optax import _purity
from sam_optax._contracts import GradFn, When, answering, some_number
from sam_optax._pieces import Pieces
from sam_optax._second import Pass  # in place of a gradient, which is never called
from sam_optax._states import REMEDY, SharpnessAwareState

Fires = list[jax.typing.ArrayLike]
AT_ONCE = 512  # the decisions of a program


class Foresight:
    """The decisions of the coming steps: many in a program, where the policy calls no Python."""

    def __init__(self, when: When, piece: Pieces, *, ascends: bool) -> None:
        """Compiles nothing yet.

        Args:
          when: the policy.
          piece: makes a piece of the method's step.
          ascends: whether there is a second gradient at all.
        """
        self._when, self._ascends = when, ascends
        self._ask_once = piece(when)(self._ask)

    def __call__(self, state: SharpnessAwareState, count: int) -> Fires:
        """The decisions of so many steps from a state.

        Raises:
          ValueError: they hang on the gradients, or the state is one of another policy.
        """
        if not self._ascends:
            return [False] * count
        if not self._when.ahead:
            raise ValueError(
                "the decisions of this method hang on its gradients, and cannot be known ahead: "
                "leave fire away, or pass what you decide yourself. They can of when.every, "
                "between and bernoulli, and of a When with ahead=True."
            )
        fires, kept, step = Fires(), state.when, state.steps
        if self._is_pure:
            found: object = jax.tree.structure(kept)
            if found != (wanted := jax.tree.structure(self._when.init(()))):
                raise ValueError(
                    f"opt_state is of a method with another policy, which keeps {found} and not "
                    f"{wanted}: {REMEDY}"
                )
        while len(fires) < count:
            if self._is_pure and not self._calls_python:
                many, kept, step = self._ask_often(kept, jnp.asarray(step))
                fires += np.asarray(many).tolist()
            else:
                fire, kept = self._ask_once(Pass, kept, {"step": step})
                step = following(step)
                fires.append(fire)
        return fires[:count]

    def _ask(
        self, grad_fn: GradFn, kept: Any, extra: dict[str, Any]
    ) -> tuple[jax.typing.ArrayLike, Any]:
        del grad_fn
        return self._when.update(None, kept, None, **extra, slots=None)

    @functools.cached_property
    def _is_pure(self) -> bool:
        return _purity.is_pure(self._when)

    @functools.cached_property
    def _calls_python(self) -> bool:
        """Whether it asks a schedule of the caller's, which is called at each step."""
        asked = []

        def answer(schedule: optax.Schedule, ahead: int) -> jax.Array:
            asked.append((schedule, ahead))
            return some_number()

        def ask(step: jax.Array) -> Any:
            return self._ask(Pass, self._when.init(()), {"step": step})

        with answering(answer):
            jax.eval_shape(ask, jax.ShapeDtypeStruct((), jnp.int32))
        return bool(asked)

    @functools.cached_property
    def _ask_often(self) -> Any:
        def one(carry: tuple[Any, jax.Array], _: None) -> tuple[tuple[Any, jax.Array], jax.Array]:
            kept, step = carry
            fire, kept = self._ask(Pass, kept, {"step": step})
            return (kept, following(step)), jnp.asarray(fire)

        @jax.jit
        def often(kept: Any, step: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
            (kept, step), fires = jax.lax.scan(one, (kept, step), length=AT_ONCE)
            return fires, kept, step

        return often


def following(steps: jax.Array) -> jax.Array:
    """The next count; an array stays one, which Optax does not say."""
    return optax.safe_increment(steps)  # type: ignore[return-value]
