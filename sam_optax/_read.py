"""What a method keeps of a step, read from an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import optax

# The fields of a method's state that hold that of a part, which may be the caller's own,
SLOTS = ("start", "perturb", "when", "combine", "base")
# and those of this package's that hold further states, or what has no leaves.
OTHERS = ("noise", "kernels", "inner_state", "part", "policies")
# Those of Optax's wrappers around a part.
WRAPPED = ("inner_state", "inner_states")


def read(opt_state: optax.OptState, name: str) -> Any:
    """A quantity that a sharpness-aware method keeps in its state, by its name.

    The names are the attributes of the states: `steps` and `ascents` of every method, `rho` of
    `le_sam`, `v` of `looksam`, `mean` of `ae_sam`, and so on, and the fields of a named tuple that
    is the state of a part of your own. In contrast to `optax.tree.get` it
    looks at what the method keeps alone, so that neither a parameter of that name, as v in
    attention, nor another optimizer's state is in the way.

    Args:
      opt_state: the state of the whole optimizer, with the method's state anywhere inside.
      name: of the quantity.

    Returns:
      The quantity: an array, or a tree like the parameters.

    Raises:
      KeyError: no sharpness-aware method in opt_state keeps such a quantity, or several do.
      TypeError: name is no string.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> w = {"q": jnp.ones(2), "v": jnp.ones(2)}
      >>> tx = optax.chain(sam_optax.looksam(), optax.adam(1e-3))
      >>> state = tx.init(w)
      >>> print(sam_optax.read(state, "v"))
      {'q': Array([0., 0.], dtype=float32), 'v': Array([0., 0.], dtype=float32)}
    """
    if not isinstance(name, str):
        raise TypeError(f'name must be the name of a quantity, such as "ascents", got {name!r}.')
    kept = list(_quantities(opt_state))
    found = [value for other, value in kept if other == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise KeyError(
            f"{len(found)} quantities in opt_state are called {name!r}: pass the state of one "
            "method or part, such as opt_state[0] of a chain."
        )
    if not kept:
        raise KeyError("there is no sharpness-aware method in opt_state: pass the state of one.")
    names = ", ".join(sorted({other for other, _ in kept}))
    raise KeyError(f"no method in opt_state keeps {name!r}: ask for one of {names}.")


def _quantities(tree: Any, slot: bool = False) -> Iterator[tuple[str, Any]]:
    """The fields of the states of this package, whatever other states are around and between.

    In the slot of a method they are those of a part of the caller's too.
    """

    def is_state(node: object) -> bool:
        return _package(node) == __package__ or (slot and _package(node) is not None)

    for node in filter(is_state, jax.tree.leaves(tree, is_leaf=is_state)):
        package = _package(node)
        for field, value in zip(node._fields, node, strict=True):
            if package == "optax":
                yield from _quantities(value, slot=field in WRAPPED)
            elif package == __package__ and field in (*SLOTS, *OTHERS):
                yield from _quantities(value, slot=field in SLOTS)
            else:
                yield field, value
                if package != __package__:
                    yield from _quantities(value)


def _package(node: object) -> str | None:
    """Whose named tuple it is."""
    is_named = isinstance(node, tuple) and hasattr(node, "_fields")
    return type(node).__module__.split(".")[0] if is_named else None
