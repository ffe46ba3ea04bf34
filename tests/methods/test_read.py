"""A method's quantities, whatever the parameters are called."""

from typing import NamedTuple

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import METHODS, NAMES

import sam_optax
from sam_optax import perturb
from sam_optax.flax import TrainState, nnx_grad_fn

QUANTITIES = ["ascents", "lambda_k", "m", "mean", "previous_norm", "rho", "steps", "v", "variance"]


class Attention(NamedTuple):
    q: jax.Array
    k: jax.Array
    v: jax.Array


def params():
    """Every quantity's name is that of a parameter, and of a module."""
    names = {name: jnp.full((2, 2), 1.0 + i) for i, name in enumerate(QUANTITIES)}
    ones = jnp.ones((2, 2))
    return {**names, "layer": {"v": names, "kernel": ones}, "attention": Attention(*[ones] * 3)}


def fields(state):
    """The quantities of a state by its attributes alone."""
    found = {"steps": state.steps, "ascents": state.ascents}
    for slot in (state.start, state.perturb, state.when, state.combine):
        parts = [slot] if hasattr(slot, "_fields") else slot
        for part in parts:
            found.update(part._asdict())
    found.pop("base", None)  # the state of another optimizer
    return found


def optimizer(link):
    return optax.chain(optax.clip_by_global_norm(1e3), link, optax.sgd(0.1, momentum=0.9))


def run(link, w, steps=3):
    tx = optimizer(link)
    state = tx.init(w)
    for _ in range(steps):
        _, state = tx.update(
            w, state, w, grad_fn=lambda p, i=None: p, example_loss_fn=lambda p: jnp.ones(4)
        )
    return state


def numbered(state):
    """The state with another number in each of its leaves."""
    leaves, structure = jax.tree.flatten(state)
    leaves = [np.full(leaf.shape, i, leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_every_quantity_of_every_method_is_read(name):
    state = numbered(optimizer(METHODS[name].link()).init(params()))
    expected = fields(state[1])
    for quantity, value in expected.items():
        chex.assert_trees_all_equal(sam_optax.read(state, quantity), value)
    others = set(QUANTITIES) - set(expected)
    for quantity in others:
        with pytest.raises(KeyError, match=f"no method in opt_state keeps '{quantity}': ask for"):
            sam_optax.read(state, quantity)


def test_optax_takes_the_parameters_for_quantities():
    """Which is why there is a function of ours."""
    with pytest.raises(KeyError):
        optax.tree.get(run(sam_optax.looksam(), params()), "v")


WRAPPED = {
    "masked": lambda link: sam_optax.masked(link, lambda p: jax.tree.map(lambda _: True, p)),
    "selected": lambda link: sam_optax.select_examples(link, 0.5),
    "only": lambda link: sam_optax.sharpness_aware(
        perturb.only(True, optax.chain(perturb.ema(0.9), perturb.ball(0.1)))
    ),
    "applied if finite": lambda link: optax.apply_if_finite(link, 3),
    "injected": lambda link: optax.inject_hyperparams(sam_optax.vasso)(rho=0.1),
    "in groups": lambda link: sam_optax.sharpness_aware(
        optax.partition({"a": optax.chain(perturb.ema(0.9), perturb.ball(0.1))}, "a")
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_within_any_wrapper(wrapper):
    w = params()
    state = run(WRAPPED[wrapper](sam_optax.vasso(0.1)), w)
    assert int(sam_optax.read(state, "steps")) == 3
    chex.assert_trees_all_close(sam_optax.read(state, "m"), w)


def test_a_tuple_of_parameters_is_no_state():
    """Nor are the marks of a part and of kernels, which have its structure."""
    w = Attention(*[jnp.ones((2, 2))] * 3)
    kernels = sam_optax.start.kernel_axes(0)
    for link in (
        sam_optax.masked(sam_optax.looksam(), Attention(True, False, True)),
        sam_optax.looksam(),
        sam_optax.r_sam(kernels=kernels),
        sam_optax.coupled_wsam(),
        sam_optax.wsam(optax.trace(0.9)),
    ):
        state = run(link, w)
        assert int(sam_optax.read(state, "steps")) == 3
        for name in ("q", "k"):
            with pytest.raises(KeyError, match=f"no method in opt_state keeps '{name}'"):
                sam_optax.read(state, name)


class Counted(NamedTuple):
    """State of a part of the caller's, with one of this package's inside."""

    fired: jax.Array
    inner: tuple


def counted(inner):
    def update(first, state, params, **extra):
        fire, following = inner.update(first, state.inner, params, **extra)
        return fire, Counted(state.fired + fire, following)

    return sam_optax.When(lambda p: Counted(jnp.array(0), inner.init(p)), update)


@pytest.mark.parametrize("w", [params(), Attention(*[jnp.ones(2)] * 3)], ids=["dict", "tuple"])
def test_a_part_of_the_callers_has_quantities_too(w):
    link = sam_optax.sharpness_aware(
        optax.chain(optax.trace(0.9), perturb.ball(0.1)),
        when=counted(sam_optax.when.adaptive(1.0)),
        combine=sam_optax.combine.weigh(0.5, optax.scale_by_adam()),
    )
    state = run(link, w)
    assert sam_optax.read(state, "fired") == state[1].ascents
    assert sam_optax.read(state, "mean") == state[1].when.inner.mean
    for name in ("trace", "mu", "q", "inner.mean"):  # of Optax's parts, and a parameter
        with pytest.raises(KeyError, match="no method in opt_state keeps"):
            sam_optax.read(state, name)


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda part: perturb.only(True, part),
        lambda part: optax.partition({"a": part}, "a"),
        lambda part: optax.masked(part, True),
        lambda part: optax.apply_if_finite(part, 3),
        lambda part: optax.inject_hyperparams(lambda rho: optax.chain(part, perturb.ball(rho)))(
            rho=0.1
        ),
    ],
    ids=["only", "partition", "masked", "apply_if_finite", "inject_hyperparams"],
)
def test_a_part_of_the_callers_within_a_wrapper(wrapper):
    def update(updates, state, params=None, **extra):
        return optax.tree.scale(2.0, updates), Counted(state.fired + 1, ())

    part = optax.GradientTransformationExtraArgs(lambda p: Counted(jnp.array(0), ()), update)
    state = run(sam_optax.sharpness_aware(wrapper(part)), params())
    assert int(sam_optax.read(state, "fired")) == 3
    with pytest.raises(KeyError, match="no method in opt_state keeps 'v'"):
        sam_optax.read(state, "v")


def test_within_the_states_of_flax():
    w = params()
    tx = optax.chain(sam_optax.vasso(0.1), optax.sgd(0.1))
    train_state = TrainState.create(apply_fn=None, params=w, tx=tx)
    train_state = train_state.apply_gradients(grads=w, grad_fn=lambda p: p)
    chex.assert_trees_all_close(sam_optax.read(train_state.opt_state, "m"), w)

    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def loss_fn(model):
        return jnp.sum(model(jnp.ones((1, 2))) ** 2)

    grad_fn = nnx_grad_fn(loss_fn, model)
    optimizer.update(model, nnx.grad(loss_fn)(model), grad_fn=grad_fn)
    assert int(sam_optax.read(nnx.as_pure(optimizer.opt_state), "ascents")) == 1


def test_of_two_methods_the_state_of_one_has_to_be_passed():
    tx = optax.chain(sam_optax.sam(), sam_optax.sam())
    state = tx.init(jnp.ones(2))
    with pytest.raises(KeyError, match=r"2 quantities .* called 'steps': pass the state of one"):
        sam_optax.read(state, "steps")
    assert int(sam_optax.read(state[0], "steps")) == 0


def test_what_has_no_method_and_what_is_no_name_are_told():
    with pytest.raises(KeyError, match="there is no sharpness-aware method in opt_state"):
        sam_optax.read(optax.adam(1e-3).init(params()), "v")
    with pytest.raises(TypeError, match="name must be the name of a quantity"):
        sam_optax.read(sam_optax.sam().init(params()), 0)
