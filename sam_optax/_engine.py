"""One step of every sharpness-aware method: four slots, one second gradient, one decision."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from sam_optax import (
    _callers,
    _decision,
    _first,
    _fit,
    _given,
    _parts,
    _second,
    _shards,
    _tree,
)
from sam_optax import combine as combining
from sam_optax import when as deciding
from sam_optax._contracts import Combine, GradFn, Start, Tree, When, transformation
from sam_optax._purity import ours
from sam_optax._second import Pass
from sam_optax._states import SharpnessAwareState, States, check_kind
from sam_optax._step import Slots, Step


def sharpness_aware(
    perturb: optax.GradientTransformation | None = None,
    *,
    start: Start | None = None,
    when: When | None = None,
    combine: Combine | None = None,
    updates_at: str = "params",
) -> optax.GradientTransformationExtraArgs:
    """A sharpness-aware method, as one link of an Optax chain, from four parts.

    One step, at parameters w::

        δ0        = start.offset(w)                  no offset by default
        first     = gradient at w + δ0               `updates`, where there is no offset; the mean
                                                     over the samples of a start that has several
        fire      = when(first)                      always by default
        ε         = perturb(first)
        direction = combine(first, grad_fn(w + ε))   grad_fn(w + ε) by default
                    or, where fire is false, combine(first)

    The direction takes the place of the gradient in the rest of the chain. Only the second gradient
    sits behind the decision; the parts' statistics follow every step. Its update is
    `update(updates, state, params, *, grad_fn, **extra_args)`: `updates` is the gradient at
    `params`, and `grad_fn(params) -> gradient` a pure function of the parameters alone, with batch,
    dropout key, model state and cross-device means closed over. Without it the gradient of
    `value_fn` is taken, the loss as Optax's line searches have it: a function of the parameters and
    of extra arguments by their names. Extra arguments go on to the parts.

    In place of grad_fn `value_and_grad_fn(params) -> (value, gradient)` may be given, as
    `jax.value_and_grad(loss)` or, with aux, `jax.value_and_grad(loss, has_aux=True)` is. Together
    with `value`, the loss at the parameters, it tells what the perturbation costs: the state's
    `rise` is L(w + ε) − L(w) of the last second gradient, the mean over devices as far as
    `jax.shard_map` keeps count of losses that differ; under `pmap` and with check_vma=False take
    that mean yourself. It stays where one of the two is not given, and is 0 in a method without a
    second gradient. A method with a start that is built for the gradient point has no L(w) at hand:
    the loss of that pass is one at w + δ0. Aux is dropped; `keep_aux` keeps it.

    A gradient of the link's own that is not finite, as where float16 overflows, counts as not
    taken: the direction is combine(first), the parts' states follow the first gradient alone, and
    `notfinite` counts it; one that combine takes at a further point is known by a direction that is
    not finite. It is so on all devices alike where grad_fn averages over them or the parameters are
    divided over them, and where each has a gradient of its own, but no state of its own, as far as
    `jax.shard_map` keeps count of that. Where the first is the link's own, `updates` take its
    place, and so are needed besides. `updates` that are not finite pass on, for
    `optax.apply_if_finite` and its kin to see.

    The points w + δ0 and w + ε have the dtypes of the parameters. In bfloat16 and float16 each
    number is rounded up or down at random, so that its mean over draws is that of the sum in
    float32; the draws follow from the count of steps, and are the same on all devices, but for
    parameters that are divided by hand. Points where combine or perturb take gradients of their own
    are rounded to the nearest.

    Inside `jax.shard_map` the parameters may be divided over devices by hand, as in tensor
    parallelism. Norms and products are then those of all parts together, and a leaf that is divided
    draws on each device for its own part (by the key of the leaf folded with the device's number).
    How they are divided is told by `param_specs`, an argument of the update: a PartitionSpec or a
    tree of them that is a prefix of the parameters, as `in_specs` has it. It is not needed where
    `shard_map` keeps count and some parameters are on all devices; where all differ, a norm asks
    for it, `PartitionSpec()` being what to tell where each device has all of them. Under `pmap` and
    with check_vma=False nothing can be seen: divided parameters must be told.

    Inside `jit` the decision is a `lax.cond`. Where the update is called outside `jit` it is taken
    in Python and `grad_fn`, which the caller has compiled, is called or not: the way to train
    convolutions on CPU, because XLA compiles convolution gradients inside a conditional to code
    40 times slower there. Lowered for CPU with a convolution in `grad_fn`, the update inside `jit`
    takes the second gradient always, selects, and warns.

    `fire`, a Python bool, takes the decision in place of `when`, whose state follows as ever: the
    program then holds the second gradient, or does not, and no conditional; grad_fn is asked for
    all the same. What a policy will
    decide that looks at no gradient is told ahead by `decisions`.

    Outside `jit` schedules, extra arguments and parts are the caller's Python, as they are to
    Optax: a schedule is called at each update with the concrete step, so it may read a variable or
    decide by `if`, and a part that is not made of this package's, Optax's and JAX's own code is run
    as it is. All else is compiled once, in pieces. A schedule of Optax's with numbers alone is
    compiled too.

    Args:
      perturb: an Optax transformation, gradient ↦ ε (`sam_optax.perturb`), or None for a method
        without a second gradient, whose direction is the first.
      start: where the first gradient is taken (`sam_optax.start`); None for the parameters.
      when: whether to take the second gradient (`sam_optax.when`); None for always.
      combine: what to hand on (`sam_optax.combine`); None for the second gradient.
      updates_at: "params", the safe default, or "gradient_point" where the caller takes `updates`
        at `gradient_point(opt_state, params)`, which saves one gradient where there is a start.

    Returns:
      A transformation with state `SharpnessAwareState`. Directions have the dtypes of `updates`.

    Raises:
      ValueError: at construction, updates_at is neither of the two, or when or combine are given
        without perturb; at init or update, a `MaskedNode` in the parameters; at update, grad_fn or
        params are missing, the updates or what grad_fn or perturb return do not fit the parameters,
        a mask of Optax's in perturb hands on the gradient itself, `optax.MultiSteps` over several
        micro-batches is around a gradient of the link's own, what combine returns or a point where
        a part takes a gradient does not fit, the state is of another method or of parameters of
        other shapes, or the decision may differ between devices as far as `jax.shard_map` keeps
        count of that; it cannot be known how the parameters are divided over them, or param_specs
        does not fit.
      TypeError: perturb is no Optax transformation, or another part none of its slot; at init, a
        complex parameter; at update, param_specs holds what is no PartitionSpec, or fire is no
        Python bool.

    Example:
      >>> import jax, optax, sam_optax
      >>> from sam_optax import perturb, when
      >>> link = sam_optax.sharpness_aware(perturb.loss_ball(0.3), when=when.every(2))
      >>> tx = optax.chain(link, optax.sgd(0.1))
      >>> grad_fn = jax.grad(lambda w: (w**2).sum())
      >>> w = jax.numpy.array([1.0, 2.0])
      >>> updates, state = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> int(sam_optax.read(state, "ascents"))
      1
    """
    _given.check_parts(perturb, start, when, combine, updates_at)
    ascent = optax.with_extra_args_support(perturb or optax.identity())
    slots = Slots(
        start or Start(optax.init_empty_state, _keep),
        ascent,
        when or deciding.always(),
        combine or combining.perturbed(),
    )
    step = Step(slots, ascends=perturb is not None)
    states = States(slots._asdict())

    def init(params: Tree) -> SharpnessAwareState:
        step.pieces.see()
        part = _parts.trainable(_given.checked_params(params))
        params = part.prune(params)
        return SharpnessAwareState(
            steps=jnp.zeros([], jnp.int32),
            ascents=jnp.zeros([], jnp.int32),
            notfinite=jnp.zeros([], jnp.int32),
            rise=_tree.scalar(0, params),
            **{name: part.init(params) for name, part in slots._asdict().items()},
        )

    def update(
        updates: Tree,
        state: SharpnessAwareState,
        params: Tree | None = None,
        *,
        grad_fn: GradFn | None = None,
        value_and_grad_fn: Callable[[Tree], Any] | None = None,
        param_specs: Any = None,
        fire: bool | None = None,
        **extra: Any,
    ) -> tuple[Tree, SharpnessAwareState]:
        step.pieces.see()
        told = _given.checked_decision(fire)
        params = _given.checked_params(params)
        part = _parts.trainable(params)
        own = part.prune(params)
        _fit.check("updates", updates, part, params)
        own_updates = part.prune(updates)
        check_kind(state)
        layout = _shards.found(own, own_updates, state.steps, param_specs)
        with _shards.laid_out(layout):
            states.check(state, own)
        taken = updates_at == "gradient_point" or not hasattr(state.start, "offset")
        own_first = not taken or slots.start.samples > 1
        asks = own_first or perturb is not None
        given = _second.evaluation(grad_fn, value_and_grad_fn, extra)
        if given is None and asks:
            raise ValueError(
                "a sharpness-aware update needs grad_fn, the gradient as a function of the "
                "parameters: call update(grads, opt_state, params, grad_fn=jax.grad(lambda p: "
                "loss(p, batch))), or pass the loss as value_fn."
            )
        # Without one it is never called.
        evaluate = _second.within(given or ("", Pass), part, params)
        evaluate = _second.like(evaluate, own_updates)
        gradient = _second.gradient_of(evaluate)
        extra = {**part.prune_alike(params, extra), "step": state.steps}
        if asks:
            _callers.check_not_accumulated()
            _decision.warn_of_conditional(gradient, own)
        first, usable = own_updates, np.True_
        with _shards.laid_out(layout):
            if own_first:
                gradient = _decision.apart(gradient, state.steps, own_updates)
                place = functools.partial(_first.point, state.start, own, state.steps)
                first = own_updates if taken else gradient(place())
                first = _first.average(first, gradient, slots.start.samples, place)
                first, usable = step.settle(gradient, first, own_updates, own, extra)
            direction, state = step(evaluate, first, usable, state, own, extra, told)
        return part.merge(direction, updates), state

    return transformation(init, update, step.foresee)


@ours()
def _keep(direction: Tree, state: Any, params: Tree, **extra: Any) -> Any:
    """The state of a start that is none."""
    del direction, params, extra
    return state
