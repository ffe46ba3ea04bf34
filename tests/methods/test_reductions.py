"""At neutral settings every method is a simpler one, step by step."""

import functools
import math

import jax
import numpy as np
import optax
import pytest
import reference
from reference import LEARNING_RATE, sgd, small_loss, small_params

import sam_optax
from sam_optax import combine, perturb, start, when

pytestmark = pytest.mark.usefixtures("x64")

RHO = 0.4
NEVER = {"total_steps": 10, "lambda_1": math.inf, "lambda_2": math.inf}
EVER = {"total_steps": 10, "lambda_1": -math.inf, "lambda_2": -math.inf}


def trajectory(tx, **call):
    """On one layer, which compiles quickly."""
    return reference.trajectory(tx, params=small_params(), grad_loss=jax.grad(small_loss), **call)


def with_sgd(link):
    return optax.chain(link, sgd())


@functools.cache
def base_trajectory():
    return trajectory(sgd())


@functools.cache
def sam_trajectory():
    return trajectory(with_sgd(sam_optax.sam(RHO)))


def wsam(base, **settings):
    tail = optax.scale_by_learning_rate(LEARNING_RATE)
    return optax.chain(sam_optax.wsam(base, **settings), tail)


def assert_steps(actual, expected):
    np.testing.assert_allclose(trajectory(actual), expected, rtol=1e-9, atol=1e-11)


ZERO_RADIUS = {
    "sam": lambda: sam_optax.sam(0.0),
    "gsam": lambda: sam_optax.gsam(0.0, alpha=0.6),
    "looksam": lambda: sam_optax.looksam(0.0, alpha=0.7, period=3),
    "ae_sam": lambda: sam_optax.ae_sam(0.0, total_steps=10),
    "ae_looksam": lambda: sam_optax.ae_looksam(0.0, total_steps=10),
    "samar": lambda: sam_optax.samar(0.0, lambda_0=0.6),
    "le_sam": lambda: sam_optax.le_sam(budget=0.0),
    "le_sam with rho_max": lambda: sam_optax.le_sam(budget=0.3, rho_max=0.0),
    "r_sam": lambda: sam_optax.r_sam(0.0, gamma=0.3),
    "r_gsam": lambda: sam_optax.r_gsam(0.0, gamma=0.0),
    "coupled_wsam": lambda: sam_optax.coupled_wsam(0.0, gamma=0.8),
    "asam": lambda: sam_optax.asam(0.0),
    "fisher_sam": lambda: sam_optax.fisher_sam(0.0),
    "ssam": lambda: sam_optax.ssam(0.0),
    "ss_sam": lambda: sam_optax.ss_sam(0.0),
    "esam": lambda: sam_optax.esam(0.0, beta=0.5, gamma=1),
    "esam by tensors": lambda: sam_optax.esam(0.0, beta=0.5, gamma=1, mask="tensor"),
    "vasso": lambda: sam_optax.vasso(0.0, theta=0.4),
    "friendly_sam": lambda: sam_optax.friendly_sam(0.0),
    "eigen_sam": lambda: sam_optax.eigen_sam(0.0, period=2),
    "lpf_sgd": lambda: sam_optax.lpf_sgd(0.0),
    "lpf_sgd with samples": lambda: sam_optax.lpf_sgd(0.0, samples=3),
    "msam": lambda: sam_optax.msam(0.0),
    "s2_sam": lambda: sam_optax.s2_sam(0.0),
}


@pytest.mark.parametrize("name", ZERO_RADIUS)
def test_a_zero_radius_is_the_base_optimizer(name):
    assert_steps(with_sgd(ZERO_RADIUS[name]()), base_trajectory())


def test_wsam_with_a_zero_radius_is_its_base():
    assert_steps(wsam(optax.trace(0.9), rho=0.0, gamma=0.8), base_trajectory())


def test_bsam_with_a_precision_of_one_is_the_base_optimizer_on_a_moving_average():
    link = sam_optax.bsam(0.0, ess=1e30, beta_1=0.8, beta_2=1 - 1e-13, weight_decay=0.0)
    tail = optax.scale_by_learning_rate(LEARNING_RATE)
    average = optax.ema(0.8, debias=False)
    assert_steps(optax.chain(link, tail), trajectory(optax.chain(average, tail)))


def test_ivon_with_a_small_clip_is_the_sign_of_a_moving_average():
    settings = {"beta_1": 0.8, "beta_2": 1 - 1e-15, "weight_decay": 0.0, "rescale": False}
    link = sam_optax.ivon(1e20, clip=1e-4, **settings)
    tail = optax.scale_by_learning_rate(LEARNING_RATE)
    sign = optax.chain(optax.ema(0.8, debias=False), optax.scale_by_sign(), optax.scale(1e-4))
    assert_steps(optax.chain(link, tail), trajectory(optax.chain(sign, tail)))


def test_le_sam_plus_with_a_zero_budget_is_the_base_optimizer_at_a_smaller_learning_rate():
    link = sam_optax.le_sam_plus(budget=0.0, alpha=0.25)
    assert_steps(with_sgd(link), trajectory(optax.chain(optax.scale(0.75), sgd())))


BASES = {
    "ae_sam": lambda: sam_optax.ae_sam(RHO, **NEVER),
    "ae_looksam": lambda: sam_optax.ae_looksam(RHO, **NEVER),
    "ss_sam": lambda: sam_optax.ss_sam(RHO, probability=0.0),
    "coupled_wsam": lambda: sam_optax.coupled_wsam(RHO, gamma=0.0),
    "bernoulli": lambda: sam_optax.sharpness_aware(
        perturb.ball(RHO), when=when.bernoulli(0.0), combine=combine.mix()
    ),
    "no perturb": lambda: sam_optax.sharpness_aware(),
}


@pytest.mark.parametrize("name", BASES)
def test_without_a_second_gradient_or_its_weight_it_is_the_base_optimizer(name):
    assert_steps(with_sgd(BASES[name]()), base_trajectory())


def test_wsam_without_weight_is_its_base():
    assert_steps(wsam(optax.trace(0.9), rho=RHO, gamma=0.0), base_trajectory())


SAMS = {
    "gsam": lambda: sam_optax.gsam(RHO, alpha=0.0),
    "looksam": lambda: sam_optax.looksam(RHO, period=1),
    "r_sam": lambda: sam_optax.r_sam(RHO, gamma=0.0, lambda_=0.7),
    "r_sam normalized": lambda: sam_optax.r_sam(RHO, gamma=0.0, normalize_gradient=True),
    "r_sam at the point": lambda: sam_optax.r_sam(RHO, gamma=0.0, updates_at="gradient_point"),
    "r_gsam": lambda: sam_optax.r_gsam(RHO, gamma=0.0, alpha=0.0),
    "coupled_wsam": lambda: sam_optax.coupled_wsam(RHO, gamma=0.5),
    "samar held at 1": lambda: sam_optax.samar(RHO, chi=0.0, lambda_0=1.0, delta=0.0),
    "ae_sam": lambda: sam_optax.ae_sam(RHO, **EVER),
    "ae_looksam": lambda: sam_optax.ae_looksam(RHO, **EVER),
    "le_sam": lambda: sam_optax.le_sam(budget=1e6, rho_max=RHO),
    "asam without weights": lambda: sam_optax.asam(RHO, weights=False),
    "fisher_sam": lambda: sam_optax.fisher_sam(RHO, eta=0.0),
    "ss_sam": lambda: sam_optax.ss_sam(RHO, probability=1.0),
    "esam": lambda: sam_optax.esam(RHO, beta=1, gamma=1),
    "esam by tensors": lambda: sam_optax.esam(RHO, beta=1.0, gamma=1.0, mask="tensor"),
    "vasso": lambda: sam_optax.vasso(RHO, theta=1.0),
    "friendly_sam": lambda: sam_optax.friendly_sam(RHO, sigma=0.0),
    "eigen_sam": lambda: sam_optax.eigen_sam(RHO, alpha=0.0, period=2),
    "eigen_sam before an estimate": lambda: sam_optax.eigen_sam(RHO, alpha=0.5, period=11),
    "every": lambda: sam_optax.sharpness_aware(perturb.ball(RHO), when=when.every(1)),
    "bernoulli": lambda: sam_optax.sharpness_aware(perturb.ball(RHO), when=when.bernoulli(1.0)),
    "noisy_ball without an offset": lambda: sam_optax.sharpness_aware(perturb.noisy_ball(RHO, 0.3)),
}


@pytest.mark.parametrize("name", SAMS)
def test_at_neutral_settings_it_is_sam(name):
    assert_steps(with_sgd(SAMS[name]()), sam_trajectory())


NOISY = {"rho": RHO, "gamma": 0.3, "lambda_": 0.7, "key": 5}

OTHERS = {
    "le_sam_plus without alpha is le_sam": (
        lambda: sam_optax.le_sam_plus(0.3, alpha=0.0, rho_max=0.2),
        lambda: sam_optax.le_sam(0.3, rho_max=0.2),
    ),
    "r_gsam without alpha is r_sam": (
        lambda: sam_optax.r_gsam(alpha=0.0, **NOISY),
        lambda: sam_optax.r_sam(**NOISY),
    ),
    "r_gsam without noise is gsam": (
        lambda: sam_optax.r_gsam(RHO, gamma=0.0, alpha=0.6),
        lambda: sam_optax.gsam(RHO, alpha=0.6),
    ),
    "looksam without alpha is sam every few steps": (
        lambda: sam_optax.looksam(RHO, alpha=0.0, period=3),
        lambda: sam_optax.sharpness_aware(perturb.ball(RHO), when=when.every(3)),
    ),
    "lpf_sgd is the start of r_sam": (
        lambda: sam_optax.lpf_sgd(0.3, key=3),
        lambda: sam_optax.sharpness_aware(start=start.noise(0.3, key=3)),
    ),
    "ssam has the signs of sam": (
        lambda: optax.chain(sam_optax.ssam(RHO), optax.scale_by_sign()),
        lambda: optax.chain(sam_optax.sam(RHO), optax.scale_by_sign()),
    ),
    "ae_looksam without alpha is ae_sam": (
        lambda: sam_optax.ae_looksam(RHO, 0.0, total_steps=9, lambda_1=-1.0, lambda_2=1.0),
        lambda: sam_optax.ae_sam(RHO, total_steps=9),
    ),
    "samar held at one half averages the two gradients": (
        lambda: sam_optax.samar(RHO, lambda_0=0.5, delta=0.5),
        lambda: sam_optax.coupled_wsam(RHO, gamma=1 / 3),
    ),
    "wsam on the identity is coupled_wsam": (
        lambda: sam_optax.wsam(optax.identity(), rho=RHO, gamma=0.8),
        lambda: sam_optax.coupled_wsam(RHO, gamma=0.8),
    ),
    "le_sam_plus is coupled_wsam in its geometry times 1 − alpha": (
        lambda: sam_optax.le_sam_plus(0.3, alpha=0.25, rho_max=0.2),
        lambda: optax.chain(
            sam_optax.wsam(
                optax.identity(), gamma=1 / (2 - 0.25), perturb=perturb.loss_ball(0.3, 0.2)
            ),
            optax.scale(1 - 0.25),
        ),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_one_method_is_another(name):
    one, another = OTHERS[name]
    assert_steps(with_sgd(one()), trajectory(with_sgd(another())))


def test_coupled_and_decoupled_wsam_differ_under_momentum():
    coupled = trajectory(with_sgd(sam_optax.coupled_wsam(RHO, gamma=0.8)))
    decoupled = trajectory(wsam(optax.trace(0.9), rho=RHO, gamma=0.8))
    assert np.abs(coupled - decoupled)[-1].max() > 1e-2


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (sam_optax.r_sam, NOISY),
        (sam_optax.r_gsam, NOISY),
        (sam_optax.lpf_sgd, {"gamma": 0.3, "key": 3}),
        (sam_optax.lpf_sgd, {"gamma": 0.3, "key": 3, "samples": 2}),
        (sam_optax.msam, {"rho": RHO, "decay": 0.7}),
        (sam_optax.s2_sam, {"rho": RHO}),
    ],
)
def test_taking_the_gradient_at_the_gradient_point_changes_nothing(method, settings):
    safe = trajectory(with_sgd(method(**settings)))
    cheap = with_sgd(method(updates_at="gradient_point", **settings))
    np.testing.assert_allclose(trajectory(cheap, at_point=True), safe, rtol=1e-9, atol=1e-11)


def test_updates_at_the_parameters_are_not_used_where_there_is_a_start():
    link = sam_optax.r_sam(**NOISY)
    w = {"w": jax.numpy.ones(3)}
    one, _ = link.update(w, link.init(w), w, grad_fn=lambda p: p)
    another, _ = link.update({"w": -7.0 * w["w"]}, link.init(w), w, grad_fn=lambda p: p)
    np.testing.assert_allclose(one["w"], another["w"], rtol=1e-12)
