"""Decisions that are known ahead, and updates that are told them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax import combine, perturb, when

W = {"kernel": jnp.array([[0.5, -1.0], [2.0, 0.25]]), "bias": jnp.array([0.1, -0.2])}
X = jnp.array([[1.0, 2.0], [-0.5, 0.3], [0.7, -1.1]])


def loss(w):
    return jnp.mean(jnp.tanh(X @ w["kernel"] + w["bias"]) ** 2) + 0.1 * jnp.sum(w["bias"] ** 4)


def decided(policy, **slots):
    return sam_optax.sharpness_aware(perturb.ball(0.3), when=policy, **slots)


def falls(step):
    """A schedule of Python's, which cannot be traced."""
    return 0.9 if step < 4 else 0.2


def alternates():
    """A policy of one's own, which keeps what it said last."""

    def update(first, state, params, **extra):
        assert first is None or params is not None
        return ~state, ~state

    return sam_optax.When(lambda params: jnp.array(False), update, ahead=True)


LINKS = {
    "sam": sam_optax.sam(0.3),
    "looksam": sam_optax.looksam(0.3, period=3),
    "ss_sam": sam_optax.ss_sam(0.3, probability=0.6, key=7),
    "scheduled": sam_optax.ss_sam(0.3, optax.linear_schedule(1.0, 0.0, 12), key=1),
    "of Python": sam_optax.ss_sam(0.3, falls, key=5),
    "a window": decided(when.between(2, 6), combine=combine.reuse(0.7)),
    "policies": decided(
        when.any_of(when.all_of(when.every(2), when.between(0, 5)), when.bernoulli(0.3))
    ),
    "its own": decided(alternates(), combine=combine.mix()),
    "masked": sam_optax.masked(sam_optax.looksam(0.3, period=2), {"kernel": True, "bias": False}),
    "aux": sam_optax.keep_aux(sam_optax.looksam(0.3, period=4), jnp.zeros([])),
    "examples": sam_optax.select_examples(sam_optax.looksam(0.3, period=4), 1.0),
    "one gradient": sam_optax.msam(0.3),
}


def stepper(link):
    """One step of SGD with momentum behind the link, which may be told."""
    tx = optax.chain(link, optax.sgd(0.1, momentum=0.9))

    def both(w):
        return jax.value_and_grad(lambda w: (loss(w), loss(w)), has_aux=True)(w)

    def step(w, state, fire=None):
        updates, state = tx.update(both(w)[1], state, w, value_and_grad_fn=jax.jit(both), fire=fire)
        return optax.apply_updates(w, updates), state

    return tx, step


def run(step, w, state, fires):
    ascents = [int(sam_optax.read(state, "ascents"))]
    for fire in fires:
        w, state = step(w, state, fire=fire)
        ascents.append(int(sam_optax.read(state, "ascents")))
    return w, state, np.diff(ascents).tolist()


@pytest.mark.parametrize("name", LINKS)
def test_what_is_told_ahead_is_what_is_done(name):
    """From the first step and from the middle on; a step that is told is the same to the bit."""
    link = LINKS[name]
    tx, step = stepper(link)
    later = run(step, W, tx.init(W), [None] * 3)[:2]
    for (w, state), steps in (((W, tx.init(W)), 3), (later, 9)):
        fires = sam_optax.decisions(link, state, steps)
        assert fires.dtype == bool
        *by_itself, done = run(step, w, state, [None] * steps)
        assert fires.tolist() == done
        *by_what_is_told, done = run(step, w, state, fires)
        assert fires.tolist() == done
        jax.tree.map(np.testing.assert_array_equal, by_what_is_told, by_itself)


@pytest.mark.parametrize("name", ["looksam", "ss_sam", "a window", "policies"])
def test_inside_jit_the_told_step_is_that_with_a_conditional(name):
    link = LINKS[name]
    tx, step = stepper(link)
    step = jax.jit(step, static_argnames="fire")
    fires = sam_optax.decisions(link, tx.init(W), 9)
    assert 0 < fires.sum() < 9
    told = run(step, W, tx.init(W), fires.tolist())
    itself = run(step, W, tx.init(W), [None] * 9)
    assert told[2] == itself[2] == fires.tolist()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), told[:2], itself[:2]
    )


def convolution(kernel):
    image = jnp.ones((1, 1, 6, 6))
    return jnp.sum(jax.lax.conv(image, kernel, (1, 1), "SAME") ** 2)


@pytest.mark.parametrize("name", ["looksam", "ae_sam", "its own"])
def test_a_told_step_holds_no_conditional_and_no_gradient_that_is_not_taken(name):
    """Of convolutions too, without a warning; warnings are errors here."""
    link = LINKS.get(name) or sam_optax.ae_sam(total_steps=10)
    kernel, grad_fn = jnp.ones((2, 1, 3, 3)), jax.grad(convolution)
    counts = []
    for fire in (False, True):
        step = jax.jit(functools.partial(link.update, grad_fn=grad_fn, fire=fire))
        text = step.lower(grad_fn(kernel), link.init(kernel), kernel).as_text()
        assert "stablehlo.case" not in text
        counts.append(text.count("stablehlo.convolution"))
    first = jax.jit(grad_fn).lower(kernel).as_text().count("stablehlo.convolution")
    assert counts == [0, first]


def test_the_caller_decides_where_the_policy_would_look_at_the_gradient():
    """And what it has learned follows every step."""
    link = sam_optax.ae_sam(0.3, total_steps=9, lambda_1=0.5, lambda_2=0.5)
    tx, step = stepper(link)
    w, state, mean = W, tx.init(W), 0.0
    for count, fire in enumerate((True, False, True)):
        squares = sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(jax.grad(loss)(w)))
        mean = 0.9 * mean + 0.1 * squares
        w, state, done = run(step, w, state, [fire])
        assert (done, int(sam_optax.read(state, "steps"))) == ([fire], count + 1)
        np.testing.assert_allclose(sam_optax.read(state, "mean"), mean, rtol=1e-5)


def test_sam_that_is_told_not_to_is_sgd():
    link = LINKS["sam"]
    gradient = jax.grad(loss)(W)
    direction, state = link.update(gradient, link.init(W), W, grad_fn=jax.grad(loss), fire=False)
    jax.tree.map(np.testing.assert_array_equal, direction, gradient)
    assert (int(state.steps), int(state.ascents)) == (1, 0)


def test_an_overflow_is_lost_whoever_decides():
    link = sam_optax.looksam(0.3)
    direction, state = link.update(
        W, link.init(W), W, grad_fn=lambda w: jax.tree.map(lambda x: x * jnp.inf, w), fire=True
    )
    jax.tree.map(np.testing.assert_array_equal, direction, W)
    assert (int(state.ascents), int(state.notfinite)) == (0, 1)


def test_injected_numbers_have_a_method_made_with_them():
    tx = optax.inject_hyperparams(sam_optax.ss_sam, static_args="key")(0.3, probability=0.25, key=3)
    state = tx.init(W)
    fires = sam_optax.decisions(sam_optax.ss_sam(0.3, probability=0.25, key=3), state, 8)
    done = []
    for fire in fires:
        before = int(sam_optax.read(state, "ascents"))
        _, state = tx.update(W, state, W, grad_fn=lambda w: w)
        done.append(int(sam_optax.read(state, "ascents")) - before == 1)
        assert done[-1] == fire
    assert 0 < sum(done) < 8


@pytest.mark.parametrize("name", ["looksam", "ss_sam", "policies", "scheduled"])
def test_many_decisions_are_those_of_one_step_after_the_other(name):
    """Over more than a program tells at once, and up to the last count there is."""
    link = LINKS[name]
    state = link.init(W)
    many = sam_optax.decisions(link, state, 1100)
    for first in (0, 511, 1024):
        there = state._replace(steps=jnp.array(first, jnp.int32))
        assert sam_optax.decisions(link, there, 3).tolist() == many[first : first + 3].tolist()
    last = state._replace(steps=jnp.array(2**31 - 2, jnp.int32))
    told = sam_optax.decisions(link, last, 4)
    assert told[1:].tolist() == [told[1]] * 3


def test_a_known_state_can_be_asked_inside_jit():
    link = LINKS["ss_sam"]
    state = link.init(W)
    expected = sam_optax.decisions(link, state, 9)

    @jax.jit
    def inside(x):
        return x * sam_optax.decisions(link, state, 9)

    np.testing.assert_array_equal(inside(1.0), expected)


def test_a_step_that_a_wrapper_rejects_is_asked_for_again():
    link = LINKS["looksam"]
    tx = optax.apply_if_finite(optax.chain(link, optax.sgd(0.1)), 5)
    state, done, told = tx.init(W), [], []
    for t in range(5):
        told.append(bool(sam_optax.decisions(link, state, 1)[0]))
        grads = jax.tree.map(lambda x: x * jnp.nan, W) if t == 1 else W
        before = int(sam_optax.read(state, "ascents"))
        _, state = tx.update(grads, state, W, grad_fn=lambda w: w)
        done.append(int(sam_optax.read(state, "ascents")) > before)
    assert told == done == [True, False, False, False, True]


def test_no_step_is_no_decision():
    link = LINKS["looksam"]
    assert sam_optax.decisions(link, link.init(W), 0).shape == (0,)
