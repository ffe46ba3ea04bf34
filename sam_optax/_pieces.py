"""The pieces of a step, compiled outside jit where that changes nothing.

There a link behaves as Optax does, which runs everything in Python at each update: a schedule may
read a Python variable, decide by `if` and call NumPy, and an extra argument may be anything. So the
caller's schedules are called in Python at each update, and a compiled piece is handed their values;
and a piece with other code of the caller's is not compiled.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, TypeVar, get_args

import jax
import optax

from sam_optax import _contracts, _purity
from sam_optax._contracts import GradFn, Tree

Args = ParamSpec("Args")
Result = TypeVar("Result")

ARRAYS = get_args(jax.typing.ArrayLike)


class _AsksForGradientError(Exception):
    """Raised while a piece is traced that calls grad_fn."""


def _ask(params: Tree) -> NoReturn:
    raise _AsksForGradientError


class Pieces:
    """Compiles the pieces of a link's step for concrete arguments.

    Not before the link is known to be kept, by its init or its first update:
    `optax.inject_hyperparams` makes one for each update, and compiling every one would cost far
    more than it saves. A link that saw init rounds alike in every process, whatever step it begins
    at.
    """

    def __init__(self) -> None:
        self._seen = self.kept = False

    def see(self) -> None:
        """Tells that init or update is called."""
        self.kept, self._seen = self._seen, True

    def __call__(
        self, *parts: Any
    ) -> Callable[[Callable[Concatenate[GradFn, Args], Result]], Piece[Args, Result]]:
        """Makes function(grad_fn, *args) a piece, which calls these parts of the method."""
        return lambda function: Piece(self, function, parts)


class Piece(Generic[Args, Result]):
    """function(grad_fn, *args), compiled; the last of args are the extra arguments, with the step.

    It stays uncompiled where it calls grad_fn, which is a new closure over a batch at each step,
    where a part holds code of the caller's, or where an extra argument is no array.
    """

    def __init__(
        self, link: Pieces, plain: Callable[Concatenate[GradFn, Args], Result], parts: Any
    ) -> None:
        self._link, self.plain, self._parts = link, plain, parts
        # By the structure of the arguments: without a second gradient others are asked.
        self._schedules: dict[Any, list[tuple[optax.Schedule, int]]] = {}
        self._asked: list[tuple[optax.Schedule, int]] | None = None
        self._compiled = jax.jit(self._answered)

    def __call__(self, grad_fn: GradFn, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        if self._link.kept and self._is_pure and _are_concrete((args, kwargs)):
            try:
                result: Result = self._compiled(self._values(args, kwargs), args, kwargs)
            except _AsksForGradientError:
                self._is_pure = False
            else:
                return result
        return self.plain(grad_fn, *args, **kwargs)

    @functools.cached_property
    def _is_pure(self) -> bool:
        return _purity.is_pure(self._parts)

    def _values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[jax.typing.ArrayLike]:
        """What the schedules are worth at this step, in the order in which they are asked."""
        structure = jax.tree.structure((args, kwargs))
        if structure not in self._schedules:
            asked: list[tuple[optax.Schedule, int]] = []
            self._asked = asked
            try:
                self._compiled.trace([], args, kwargs)  # serves the call where there are none
            finally:
                self._asked = None
            self._schedules[structure] = asked
        step = args[-1]["step"]
        return [
            _contracts.scheduled(schedule, step, ahead)
            for schedule, ahead in self._schedules[structure]
        ]

    def _answered(
        self, values: list[jax.typing.ArrayLike], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Result:
        following = iter(values)

        def answer(schedule: optax.Schedule, ahead: int) -> jax.typing.ArrayLike:
            if self._asked is None:
                return next(following)
            self._asked.append((schedule, ahead))
            return _contracts.some_number()

        with _contracts.answering(answer):
            return self.plain(_ask, *args, **kwargs)


def _are_concrete(args: object) -> bool:
    """Whether the leaves are arrays or numbers, and none is traced."""
    kinds = set(map(type, jax.tree.leaves(args)))
    traced = any(issubclass(kind, jax.core.Tracer) for kind in kinds)
    return not traced and all(issubclass(kind, ARRAYS) for kind in kinds)
