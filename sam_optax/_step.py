"""A step of a method, once its arguments are checked: the decision, and what hangs on it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import (
    _decision,
    _finite,
    _first,
    _fit,
    _given,
    _parts,
    _rounding,
    _second,
    _tree,
)
from sam_optax import when as deciding
from sam_optax._contracts import Combine, GradFn, Start, Tree, When
from sam_optax._foresight import Foresight, following
from sam_optax._pieces import Pieces
from sam_optax._second import Evaluate, Pass, Told
from sam_optax._states import SharpnessAwareState

Extra = dict[str, Any]  # the extra arguments of an update
Flag = Any  # a boolean of NumPy or JAX


class Slots(NamedTuple):
    """The four parts of a method."""

    start: Start
    perturb: optax.GradientTransformationExtraArgs
    when: When
    combine: Combine


class Step:
    """From the first gradient to the direction, in the pieces that are compiled outside jit.

    Attributes:
      pieces: tells that the link is kept.
      foresee: the decisions of the coming steps.
    """

    def __init__(self, slots: Slots, *, ascends: bool) -> None:
        """Makes the pieces.

        Args:
          slots: the parts.
          ascends: whether there is a second gradient at all.
        """
        self._slots, self._ascends = slots, ascends
        self._certain = slots.when == deciding.always()
        self._hands_epsilon = _given.takes(slots.combine.fresh, "epsilon")
        start, perturb, when, combine = slots
        self.pieces = piece = Pieces()
        self._decide = piece(when)(self._decided)
        self.foresee = Foresight(when, piece, ascends=ascends)
        self._ascend = piece(perturb, start)(self._ascended)
        self._conclude = piece(combine, start)(self._concluded)
        self._skip = piece(perturb, combine, start)(self._skipped)
        self.settle = piece()(settled)

    def __call__(
        self,
        evaluate: Evaluate,
        first: Tree,
        usable: Flag,
        state: SharpnessAwareState,
        params: Tree,
        extra: Extra,
        told: bool | None = None,
    ) -> tuple[Tree, SharpnessAwareState]:
        """The direction and the new state.

        Args:
          evaluate: the second pass.
          first: the first gradient.
          usable: whether that is finite where it is the link's own.
          state: of the link.
          params: its parameters.
          extra: the extra arguments, with the step.
          told: the decision, where the caller takes it.
        """
        gradient = _second.gradient_of(evaluate)
        if not self._ascends:
            return self._conclude(gradient, first, None, None, usable, state, params, extra)
        fire: jax.typing.ArrayLike = True
        if not self._certain:  # what the policy keeps follows every step, whoever decides
            fire, state = self._decide(gradient, first, state, params, extra)
        if told is not None:
            fire = told
        if isinstance(fire, jax.core.Tracer):
            return self._decided_later(fire, evaluate, first, usable, state, params, extra)
        if not fire:
            return self._skip(gradient, first, usable, state, params, extra)
        gradient = _decision.apart(gradient, state.steps)
        pass_at = _decision.apart(lambda p: _second.wanted(evaluate(p), state), state.steps)
        point, epsilon, state = self._ascend(gradient, first, state, params, extra)
        second = pass_at(point)
        return self._conclude(gradient, first, epsilon, second, usable, state, params, extra)

    def _decided_later(
        self,
        fire: jax.Array,
        evaluate: Evaluate,
        first: Tree,
        usable: Flag,
        state: SharpnessAwareState,
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, SharpnessAwareState]:
        """The same where the decision is taken on the device."""
        gradient = _second.gradient_of(evaluate)
        asked: list[Tree] = []

        def watched(p: Tree) -> Tree:
            asked.append(p)
            return gradient(p)

        # The point is made where it is needed, so that a step without a second gradient neither
        # makes nor holds it; unless a state that follows every step took gradients to make it.
        epsilon, after = None, state
        if jax.tree.leaves(state.perturb):
            point, epsilon, after = self._ascend(watched, first, state, params, extra)
        else:
            made = functools.partial(self._ascend, gradient, first, state, params, extra)
            point = _decision.outline(lambda: made()[0])

        def yes(evaluate: Evaluate, _: Any) -> tuple[Tree, Any, Told, Flag]:
            gradient = _second.gradient_of(evaluate)
            here, away = point, epsilon
            if not asked:
                here, away, _ = self._ascend(gradient, first, state, params, extra)
            second = evaluate(here)
            return self._joined(gradient, first, away, second, usable, after, params, extra)

        joined = _decision.branch(
            fire,
            yes,
            lambda: self._joined(gradient, first, None, None, usable, after, params, extra),
            lambda p: _second.wanted(evaluate(p), state),
            point,
        )
        return self._finished(fire, first, usable, joined, after, params, extra)

    # The pieces. Outside jit each is compiled on its own.

    def _decided(
        self, grad_fn: GradFn, first: Tree, state: SharpnessAwareState, params: Tree, extra: Extra
    ) -> tuple[jax.typing.ArrayLike, SharpnessAwareState]:
        del grad_fn
        fire, when_state = self._slots.when.update(first, state.when, params, **extra, slots=state)
        return fire, state._replace(when=when_state)

    def _ascended(
        self, grad_fn: GradFn, first: Tree, state: SharpnessAwareState, params: Tree, extra: Extra
    ) -> tuple[Tree, Tree | None, SharpnessAwareState]:
        engine = {
            "grad_fn": _elsewhere("perturb", grad_fn, params),
            "offset": _first.offset(state.start, params),
            "slots": state,
        }
        epsilon, perturb_state = self._slots.perturb.update(
            first, state.perturb, params, **{**extra, **engine}
        )
        epsilon = _fit.checked_offset(epsilon, perturb_state, first, params)
        point = _rounding.moved(params, epsilon, state.steps, _rounding.SECOND)
        kept = epsilon if self._hands_epsilon else None
        return point, kept, state._replace(perturb=perturb_state)

    def _joined(
        self,
        grad_fn: GradFn,
        first: Tree,
        epsilon: Tree | None,
        second: Pass | None,
        usable: Flag,
        state: SharpnessAwareState,
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, Any, Told, Flag]:
        """Direction, state of combine, what is told, and whether the second gradient has a part."""

        def fitting(found: tuple[Tree, Any]) -> tuple[Tree, Any]:
            direction, combine_state = found
            _fit.check("what combine returns", direction, _parts.trainable(params), params)
            return _tree.cast_like(direction, first), combine_state

        def stale() -> tuple[Tree, Any, Told]:
            found = self._slots.combine.stale(first, state.combine, params, **extra, slots=state)
            return *fitting(found), Told(state.rise, state.aux)

        if second is None:
            return *stale(), jnp.array(False)
        gradient, value, _ = second
        told = functools.partial(_second.told, second, extra.get("value"), state, params)
        value = None if value is None else _second.of_all(value, state)
        elsewhere, further = _elsewhere("combine", grad_fn, params), list[Tree]()

        def watched(p: Tree) -> Tree:
            further.append(p)
            return elsewhere(p)

        def fresh() -> tuple[Tree, Any, Told, Flag]:
            engine = {"grad_fn": watched, "epsilon": epsilon, "slots": state, "second_value": value}
            assert self._slots.combine.fresh is not None  # with perturb there is one
            made = self._slots.combine.fresh(
                first, gradient, state.combine, params, **{**extra, **engine}
            )
            found = *fitting(made), told()
            if not further:
                return *found, jnp.array(True)
            # A gradient at a further point may be lost, too.
            finite = _finite.is_finite(found[0], params)
            return *_finite.choose(finite, lambda: found, stale), finite

        taken = usable & _finite.is_finite(gradient, params)
        return _finite.choose(taken, fresh, lambda: (*stale(), jnp.array(False)))

    def _finished(
        self,
        fire: jax.typing.ArrayLike,
        first: Tree,
        usable: Flag,
        joined: tuple[Tree, Any, Told, Flag],
        state: SharpnessAwareState,
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, SharpnessAwareState]:
        direction, combine_state, told, taken = joined
        state = state._replace(combine=combine_state)
        start_state = self._slots.start.update(
            direction, state.start, params, **{**extra, "first": first, "slots": state}
        )
        lost = ~usable | (fire & ~taken)
        return direction, state._replace(
            steps=following(state.steps),
            ascents=_counted(state.ascents, taken),
            notfinite=_counted(state.notfinite, lost),
            start=start_state,
            **told._asdict(),
        )

    def _concluded(
        self,
        grad_fn: GradFn,
        first: Tree,
        epsilon: Tree | None,
        second: Pass | None,
        usable: Flag,
        state: SharpnessAwareState,
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, SharpnessAwareState]:
        joined = self._joined(grad_fn, first, epsilon, second, usable, state, params, extra)
        return self._finished(second is not None, first, usable, joined, state, params, extra)

    def _skipped(
        self,
        grad_fn: GradFn,
        first: Tree,
        usable: Flag,
        state: SharpnessAwareState,
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, SharpnessAwareState]:
        # On their own where they cannot be compiled as one.
        if jax.tree.leaves(state.perturb):
            *_, state = self._ascend(grad_fn, first, state, params, extra)
        return self._conclude(grad_fn, first, None, None, usable, state, params, extra)


def _elsewhere(slot: str, grad_fn: GradFn, params: Tree) -> GradFn:
    """The gradient for a part, at points in the dtypes of the parameters."""

    def at(point: Tree) -> Tree:
        name = f"the point where {slot} takes a gradient"
        _fit.check(name, point, _parts.trainable(params), params)
        return grad_fn(_tree.cast_like(point, params))

    return at


def settled(
    grad_fn: GradFn, first: Tree, given: Tree, params: Tree, extra: Extra
) -> tuple[Tree, Flag]:
    """A first gradient of the link's own, or what it was given where that overflowed."""
    del grad_fn, extra
    usable = _finite.is_finite(first, params)
    return _finite.choose(usable, lambda: first, lambda: given), usable


def _counted(count: jax.Array, more: Flag) -> jax.Array:
    return jnp.where(more, optax.safe_increment(count), count)
