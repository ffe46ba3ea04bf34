"""Schedules against their formulas, written out here."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sam_optax import schedules


def values(schedule, steps):
    """Of Python ints, and the same under jit of traced ones."""
    eager = [float(schedule(t)) for t in steps]
    traced = jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32))
    np.testing.assert_allclose(traced, eager, rtol=1e-5, atol=1e-6)
    return eager


RADII = {"rho_max": 0.6, "rho_min": 0.2}


def test_the_radius_follows_the_learning_rate():
    rate = optax.cosine_decay_schedule(0.3, 100)
    rho = schedules.rho_from_learning_rate(rate, lr_max=0.3, lr_min=0.1, **RADII)
    expected = []
    for t in (0, 25, 50):
        lr = 0.3 * 0.5 * (1 + math.cos(math.pi * t / 100))
        expected.append(0.2 + 0.4 * (lr - 0.1) / 0.2)
    np.testing.assert_allclose(values(rho, [0, 25, 50]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("rho_max", "clamp", "expected"),
    [
        (0.6, True, [0.2, 0.2, 0.4, 0.6, 0.6]),
        (0.6, False, [-0.2, 0.2, 0.4, 0.6, 1.0]),
        (0.1, True, [0.2, 0.2, 0.15, 0.1, 0.1]),
    ],
)
def test_the_radius_stays_between_its_ends_unless_it_is_told_not_to(rho_max, clamp, expected):
    radii = {"rho_max": rho_max, "rho_min": 0.2, "clamp": clamp}
    rho = schedules.rho_from_learning_rate(lambda t: t * 0.5, lr_max=2.0, lr_min=1.0, **radii)
    np.testing.assert_allclose(values(rho, [0, 2, 3, 4, 6]), expected, atol=1e-6)


def test_a_radius_that_follows_a_warm_up_from_zero_is_never_negative():
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.3, 10, 100, end_value=0.1)
    rho = schedules.rho_from_learning_rate(rate, lr_max=0.3, lr_min=0.1, **RADII)
    found = np.array(values(rho, range(0, 101, 5)))
    assert found.min() == pytest.approx(0.2)
    assert found.max() == pytest.approx(0.6)


def test_the_radius_is_the_largest_where_the_learning_rate_is_constant():
    rate = optax.constant_schedule(0.1)
    rho = schedules.rho_from_learning_rate(rate, lr_max=0.1, lr_min=0.1, **RADII)
    np.testing.assert_allclose(values(rho, [0, 7]), [0.6, 0.6])


def cosine(index, budget, final, anneal_from, total):
    tau = (index - anneal_from) / (total - anneal_from - 1)
    return final + 0.5 * (budget - final) * (1 + math.cos(math.pi * tau))


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_budget_is_constant_and_then_a_cosine_over_steps(final):
    budget = schedules.budget_annealing(0.35, 160, 200, final)
    expected = [0.35, 0.35, 0.35, *(cosine(e, 0.35, final, 160, 200) for e in (161, 180, 198))]
    actual = values(budget, [0, 159, 160, 161, 180, 198, 199, 200, 10_000])
    np.testing.assert_allclose(actual, [*expected, final, final, final], rtol=1e-5, atol=1e-7)


def test_the_last_index_has_exactly_the_final_budget():
    assert values(schedules.budget_annealing(0.35, 160, 200), [199]) == [0.0]


def test_within_an_epoch_the_budget_is_constant():
    budget = schedules.budget_annealing(0.3, 2, 6, steps_per_epoch=10)
    expected = [0.3, 0.3, 0.3, *(cosine(e, 0.3, 0, 2, 6) for e in (3, 3, 4)), 0, 0]
    actual = values(budget, [0, 19, 29, 30, 39, 40, 50, 59])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("steps_per_epoch", [1, 10])
def test_the_warmup_rises_linearly_from_zero(steps_per_epoch):
    budget = schedules.budget_annealing(0.4, 8, 10, warmup=4, steps_per_epoch=steps_per_epoch)
    steps = [e * steps_per_epoch for e in range(6)]
    np.testing.assert_allclose(values(budget, steps), [0, 0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize("anneal_from", [10, 12])
def test_a_budget_annealed_from_its_end_is_constant(anneal_from):
    actual = values(schedules.budget_annealing(0.4, anneal_from, 10), [0, 9, 10, 11, 12, 30])
    np.testing.assert_allclose(actual, 0.4, rtol=1e-6)


def test_annealing_over_one_index_ends_at_once():
    np.testing.assert_allclose(
        values(schedules.budget_annealing(0.4, 9, 10, 0.1), [8, 9]), [0.4, 0.1], rtol=1e-6
    )


def test_annealing_over_two_indices_goes_from_the_budget_to_its_end():
    np.testing.assert_allclose(
        values(schedules.budget_annealing(0.4, 8, 10, 0.1), [7, 8, 9]), [0.4, 0.4, 0.1], rtol=1e-6
    )


def test_the_threshold_goes_from_lambda_2_to_lambda_1_and_stays():
    threshold = schedules.linear_threshold(-1.0, 3.0, 8)
    actual = values(threshold, [0, 2, 4, 6, 8, 9, 100])
    np.testing.assert_allclose(actual, [3, 2, 1, 0, -1, -1, -1], atol=1e-6)


@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_the_threshold_may_be_infinite(infinity):
    """Throughout; or at an end, where the other one has only its own step."""
    steps = [0, 1, 4, 7, 8, 9]
    both = schedules.linear_threshold(infinity, infinity, 8)
    assert values(both, steps) == [infinity] * 6
    last = schedules.linear_threshold(infinity, 1.0, 8)
    assert values(last, steps) == [1.0, *[infinity] * 5]
    first = schedules.linear_threshold(1.0, infinity, 8)
    assert values(first, steps) == [*[infinity] * 4, 1.0, 1.0]
