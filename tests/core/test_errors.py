"""Every error names the argument, its value and what to pass instead."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from reference import METHODS, NAMES, ROWS

import sam_optax
from sam_optax import combine, perturb, schedules, start, when

W = {"w": jnp.ones(2)}


def identity(w):
    return w


def update(link, **extra):
    return link.update(W, link.init(W), W, **extra)


# At the update.


WITHOUT_EXAMPLES = [name for name in NAMES if name != "esam"]


@pytest.mark.parametrize(
    "name", [*WITHOUT_EXAMPLES, "r_sam_point", "lpf_sgd_samples_point", "esam_all"]
)
def test_an_update_without_grad_fn_says_how_to_call(name):
    with pytest.raises(ValueError, match=r"needs grad_fn.*update\(grads, .*grad_fn=jax.grad\("):
        update(ROWS[name].link())


@pytest.mark.parametrize("missing", ["grad_fn", "example_loss_fn"])
def test_selecting_examples_without_what_it_needs_says_how_to_call(missing):
    given = {"grad_fn": lambda w, indices: w, "example_loss_fn": lambda w: jnp.ones(3)}
    del given[missing]
    message = rf"selecting examples needs {missing}.*grad_fn=lambda params, indices: .*gamma=1"
    with pytest.raises(ValueError, match=message):
        update(sam_optax.esam(), **given)


@pytest.mark.parametrize("grad_fn", [identity, jax.jit(identity)])
def test_a_grad_fn_that_takes_no_indices_is_an_error(grad_fn):
    message = r"grad_fn must take the indices of the examples.*gamma=1 takes the whole batch"
    with pytest.raises(TypeError, match=message):
        update(sam_optax.esam(), grad_fn=grad_fn, example_loss_fn=lambda w: jnp.ones(3))


def test_a_callable_without_a_signature_is_taken_at_its_word():
    w, link = jnp.array([2.0]), sam_optax.esam(rho=0.0)  # max(w, indices) is w
    direction, _ = link.update(
        w, link.init(w), w, grad_fn=max, example_loss_fn=lambda w: jnp.ones(2)
    )
    assert direction == w


@pytest.mark.parametrize(
    ("losses", "got"),
    [
        (jnp.ones(()), "shape []"),
        (jnp.ones((3, 1)), "shape [3, 1]"),
        (jnp.ones(0), "shape [0]"),
        ((jnp.ones(3), "aux"), "tuple"),
    ],
)
@pytest.mark.parametrize("argument", ["example_loss_fn", "example_losses"])
def test_losses_that_are_not_one_for_each_example_are_an_error(argument, losses, got):
    given = {"example_loss_fn": lambda w: jnp.ones(3)}
    given[argument] = losses if argument == "example_losses" else lambda w: losses
    message = re.escape(f"one loss for each example, an array [B], got {got}")
    with pytest.raises(ValueError, match=message):
        update(sam_optax.esam(), grad_fn=lambda w, indices: w, **given)


@pytest.mark.parametrize("link", [5, sam_optax.sam])
def test_selecting_for_what_is_no_transformation_is_an_error(link):
    with pytest.raises(TypeError, match="link must be a sharpness-aware method such as"):
        sam_optax.select_examples(link, 0.5)


def test_selecting_for_an_optimizer_without_a_second_gradient_is_an_error():
    with pytest.raises(ValueError, match="needs a sharpness-aware method inside the link"):
        sam_optax.select_examples(optax.sgd(0.1), 0.5).init(W)


@pytest.mark.parametrize("name", ["r_sam", "r_gsam", "lpf_sgd", "msam", "s2_sam", "eigen_sam"])
def test_selecting_for_a_method_with_more_uses_of_grad_fn_is_an_error(name):
    with pytest.raises(ValueError, match="grad_fn for nothing but its second gradient"):
        sam_optax.select_examples(METHODS[name].link(), 0.5).init(W)


def test_a_weight_mask_of_another_structure_is_an_error():
    message = r"weights must be a tree of booleans that is a prefix of the parameters, got {'other"
    with pytest.raises(ValueError, match=message):
        update(sam_optax.asam(weights={"other": True}), grad_fn=identity)


def test_a_weight_function_that_returns_no_boolean_is_an_error():
    message = r"weights must return True or False for the key path of one leaf, got {'w': False}"
    with pytest.raises(TypeError, match=message):
        update(sam_optax.asam(weights=lambda params: {"w": False}), grad_fn=identity)


@pytest.mark.parametrize("name", NAMES)
def test_an_update_without_params_says_how_to_call(name):
    link = METHODS[name].link()
    with pytest.raises(ValueError, match=r"needs the parameters: call update\(grads, .*params, "):
        link.update(W, link.init(W), grad_fn=identity)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_needs_no_grad_fn_behind_a_chain_that_lacks_it(name):
    tx = METHODS[name].optimizer()
    with pytest.raises(ValueError, match="needs grad_fn"):
        tx.update(W, tx.init(W), W)


def test_a_method_with_one_gradient_at_the_gradient_point_needs_no_grad_fn():
    link = sam_optax.sharpness_aware(start=start.noise(0.1), updates_at="gradient_point")
    assert update(link)[0] is not None
    with pytest.raises(ValueError, match="needs grad_fn"):
        update(sam_optax.sharpness_aware(start=start.noise(0.1)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_grad_fn_with_a_value_is_told_to_return_the_gradient_alone(name, compiled):
    link = METHODS[name].link()

    def call(state, w):
        return link.update(w, state, w, grad_fn=lambda p: (jnp.ones(()), p))

    call = jax.jit(call) if compiled else call
    message = r"what grad_fn returns must.*gradient alone: use jax.grad, or drop the value and aux"
    with pytest.raises(ValueError, match=message):
        call(link.init(W), W)


def test_masked_parameters_are_found_at_the_update_too():
    link = sam_optax.sam()
    params = {"a": jnp.ones(2), "b": optax.MaskedNode()}
    with pytest.raises(ValueError, match=r"optax\.MaskedNode"):
        link.update(params, link.init(W), params, grad_fn=identity)


# At construction.


def construct(name, **settings):
    return getattr(sam_optax, name)(**METHODS[name].required | settings)


WITH_RHO = [name for name in NAMES if not name.startswith(("le_sam", "lpf_sgd", "ivon"))]
NEGATIVE = [
    *((name, "rho") for name in WITH_RHO),
    *((name, "budget") for name in ("le_sam", "le_sam_plus")),
    *((name, "rho_max") for name in ("le_sam", "le_sam_plus")),
    *((name, "alpha") for name in ("gsam", "looksam", "ae_looksam", "le_sam_plus", "r_gsam")),
    ("eigen_sam", "alpha"),
    ("friendly_sam", "sigma"),
    *((name, "eta") for name in ("asam", "fisher_sam")),
    *((name, "gamma") for name in ("r_sam", "r_gsam", "lpf_sgd")),
    *((name, "lambda_") for name in ("r_sam", "r_gsam")),
    *((name, "initial_variance") for name in ("ae_sam", "ae_looksam")),
    ("samar", "chi"),
]


@pytest.mark.parametrize("value", [-0.1, math.nan, -math.inf])
@pytest.mark.parametrize(("name", "argument"), NEGATIVE)
def test_a_negative_or_undefined_size_is_an_error(name, argument, value):
    message = re.escape(f"{argument} must lie in [0, inf), got {value!r}: pass a number")
    with pytest.raises(ValueError, match="^" + message):
        construct(name, **{argument: value})


DECAYS = ("ae_sam", "ae_looksam", "friendly_sam")
OUTSIDE = [
    *((name, "gamma", v, "[0, 1)") for name in ("wsam", "coupled_wsam") for v in (1.0, -0.1, 2)),
    *((name, "decay", v, "[0, 1]") for name in DECAYS for v in (1.1, -0.1)),
    *(("msam", "decay", v, "[0, 1)") for v in (1.0, -0.1, math.nan)),
    *(("vasso", "theta", v, "[0, 1]") for v in (1.1, -0.1, math.nan)),
    *(("ss_sam", "probability", v, "[0, 1]") for v in (1.1, -0.1, math.nan)),
    *(("esam", name, v, "(0, 1]") for name in ("beta", "gamma") for v in (0, 1.1, math.nan)),
    *((name, "lambda_1", math.nan, "[-inf, inf]") for name in ("ae_sam", "ae_looksam")),
    *((name, "lambda_2", math.nan, "[-inf, inf]") for name in ("ae_sam", "ae_looksam")),
    *(("samar", "gamma", v, "(1, inf)") for v in (1.0, 0.5, -2.0)),
    *(("samar", "lambda_0", v, "[0, 1]") for v in (-0.1, 1.1)),
    *(("samar", "delta", v, "[0, 0.5]") for v in (-0.1, 0.6)),
]


@pytest.mark.parametrize(("name", "argument", "value", "bounds"), OUTSIDE)
def test_a_number_outside_its_interval_is_an_error(name, argument, value, bounds):
    message = re.escape(f"{argument} must lie in {bounds}, got {value!r}: pass a number from that")
    with pytest.raises(ValueError, match="^" + message):
        construct(name, **{argument: value})


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_probability_outside_the_unit_interval_is_an_error(value):
    with pytest.raises(
        ValueError, match=re.escape(f"probability must lie in [0, 1], got {value!r}")
    ):
        when.bernoulli(value)


COUNTS = [
    ("ae_sam", "total_steps"),
    ("ae_looksam", "total_steps"),
    ("looksam", "period"),
    ("eigen_sam", "period"),
    ("eigen_sam", "power_iterations"),
    ("lpf_sgd", "samples"),
]


@pytest.mark.parametrize(("name", "argument"), COUNTS)
@pytest.mark.parametrize("value", [0, -3])
def test_a_count_below_one_is_an_error(name, argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be at least 1, got {value}: pass a"):
        getattr(sam_optax, name)(**{argument: value})


@pytest.mark.parametrize(("name", "argument"), COUNTS)
@pytest.mark.parametrize("value", [2.5, "5", None])
def test_a_count_that_is_no_integer_is_an_error(name, argument, value):
    with pytest.raises(TypeError, match=f"^{argument} must be an integer, got {value!r}"):
        getattr(sam_optax, name)(**{argument: value})


TYPES = [
    *((name, "rho") for name in WITH_RHO),
    *((name, "budget") for name in ("le_sam", "le_sam_plus")),
    *((name, "gamma") for name in ("samar", "r_sam", "coupled_wsam", "wsam", "lpf_sgd", "esam")),
    *((name, "eta") for name in ("asam", "fisher_sam")),
    ("esam", "beta"),
    ("vasso", "theta"),
    ("friendly_sam", "sigma"),
    ("friendly_sam", "decay"),
    ("msam", "decay"),
    ("eigen_sam", "alpha"),
    ("ss_sam", "probability"),
    *((name, "decay") for name in ("ae_sam", "ae_looksam")),
    *((name, "lambda_1") for name in ("ae_sam", "ae_looksam")),
    ("samar", "lambda_0"),
    ("gsam", "alpha"),
]


@pytest.mark.parametrize("value", ["0.05", None, [0.05]])
@pytest.mark.parametrize(("name", "argument"), TYPES)
def test_what_is_neither_a_number_nor_a_schedule_is_an_error(name, argument, value):
    message = re.escape(f"{argument} must be a number")
    with pytest.raises(TypeError, match=f"^{message}.*got {re.escape(repr(value))}"):
        construct(name, **{argument: value})


CHOICES = [
    *(
        (name, "updates_at", "'params' or 'gradient_point'")
        for name in ("r_sam", "r_gsam", "lpf_sgd", "msam", "s2_sam")
    ),
    *((name, "noise_scale", "'std' or 'variance'") for name in ("r_sam", "r_gsam")),
    ("esam", "mask", "'coordinate' or 'tensor'"),
    ("eigen_sam", "products", "'exact' or 'differences'"),
]


@pytest.mark.parametrize(("name", "argument", "choices"), CHOICES)
@pytest.mark.parametrize("value", ["elsewhere", None])
def test_a_choice_that_is_not_offered_is_an_error(name, argument, choices, value):
    with pytest.raises(ValueError, match=f"^{argument} must be {choices}, got {value!r}"):
        construct(name, **{argument: value})


@pytest.mark.parametrize("value", ["dirty", None])
def test_an_unknown_ratio_is_an_error(value):
    with pytest.raises(ValueError, match=f"^ratio must be 'clean' or 'perturbed', got {value!r}"):
        sam_optax.samar(ratio=value)


@pytest.mark.parametrize("key", ["0", 1.5, None])
@pytest.mark.parametrize(
    "part",
    [
        *(
            functools.partial(getattr(sam_optax, name))
            for name in ("r_sam", "lpf_sgd", "ss_sam", "esam", "eigen_sam")
        ),
        functools.partial(when.bernoulli, 0.5),
    ],
    ids=lambda part: part.func.__name__,
)
def test_a_key_that_is_none_is_an_error(part, key):
    with pytest.raises(TypeError, match=rf"key must be an int or a jax.random.key, got {key!r}"):
        part(key=key)


def test_a_key_array_of_another_shape_is_an_error():
    with pytest.raises(TypeError, match=r"key must be an int or one jax.random.key, got an array"):
        sam_optax.r_sam(key=jnp.ones(3))


@pytest.mark.parametrize("key", [3, jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")])
def test_keys_of_every_kind_are_taken(key):
    assert update(sam_optax.r_sam(key=key), grad_fn=identity)[0] is not None


@pytest.mark.parametrize("base", [None, 0.9, "sgd"])
def test_a_base_that_is_no_transformation_is_an_error(base):
    if base is None:  # the identity, inside the part alone
        assert combine.weigh(0.5, None)
        return
    with pytest.raises(TypeError, match=rf"^base must be an Optax transformation.*got {base!r}"):
        sam_optax.wsam(base)


@pytest.mark.parametrize("value", [0.05, "ball", lambda g: g])
def test_a_geometry_that_is_no_transformation_is_an_error(value):
    with pytest.raises(TypeError, match=r"^perturb must be an Optax transformation, got"):
        sam_optax.sharpness_aware(value)


@pytest.mark.parametrize("slot", [{"when": when.every(2)}, {"combine": combine.mix()}])
def test_a_decision_about_no_second_gradient_is_an_error(slot):
    with pytest.raises(ValueError, match=r"without perturb there is none: pass perturb, such as"):
        sam_optax.sharpness_aware(**slot)


INJECTED = [("esam", "gamma"), ("eigen_sam", "power_iterations"), ("lpf_sgd", "samples")]


@pytest.mark.parametrize(("name", "argument"), INJECTED)
def test_what_sets_a_shape_or_a_loop_is_not_to_be_injected(name, argument):
    """The error names the argument of `inject_hyperparams` that leaves it alone."""
    message = re.escape(f"under optax.inject_hyperparams pass static_args=('{argument}',)")
    with pytest.raises(TypeError, match=message):
        optax.inject_hyperparams(getattr(sam_optax, name))().init(W)
    tx = optax.inject_hyperparams(getattr(sam_optax, name), static_args=(argument,))()
    assert tx.init(W).inner_state.steps == 0


def test_arrays_and_schedules_are_not_checked():
    """Their values are known only later, or must not be waited for."""
    assert sam_optax.sam(jnp.asarray(-1.0))
    assert sam_optax.sam(lambda t: -1.0)
    assert perturb.ball(optax.constant_schedule(-1.0))


# Schedules.


RADII = {"rho_max": 0.5, "rho_min": 0.1, "lr_max": 1.0, "lr_min": 0.0}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rho_max": -0.5}, ValueError, "rho_max must lie in [0, inf), got -0.5"),
        ({"rho_min": -0.1}, ValueError, "rho_min must lie in [0, inf), got -0.1"),
        ({"lr_min": 2.0}, ValueError, "lr_min must be at most lr_max, got 2.0 > 1.0"),
        ({"learning_rate": 0.1}, TypeError, "learning_rate must be a schedule, got 0.1: pass"),
        ({"rho_max": None}, TypeError, "rho_max must be a number"),
    ],
)
def test_a_radius_schedule_checks_its_arguments(change, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        schedules.rho_from_learning_rate(**{"learning_rate": lambda t: 1.0, **RADII, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budget": -0.1}, ValueError, "budget must lie in [0, inf), got -0.1"),
        ({"final": -0.1}, ValueError, "final must lie in [0, inf), got -0.1"),
        ({"budget": "0.3"}, TypeError, "budget must be a number"),
        ({"total": 0}, ValueError, "total must be at least 1, got 0"),
        ({"anneal_from": -1}, ValueError, "anneal_from must be at least 0, got -1"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
        ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch must be at least 1, got 0"),
        ({"total": 10.0}, TypeError, "total must be an integer, got 10.0"),
    ],
)
def test_a_budget_schedule_checks_its_arguments(change, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        schedules.budget_annealing(**{"budget": 0.3, "anneal_from": 5, "total": 10, **change})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((math.inf, -math.inf, 10), ValueError, "lambda_1 and lambda_2 must not be opposite"),
        ((-math.inf, math.inf, 10), ValueError, "lambda_1 and lambda_2 must not be opposite"),
        ((math.nan, 0.0, 10), ValueError, "lambda_1 must lie in [-inf, inf], got nan"),
        ((0.0, math.nan, 10), ValueError, "lambda_2 must lie in [-inf, inf], got nan"),
        (("0", 0.0, 10), TypeError, "lambda_1 must be a number"),
        ((0.0, 0.0, 0), ValueError, "total_steps must be at least 1, got 0"),
        ((0.0, 0.0, 1.5), TypeError, "total_steps must be an integer, got 1.5"),
    ],
)
def test_a_threshold_schedule_checks_its_arguments(arguments, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        schedules.linear_threshold(*arguments)


PRECISION = ("ess", "beta_2", "weight_decay", "damping", "initial_precision")
HESSIAN = ("ess", "beta_2", "weight_decay", "initial_hessian")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (functools.partial(sam_optax.ae_sam, total_steps=3), "lambda_1"),
        (functools.partial(sam_optax.ae_sam, total_steps=3), "initial_variance"),
        (sam_optax.samar, "lambda_0"),
        (sam_optax.samar, "delta"),
        (functools.partial(when.adaptive, 0.0), "decay"),
        (sam_optax.msam, "decay"),
        (sam_optax.esam, "beta"),
        (sam_optax.esam, "gamma"),
        (functools.partial(start.noise, 0.1), "power"),
        *((functools.partial(start.precision, ess=9.0), name) for name in PRECISION),
        *((functools.partial(start.hessian, ess=9.0), name) for name in HESSIAN),
        *((combine.newton_precision, name) for name in ("beta_1", "weight_decay")),
        *((combine.newton_hessian, name) for name in ("beta_1", "clip", "rescale")),
        (functools.partial(schedules.ramp, steps=5), "value"),
        (functools.partial(schedules.ramp, 0.1, 5), "initial"),
    ],
)
def test_a_plain_number_cannot_be_a_schedule(make, name):
    with pytest.raises(TypeError, match=f"^{name} must be a number, got"):
        make(**{name: lambda t: 0.5})


def test_wsam_needs_a_base():
    with pytest.raises(TypeError, match="base must be an Optax transformation"):
        sam_optax.wsam(None)


def test_a_part_that_was_not_called_is_refused():
    with pytest.raises(TypeError, match="when must be a When"):
        sam_optax.sharpness_aware(sam_optax.perturb.ball(0.1), when=sam_optax.when.always)


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match=r"params\['w'\] is complex"):
        sam_optax.sam().init({"w": jnp.ones(2, jnp.complex64)})


@pytest.mark.parametrize("compiled", ["update", "grad_fn", "neither"])
def test_eigen_sam_refuses_a_custom_vjp_at_its_first_step(compiled):
    """And not a period of steps later; with differences, or a jax.custom_jvp, it goes on.

    As in a fused kernel, whose backward pass is another one.
    """

    @jax.custom_vjp
    def double(w):
        return 2 * w

    double.defvjp(lambda w: (2 * w, None), lambda _, t: (2 * t,))

    @jax.custom_vjp
    def square(w):
        return jnp.sum(w**2)

    square.defvjp(lambda w: (jnp.sum(w**2), w), lambda w, t: (t * double(w),))

    @jax.custom_jvp
    def remedy(w):
        return jnp.sum(w**2)

    remedy.defjvp(lambda w, t: (remedy(w[0]), 2 * jnp.vdot(w[0], t[0])))

    w = jnp.array([3.0, 4.0])

    def estimated(loss, **settings):
        link = sam_optax.eigen_sam(0.1, period=2, **settings)

        def step(state):
            grad_fn = jax.grad(loss)
            grad_fn = jax.jit(grad_fn) if compiled == "grad_fn" else grad_fn
            return link.update(grad_fn(w), state, w, grad_fn=grad_fn)

        step = jax.jit(step) if compiled == "update" else step
        state = link.init(w)
        for _ in range(4):
            _, state = step(state)
        return sam_optax.read(state, "v")

    # Inside jit it is JAX that tells, where it compiles the step.
    told = "to a custom_vjp" if compiled == "update" else "in the way: pass products='differences'"
    with pytest.raises(TypeError, match=told):
        estimated(square)
    exact = estimated(remedy)
    assert jnp.allclose(optax.tree.norm(exact), 1.0)
    assert jnp.allclose(estimated(square, products="differences"), exact, atol=1e-3)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "host"])
@pytest.mark.parametrize(
    ("combination", "told"),
    [
        (lambda g, h, w, **x: jax.tree.map(jnp.mean, h), r"what combine returns\['a'\] is .*\[\]"),
        (lambda g, h, w, **x: h["a"], "what combine returns must have the structure of params"),
        (lambda g, h, w, **x: None, "what combine returns must have the structure of params"),
        (
            lambda g, h, w, *, grad_fn, **x: grad_fn(w["a"]),
            "the point where combine takes a gradient must have the structure of params",
        ),
    ],
)
def test_what_a_combination_returns_and_where_it_looks_must_fit(combination, told, compiled):
    w = {"a": jnp.ones(2)}
    link = sam_optax.sharpness_aware(perturb.ball(0.1), combine=combine.stateless(combination))
    step = functools.partial(link.update, grad_fn=lambda p: p)
    with pytest.raises(ValueError, match=told):
        (jax.jit(step) if compiled else step)(w, link.init(w), w)


def test_a_perturbation_takes_gradients_where_the_parameters_could_be():
    w = {"a": jnp.ones(2)}

    def update(updates, state, params=None, *, grad_fn, **extra):
        return grad_fn(params["a"]), state

    part = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    link = sam_optax.sharpness_aware(part)
    with pytest.raises(ValueError, match="the point where perturb takes a gradient must have"):
        link.update(w, link.init(w), w, grad_fn=lambda p: p)


@pytest.mark.parametrize("function", [max, lambda first, second: second, lambda g, h, w: h])
def test_a_combination_takes_what_it_is_handed(function):
    with pytest.raises(TypeError, match=r"write lambda first, second, params, \*\*extra"):
        combine.stateless(function)
