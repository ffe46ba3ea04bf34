"""What happens inside the wrappers of Optax: it works, or a clear error says what to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import (
    KINDS,
    METHODS,
    NAMES,
    few,
    initial_params,
    loss,
    make_batch,
    make_step,
    ravel,
    sgd,
    trajectory,
)

import sam_optax

pytestmark = pytest.mark.usefixtures("x64")

GRADIENT = jax.jit(jax.grad(loss))
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
ACCUMULATED = {"rtol": 2e-5, "atol": 1e-6}  # MultiSteps adds up in float32

WORKS = {
    "named_chain": lambda row: optax.named_chain(("link", row.link()), ("sgd", sgd(row.momentum))),
    "a chain in a chain": lambda row: optax.chain(
        optax.chain(optax.identity(), row.link()), sgd(row.momentum)
    ),
    "inject_hyperparams": lambda row: optax.chain(
        optax.inject_hyperparams(row.factory, static_args=row.static_args)(**row.settings),
        sgd(row.momentum),
    ),
    "apply_if_finite": lambda row: optax.apply_if_finite(row.optimizer(), 3),
    "conditionally_transform": lambda row: optax.conditionally_transform(
        row.optimizer(), lambda step, **extra: True
    ),
    "masked behind the link": lambda row: optax.chain(
        row.link(), optax.masked(optax.identity(), True), sgd(row.momentum)
    ),
    "MultiSteps behind the link": lambda row: optax.chain(
        row.link(), optax.MultiSteps(sgd(row.momentum), 1).gradient_transformation()
    ),
}


@pytest.mark.parametrize("name", few("gsam", "msam"))
def test_wrappers_that_work_change_nothing(name):
    row = METHODS[name]
    expected = trajectory(row.optimizer(), steps=4, **row.call)
    for wrapper, wrap in WORKS.items():
        actual = trajectory(wrap(row), steps=4, **row.call)
        np.testing.assert_allclose(actual, expected, **CLOSE, err_msg=wrapper)


@pytest.mark.parametrize("name", few("gsam", "ae_looksam", "msam", "wsam"))
def test_schedule_free_around_a_link_is_that_of_its_directions(name):
    """The gradients, and ε, are taken at its point y, which is where the parameters are."""
    row = METHODS[name]
    around = optax.contrib.schedule_free(optax.chain(row.link(), optax.sgd(0.1)), 0.1, b1=0.9)
    actual = trajectory(around, steps=4, **row.call)
    link, behind = row.link(), optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9)

    def update(grads, states, params, **extra):
        direction, first = link.update(grads, states[0], params, **extra)
        updates, second = behind.update(direction, states[1], params)
        return updates, (first, second)

    apart = optax.GradientTransformationExtraArgs(lambda p: (link.init(p), behind.init(p)), update)
    np.testing.assert_allclose(actual, trajectory(apart, steps=4, **row.call), **CLOSE)


def one_update(tx, row):
    step = make_step(tx, compiled=False, **row.call)
    params = jax.tree.map(jnp.asarray, initial_params())
    return step(params, tx.init(params), jax.tree.map(jnp.asarray, make_batch(0)))


def labels(params):
    return {name: "rest" if name == "scale" else "link" for name in params}


def partial_mask(params):
    return {name: name != "scale" for name in params}


RAISES = {
    "masked": (
        lambda row: optax.masked(row.link(), partial_mask),
        r"MaskedNode.*sam_optax.masked\(link, mask\).*optax.partition into the perturb slot",
    ),
    "partition": (
        lambda row: optax.partition({"link": row.link(), "rest": optax.sgd(0.1)}, labels),
        r"MaskedNode.*sam_optax.masked\(link, mask\).*optax.partition into the perturb slot",
    ),
}


@pytest.mark.parametrize("wrapper", RAISES)
@pytest.mark.parametrize("name", NAMES)
def test_wrappers_that_hide_parameters_raise_a_clear_error(name, wrapper):
    wrap, message = RAISES[wrapper]
    with pytest.raises(ValueError, match=message):
        one_update(wrap(METHODS[name]), METHODS[name])


CANNOT = {
    "lookahead": (lambda row: optax.lookahead(row.optimizer(), 5, 0.5), "argument 'grad_fn'"),
    "flatten": (lambda row: optax.flatten(row.optimizer()), "string indexing"),
    "a line search": (
        lambda row: optax.chain(row.link(), optax.scale_by_backtracking_linesearch(5)),
        "missing 3 required keyword-only arguments: 'value', 'grad', and 'value_fn'",
    ),
}


@pytest.mark.parametrize("wrapper", CANNOT)
def test_what_changes_the_parameters_or_needs_the_loss_raises(wrapper):
    """Errors of Optax's own and of the caller's loss, which gets a vector: nothing is silent."""
    wrap, message = CANNOT[wrapper]
    with pytest.raises(TypeError, match=message):
        one_update(wrap(METHODS["sam"]), METHODS["sam"])


@pytest.mark.parametrize("name", ["sam", "msam"])
@pytest.mark.parametrize("k", [2, lambda step: 2 + step])
@pytest.mark.parametrize("compiled", [False, True])
def test_multi_steps_around_a_gradient_of_its_own_is_an_error(compiled, k, name):
    """What it is handed is a mean over calls, and `grad_fn` that of the last call."""
    row = METHODS[name]
    params = jax.tree.map(jnp.asarray, initial_params())
    gradient = functools.partial(GRADIENT, batch=make_batch(0))

    def step(tx):
        return tx.update(gradient(params), tx.init(params), params, grad_fn=gradient)[0]

    for tx in (optax.MultiSteps(row.link(), k), optax.MultiSteps(row.optimizer(), k)):
        with pytest.raises(ValueError, match=r"optax.MultiSteps around .* put it behind, as"):
            (jax.jit(functools.partial(step, tx)) if compiled else lambda tx=tx: step(tx))()
    expected = row.optimizer().update(
        gradient(params), row.optimizer().init(params), params, grad_fn=gradient
    )[0]
    for number in (np.int32, jnp.asarray):
        one = optax.MultiSteps(row.optimizer(), lambda step, number=number: number(1))
        np.testing.assert_allclose(ravel(step(one)), ravel(expected), **ACCUMULATED)


# Gradient accumulation.


def batches():
    """One batch as four micro-batches, and whole."""
    micro = jax.tree.map(lambda *xs: np.stack(xs), *map(make_batch, range(4)))
    return micro, jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), micro)


def scanned_gradient(params, micro):
    def add(total, batch):
        return optax.tree.add(total, jax.grad(loss)(params, batch)), None

    total, _ = jax.lax.scan(add, optax.tree.zeros_like(params), micro)
    return optax.tree.scale(1 / 4, total)


def microbatched_gradient(params, micro):
    whole = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), micro)
    gradient = optax.microbatch(
        lambda p, x, y: jax.grad(loss)(p, (x, y)),
        argnums=(1, 2),
        microbatch_size=6,
        accumulator=optax.microbatching.AccumulationType.MEAN,
    )
    return gradient(params, *whole)


ACCUMULATE = {
    "scanned": jax.jit(scanned_gradient),
    "microbatched": jax.jit(microbatched_gradient),
}


@pytest.mark.parametrize("accumulate", ACCUMULATE)
@pytest.mark.parametrize(
    "name",
    few("gsam", "ae_looksam", "msam", names=[name for name in KINDS if name != "esam"]),
)
def test_accumulated_gradients_are_the_step_of_the_big_batch(name, accumulate):
    micro, whole = batches()
    link = METHODS[name].link()
    params = jax.tree.map(jnp.asarray, initial_params())

    def directions(gradient, batch):
        state, result = link.init(params), []
        for scale in (1.0, 0.8):

            def grad_fn(p, scale=scale):
                return gradient(optax.tree.scale(scale, p), batch)

            direction, state = link.update(grad_fn(params), state, params, grad_fn=grad_fn)
            result.append(ravel(direction))
        return result

    actual = directions(ACCUMULATE[accumulate], micro)
    expected = directions(GRADIENT, whole)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


SAME_STATE = ["sam", "asam", "fisher_sam", "gsam", "ssam", "coupled_wsam"]


@pytest.mark.parametrize("name", few("asam", "gsam", "coupled_wsam", names=SAME_STATE))
def test_a_perturbation_for_each_micro_batch_is_m_sharpness(name):
    """In parallel by vmap, and one after the other by MultiSteps behind the link."""
    micro, _ = batches()
    link = METHODS[name].link()
    params = jax.tree.map(jnp.asarray, initial_params())
    expected = []
    for t in range(4):
        batch = jax.tree.map(lambda x, t=t: x[t], micro)
        direction, _ = link.update(
            GRADIENT(params, batch),
            link.init(params),
            params,
            grad_fn=lambda p, batch=batch: GRADIENT(p, batch),
        )
        expected.append(ravel(direction))

    parallel = optax.chain(link, sam_optax.average("micro"), optax.sgd(1.0))

    def update(batch):
        return parallel.update(
            GRADIENT(params, batch),
            parallel.init(params),
            params,
            grad_fn=lambda p: GRADIENT(p, batch),
        )

    updates, state = jax.jit(jax.vmap(update, axis_name="micro", out_axes=None))(micro)
    np.testing.assert_allclose(-ravel(updates), np.mean(expected, axis=0), **CLOSE)
    assert int(optax.tree.get(state, "steps")) == 1

    after = optax.MultiSteps(optax.sgd(1.0), 4).gradient_transformation()
    sequential = optax.chain(link, after)
    state = sequential.init(params)
    for t in range(4):
        batch = jax.tree.map(lambda x, t=t: x[t], micro)
        updates, state = sequential.update(
            GRADIENT(params, batch),
            state,
            params,
            grad_fn=lambda p, batch=batch: GRADIENT(p, batch),
        )
        assert ravel(updates).any() == (t == 3)
    np.testing.assert_allclose(-ravel(updates), np.mean(expected, axis=0), **ACCUMULATED)
