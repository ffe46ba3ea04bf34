"""Windows of steps, and policies that meet."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax import combine, perturb, when


def fired(policy, steps=10, compiled=True):
    link = sam_optax.sharpness_aware(perturb.ball(0.1), when=policy)
    w = jnp.ones(2)

    def update(state):
        return link.update(w, state, w, grad_fn=lambda p: p)[1]

    update = jax.jit(update) if compiled else update
    states = [link.init(w)]
    for _ in range(steps):
        states.append(update(states[-1]))
    counts = [int(state.ascents) for state in states]
    return [t for t in range(steps) if counts[t + 1] > counts[t]]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_window_is_open_from_its_start_up_to_its_stop(compiled):
    assert fired(when.between(3, 6), compiled=compiled) == [3, 4, 5]
    assert fired(when.between(7), compiled=compiled) == [7, 8, 9]


def test_policies_meet():
    windows = when.between(1, 3), when.between(2, 5)
    assert fired(when.all_of(*windows)) == [2]
    assert fired(when.any_of(*windows)) == [1, 2, 3, 4]
    assert fired(when.any_of(when.between(0, 1), when.every(4))) == [0, 4, 8]
    assert fired(when.all_of(when.always(), when.every(5))) == [0, 5]


def test_a_window_that_never_opens_is_warned_of():
    with pytest.warns(UserWarning, match=r"between\(9, None\) never opens within total_steps=9"):
        when.between(9, total_steps=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        when.between(8, total_steps=9)
        when.between(0, total_steps=1)


def test_the_warning_names_the_line_that_made_the_window():
    with pytest.warns(UserWarning, match="never opens") as told:
        when.between(9, total_steps=9)
    assert told[0].filename == __file__


@pytest.mark.parametrize("sign", [1, -1])
def test_there_is_no_one_arc_between_parallel_gradients(sign):
    link = sam_optax.sharpness_aware(perturb.ball(0.1), combine=combine.slerp(0.5))
    w = jnp.array([3.0, 4.0])
    direction, _ = link.update(w, link.init(w), w, grad_fn=lambda p: 2 * sign * w)
    np.testing.assert_allclose(direction, 2 * sign * w, rtol=1e-5)

    def length(scale):
        update = link.update(w, link.init(w), w, grad_fn=lambda p: scale * w)
        return optax.tree.norm(update[0])

    np.testing.assert_allclose(jax.grad(length)(2.0 * sign), 5.0 * sign, rtol=1e-4)


def test_an_arc_has_a_derivative_at_a_gradient_of_zero():
    link = sam_optax.sharpness_aware(perturb.ball(0.1), combine=combine.slerp(1.3))

    def direction(w):
        grad_fn = jax.grad(lambda w: jnp.sum(w**2))
        return link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)[0]

    # There ε has no direction, and its derivative is 0.
    for jacobian in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(jacobian(direction)(jnp.zeros(2)), 2 * np.eye(2), atol=1e-6)


def test_what_policies_that_meet_keep_is_read_by_its_name():
    policy = when.all_of(when.adaptive(1.0), when.between(0, 5))
    link = sam_optax.sharpness_aware(perturb.ball(0.1), when=policy)
    w = jnp.array([3.0, 4.0])
    _, state = link.update(w, link.init(w), w, grad_fn=lambda p: p)
    assert sam_optax.read(state, "mean") > 0


def test_numbers_of_numpy_are_checked_too():
    with pytest.raises(ValueError, match="stop must be at least 1, got 0"):
        when.between(np.int64(0), 0)
    with pytest.raises(ValueError, match="stop must lie behind start"):
        when.between(np.int64(5), np.int64(3))
    with pytest.warns(UserWarning, match="never opens"):
        when.between(np.int64(50), total_steps=10)
