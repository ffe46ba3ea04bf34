"""Strict promotion of dtypes changes nothing for us, and still holds what the caller hands in."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from reference import KINDS, METHODS, VARIANTS

import sam_optax
from sam_optax import perturb, schedules, when

OTHERS = ("asam_mask", "esam_tensor", "r_sam_normalized", "samar_perturbed", "lpf_sgd_samples")
ROWS = METHODS | {name: VARIANTS[name] for name in OTHERS}
# Those of the leaves in turn.
DTYPES = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "mixed": (jnp.float32, jnp.bfloat16),
}
HYPERPARAMETERS = ("numbers", "schedules of numbers", "schedules of arrays", "injected")
HARDEST = [("float32", "numbers"), ("bfloat16", "injected"), ("mixed", "schedules of arrays")]
PAIRS = [
    pytest.param(dtypes, kind, marks=() if (dtypes, kind) in HARDEST else pytest.mark.slow)
    for dtypes in DTYPES
    for kind in HYPERPARAMETERS
]


def made(row, kind, dtypes):
    """The method of a row, its hyperparameters handed over in one of the ways."""
    if kind == "injected":
        # Optax itself refuses to find a common dtype of mixed parameters.
        dtype = jnp.bfloat16 if dtypes == "mixed" else None
        factory = optax.inject_hyperparams(row.factory, row.static_args, dtype)
        return factory(**row.settings)
    parameters = inspect.signature(row.factory).parameters
    settings = dict(row.settings)
    for name, value in row.settings.items():
        if kind != "numbers" and parameters[name].annotation.startswith("Schedulable"):
            array = kind == "schedules of arrays"
            settings[name] = lambda t, v=value, a=array: jnp.float32(v) if a else float(v)
    return row.factory(**settings)


@functools.cache
def parameters(dtypes):
    first, second = DTYPES[dtypes]
    return {
        "conv": jnp.linspace(0.5, 2.0, 6, dtype=first).reshape(2, 3),
        "dense_bias": jnp.linspace(0.1, 1.0, 3, dtype=second),
        "dense_kernel": jnp.linspace(-1.0, 1.0, 6, dtype=second).reshape(3, 2),
        "scale": jnp.ones(2, first),
    }


def update(row, link, state, params):
    def grad_fn(p, indices=None):
        del indices
        return jax.tree.map(lambda leaf: leaf * leaf + 1, p)

    extra = {}
    if row.factory is sam_optax.esam:
        extra["example_loss_fn"] = lambda p: jnp.repeat(jnp.sum(p["conv"]), 4)
    return link.update(grad_fn(params), state, params, grad_fn=grad_fn, **extra)


def operations(jaxpr):
    """Those of a program in their order, with types, also of the programs inside."""
    listed = []
    for equation in jaxpr.eqns:
        inner = [p for p in jax.tree.leaves(list(equation.params.values())) if hasattr(p, "eqns")]
        inner = [getattr(p, "jaxpr", p) for p in inner]
        for program in inner:
            listed += operations(program)
        operands = [getattr(x, "val", None) for x in equation.invars]
        types = [x.aval for x in (*equation.invars, *equation.outvars)]
        listed.append((equation.primitive.name, str(operands), str(types)))
    return listed


@pytest.mark.parametrize(("dtypes", "kind"), PAIRS)
@pytest.mark.parametrize("name", ROWS)
def test_under_jit_the_program_is_that_of_standard_promotion(name, dtypes, kind):
    """The same operations, and so the same bits."""
    row = ROWS[name]
    programs = []
    for rules in ("standard", "strict"):
        with jax.numpy_dtype_promotion(rules):
            link = made(row, kind, dtypes)
            params = parameters(dtypes)
            state = jax.eval_shape(link.init, params)

            def step(state, params, link=link):
                return update(row, link, state, params)

            programs.append(operations(jax.make_jaxpr(step)(state, params).jaxpr))
    assert programs[0] == programs[1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if name in often else pytest.mark.slow)
        for kind, often in zip(HYPERPARAMETERS, (["gsam"], ["gsam"], KINDS, KINDS), strict=True)
        for name in METHODS
    ],
)
def test_outside_jit_the_steps_are_those_of_standard_promotion(name, kind):
    row = METHODS[name]
    after = []
    for rules in ("standard", "strict"):
        with jax.numpy_dtype_promotion(rules):
            link = made(row, kind, "mixed")
            params = parameters("mixed")
            state = link.init(params)
            for _ in range(2):
                direction, state = update(row, link, state, params)
            after.append((direction, state))
    chex.assert_trees_all_equal(*after)
    chex.assert_trees_all_equal_dtypes(*after)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.linear_threshold(-1.0, 1.0, 10),
        schedules.budget_annealing(0.3, 2, 5, warmup=1),
        schedules.rho_from_learning_rate(
            lambda t: jnp.bfloat16(0.5), rho_max=0.4, rho_min=0.1, lr_max=jnp.float32(1), lr_min=0.0
        ),
    ],
)
def test_the_schedules_are_those_of_standard_promotion(schedule):
    expected = schedule(jnp.int32(3))
    with jax.numpy_dtype_promotion("strict"):
        assert schedule(jnp.int32(3)) == expected


def mixed_sum(*args, **kwargs):
    """What strict promotion refuses."""
    return jnp.ones((), jnp.bfloat16) + jnp.ones((), jnp.float32)


def foreign(call):
    """A transformation of the caller's that promotes."""
    return optax.stateless(lambda g, _: optax.tree.scale(call(), g))


CALLERS = {
    "a schedule": lambda: sam_optax.sam(rho=mixed_sum),
    "a schedule ahead": lambda: sam_optax.msam(
        rho=lambda t: 0.1 if isinstance(t, int) else mixed_sum()
    ),
    "a learning rate": lambda: sam_optax.sam(
        schedules.rho_from_learning_rate(
            mixed_sum, rho_max=1.0, rho_min=0.0, lr_max=2.0, lr_min=0.0
        )
    ),
    "a base": lambda: sam_optax.wsam(foreign(mixed_sum)),
    "a geometry": lambda: sam_optax.sharpness_aware(foreign(mixed_sum)),
    "a choice of weights": lambda: sam_optax.asam(weights=lambda path: mixed_sum().shape == ()),
}


@pytest.mark.parametrize("name", CALLERS)
def test_what_the_caller_hands_in_is_held_to_strict_promotion(name):
    w = jnp.ones(2)

    def step():
        link = CALLERS[name]()
        return link.update(w, link.init(w), w, grad_fn=lambda p: p)

    for call in (step, jax.jit(step)):
        assert call()
        with jax.numpy_dtype_promotion("strict"), pytest.raises(jax.dtypes.TypePromotionError):
            call()


@pytest.mark.parametrize("geometry", [perturb.ball(0.1), perturb.eigen_ball(0.1, period=1)])
def test_grad_fn_is_held_to_strict_promotion(geometry):
    """Also where a part of ours calls it, behind a decision on the device too."""
    w = jnp.ones(2)
    link = sam_optax.sharpness_aware(geometry, when=when.every(2))
    state = link.init(w)._replace(steps=jnp.int32(2))

    def step(state):
        return link.update(w, state, w, grad_fn=lambda p: p * mixed_sum())

    with jax.numpy_dtype_promotion("strict"):
        for call in (step, jax.jit(step)):
            with pytest.raises(jax.dtypes.TypePromotionError):
                call(state)
