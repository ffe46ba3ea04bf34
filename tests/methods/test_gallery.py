"""Every block of docs/gallery.md is its formula, over ten steps."""

from pathlib import Path
import re

from gallery import CASES, RARE, SHARES
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import (
    LEARNING_RATE,
    STEPS,
    Gradient,
    few,
    initial_params,
    loss,
    losses,
    make_batch,
    make_step,
    ravel,
    run,
    sgd,
    unravel,
)

import sam_optax

PAGE = (Path(__file__).parents[2] / "docs" / "gallery.md").read_text()
PRELUDE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
SECTIONS = {
    title: text for title, text in re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
}


def defined(title):
    """What the block of a section defines."""
    names = {}
    block = re.search(r"```python\n(.*?)```", SECTIONS[title], re.DOTALL)[1]
    exec(compile(PRELUDE + block, title, "exec"), names)
    return names


def outputs(params, x):
    hidden = jnp.tanh(params["scale"] * (x @ params["conv"].reshape(4, 3)))
    return hidden @ params["dense_kernel"] + params["dense_bias"]


def squared(found, y):
    return jnp.mean(0.5 * jnp.sum((found - y) ** 2, axis=-1))


# Steps of blocks whose caller does something of its own.


def functional(names, tx):
    def step(params, state, batch):
        x, y = batch
        return names["step"](
            tx, params, state, lambda p: outputs(p, x), lambda found: squared(found, y)
        )

    return step


def j_sam(names, tx):
    link, base = names["link"], sgd()

    def step(params, states, batch):
        direction = names["direction"](
            link,
            params,
            states[0],
            lambda p, example: outputs(p, example[0]),
            lambda found, example: squared(found, example[1]),
            batch,
        )
        updates, base_state = base.update(direction, states[1], params)
        return optax.apply_updates(params, updates), (states[0], base_state)

    return step


def weighed(shares):
    def of(names, tx):
        def step(params, state, batch):
            def grad_of(weights):
                return jax.grad(lambda p: jnp.mean(weights * losses(p, batch)))

            updates, state = tx.update(
                grad_of(shares)(params),
                state,
                params,
                grad_fn=grad_of(shares),
                rest=grad_of(1 - shares)(params),
            )
            return optax.apply_updates(params, updates), state

        return step

    return of


def two_batches(names, tx):
    other = iter([jax.tree.map(jnp.asarray, make_batch(t + 50)) for t in range(STEPS)])

    @jax.jit
    def compiled(params, state, batch, second):
        updates, state = tx.update(
            jax.grad(loss)(params, batch),
            state,
            params,
            grad_fn=lambda p: jax.grad(loss)(p, second),
        )
        return optax.apply_updates(params, updates), state

    return lambda params, state, batch: compiled(params, state, batch, next(other))


def clipped(names, tx):
    def private(params, batch):
        def of_one(x, y):
            g = jax.grad(loss)(params, (x[None], y[None]))
            return optax.tree.scale(jnp.minimum(1, 0.5 / optax.tree.norm(g)), g)

        return jax.tree.map(lambda g: g.mean(axis=0), jax.vmap(of_one)(*batch))

    def step(params, state, batch):
        grads = private(sam_optax.gradient_point(state, params), batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


CALLERS = {
    "Functional SAM": functional,
    "J-SAM": j_sam,
    "Focal-SAM": weighed(SHARES),
    "ImbSAM": weighed(RARE),
    "m-RWP": two_batches,
    "DP-SAT": clipped,
}
AT_POINT = ("DP-SAT", "SAMPa")


def optimizer(title, names):
    """The link of a block, or the whole that it makes."""
    case = CASES[title]
    if "tx" in names:
        return names["tx"]
    return optax.chain(names["link"], case.base or sgd(case.momentum))


def expected(title):
    """The parameters after each step, and its gradients; the directions are NumPy's."""
    case = CASES[title]
    base = case.base or sgd(case.momentum)
    params = jax.tree.map(jnp.asarray, initial_params())
    base_state, state = base.init(params), {}
    update = jax.jit(base.update)
    for t in range(STEPS):
        gradient = Gradient(make_batch(t))
        direction, state = case.step(ravel(params), gradient, t, state)
        tree = jax.tree.map(jnp.asarray, unravel(direction))
        updates, base_state = update(tree, base_state, params)
        params = optax.apply_updates(params, updates)
        yield ravel(params), gradient.calls


def stepped(title):
    """The transformation of a block, and its step."""
    names = defined(title)
    tx = optimizer(title, names)
    if title == "J-SAM":
        link = names["link"]
        tx = optax.GradientTransformation(lambda p: (link.init(p), sgd().init(p)), None)
    if title not in CALLERS:
        return tx, make_step(tx, at_point=title in AT_POINT, valued=title == "SAM-SPS")
    step = CALLERS[title](names, tx)
    return tx, step if title == "m-RWP" else jax.jit(step)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("title", CASES)
def test_a_block_is_its_formula(title):
    found = run(*stepped(title))
    taken = set()
    for t, ((params, _), (w, gradients)) in enumerate(zip(found, expected(title), strict=True)):
        np.testing.assert_allclose(ravel(params), w, 1e-9, 1e-12, err_msg=f"step {t}")
        taken.add(gradients)
    wanted = CASES[title].gradients
    assert taken == ({wanted} if wanted else {1, 2})


# Prodigy itself divides by the sum of the gradients so far.
STILL = [title for title in CASES if title != "SAM behind Prodigy"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("title", few("SAGM", "GAM", "ZSharp", "SAM-SPS", names=STILL))
def test_a_gradient_of_zero_gives_no_nan(title):
    """With zeros for weights and targets the error is 0, and every gradient with it."""
    tx, step = stepped(title)
    params = jax.tree.map(jnp.zeros_like, jax.tree.map(jnp.asarray, initial_params()))
    x, y = map(jnp.asarray, make_batch(0))
    state = tx.init(params)
    for _ in range(2):
        params, state = step(params, state, (x, 0 * y))
    leaves = jax.tree.leaves((params, state))
    assert all(np.isfinite(leaf).all() for leaf in leaves if np.issubdtype(leaf.dtype, np.inexact))
    methods = [n for n in jax.tree.leaves(state, is_leaf=is_method) if is_method(n)]
    assert [int(method.notfinite) for method in methods] == [0]


def is_method(node):
    return isinstance(node, sam_optax.SharpnessAwareState)


def test_every_section_is_compared_and_stands_in_the_table():
    assert list(SECTIONS) == list(CASES)
    assert len(SECTIONS) >= 30
    rows = re.findall(r"^\| \[(.*?)\]\(#(.*?)\) \|", PAGE, re.M)
    assert [title for title, _ in rows] == list(CASES)


assert LEARNING_RATE == 0.1  # that of the page's SAMPa and Schedule-Free
