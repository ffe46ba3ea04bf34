"""The published signatures, and what the states hold before the first step."""

import inspect
import operator
import re
import sys

import jax.numpy as jnp
import optax
import pytest
from reference import METHODS

import sam_optax
import sam_optax.flax

SIGNATURES = {
    "sam": "(rho=0.05)",
    "asam": "(rho=0.5, eta=0.01, weights=None)",
    "fisher_sam": "(rho=0.1, eta=1.0)",
    "gsam": "(rho=0.05, alpha=0.4)",
    "ssam": "(rho=0.05)",
    "looksam": "(rho=0.05, alpha=0.7, period=5)",
    "ss_sam": "(rho=0.05, probability=0.5, *, key=0)",
    "esam": "(rho=0.05, beta=0.6, gamma=0.5, *, key=0, mask='coordinate')",
    "ae_sam": "(rho=0.05, *, total_steps, lambda_1=-1.0, lambda_2=1.0, decay=0.9, "
    "initial_variance=4.5399929762484854e-05, axis_name=None)",
    "ae_looksam": "(rho=0.05, alpha=0.3, *, total_steps, lambda_1=0.0, lambda_2=2.0, decay=0.9, "
    "initial_variance=4.5399929762484854e-05, axis_name=None)",
    "samar": "(rho=0.1, gamma=1.4, chi=1.05, lambda_0=1.0, delta=0.01, ratio='clean', *, "
    "axis_name=None)",
    "vasso": "(rho=0.05, theta=0.9)",
    "friendly_sam": "(rho=0.05, sigma=1.0, decay=0.9)",
    "eigen_sam": "(rho=0.05, alpha=0.2, period=100, power_iterations=5, *, products='exact', "
    "key=0)",
    "le_sam": "(budget=0.35, rho_max=None)",
    "le_sam_plus": "(budget=0.15, alpha=0.5, rho_max=None)",
    "r_sam": "(rho=0.05, gamma=0.1, lambda_=1.0, *, key=0, noise_scale='std', "
    "normalize_gradient=False, kernels=None, updates_at='params')",
    "r_gsam": "(rho=0.05, gamma=0.1, lambda_=1.0, alpha=0.4, *, key=0, noise_scale='std', "
    "normalize_gradient=False, kernels=None, updates_at='params')",
    "lpf_sgd": "(gamma=0.001, samples=1, *, key=0, kernels=None, updates_at='params')",
    "msam": "(rho=0.3, decay=0.9, *, updates_at='params')",
    "s2_sam": "(rho=0.05, *, updates_at='params')",
    "coupled_wsam": "(rho=0.05, gamma=0.9)",
    "bsam": "(rho=0.1, *, ess, beta_1=0.9, beta_2=0.999, weight_decay=0.0005, damping=0.1, "
    "initial_precision=1.0, precision_at='updated', key=0, updates_at='params')",
    "ivon": "(ess, *, beta_1=0.9, beta_2=0.99999, weight_decay=0.0001, initial_hessian=1.0, "
    "clip=inf, rescale=True, key=0, updates_at='params')",
    "wsam": "(base, rho=0.05, gamma=0.9, *, perturb=None)",
}
PARTS = {
    "sharpness_aware": "(perturb=None, *, start=None, when=None, combine=None, "
    "updates_at='params')",
    "masked": "(link, mask)",
    "select_examples": "(link, gamma)",
    "gradient_point": "(opt_state, params, *, param_specs=None)",
    "keep_aux": "(link, like)",
    "functional_grad_fn": "(function, loss_fn, params)",
    "posterior_sample": "(key, opt_state, params, *, param_specs=None)",
    "read": "(opt_state, name)",
    "decisions": "(link, opt_state, steps)",
    "average": "(axis_name)",
    "start.kernel_axes": "(out_axis=-1, batch_axis=())",
    "start.momentum": "(rho, decay=0.9)",
    "start.noise": "(gamma, *, key=0, power=1.0, samples=1, kernels=None)",
    "start.hessian": "(ess, *, beta_2=0.99999, weight_decay=0.0001, initial_hessian=1.0, key=0)",
    "start.precision": "(ess, *, beta_2=0.999, weight_decay=0.0005, damping=0.1, "
    "initial_precision=1.0, key=0)",
    "start.previous": "(rho)",
    "perturb.adaptive_ball": "(rho, eta=0.01, weights=None)",
    "perturb.ball": "(rho)",
    "perturb.eigen_ball": "(rho, alpha=0.2, period=100, power_iterations=5, *, products='exact', "
    "key=0)",
    "perturb.ema": "(theta)",
    "perturb.fisher_ball": "(rho, eta=1.0)",
    "perturb.loss_ball": "(budget, rho_max=None)",
    "perturb.layer_ball": "(rho)",
    "perturb.noise": "(gamma, *, key=0, power=1.0, kernels=None)",
    "perturb.noisy_ball": "(rho, lambda_=1.0, *, normalize_gradient=False)",
    "perturb.only": "(mask, perturb)",
    "perturb.over_precision": "(rho)",
    "perturb.previous": "()",
    "perturb.random_coordinates": "(beta, *, key=0, mask='coordinate')",
    "perturb.subtract_ema": "(sigma, decay=0.9)",
    "when.adaptive": "(threshold, *, decay=0.9, initial_variance=4.5399929762484854e-05, "
    "axis_name=None)",
    "when.all_of": "(*policies)",
    "when.always": "()",
    "when.any_of": "(*policies)",
    "when.bernoulli": "(probability, *, key=0)",
    "when.between": "(start, stop=None, *, total_steps=None)",
    "when.every": "(period)",
    "combine.extrapolate": "(alpha)",
    "combine.interpolate": "(alpha)",
    "combine.mix": "(gamma=1.4, chi=1.05, lambda_0=1.0, delta=0.01, *, ratio='clean', "
    "axis_name=None)",
    "combine.newton_hessian": "(beta_1=0.9, *, clip=inf, rescale=1.0)",
    "combine.newton_precision": "(beta_1=0.9, *, weight_decay=0.0005, precision_at='updated')",
    "combine.perturbed": "()",
    "combine.renormalize": "()",
    "combine.reuse": "(alpha)",
    "combine.slerp": "(alpha)",
    "combine.stateless": "(function)",
    "combine.surrogate_gap": "(alpha)",
    "combine.weigh": "(gamma, base=None)",
    "schedules.budget_annealing": "(budget, anneal_from, total, final=0.0, warmup=0, *, "
    "steps_per_epoch=1)",
    "schedules.linear_threshold": "(lambda_1, lambda_2, total_steps)",
    "schedules.ramp": "(value, steps, *, begin=0, initial=0.0)",
    "schedules.rho_from_learning_rate": "(learning_rate, *, rho_max, rho_min, lr_max, lr_min, "
    "clamp=True)",
}
FLAX = {
    "flax.nnx_functional_grad_fn": "(model_fn, loss_fn, model, *args, "
    "wrt=<class 'flax.nnx.variablelib.Param'>, **kwargs)",
    "flax.TrainState.apply_gradients": "(self, *, grads, **kwargs)",
    "flax.TrainState.gradient_point": "(self, *, param_specs=None)",
    "flax.nnx_grad_fn": "(loss_fn, model, *args, wrt=<class 'flax.nnx.variablelib.Param'>, "
    "has_aux=False, **kwargs)",
    "flax.nnx_pure_fn": "(function, model, *args, wrt=<class 'flax.nnx.variablelib.Param'>, "
    "**kwargs)",
}
FIELDS = {
    "SharpnessAwareState": "steps ascents notfinite rise start perturb when combine aux",
    "Start": "init update samples",
    "When": "init update ahead",
    "Combine": "init fresh stale",
    "MaskedState": "inner_state part",
    "start.NoiseState": "key_data draw gamma power",
    "start.KernelNoiseState": "noise kernels",
    "start.MomentumState": "velocity rho",
    "start.PreviousState": "previous rho",
    "start.PrecisionState": "s ess least decay key_data draw",
    "start.HessianState": "h ess weight_decay decay key_data draw",
    "perturb.PreviousState": "previous",
    "when.SeveralState": "policies",
    "combine.MomentState": "m",
    "perturb.LossBallState": "rho",
    "perturb.EigenBallState": "key_data v",
    "perturb.EmaState": "m",
    "perturb.RandomCoordinatesState": "key_data",
    "when.BernoulliState": "key_data",
    "when.AdaptiveState": "mean variance",
    "combine.MixState": "lambda_k previous_norm",
    "combine.WeighState": "base",
    "combine.ReuseState": "v",
}
MODULES = ("start", "perturb", "when", "combine", "schedules")


@pytest.mark.parametrize("name", SIGNATURES | PARTS | FLAX)
def test_a_function_has_its_published_signature(name):
    signature = inspect.signature(operator.attrgetter(name)(sam_optax))
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == (SIGNATURES | PARTS | FLAX)[name]


@pytest.mark.parametrize("name", FIELDS)
def test_a_tuple_has_its_published_fields(name):
    assert operator.attrgetter(name)(sam_optax)._fields == tuple(FIELDS[name].split())


def test_nothing_else_is_public():
    """What the modules declare is what they define and publish, and stands in the tables above."""
    declared = {name for name in sam_optax.__all__ if name not in MODULES}
    for module in (*MODULES, "flax"):
        declared |= {f"{module}.{name}" for name in getattr(sam_optax, module).__all__}
    listed = {re.sub(r"(TrainState)\..*", r"\1", name) for name in SIGNATURES | PARTS | FLAX}
    assert declared == listed | set(FIELDS)
    assert set(sam_optax.__all__) > set(MODULES)
    for module in (*MODULES, "flax", "methods"):
        full = f"sam_optax.{module}"
        files = [m for name, m in sys.modules.items() if f"{name}.".startswith(f"{full}.")]
        own = {
            name
            for file in files
            for name, value in vars(file).items()
            if getattr(value, "__module__", "") == file.__name__ and not name.startswith("_")
        }
        assert set(getattr(sam_optax, module).__all__) == own


def public_functions(module):
    """The names of the functions that a module defines and publishes."""
    functions = inspect.getmembers(module, inspect.isfunction)
    own = {name for name, f in functions if f.__module__ == module.__name__}
    return {name for name in own if not name.startswith("_")}


def test_every_method_is_in_the_table():
    assert set(SIGNATURES) == set(METHODS)


INITIAL = {
    "le_sam": {"rho": 0.0},
    "samar": {"lambda_k": 1.0, "previous_norm": 0.0},
    "ae_sam": {"mean": 0.0, "variance": 0.5},
    "looksam": {"v": 0.0},
    "vasso": {"m": 0.0},
    "friendly_sam": {"m": 0.0},
    "eigen_sam": {"v": 0.0},
    "r_sam": {"draw": 0, "gamma": 0.3, "power": 1.0},
    "msam": {"velocity": 0.0, "rho": 0.4},
    "s2_sam": {"previous": 0.0, "rho": 0.4},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_state_begins_with_no_steps_and_the_papers_first_values(name):
    state = METHODS[name].link().init(jnp.ones(3))
    expected = {"steps": 0, "ascents": 0, **INITIAL.get(name, {})}
    for field, value in expected.items():
        assert jnp.allclose(optax.tree.get(state, field), value), field


@pytest.mark.parametrize(
    ("name", "settings", "value"),
    [
        ("r_sam", {"gamma": lambda t: t + 2.0}, {"gamma": 2.0}),
        ("msam", {"rho": lambda t: t + 2.0}, {"rho": 2.0}),
        ("s2_sam", {"rho": lambda t: t + 2.0}, {"rho": 2.0}),
    ],
)
def test_the_first_offset_takes_its_schedule_at_step_0(name, settings, value):
    ((field, expected),) = value.items()
    state = getattr(sam_optax, name)(**settings).init(jnp.ones(3))
    assert optax.tree.get(state, field) == expected
