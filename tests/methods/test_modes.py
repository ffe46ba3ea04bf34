"""Every method is the same however it is called, and fits the wrappers of Optax and JAX."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import (
    FEW,
    KINDS,
    METHODS,
    NAMES,
    STARTS,
    STEPS,
    few,
    initial_params,
    loss,
    make_batch,
    make_step,
    ravel,
    run,
    run_reference,
    sgd,
    trajectory,
)
from reference import (
    ROWS as TABLE,
)

import sam_optax
from sam_optax import _decision, perturb, when

pytestmark = pytest.mark.usefixtures("x64")

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
VARIANTS = ["gsam_schedule", "r_sam_point", "esam_all", "lpf_sgd_samples_point", "msam_point"]
ROWS = [*NAMES, *VARIANTS]
eight_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


@functools.cache
def expected(name):
    """The trajectory in NumPy, with which the tests of exactness compare that inside jit."""
    return np.stack([w for w, _ in run_reference(TABLE[name])])


def start(tx):
    params = jax.tree.map(jnp.asarray, initial_params())
    return params, tx.init(params)


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@functools.cache
def compiled_gradient():
    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize(
    "name", few("gsam", "ae_looksam", "eigen_sam", "le_sam", "msam", "wsam", names=KINDS)
)
def test_eager_steps_are_the_compiled_ones(name):
    row = TABLE[name]
    tx = row.optimizer()
    step = make_step(tx, **row.call, compiled=False)
    np.testing.assert_allclose(trajectory(tx, step, steps=4), expected(name)[:4], **CLOSE)


@pytest.mark.parametrize(
    "name", few(*(row for row in ROWS if row not in ("r_gsam", "r_sam_point")), names=ROWS)
)
def test_the_decision_on_the_host_is_the_one_on_the_device(name):
    """The update outside jit, with a compiled gradient; the state keeps its types from init on."""
    row = TABLE[name]
    tx = row.optimizer()
    options = {"compiled": False, "grad_loss": compiled_gradient()}
    step = make_step(tx, **row.call, **options)
    _, initial_state = start(tx)
    points = []
    for params, opt_state in run(tx, step):
        points.append(ravel(params))
        chex.assert_trees_all_equal_structs(initial_state, opt_state)
        assert types(opt_state) == types(initial_state)
    np.testing.assert_allclose(points, expected(name), **CLOSE)


@pytest.mark.parametrize("name", few(*KINDS, "gsam_schedule", "lpf_sgd_samples_point", names=ROWS))
def test_a_donated_step_is_traced_once(name):
    """Buffers are given away, and neither shapes, dtypes nor weak types change from init on."""
    row = TABLE[name]
    tx = row.optimizer()
    chex.clear_trace_counter()
    step = chex.assert_max_traces(make_step(tx, **row.call, compiled=False), n=1)
    donated = jax.jit(step, donate_argnums=(0, 1))
    np.testing.assert_allclose(trajectory(tx, donated), expected(name), **CLOSE)


@pytest.mark.parametrize("name", few("gsam", "ae_looksam", "eigen_sam", "msam", names=KINDS))
def test_a_scan_over_steps_is_the_steps(name):
    row = TABLE[name]
    tx = row.optimizer()
    step = make_step(tx, **row.call, compiled=False)

    def body(carry, batch):
        carry = step(*carry, batch)
        return carry, carry[0]

    batches = jax.tree.map(lambda *xs: jnp.stack(xs), *map(make_batch, range(STEPS)))
    _, points = jax.jit(lambda carry: jax.lax.scan(body, carry, batches))(start(tx))
    points = [ravel(jax.tree.map(lambda x, t=t: x[t], points)) for t in range(STEPS)]
    np.testing.assert_allclose(points, expected(name), **CLOSE)


# Wrappers of Optax.


def injected(row):
    factory = optax.inject_hyperparams(row.factory, static_args=row.static_args)
    return optax.chain(factory(**row.settings), sgd(row.momentum))


@pytest.mark.parametrize(
    "name",
    few("gsam_schedule", "ae_looksam", "le_sam", "wsam", "lpf_sgd_samples_point", names=ROWS),
)
def test_injected_hyperparameters_change_nothing_under_jit(name):
    row = TABLE[name]
    tx = injected(row)
    np.testing.assert_allclose(trajectory(tx, **row.call), expected(name), **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_injected_hyperparameters_change_nothing_on_the_host(name):
    row = TABLE[name]
    tx = injected(row)
    options = {"compiled": False, "grad_loss": compiled_gradient()}
    step = make_step(tx, **row.call, **options)
    np.testing.assert_allclose(trajectory(tx, step, steps=4), expected(name)[:4], **CLOSE)


def test_an_injected_radius_can_be_changed_from_outside():
    tx = optax.inject_hyperparams(sam_optax.sam)(rho=0.0)
    w, grad_fn = jnp.array([3.0, 4.0]), lambda w: w
    state = tx.init(w)
    state.hyperparams["rho"] = jnp.asarray(5.0)
    updates, _ = jax.jit(lambda s: tx.update(grad_fn(w), s, w, grad_fn=grad_fn))(state)
    np.testing.assert_allclose(updates, [6, 8])


def test_a_gradient_that_is_not_finite_is_skipped_by_apply_if_finite():
    tx = optax.apply_if_finite(optax.chain(sam_optax.ae_looksam(total_steps=9), sgd()), 3)
    w = jnp.ones(2)
    updates, state = tx.update(w * jnp.nan, tx.init(w), w, grad_fn=lambda p: p)
    np.testing.assert_array_equal(updates, 0)
    assert float(optax.tree.get(state, "mean")) == 0


ONE = ("looksam", "ae_looksam", "wsam", "vasso", "friendly_sam", "eigen_sam", "msam", "s2_sam")
COPIES = dict.fromkeys(ONE, 1) | {"bsam": 2, "ivon": 2}


@pytest.mark.parametrize("name", NAMES)
def test_map_params_finds_what_is_shaped_like_parameters(name):
    """It maps v, m, the velocity and the trace of wsam, and no statistic or key."""
    link = METHODS[name].link()
    params, state = start(link)
    mapped = optax.tree.map_params(link, lambda leaf: "params", state, transform_non_params=type)
    leaves = jax.tree.leaves(mapped)
    assert leaves.count("params") == COPIES.get(name, 0) * len(params)
    assert len(leaves) == len(jax.tree.leaves(state))


# Extra arguments.


@pytest.mark.parametrize("name", FEW)
def test_unexpected_extra_arguments_are_accepted(name):
    """Arrays in jit and on the host, and on the host what is no array."""
    link = METHODS[name].link()
    params, state = start(link)
    batch = jax.tree.map(jnp.asarray, make_batch(0))

    def grad_fn(p):
        return compiled_gradient()(p, batch)

    def update(state, **extra):
        return link.update(grad_fn(params), state, params, grad_fn=grad_fn, **extra)

    plain, after = update(state)
    for extra in ({"value": jnp.ones(3)}, {"value_fn": loss, "name": "a string", "n": None}):
        for _ in range(2):  # the pieces are compiled from the second call on
            direction, _ = update(state, **extra)
            np.testing.assert_allclose(ravel(direction), ravel(plain), **CLOSE)
    direction, _ = jax.jit(lambda s, value: update(s, value=value))(state, jnp.ones(3))
    np.testing.assert_allclose(ravel(direction), ravel(plain), **CLOSE)
    assert int(after.steps) == 1


def test_extra_arguments_reach_every_part():
    seen = []

    def spy(name, result):
        def call(*args, **extra):
            seen.append((name, extra.get("tag"), "step" in extra))
            return result(*args)

        return call

    link = sam_optax.sharpness_aware(
        optax.GradientTransformationExtraArgs(
            optax.init_empty_state, spy("perturb", lambda g, s, p: (g, s))
        ),
        start=sam_optax.Start(optax.init_empty_state, spy("start", lambda d, s, p: s)),
        when=sam_optax.When(optax.init_empty_state, spy("when", lambda g, s, p: (True, s))),
        combine=sam_optax.Combine(
            optax.init_empty_state, spy("combine", lambda g, h, s, p: (h, s)), None
        ),
    )
    w = jnp.ones(2)
    link.update(w, link.init(w), w, grad_fn=lambda p: p, tag="here")
    assert sorted(seen) == [(n, "here", True) for n in ("combine", "perturb", "start", "when")]


def two_step_ball(rho):
    """A custom part with a gradient of its own: the ascent's second half starts from new slope."""

    def update(first, state, params, *, grad_fn, **extra):
        half, _ = perturb.ball(rho / 2).update(first, optax.EmptyState(), params, **extra)
        middle = grad_fn(optax.tree.add(params, half))
        rest, _ = perturb.ball(rho / 2).update(middle, optax.EmptyState(), params, **extra)
        return optax.tree.add(half, rest), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@pytest.mark.parametrize("policy", [None, when.every(2), when.adaptive(0.0)])
def test_a_perturb_part_may_call_grad_fn(policy):
    def tx():
        return optax.chain(sam_optax.sharpness_aware(two_step_ball(0.4), when=policy), sgd())

    on_device = trajectory(tx(), steps=5)
    for grad_loss in (jax.grad(loss), compiled_gradient()):
        step = make_step(tx(), compiled=False, grad_loss=grad_loss)
        np.testing.assert_allclose(trajectory(tx(), step, steps=5), on_device, **CLOSE)
    plain = optax.chain(sam_optax.sharpness_aware(perturb.ball(0.4), when=policy), sgd())
    assert np.abs(trajectory(plain, steps=5) - on_device).max() > 1e-4


@pytest.fixture
def traces(monkeypatch):
    """Whether a part of the link saw tracers, at each time that Python ran it outside jit."""
    seen = []
    vdot = when._tree.vdot

    def spy(a, b):
        seen.append(isinstance(a, jax.core.Tracer))
        return vdot(a, b)

    def traces(extra, init=True):
        seen.clear()
        link = sam_optax.sharpness_aware(perturb.random_coordinates(1.0), when=when.adaptive(0.0))
        other = sam_optax.sharpness_aware(perturb.random_coordinates(1.0), when=when.adaptive(0.0))
        w = jnp.ones(2)
        state = (link if init else other).init(w)
        for _ in range(4):
            _, state = link.update(w, state, w, grad_fn=lambda p: p, **extra)
        return list(seen)

    monkeypatch.setattr(when._tree, "vdot", spy)
    return traces


def test_outside_jit_the_pieces_are_compiled(traces):
    """Unless an extra argument is no array, which a compiled piece could not take."""
    assert traces({}) == [True]
    assert traces({"value": jnp.ones(3), "n": 1}) == [True]
    assert traces({"name": "a string"}) == [False] * 4


def test_a_link_without_init_runs_its_first_update_as_it_is(traces):
    """`inject_hyperparams` makes one for each update, and would compile every one."""
    assert traces({}, init=False) == [False, True]


@pytest.mark.parametrize("name", FEW)
def test_outside_jit_a_step_rounds_alike_in_every_process(name):
    """A link that was made anew goes on bit for bit, as a resumed run does."""
    row = METHODS[name]
    old, new = row.optimizer(), row.optimizer()
    options = {"compiled": False, "grad_loss": compiled_gradient(), **row.call}
    step, new_step = make_step(old, **options), make_step(new, **options)
    states = list(run(old, step, steps=4))
    new.init(states[0][0])
    for t, (params, state) in enumerate(states[:-1], start=1):
        batch = jax.tree.map(jnp.asarray, make_batch(t))
        chex.assert_trees_all_equal(new_step(params, state, batch), states[t])


def test_a_piece_that_asks_for_the_gradient_is_tried_compiled_once(monkeypatch):
    seen = []
    branch = _decision.branch

    def spy(fire, yes, no, gradient, point):
        seen.append(isinstance(fire, jax.core.Tracer))
        gradient(point)
        return branch(fire, yes, no, gradient, point)

    monkeypatch.setattr(_decision, "branch", spy)
    link = sam_optax.eigen_sam()
    w = jnp.ones(2)
    state = link.init(w)
    for _ in range(4):
        _, state = link.update(w, state, w, grad_fn=lambda p: p)
    assert seen == [True, False, False, False, False]


# gradient_point.


@pytest.mark.parametrize("name", few("r_sam", "msam", "s2_sam", "ivon", names=STARTS))
def test_the_gradient_point_is_elsewhere_for_methods_with_a_start(name):
    """After one step: before it, the momentum and the previous gradient are 0."""
    row = METHODS[name]
    ((params, state),) = run(row.optimizer(), steps=1, **row.call)
    point = sam_optax.gradient_point(state, params)
    assert types(point) == types(params)
    assert np.abs(ravel(point) - ravel(params)).min() > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STARTS])
def test_the_gradient_point_of_the_other_methods_is_the_parameters(name):
    """As seen while one step is traced."""
    row = METHODS[name]
    tx = row.optimizer()
    step = make_step(tx, **row.call, compiled=False)

    def one_step(params, state, batch):
        params, state = step(params, state, batch)
        assert sam_optax.gradient_point(state, params) is params

    jax.eval_shape(one_step, *start(tx), make_batch(0))


def test_the_gradient_point_of_any_other_optimizer_is_the_parameters():
    params, state = start(optax.adam(0.1))
    assert sam_optax.gradient_point(state, params) is params


def test_the_gradient_point_of_two_methods_is_an_error():
    tx = optax.chain(sam_optax.sam(), sam_optax.sam())
    params, state = start(tx)
    with pytest.raises(ValueError, match="found 2 sharpness-aware methods"):
        sam_optax.gradient_point(state, params)


def test_the_gradient_point_is_found_inside_wrappers():
    row = TABLE["r_sam_point"]
    tx = optax.apply_if_finite(optax.chain(optax.identity(), injected(row)), 3)
    np.testing.assert_allclose(trajectory(tx, at_point=True), expected("r_sam_point"), **CLOSE)


# Devices.


def shards():
    """A batch for each of eight devices."""
    return jax.tree.map(lambda *xs: np.stack(xs), *map(make_batch, range(8)))


def shard(i):
    return jax.tree.map(lambda x: x[i], shards())


def mapped(kind, function):
    if kind == "vmap":
        return jax.vmap(function, in_axes=(None, None, 0), axis_name="batch")
    return jax.pmap(function, in_axes=(None, None, 0), axis_name="batch")


def parallel_step(tx):
    def step(params, opt_state, batch):
        def grad_fn(p):
            return jax.grad(loss)(p, batch)

        updates, opt_state = tx.update(grad_fn(params), opt_state, params, grad_fn=grad_fn)
        return updates, opt_state

    return step


def directions_of_shards(link):
    """The direction of the first step on the batch of each device."""
    params, state = start(link)
    step = jax.jit(parallel_step(link))
    return [ravel(step(params, state, shard(i))[0]) for i in range(8)]


@eight_devices
@pytest.mark.parametrize("kind", ["vmap", "pmap"])
@pytest.mark.parametrize("name", few("gsam", "looksam", names=["gsam", "le_sam", "looksam"]))
def test_average_behind_the_link_perturbs_for_each_device(name, kind):
    """m-sharpness: the mean of what the link hands on for each shard."""
    link = METHODS[name].link()
    tx = optax.chain(link, sam_optax.average("batch"))
    params, state = start(tx)
    actual, _ = jax.jit(mapped(kind, parallel_step(tx)))(params, state, shards())
    singles = directions_of_shards(link)
    for i in range(8):
        shard = ravel(jax.tree.map(lambda x, i=i: x[i], actual))
        np.testing.assert_allclose(shard, np.mean(singles, axis=0), **CLOSE)


@eight_devices
@pytest.mark.parametrize("kind", ["vmap", "pmap"])
@pytest.mark.parametrize(("axis_name", "equal"), [("batch", True), (None, False)])
def test_decisions_are_equal_on_all_devices_with_an_axis_name(kind, axis_name, equal):
    """‖g‖² and the norm are averaged; without an axis each device has its own."""
    link = sam_optax.sharpness_aware(
        perturb.ball(0.4), when=when.adaptive(0.0, decay=0.5, axis_name=axis_name)
    )
    mix = sam_optax.sharpness_aware(
        perturb.ball(0.4), combine=sam_optax.combine.mix(axis_name=axis_name)
    )
    step = parallel_step(optax.chain(link, sam_optax.average("batch")))
    norms = parallel_step(optax.chain(mix, sam_optax.average("batch")))

    def two_steps(params, states, batch):
        for scale in (1.0, 0.7):
            scaled = (batch[0] * scale, batch[1])
            _, adaptive = step(params, states[0], scaled)
            _, mixed = norms(params, states[1], scaled)
            states = (adaptive, mixed)
        return states

    params, adaptive = start(optax.chain(link, sam_optax.average("batch")))
    _, mixed = start(optax.chain(mix, sam_optax.average("batch")))
    adaptive, mixed = jax.jit(mapped(kind, two_steps))(params, (adaptive, mixed), shards())
    for values in (
        optax.tree.get(adaptive, "ascents"),
        optax.tree.get(adaptive, "mean"),
        optax.tree.get(mixed, "lambda_k"),
        optax.tree.get(mixed, "previous_norm"),
    ):
        assert values.shape == (8,)
        if equal:
            np.testing.assert_array_equal(values, values[0])
    assert equal or len(set(np.asarray(optax.tree.get(adaptive, "mean")))) == 8


@eight_devices
def test_the_averaged_statistics_are_those_of_the_mean_over_devices():
    policy = when.adaptive(-jnp.inf, decay=0.5, axis_name="batch")
    link = sam_optax.sharpness_aware(
        perturb.ball(0.4), when=policy, combine=sam_optax.combine.mix(axis_name="batch")
    )
    params, state = start(link)
    _, after = jax.jit(mapped("vmap", parallel_step(link)))(params, state, shards())
    norms = [np.linalg.norm(ravel(compiled_gradient()(params, shard(i)))) for i in range(8)]
    np.testing.assert_allclose(after.when.mean, 0.5 * np.mean(np.square(norms)), rtol=1e-9)
    np.testing.assert_allclose(after.combine.previous_norm, np.mean(norms), rtol=1e-9)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(3), jax.random.key(3)])
def test_donating_the_state_leaves_the_callers_key_alive(key):
    link = sam_optax.sharpness_aware(
        perturb.noisy_ball(0.4),
        start=sam_optax.start.noise(0.3, key=key),
        when=when.bernoulli(0.5, key=key),
    )
    params, state = start(link)
    jax.jit(lambda s: jax.tree.map(jnp.array, s), donate_argnums=0)(state)
    assert not key.is_deleted()
    assert int(link.init(params).steps) == 0


def test_the_coin_does_not_depend_on_the_dtype_of_its_probability():
    """As where `inject_hyperparams` casts it to that of the parameters."""
    tosses = []
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        policy = when.bernoulli(jnp.asarray(0.5, dtype), key=7)
        state = policy.init(jnp.ones(1))
        tosses.append([bool(policy.update(None, state, None, step=t)[0]) for t in range(30)])
    assert tosses[0] == tosses[1] == tosses[2]


def sharded_updates(tx, gradient, *, varying):
    """One update under the default `jax.shard_map`: replicated parameters, a batch a device."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    params, state = start(tx)

    def update(params, state, batch):
        if varying:
            params = jax.lax.pcast(params, "batch", to="varying")
        batch = jax.tree.map(lambda x: x[0], batch)

        def grad_fn(p):
            return gradient(p, batch)

        specs = spec() if varying else None
        return tx.update(grad_fn(params), state, params, grad_fn=grad_fn, param_specs=specs)[0]

    spec = jax.sharding.PartitionSpec
    mapped_update = jax.shard_map(
        update, mesh=mesh, in_specs=(spec(), spec(), spec("batch")), out_specs=spec()
    )
    return ravel(jax.jit(mapped_update)(params, state, shards()))


@eight_devices
def test_shard_map_perturbs_for_each_device_where_the_parameters_vary():
    """The recipe of the documentation; without it JAX sums the gradients, eight times too much."""
    link = METHODS["gsam"].link()
    tx = optax.chain(link, sam_optax.average("batch"))
    actual = sharded_updates(tx, jax.grad(loss), varying=True)
    np.testing.assert_allclose(actual, np.mean(directions_of_shards(link), axis=0), **CLOSE)


@eight_devices
def test_shard_map_perturbs_for_the_global_batch_where_grad_fn_averages():
    link = METHODS["gsam"].link()
    params, state = start(link)
    whole = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), shards())
    expected = ravel(jax.jit(parallel_step(link))(params, state, whole)[0])

    def averaged(p, batch):
        return jax.lax.pmean(
            jax.grad(loss)(jax.lax.pcast(p, "batch", to="varying"), batch), "batch"
        )

    actual = sharded_updates(link, averaged, varying=False)
    np.testing.assert_allclose(actual, expected, **CLOSE)
