"""Promotion of dtypes: the library's arithmetic follows JAX's standard rules, the caller's its own.

Under `jax.numpy_dtype_promotion("strict")` nothing of ours may fail, and what the caller hands in
(grad_fn, schedules, transformations of Optax) is still held to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import contextvars
import functools
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Args = ParamSpec("Args")
Result = TypeVar("Result")

# The rules that the caller has set, while ours are in force in their place.
_callers: contextvars.ContextVar[str | None] = contextvars.ContextVar("callers", default=None)


def standard(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """The function, under the standard rules."""

    @functools.wraps(function)
    def call(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        rules: str = jax.numpy_dtype_promotion.value
        if rules == "standard":  # where nothing is set, no cache of JAX sees a difference
            return function(*args, **kwargs)
        token = _callers.set(rules)
        try:
            with jax.numpy_dtype_promotion("standard"):
                return function(*args, **kwargs)
        finally:
            _callers.reset(token)

    return call


@contextlib.contextmanager
def callers() -> Iterator[None]:
    """Inside a function under the standard rules, those of the caller again."""
    rules = _callers.get()
    if rules is None:
        yield
    else:
        with jax.numpy_dtype_promotion(rules):
            yield


@functools.cache  # asked for each leaf
@standard
def common(*dtypes: np.dtype) -> np.dtype:
    """The dtype to which these are promoted, float32 at least."""
    return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))
