"""Whatever a constructor is given, it works, or an error at once names the argument."""

import decimal
import fractions
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax import combine, perturb, schedules, start, when

ODD = {
    "true": True,
    "false": False,
    "numpy's true": np.True_,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "negative": -0.5,
    "a negative integer": -3,
    "zero": 0,
    "an integer of 31 bits": 2**31,
    "an integer of 70 bits": 2**70,
    "-2**70": -(2**70),
    "10**30": 10**30,
    "10**400": 10**400,
    "huge": 1e300,
    "a string": "kernel",
    "an empty string": "",
    "bytes": b"0.1",
    "none": None,
    "a list": [0.1],
    "an empty tuple": (),
    "a dictionary": {"a": 1},
    "a set": {1},
    "complex": 1j,
    "a fraction": fractions.Fraction(1, 2),
    "a decimal": decimal.Decimal("0.5"),
    "an object": object(),
    "a long double": np.longdouble(0.5),
    "an array": np.ones(3),
    "a string in an array": np.array("x"),
    "a boolean in an array": jnp.array(True),
    "a complex array": jnp.array(1j),
    "a key": jax.random.key(0),
    "an optimizer": optax.sgd(0.1),
}

REQUIRED = {
    "total_steps": 10,
    "ess": 50.0,
    "start": 3,
    "value": 0.1,
    "steps": 5,
    "function": lambda first, second, params, **extra: second,
    "like": {"a": np.zeros(2)},
    "base": optax.trace(0.9),
    "rho": 0.1,
    "alpha": 0.1,
    "gamma": 0.5,
    "theta": 0.5,
    "sigma": 0.5,
    "budget": 0.3,
    "beta": 0.5,
    "period": 2,
    "probability": 0.5,
    "threshold": 0.0,
    "link": sam_optax.sam(),
    "opt_state": sam_optax.sam().init({"a": np.ones(2)}),
    "mask": {"a": True, "b": None},
    "perturb": perturb.ball(0.1),
    "axis_name": "batch",
    "learning_rate": lambda t: 0.1,
    "rho_max": 0.2,
    "rho_min": 0.1,
    "lr_max": 0.2,
    "lr_min": 0.1,
    "anneal_from": 5,
    "total": 9,
    "lambda_1": 0.0,
    "lambda_2": 1.0,
}
# What constructs nothing, and what takes parts alone.
OTHERS = ("gradient_point", "read", "functional_grad_fn", "posterior_sample", "all_of", "any_of")
PLACES = [sam_optax, combine, perturb, schedules, start, when]
CONSTRUCTORS = {
    f"{place.__name__}.{name}": getattr(place, name)
    for place in PLACES
    for name in place.__all__
    if inspect.isfunction(getattr(place, name)) and name not in OTHERS
}
ARGUMENTS = [(c, a) for c, f in CONSTRUCTORS.items() for a in inspect.signature(f).parameters]


def construct(constructor, **given):
    """The constructor's result, with what it needs besides."""
    factory = CONSTRUCTORS[constructor]
    parameters = inspect.signature(factory).parameters.values()
    needed = {p.name: REQUIRED[p.name] for p in parameters if p.default is p.empty}
    return factory(**(needed | given))


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_the_ordinary_arguments_are_taken(constructor):
    assert construct(constructor) is not None


@pytest.mark.parametrize(("constructor", "argument"), ARGUMENTS)
def test_an_odd_argument_works_or_is_named(constructor, argument):
    for odd in ODD.values():
        try:
            construct(constructor, **{argument: odd})
        except (TypeError, ValueError) as error:
            assert argument in str(error).split(":")[0], error  # noqa: PT017


NUMBERS = ("Schedulable", "Schedulable | None", "float", "int")
MAYBE_NUMBERS = ("nan", "inf", "-inf", "negative", "a negative integer", "zero", "huge", "none")


@pytest.mark.parametrize(("constructor", "argument"), ARGUMENTS)
def test_what_is_no_number_that_fits_is_refused_where_one_is_due(constructor, argument):
    """Booleans too, which Python takes for numbers."""
    parameter = inspect.signature(CONSTRUCTORS[constructor]).parameters[argument]
    if parameter.annotation in NUMBERS:
        for odd in ODD:
            if odd not in MAYBE_NUMBERS:
                with pytest.raises((TypeError, ValueError), match=f"^{argument} must "):
                    construct(constructor, **{argument: ODD[odd]})


@pytest.mark.parametrize("constructor", [sam_optax.sam, when.every])
def test_an_integer_that_python_refuses_to_print_is_refused(constructor):
    argument = next(iter(inspect.signature(constructor).parameters))
    with pytest.raises(ValueError, match=rf"^{argument} must .* integer of 16610 bits: pass a"):
        constructor(10**5000)
    with pytest.raises(ValueError, match=r"^key must fit 64 bits, got an integer of 16610 bits"):
        sam_optax.r_sam(key=10**5000)


KEYS = ("true", "numpy's true", "an integer of 70 bits", "-2**70", "a string", "none")


@pytest.mark.parametrize("odd", KEYS)
def test_a_key_is_an_integer_that_fits_64_bits(odd):
    error = ValueError if isinstance(ODD[odd], int) and ODD[odd] is not True else TypeError
    with pytest.raises(error, match=r"^key must "):
        sam_optax.r_sam(key=ODD[odd])


@pytest.mark.parametrize("key", [-1, 2**63 - 1, -(2**63), np.int64(3)])
def test_every_integer_of_64_bits_is_a_key(key):
    assert sam_optax.r_sam(key=key).init(jnp.ones(2))


WEIGHTS = ("a string", "bytes", "zero", "nan", "a list", "a dictionary", "an array", "an object")


@pytest.mark.parametrize("odd", WEIGHTS)
def test_weights_are_a_function_or_booleans(odd):
    message = "^weights must be a function of a leaf's key path .*, or a tree of booleans, got "
    with pytest.raises(TypeError, match=message):
        sam_optax.asam(weights=ODD[odd])


@pytest.mark.parametrize("mask", [True, np.True_, np.array(True), jnp.array([True, False])])
def test_a_tree_of_booleans_of_any_kind_is_a_mask(mask):
    w = {"a": jnp.array([1.0, 2.0]), "b": jnp.ones(2)}
    link = sam_optax.asam(weights={"a": mask, "b": False})
    assert link.update(w, link.init(w), w, grad_fn=lambda p: p)


AXES = ("true", "zero", "nan", "a list", "a set", "an array", "a key", "a dictionary")


@pytest.mark.parametrize("odd", AXES)
@pytest.mark.parametrize(
    "constructor",
    [sam_optax.average, functools.partial(when.adaptive, 0.0), combine.mix, sam_optax.samar],
)
def test_an_axis_is_a_name_or_a_tuple_of_names(constructor, odd):
    message = "^axis_name must be the name of a mapped axis, such as 'batch', or a tuple of names"
    with pytest.raises(TypeError, match=message):
        constructor(axis_name=ODD[odd])
    assert constructor(axis_name=("data", "model"))


@pytest.mark.parametrize("value", [1, 0, "yes", None, jnp.array(True)])
def test_an_option_is_true_or_false(value):
    with pytest.raises(TypeError, match=r"^normalize_gradient must be True or False, got"):
        sam_optax.r_sam(normalize_gradient=value)
    assert sam_optax.r_sam(normalize_gradient=True)


@pytest.mark.parametrize(
    ("value", "fix"), [(10**10, "pass a smaller number, or a float"), (True, "must be a number")]
)
def test_the_message_says_what_to_pass(value, fix):
    with pytest.raises((TypeError, ValueError), match=rf"^rho .*got {value}.*|{fix}"):
        sam_optax.sam(value)
    assert sam_optax.sam(1e10)
