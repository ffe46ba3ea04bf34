"""Draws from the posterior that a method has learned."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from sam_optax import _point, _random
from sam_optax._random import Key
from sam_optax.start import HessianState, PrecisionState


def posterior_sample(
    key: Key, opt_state: optax.OptState, params: optax.Params, *, param_specs: Any = None
) -> optax.Params:
    """Parameters drawn from the posterior that `bsam` or `ivon` has learned: w + δ, δ ~ N(0, σ²).

    The mean of the predictions at several is that of the posterior; with one at w alone it is the
    prediction at its mean. Each key gives one sample. What a mask leaves out stays as it is.

    Args:
      key: an int or a `jax.random.key`.
      opt_state: the state of the whole optimizer, with the method's state anywhere inside.
      params: w, the mean.
      param_specs: as the update takes it, inside `jax.shard_map` or `jax.pmap`.

    Returns:
      Parameters of the same structure, shapes and dtypes.

    Raises:
      ValueError: there is no such method in opt_state, or there are several; as at the update, it
        cannot be known how the parameters are divided, or param_specs does not fit.
      TypeError: key is no int or key, or param_specs holds what is no PartitionSpec.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> tx = optax.chain(sam_optax.ivon(100), optax.sgd(0.1))
      >>> w = jnp.ones(3)
      >>> samples = [sam_optax.posterior_sample(i, tx.init(w), w) for i in range(8)]
    """
    _random.check(key)
    found = [
        (parts, state)
        for parts, state in _point.methods(opt_state)
        if isinstance(state.start, PrecisionState | HessianState)
    ]
    if len(found) != 1:
        raise ValueError(
            f"posterior_sample found {len(found)} posteriors in opt_state: pass the state of one "
            "bsam or ivon."
        )
    ((parts, state),) = found
    # The point of the next gradient is such a draw, by a key of its own.
    drawn = {"key_data": _random.key_data(key, stream=3), "draw": jnp.zeros([], jnp.int32)}
    # So is the rounding of a sample, which the count of steps names.
    number = state.steps ^ drawn["key_data"][0].astype(jnp.int32)
    state = state._replace(start=state.start._replace(**drawn), steps=number)
    return _point.of(parts, state, params, param_specs)
