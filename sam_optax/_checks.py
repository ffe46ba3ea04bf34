"""Clear errors for hyperparameters of a wrong type or out of range."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam_optax._promotion import callers
from sam_optax._purity import is_pure, ours

NUMBERS = (int, float, np.integer, np.floating)
LARGEST = 2**31 - 1  # what an integer of JAX holds as it comes


def interval(name: str, value: Any, bounds: str, *, schedule: bool = True) -> Any:
    """The value; raises unless it is inside bounds, such as "[0, 1)", or cannot be known yet.

    Arrays pass, because `optax.inject_hyperparams` hands them over and their values would have to
    be waited for. A schedule is held to the bounds where it is known: at step 0, when it is first
    called, if it is Optax's or ours, and at each step where it returns a number of Python or NumPy.
    """
    if callable(value) and schedule:
        return _held(name, value, bounds)
    if _is_scalar_array(name, value):
        return value
    if not isinstance(value, NUMBERS) or isinstance(value, (bool, np.longdouble)):
        or_schedule = " or an Optax schedule (a function of the step)" if schedule else ""
        raise TypeError(f"{name} must be a number{or_schedule}, got {value!r}.")
    if isinstance(value, (int, np.integer)) and not -LARGEST <= value <= LARGEST:
        raise ValueError(
            f"{name} must fit 32 bits where it is an integer, got {_shown(value)}: pass a smaller "
            "number, or a float."
        )
    if not _is_inside(value, bounds):
        raise ValueError(
            f"{name} must lie in {bounds}, got {value!r}: pass a number from that interval"
            f"{', or a schedule with such values' if schedule else ''}."
        )
    return value


def _held(name: str, schedule: optax.Schedule, bounds: str) -> optax.Schedule:
    """The schedule, held to the bounds where its values are known."""

    def check(value: Any, step: Any) -> None:
        if not _is_inside(value, bounds, slack=1e-6):  # a schedule computes, and rounds
            where = "" if isinstance(step, jax.core.Tracer) else f" at step {step}"
            raise ValueError(
                f"{name} must lie in {bounds}, got a schedule that is {value!r}{where}: hold it "
                "there, as lambda step: jnp.clip(schedule(step), low, high) does."
            )

    @functools.cache
    def check_beginning() -> None:
        # The caller's Python is called as often as the contract says, and no more.
        if is_pure(schedule) and (value := known(schedule, 0)) is not None:
            check(value, 0)

    @ours(schedule)
    def held(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        check_beginning()
        with callers():
            value = schedule(step)
        if isinstance(value, NUMBERS):
            check(value, step)
        return value

    return held


def known(schedule: optax.Schedule, step: int) -> float | None:
    """The value of a schedule at a step, or None where it depends on what is traced."""
    # One number goes to the device, which is none of the transfers that a caller may guard against,
    # and no mesh that a caller's program is traced for can run it.
    no_mesh = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"), no_mesh, callers():
        value: Any = schedule(jnp.asarray(step))
    return None if isinstance(value, jax.core.Tracer) else float(value)


def _is_inside(value: Any, bounds: str, slack: float = 0.0) -> bool:
    low, high = map(float, bounds[1:-1].split(","))
    above = value >= low - slack if bounds[0] == "[" else value > low
    below = value <= high + slack if bounds[-1] == "]" else value < high
    return bool(above and below)


def whole(name: str, value: Any, low: int) -> None:
    """Raises unless value is an integer of at least low that fits 32 bits, or an array."""
    if _is_scalar_array(name, value):
        return
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value > LARGEST:
        raise ValueError(
            f"{name} must be at most {LARGEST}, got {_shown(value)}: pass a smaller number."
        )
    if value < low:
        raise ValueError(
            f"{name} must be at least {low}, got {_shown(value)}: pass a larger number."
        )


def static(name: str, value: Any) -> None:
    """Raises where value is an array: what sets a shape or unrolls a loop cannot be traced."""
    if isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(
            f"{name} must be a Python number, known before tracing, got {value!r}: under "
            f"optax.inject_hyperparams pass static_args=({name!r},)."
        )


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises unless value is one of choices."""
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {listed}, got {value!r}.")


def flag(name: str, value: Any) -> None:
    """Raises unless value is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def _is_scalar_array(name: str, value: Any) -> bool:
    """Whether value is an array; raises where it is not of one real number."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        return False
    real = jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)
    if value.shape != () or not real:
        raise TypeError(
            f"{name} must be one number, got an array {value.dtype}{list(value.shape)}."
        )
    return True


def _shown(value: int | np.integer[Any]) -> str:
    """An integer for a message; Python refuses to print those of thousands of digits."""
    bits = int(value).bit_length()
    return repr(value) if bits <= 256 else f"an integer of {bits} bits"
