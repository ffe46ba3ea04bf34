"""The decisions of the coming steps, where they hang on no gradient."""

from __future__ import annotations

import jax
import numpy as np
import optax

from sam_optax import _checks, _point
from sam_optax._contracts import foresight


def decisions(
    link: optax.GradientTransformation, opt_state: optax.OptState, steps: int
) -> np.ndarray:
    """Whether a method takes a second gradient, at each of the coming steps.

    They are known before the step where the policy counts or tosses coins: `when.always`, `every`,
    `between`, `bernoulli`, what `all_of` and `any_of` make of them, and a `When` of your own with
    ahead=True. An update that is told its decision as `fire`, a Python bool, compiles to a program
    with the second gradient or to one without, and neither holds a conditional: nothing is carried
    through one or copied, and convolutions run on CPU at their full speed::

        @partial(jax.jit, static_argnames="fire")
        def step(params, opt_state, batch, fire):
            grad_fn = jax.grad(lambda p: loss(p, batch))
            updates, opt_state = tx.update(
                grad_fn(params), opt_state, params, grad_fn=grad_fn, fire=fire)
            return optax.apply_updates(params, updates), opt_state

        for batch, fire in zip(batches, sam_optax.decisions(link, opt_state, len(batches))):
            params, opt_state = step(params, opt_state, batch, bool(fire))

    They are those of steps that count. Where a wrapper rejects a step, and so its count, as
    `optax.apply_if_finite` does, ask again. A policy of your own is asked with the step alone,
    without the extra arguments of the update.

    Args:
      link: the method itself, such as `sam_optax.looksam()` returns, or `sam_optax.masked`,
        `keep_aux` or `select_examples` of it; not the chain around it. Of injected hyperparameters
        make one with their values.
      opt_state: the state of the whole optimizer, with the method's state anywhere inside.
      steps: how many steps, from the coming one on, ≥ 0.

    Returns:
      bool[steps]; all false for a method without a second gradient. A schedule is asked for each of
      the steps, as it is outside `jit`.

    Raises:
      ValueError: the decisions hang on the gradients, as those of ae_sam do; opt_state holds no
        sharpness-aware method or several, is of a method with another policy, is traced, or is
        that of several seeds; steps is negative.
      TypeError: link is no method of this package, or steps no integer.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.looksam(0.05, period=3)
      >>> tx = optax.chain(link, optax.sgd(0.1))
      >>> sam_optax.decisions(link, tx.init(jnp.ones(2)), 5)
      array([ True, False, False,  True, False])
    """
    _checks.whole("steps", steps, 0)
    update = link.update if isinstance(link, optax.GradientTransformation) else None
    foresee = None if update is None else foresight(link)
    if foresee is None:
        raise TypeError(
            "link must be a sharpness-aware method itself, such as sam_optax.looksam(), got "
            f"{link!r:.80}: keep the method that you put into a chain, and pass it."
        )
    found = [state for _, state in _point.methods(opt_state)]
    if len(found) != 1:
        raise ValueError(
            f"decisions found {len(found)} sharpness-aware methods in opt_state: pass the state of "
            "one, such as opt_state[0] of a chain."
        )
    (state,) = found
    if isinstance(state.steps, jax.core.Tracer):
        raise ValueError(
            "decisions are asked for outside jit, where the state is known, got a traced one: ask "
            "for them before the compiled step, and pass each as a static argument."
        )
    if np.ndim(state.steps):
        raise ValueError(
            f"opt_state is that of several seeds or devices, steps has shape "
            f"{list(np.shape(state.steps))}: pass the state of one, as "
            "jax.tree.map(lambda leaf: leaf[0], opt_state)."
        )
    with jax.ensure_compile_time_eval():  # of a state that is known, wherever it is asked
        return np.array([bool(fire) for fire in foresee(state, steps)], bool)
