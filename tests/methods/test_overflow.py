"""A gradient of the method's own that is not finite counts as not taken."""

import functools

import float16_steps
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import (
    LEARNING_RATE,
    NAMES,
    ROWS,
    STARTS,
    STEPS,
    Gradient,
    initial_params,
    loss,
    losses,
    make_batch,
    norm,
    ravel,
    unit,
)

import sam_optax

# The steps at which the method's own gradients are not finite: the first, and some of each period.
BAD = {0: np.inf, 3: np.nan, 4: -np.inf, 6: np.nan, 9: np.inf}
POINTS = ("r_sam_point", "r_gsam_point", "msam_point", "lpf_sgd_samples", "lpf_sgd_samples_point")


class Seen(Gradient):
    """A gradient that keeps what it has returned."""

    def __init__(self, batch):
        super().__init__(batch)
        self.returned = []

    def __call__(self, *args):
        self.returned.append(super().__call__(*args))
        return self.returned[-1]


def without(row, w, t, state):
    """The direction and the state of a step whose own gradients are lost, and if it asked for any.

    The state of what sees the first gradient goes on; that of what sees the second does not.
    """
    gradient = Seen(make_batch(t))
    direction, after = row.step(w, gradient, t, state)
    first, second = gradient.returned[0], gradient.returned[1:]
    factory, settings = row.factory, row.settings
    starts = factory.__name__ in STARTS
    if not (second or (starts and not row.call["at_point"])):
        return direction, after, False
    g = gradient(w) if starts and not row.call["at_point"] else first
    if factory in (sam_optax.looksam, sam_optax.ae_looksam):
        v = state.get("v", np.zeros_like(w))
        return g + settings["alpha"] * norm(g) * unit(v), {**after, "v": v}, True
    if factory is sam_optax.eigen_sam:
        return g, {"v": state.get("v", np.zeros_like(w))}, True
    if factory is sam_optax.samar:
        before = {"lambda_k": settings["lambda_0"], "previous_norm": 1e-300}
        return g, before | state, True
    if factory in (sam_optax.bsam, sam_optax.ivon):
        return *row.step(w, lambda *_: g, t, state), True
    if factory is sam_optax.wsam:
        return after["trace"], after, True
    if factory is sam_optax.msam:
        return g, {"velocity": settings["decay"] * state.get("velocity", 0.0) + g}, True
    if factory is sam_optax.s2_sam:
        return g, {"previous": g}, True
    return g, after, True


def expected(row):
    """(w, state) after each step, by NumPy."""
    w, state, trace, ascents, lost = ravel(initial_params()), {}, 0.0, 0, 0
    for t in range(STEPS):
        if t in BAD:
            direction, state, asked = without(row, w, t, state)
            lost += asked
        else:
            gradient = Gradient(make_batch(t))
            direction, state = row.step(w, gradient, t, state)
            ascents += gradient.calls > row.firsts
        trace = direction + (row.momentum or 0.0) * trace
        w = w - LEARNING_RATE * trace
        yield w, {**state, "ascents": ascents, "notfinite": lost, "steps": t + 1}


@jax.jit
def spoil(gradient, factor):
    """One number of it is not finite, nor is its derivative."""
    return {**gradient, "dense_kernel": gradient["dense_kernel"].at[1, 0].mul(factor)}


grad_loss = jax.jit(jax.grad(loss))


def steps(row, compiled):
    """(params, opt_state) after each step of the library."""
    tx = row.optimizer()

    def step(params, opt_state, batch, factor):
        def on(p, indices=slice(None)):
            return grad_loss(p, jax.tree.map(lambda x: x[indices], batch))

        def grad_fn(p, *indices):
            return spoil(on(p, *indices), factor)

        extra = {}
        if row.call["examples"]:
            extra["example_loss_fn"] = lambda p: losses(p, batch)
        point = params
        if row.call["at_point"]:
            point = sam_optax.gradient_point(opt_state, params)
        updates, opt_state = tx.update(on(point), opt_state, params, grad_fn=grad_fn, **extra)
        return optax.apply_updates(params, updates), opt_state

    step = jax.jit(step) if compiled else step
    params = jax.tree.map(jnp.asarray, initial_params())
    opt_state = tx.init(params)
    for t in range(STEPS):
        batch = jax.tree.map(jnp.asarray, make_batch(t))
        params, opt_state = step(params, opt_state, batch, jnp.asarray(BAD.get(t, 1.0)))
        yield params, opt_state


# In every run, by whether it is compiled; what these leave out is slow.
OFTEN = {
    True: [*NAMES, "r_sam_point", "msam_point", "lpf_sgd_samples_point"],
    False: ["gsam", "ae_looksam", "esam", "msam", "wsam"],
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        pytest.param(name, compiled, marks=() if name in often else pytest.mark.slow)
        for compiled, often in OFTEN.items()
        for name in (*NAMES, *POINTS)
    ],
)
def test_a_step_whose_own_gradient_is_lost_is_the_step_without_it(name, compiled):
    row = ROWS[name]
    for t, ((params, opt_state), (w, state)) in enumerate(
        zip(steps(row, compiled), expected(row), strict=True)
    ):
        np.testing.assert_allclose(ravel(params), w, 1e-10, 1e-13, err_msg=f"step {t}")
        for quantity, value in state.items():
            actual = ravel(optax.tree.get(opt_state, quantity))
            np.testing.assert_allclose(
                actual, np.ravel(value), 1e-10, 1e-13, err_msg=f"{quantity} at step {t}"
            )
    given = name == "msam_point"  # it takes no gradient of its own
    assert (int(sam_optax.read(opt_state, "notfinite")) == 0) == given


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_of_many_numbers_is_enough(dtype, compiled):
    """XLA for CPU loses a NaN from the largest of some thousands."""
    link = sam_optax.sam(0.0)

    def update(w, second):
        return link.update(w, link.init(w), w, grad_fn=lambda p: second)[1].notfinite

    update = jax.jit(update) if compiled else update
    dtype = jnp.dtype(dtype)
    for size in (1, 100, 100_003):
        w = jnp.asarray(np.full(size, 0.5, dtype))
        second = np.full(size, jnp.finfo(dtype).max, dtype)
        assert not int(update(w, jnp.asarray(second)))
        for value in (np.inf, -np.inf, np.nan):
            second[size // 2] = value
            assert int(update(w, jnp.asarray(second)))


# On several devices, and mapped.


def local_step(local=lambda w: w):
    """sam where each place has a gradient of its own, and the second of one place is lost."""
    link = sam_optax.sam(5.0)

    def step(w, size, lost):
        w = local(w)
        grads = size * w
        factor = jnp.where(size == lost, jnp.inf, 1.0)
        whole = jax.sharding.PartitionSpec()
        return link.update(
            grads, link.init(w), w, grad_fn=lambda p: factor * size * p, param_specs=whole
        )

    return step


SIZES = np.arange(1.0, 9.0, dtype=np.float32)
W = np.array([3.0, 4.0], np.float32)
AT_FIRST = np.outer(SIZES, W)  # the direction without a second gradient
AT_SECOND = 2 * AT_FIRST  # at [6, 8]


@functools.cache
def step_in_all(how):
    """(directions, state), compiled, for sizes on the devices or along one or two mapped axes."""
    if how == "shard_map":
        mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
        rows, none = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
        step = local_step(lambda w: jax.lax.pcast(w, "rows", to="varying"))
        return jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=(none, rows, none), out_specs=(rows, none))
        )
    step = local_step()
    for _ in range(2 if how == "vmap twice" else 1):
        step = jax.vmap(step, in_axes=(None, 0, None), out_axes=(0, None))
    return jax.jit(step)


@pytest.mark.parametrize("lost", [3.0, 0.0])
@pytest.mark.parametrize("how", ["shard_map", "vmap", "vmap twice"])
def test_it_is_lost_in_all_places_that_share_parameters(how, lost):
    """Where each takes its own perturbation of the same parameters, before a mean."""
    sizes = SIZES.reshape(2, 4) if how == "vmap twice" else SIZES
    direction, state = step_in_all(how)(W, sizes, lost)
    direction = np.reshape(direction, (8, 2))
    np.testing.assert_allclose(direction, AT_FIRST if lost else AT_SECOND, rtol=1e-6)
    assert (int(state.ascents), int(state.notfinite)) == ((0, 1) if lost else (1, 0))


def test_it_is_lost_in_one_of_several_models_alone():
    step = jax.jit(jax.vmap(local_step(), in_axes=(0, 0, None)))
    direction, state = step(np.tile(W, (8, 1)), SIZES, 3.0)
    expected = np.where((SIZES == 3.0)[:, None], AT_FIRST, AT_SECOND)
    np.testing.assert_allclose(direction, expected, rtol=1e-6)
    np.testing.assert_array_equal(state.notfinite, SIZES == 3.0)


# Wrappers, which look at the first gradient.


@functools.cache
def finite_run(name):
    """Parameters, state and a step of both gradients' factors, inside apply_if_finite."""
    tx = optax.apply_if_finite(ROWS[name].optimizer(), 3)
    params = jax.tree.map(lambda leaf: jnp.asarray(np.ones_like(leaf)), initial_params())

    @jax.jit
    def step(params, state, first, second):
        grads = optax.tree.scale(first, params)
        updates, state = tx.update(
            grads, state, params, grad_fn=lambda p: optax.tree.scale(second, p)
        )
        return optax.apply_updates(params, updates), state

    return params, tx.init(params), step


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["sam", "looksam", "gsam", "samar", "msam", "s2_sam", "wsam"])
def test_no_overflow_reaches_parameters_or_state_inside_apply_if_finite(name, value):
    params, state, step = finite_run(name)
    before = step(params, state, 1.0, 1.0)
    after = step(*before, 1.0, value)
    assert int(after[1].total_notfinite) == 0
    assert int(sam_optax.read(after[1], "notfinite")) == (name != "looksam")  # at its second step
    for leaf in jax.tree.leaves(after):
        assert np.isfinite(leaf).all()
    assert ravel(after[0]).sum() < ravel(before[0]).sum()  # a step was taken
    skipped = step(*before, value, value)
    np.testing.assert_array_equal(ravel(skipped[0]), ravel(before[0]))
    assert int(skipped[1].total_notfinite) == 1


# Float16, with a scale of the loss that grows until a gradient overflows.


QUICK = ["sam", "le_sam", "msam"]


def check_float16(name, steps):
    for both in (False, True):
        run = float16_steps.run(name, steps=steps, both=both)
        assert run.first_nan is None
        assert np.isfinite(run.loss)
        assert run.firsts + run.others > 10  # the scale grew until a gradient overflowed
        assert run.counted == run.others
        if both:
            assert run.others < steps / 50  # most steps are the method's own


@pytest.mark.parametrize("name", QUICK)
def test_float16_stays_finite(name):
    check_float16(name, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_float16_stays_finite_for_long(name):
    check_float16(name, 20_000)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "host"])
@pytest.mark.parametrize("when", [None, sam_optax.when.every(1)], ids=["always", "a policy"])
@pytest.mark.parametrize("lost", [None, 2, 3])
def test_a_gradient_at_a_further_point_may_be_lost_too(lost, when, compiled):
    """The direction, and the combination's state, are those without it."""
    w = jnp.array([1.0, 2.0])
    places = {2: w + 1, 3: w + 2}

    def combine_all(g, h, state, params, *, grad_fn, epsilon, **extra):
        del extra
        third = grad_fn(params + 2 * epsilon)
        return g + 10 * h + 100 * third, state + third

    def alone(g, state, params, **extra):
        del params, extra
        return g, state - 1

    link = sam_optax.sharpness_aware(
        optax.stateless(lambda g, _: jnp.ones_like(g)),
        when=when,
        combine=sam_optax.Combine(jnp.zeros_like, combine_all, alone),
    )

    def grad_fn(p):
        return p if lost is None else jnp.where((p == places[lost]).all(), jnp.inf, p)

    update = jax.jit(functools.partial(link.update, grad_fn=grad_fn)) if compiled else link.update
    given = {} if compiled else {"grad_fn": grad_fn}
    direction, state = update(w, link.init(w), w, **given)
    taken = lost is None
    expected = w + 10 * (w + 1) + 100 * (w + 2) if taken else w
    np.testing.assert_allclose(direction, expected)
    np.testing.assert_allclose(state.combine, w + 2 if taken else -np.ones(2))
    assert (state.ascents, state.notfinite) == ((1, 0) if taken else (0, 1))


def test_a_lost_gradient_at_a_further_point_is_seen_in_the_direction():
    """Whatever the combination keeps."""
    w = jnp.array([1.0, 2.0])
    link = sam_optax.sharpness_aware(
        optax.stateless(lambda g, _: jnp.ones_like(g)),
        combine=sam_optax.combine.stateless(
            lambda g, h, p, *, grad_fn, epsilon, **extra: h + grad_fn(p + 2 * epsilon)
        ),
    )
    direction, state = link.update(
        w, link.init(w), w, grad_fn=lambda p: jnp.where((p == w + 2).all(), jnp.inf, p)
    )
    np.testing.assert_array_equal(direction, w)
    assert (state.ascents, state.notfinite) == (0, 1)
