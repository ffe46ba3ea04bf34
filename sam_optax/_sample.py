"""Draws from the posterior that a method has learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from sam_optax import _random, _tree
from sam_optax._random import Key
from sam_optax.start import HessianState, PrecisionState


def posterior_sample(key: Key, opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """Parameters drawn from the posterior that `bsam` or `ivon` has learned: w + δ, δ ~ N(0, σ²).

    The mean of the predictions at several is that of the posterior; with one at w alone it is the
    prediction at its mean. Each key gives one sample.

    Args:
      key: an int or a `jax.random.key`.
      opt_state: the state of the whole optimizer, with the method's state anywhere inside.
      params: w, the mean.

    Returns:
      Parameters of the same structure, shapes and dtypes.

    Raises:
      ValueError: there is no such method in opt_state, or there are several.
      TypeError: key is no int or key.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> tx = optax.chain(sam_optax.ivon(100), optax.sgd(0.1))
      >>> w = jnp.ones(3)
      >>> samples = [sam_optax.posterior_sample(i, tx.init(w), w) for i in range(8)]
    """
    _random.check(key)
    kinds = (PrecisionState, HessianState)

    def is_posterior(node: object) -> bool:
        return isinstance(node, kinds)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_posterior)
    found = [node for node in nodes if is_posterior(node)]
    if len(found) != 1:
        raise ValueError(
            f"posterior_sample found {len(found)} posteriors in opt_state: pass the state of one "
            "bsam or ivon."
        )
    (state,) = found
    state = state._replace(key_data=_random.key_data(key, stream=3), draw=jnp.zeros([], jnp.int32))
    return _tree.add(params, state.offset(params))
