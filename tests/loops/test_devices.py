"""On eight devices each method is its formula: on the global batch, or on each device's part."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest
from reference import (
    FEW,
    KINDS,
    LEARNING_RATE,
    METHODS,
    NAMES,
    Gradient,
    few,
    initial_params,
    losses,
    make_batch,
    ravel,
    sgd,
)

from experiments.benchmark import collectives
import sam_optax

pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices"),
]

DEVICES, EXAMPLES, STEPS = 8, 16, 5
P = PartitionSpec
DECIDING = ("looksam", "ss_sam", "eigen_sam", "ae_sam", "ae_looksam")
TOGETHER = ("ae_sam", "ae_looksam", "samar")  # those with an axis_name


def batch_of(t):
    return make_batch(t, EXAMPLES)


def start(tx):
    params = jax.tree.map(jnp.asarray, initial_params())
    return params, tx.init(params)


def by_device(tree):
    """An axis of devices in front of the examples of each."""
    return jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), tree)


def copies(tree):
    """One for each device."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (DEVICES, *jnp.shape(x))), tree)


def mesh_of(*shape):
    axes = ("batch", "model")[: len(shape)]
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(shape))


# What must come out, in NumPy.


def descend(row, direction_of):
    """The parameters after each step of SGD on directions (w, t) -> d."""
    w, trace = ravel(initial_params()), 0.0
    for t in range(STEPS):
        trace = direction_of(w, t) + (row.momentum or 0.0) * trace
        w = w - LEARNING_RATE * trace
        yield w


@functools.cache
def on_the_whole_batch(name):
    """One device, the whole batch."""
    row, states = METHODS[name], [{}]

    def direction(w, t):
        d, states[0] = row.step(w, Gradient(batch_of(t)), t, states[0])
        return d

    return np.stack(list(descend(row, direction)))


class Shared(Gradient):
    """A gradient of one device, which takes part in a mean over all."""

    def __init__(self, batch, values, means):
        super().__init__(batch)
        self.values, self.means = values, iter(means)

    def mean(self, value):
        self.values.append(value)
        return next(self.means, value)


@functools.cache
def on_each_part(name):
    """A loop over the devices, each with its part and its state; the mean of the directions."""
    row, states = METHODS[name], [{} for _ in range(DEVICES)]

    def direction(w, t):
        parts = [jax.tree.map(lambda x, i=i: x[i], by_device(batch_of(t))) for i in range(DEVICES)]
        own = [[] for _ in parts]
        for part, values, state in zip(parts, own, states, strict=True):
            row.step(w, Shared(part, values, ()), t, state)
        means = np.mean(own, axis=0)
        ends = [
            row.step(w, Shared(part, [], means), t, state)
            for part, state in zip(parts, states, strict=True)
        ]
        states[:] = [state for _, state in ends]
        return np.mean([d for d, _ in ends], axis=0)

    return np.stack(list(descend(row, direction)))


@pytest.mark.parametrize("name", NAMES)
def test_the_two_perturbations_differ(name):
    """But for LPF-SGD, whose direction is linear in the gradients at one point."""
    distance = np.abs(on_the_whole_batch(name) - on_each_part(name)).max()
    assert distance < 1e-12 if name == "lpf_sgd" else distance > 1e-4


@pytest.mark.parametrize("name", ["ae_sam", "ae_looksam"])
def test_the_adaptive_rows_both_fire_and_skip(name):
    w, state, fired = ravel(initial_params()), {}, []
    for t in range(STEPS):
        gradient = Gradient(batch_of(t))
        d, state = METHODS[name].step(w, gradient, t, state)
        w = w - LEARNING_RATE * d
        fired.append(gradient.calls == 2)
    assert 0 < sum(fired) < STEPS


# One perturbation of the global batch.


def global_calls(row, params, batch, mean):
    """grad_fn and the extra arguments of an update whose gradients are averaged by `mean`.

    The examples that ESAM keeps are chosen among those of all devices, each of which takes the
    gradient on what it has of them.
    """
    if not row.call["examples"]:
        return lambda p: mean(jax.grad(lambda p: losses(p, batch).mean())(local(p))), {}
    device = jax.lax.axis_index("batch")
    own = jnp.arange(EXAMPLES).reshape(DEVICES, -1)[device]

    def grad_fn(p, kept):
        weights = DEVICES * jnp.isin(own, kept) / len(kept)
        return mean(jax.grad(lambda p: (weights * losses(p, batch)).sum())(local(p)))

    def example_loss_fn(p):
        found = jnp.zeros(EXAMPLES).at[own].set(losses(p, batch))
        return jax.lax.psum(found, "batch")

    return grad_fn, {"example_loss_fn": example_loss_fn}


def local(params):
    """The parameters, whose gradient `shard_map` is not to sum over the devices."""
    if jax.typeof(jax.lax.axis_index("batch")).manual_axis_type.varying:
        return jax.lax.pcast(params, "batch", to="varying")
    return params


def averaging_step(row, tx):
    """A step of one device, mapped over "batch"."""

    def step(params, state, batch):
        def mean(gradient):
            return jax.lax.pmean(gradient, "batch")

        grad_fn, extra = global_calls(row, params, batch, mean)
        grads = mean(jax.grad(lambda p: losses(p, batch).mean())(local(params)))
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn, **extra)
        return optax.apply_updates(params, updates), state

    return step


def plain_step(row, tx):
    """A step that knows of no devices."""

    def step(params, state, batch):
        def grad_fn(p, kept=slice(None)):
            return jax.grad(lambda p: losses(p, jax.tree.map(lambda x: x[kept], batch)).mean())(p)

        extra = {"example_loss_fn": lambda p: losses(p, batch)} if row.call["examples"] else {}
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn, **extra)
        return optax.apply_updates(params, updates), state

    return step


def sharding_of(leaf, mesh):
    """Over "model", along the largest axis that it divides."""
    axes = [i for i, size in enumerate(leaf.shape) if size and size % mesh.shape["model"] == 0]
    if not axes:
        return NamedSharding(mesh, P())
    largest = max(axes, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, P(*(None,) * largest, "model"))


def by_jit(row, tx):
    """A batch that is divided, and parameters that every device holds."""
    mesh = mesh_of(DEVICES)
    step = jax.jit(plain_step(row, tx))
    return (
        jax.device_put(start(tx), NamedSharding(mesh, P())),
        lambda params, state, batch: step(
            params, state, jax.device_put(batch, NamedSharding(mesh, P("batch")))
        ),
    )


def by_fsdp(row, tx):
    """A batch that is divided over all devices, and parameters over two."""
    mesh = mesh_of(4, 2)
    params = jax.tree.map(jnp.asarray, initial_params())
    params = jax.tree.map(lambda x: jax.device_put(x, sharding_of(x, mesh)), params)
    step = jax.jit(plain_step(row, tx))
    sharding = NamedSharding(mesh, P(("batch", "model")))
    return (
        (params, tx.init(params)),
        lambda params, state, batch: step(params, state, jax.device_put(batch, sharding)),
    )


def by_shard_map(row, tx, *, check=True):
    """Mapped over the devices, which average in `grad_fn`; what is equal on all is checked."""
    step = jax.shard_map(
        averaging_step(row, tx),
        mesh=mesh_of(DEVICES),
        in_specs=(P(), P(), P("batch")),
        out_specs=P(),
        check_vma=check,
    )
    return start(tx), jax.jit(step)


def by_unchecked_shard_map(row, tx):
    """The same, and JAX believes what is said to be equal on all devices."""
    return by_shard_map(row, tx, check=False)


def by_pmap(row, tx):
    """Mapped over the devices, each with a copy of everything."""
    step = jax.pmap(averaging_step(row, tx), axis_name="batch")
    return (
        copies(start(tx)),
        lambda params, state, batch: step(params, state, by_device(batch)),
    )


# One perturbation a device.


def apart_step(row, tx):
    """A step of one device, with gradients of its own."""

    def step(params, state, batch):
        own = params
        if jax.typeof(batch[0]).manual_axis_type.varying:
            own = jax.lax.pcast(params, "batch", to="varying")

        def grad_fn(p, kept=slice(None)):
            return jax.grad(lambda p: losses(p, jax.tree.map(lambda x: x[kept], batch)).mean())(p)

        extra = {"example_loss_fn": lambda p: losses(p, batch)} if row.call["examples"] else {}
        updates, state = tx.update(
            grad_fn(own), state, own, grad_fn=grad_fn, param_specs=P(), **extra
        )
        return updates, state

    return step


def apart(row, link, mapped):
    """A step around directions that are averaged, with a state of the link for each device."""
    behind = sgd(row.momentum)
    params, state = start(link)
    whole = (copies(state), behind.init(params))

    def step(params, states, batch):
        directions, link_state = mapped(params, states[0], by_device(batch))
        updates, state = behind.update(directions, states[1], params)
        return optax.apply_updates(params, updates), (link_state, state)

    return (params, whole), step


def apart_by_jit(row, link):
    """Automatic sharding: `vmap` over the parts, which are divided over the devices."""
    sharding = NamedSharding(mesh_of(DEVICES), P("batch"))
    mapped = jax.vmap(
        apart_step(row, link), (None, 0, 0), (None, 0), axis_name="batch", axis_size=DEVICES
    )
    begin, step = apart(row, link, mapped)
    step = jax.jit(step)
    return begin, lambda params, states, batch: step(
        params, states, jax.device_put(batch, sharding)
    )


def apart_by_shard_map(row, link, *, check=False):
    """Local gradients, since nothing is known to be equal on all devices."""
    params, state = start(link)
    divided = jax.tree.map(lambda leaf: True, state)
    if check and row.factory.__name__ in DECIDING:  # counts and averages are equal on all devices
        divided = optax.tree.map_params(
            link, lambda leaf: True, state, transform_non_params=lambda leaf: False
        )
    specs = jax.tree.map(lambda own: P("batch") if own else P(), divided)

    def of_device(params, state, batch):
        state = jax.tree.map(lambda x, own: x[0] if own else x, state, divided)
        batch = jax.tree.map(lambda x: x[0], batch)
        directions, state = apart_step(row, link)(params, state, batch)
        return directions, jax.tree.map(lambda x, own: x[None] if own else x, state, divided)

    mapped = jax.shard_map(
        of_device,
        mesh=mesh_of(DEVICES),
        in_specs=(P(), specs, P("batch")),
        out_specs=(P(), specs),
        check_vma=check,
    )
    (params, (states, behind)), step = apart(row, link, mapped)
    states = jax.tree.map(lambda x, own: x if own else x[0], states, divided)
    return (params, (states, behind)), jax.jit(step)


def apart_by_checked_shard_map(row, link):
    """The same, and JAX checks what is said to be equal on all devices."""
    return apart_by_shard_map(row, link, check=True)


def apart_by_pmap(row, link):
    """Each device with a state of its own."""
    mapped = jax.pmap(
        apart_step(row, link), axis_name="batch", in_axes=(None, 0, 0), out_axes=(None, 0)
    )
    return apart(row, link, mapped)


# Those that are no more than another way with more to compile, and the methods that run in them in
# every run: of a state like the parameters, and of a decision.
FURTHER = ("fsdp", "checked shard_map", "unchecked shard_map")
OFTEN = ("gsam", "ae_looksam", "msam")
GLOBAL = {
    "jit": by_jit,
    "fsdp": by_fsdp,
    "shard_map": by_shard_map,
    "unchecked shard_map": by_unchecked_shard_map,
    "pmap": by_pmap,
}
APART = {
    "jit": apart_by_jit,
    "shard_map": apart_by_shard_map,
    "checked shard_map": apart_by_checked_shard_map,
    "pmap": apart_by_pmap,
}


def cases(ways):
    """Every method in every way; one of each kind in every run, noise and a weight once."""
    often = {(name, way) for way in ways for name in (OFTEN if way in FURTHER else KINDS)}
    often |= {("r_sam", "shard_map"), ("samar", "shard_map")}
    return [
        pytest.param(name, way, marks=() if (name, way) in often else pytest.mark.slow)
        for name in NAMES
        for way in ways
    ]


def trajectory(begin, step):
    (params, state), points = begin, []
    for t in range(STEPS):
        params, state = step(params, state, jax.tree.map(jnp.asarray, batch_of(t)))
        leaves = jax.tree.map(np.asarray, params)
        shapes = jax.tree.map(np.shape, initial_params())
        leaves = jax.tree.map(lambda x, shape: x[0] if x.shape != shape else x, leaves, shapes)
        points.append(ravel(leaves))
    return np.stack(points)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "way"), cases(GLOBAL))
def test_the_global_perturbation_is_that_of_one_device(name, way):
    row = METHODS[name]
    tx = optax.chain(row.factory(**row.settings), sgd(row.momentum))
    assert_close(trajectory(*GLOBAL[way](row, tx)), on_the_whole_batch(name))


@pytest.mark.parametrize(("name", "way"), cases(APART))
def test_the_perturbation_of_each_device_is_that_of_a_loop_over_the_parts(name, way):
    row = METHODS[name]
    together = {"axis_name": "batch"} if name in TOGETHER else {}
    link = row.factory(**row.settings, **together)
    tx = optax.chain(link, sam_optax.average("batch"))
    assert_close(trajectory(*APART[way](row, tx)), on_each_part(name))


# Parts smaller than a device's.


@pytest.mark.parametrize(
    ("m", "devices"),
    [
        pytest.param(m, n, marks=() if (m, n) in [(1, 8), (2, 2), (8, 1)] else pytest.mark.slow)
        for m in (1, 2, 4, 8)
        for n in (1, 2, 8)
        if m * n <= EXAMPLES
    ],
)
def test_micro_batches_perturb_each_for_itself_on_any_number_of_devices(m, devices):
    """m examples share a perturbation: `vmap` within a device, both axes in `average`."""
    row = METHODS["gsam"]
    tx = optax.chain(row.factory(**row.settings), sam_optax.average(("batch", "micro")))
    params, state = start(tx)
    batch = jax.tree.map(jnp.asarray, batch_of(0))

    def of_device(params, state, batch):
        parts = jax.tree.map(lambda x: x.reshape(-1, m, *x.shape[1:]), batch)
        step = apart_step(row, tx)
        return jax.vmap(step, (None, None, 0), None, axis_name="micro")(params, state, parts)

    mesh = jax.make_mesh(
        (devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    # JAX 0.10 takes no mean over an axis of `vmap` where shard_map checks.
    mapped = jax.shard_map(
        of_device, mesh=mesh, in_specs=(P(), P(), P("batch")), out_specs=P(), check_vma=False
    )
    updates, _ = jax.jit(mapped)(params, state, batch)
    directions = [
        row.step(
            ravel(params), Gradient(jax.tree.map(lambda x, i=i: x[i : i + m], batch_of(0))), 0, {}
        )[0]
        for i in range(0, EXAMPLES, m)
    ]
    assert_close(ravel(updates), np.mean(directions, axis=0))


# What could hang, or be wrong in silence, is an error.


def checked_update(tx, averaged, divided=False):
    """One update under `shard_map` as it comes, of gradients that are averaged or each its own."""
    params, state = start(tx)
    spec = P("batch") if divided else P()
    state = copies(state) if divided else state

    def update(params, state, batch):
        if divided:
            state = jax.tree.map(lambda x: x[0], state)
        own = jax.lax.pcast(params, "batch", to="varying")

        def grad_fn(p):
            gradient = jax.grad(lambda p: losses(p, batch).mean())(p)
            return jax.lax.pmean(gradient, "batch") if averaged else gradient

        updates, _ = tx.update(grad_fn(own), state, own, grad_fn=grad_fn, param_specs=P())
        return jax.tree.map(lambda x: x[None], updates)

    mapped = jax.shard_map(
        update, mesh=mesh_of(DEVICES), in_specs=(P(), spec, P("batch")), out_specs=P("batch")
    )
    return jax.eval_shape(mapped, params, state, jax.tree.map(jnp.asarray, batch_of(0)))


def test_a_decision_that_could_differ_along_two_axes_is_refused():
    link = METHODS["ae_sam"].link()
    params, state = start(link)

    def update(params, x):
        def grad_fn(p):
            return jax.tree.map(lambda p: p * x.sum(), p)

        return link.update(grad_fn(params), state, params, grad_fn=grad_fn)[0]

    spec = P(("batch", "model"))
    mapped = jax.shard_map(update, mesh=mesh_of(4, 2), in_specs=(P(), spec), out_specs=spec)
    with pytest.raises(ValueError, match=r"axis_name=\('batch', 'model'\)"):
        jax.eval_shape(mapped, params, jnp.ones(8))


@pytest.mark.parametrize("name", ["ae_sam", "ae_looksam"])
def test_a_decision_that_could_differ_between_devices_is_refused(name):
    row = METHODS[name]
    with pytest.raises(ValueError, match=r"may differ between .*'batch'.*axis_name='batch'"):
        checked_update(row.factory(**row.settings), averaged=False)


def test_a_decision_that_is_equal_on_all_devices_is_taken():
    row = METHODS["ae_sam"]
    checked_update(row.factory(**row.settings), averaged=True)
    checked_update(row.factory(**row.settings, axis_name="batch"), averaged=False)


@pytest.mark.parametrize("name", ["looksam", "ss_sam", "eigen_sam"])
def test_a_count_that_is_divided_over_the_devices_is_refused(name):
    row = METHODS[name]
    with pytest.raises(ValueError, match="check_vma=False"):
        checked_update(row.factory(**row.settings), averaged=False, divided=True)


@pytest.mark.parametrize(
    ("own", "link"), [((), sam_optax.sam(0.1)), (("conv", "scale"), optax.trace(0.9))]
)
def test_an_average_of_what_was_summed_is_refused(own, link):
    """Also where only some leaves were."""
    tx = optax.with_extra_args_support(optax.chain(link, sam_optax.average("batch")))
    params, state = start(tx)
    assert set(own) < set(params)

    def update(params, state, batch):
        def grad_fn(p):
            return jax.grad(lambda p: losses(p, batch).mean())(p)

        params = {k: local(leaf) if k in own else leaf for k, leaf in params.items()}
        return tx.update(grad_fn(params), state, params, grad_fn=grad_fn)[0]

    mapped = jax.shard_map(
        update, mesh=mesh_of(DEVICES), in_specs=(P(), P(), P("batch")), out_specs=P()
    )
    with pytest.raises(ValueError, match=r"average\('batch'\) got updates\['(conv|dense_bias)'"):
        jax.eval_shape(mapped, params, state, jax.tree.map(jnp.asarray, batch_of(0)))


def test_a_frozen_leaf_is_averaged_with_the_rest():
    """Its zeros come from gradients that differ."""
    frozen = optax.masked(optax.set_to_zero(), {"a": True, "b": False})
    average = sam_optax.average("batch")

    def update(x):
        updates, _ = frozen.update({"a": x, "b": x}, frozen.init({"a": x, "b": x}))
        return average.update(updates, average.init(updates))[0]

    mapped = jax.shard_map(update, mesh=mesh_of(DEVICES), in_specs=P("batch"), out_specs=P())
    averaged = jax.jit(mapped)(jnp.arange(8.0))
    assert averaged == {"a": 0, "b": 3.5}


@pytest.mark.parametrize("axis_name", [b"batch", "batch", ("batch",), ["batch"]])
def test_axes_may_be_named_by_any_hashable(axis_name):
    average = sam_optax.average(axis_name)
    name = axis_name if isinstance(axis_name, bytes) else "batch"
    averaged = jax.vmap(lambda x: average.update(x, average.init(x))[0], axis_name=name)(
        jnp.arange(4.0)
    )
    np.testing.assert_array_equal(averaged, 1.5)


# Where the state lies, and what is sent.


@pytest.mark.parametrize("name", few("gsam", "ae_looksam", "eigen_sam", "wsam"))
def test_the_state_stays_where_it_was(name):
    """What is shaped like parameters lies like them, all else on every device, at each step."""
    row = METHODS[name]
    tx = row.factory(**row.settings)
    mesh = mesh_of(4, 2)
    params, _ = start(tx)
    shardings = jax.tree.map(lambda x: sharding_of(x, mesh), params)
    assert {s.spec for s in jax.tree.leaves(shardings)} > {P()}
    params = jax.device_put(params, shardings)
    state = tx.init(params)
    whole = NamedSharding(mesh, P())
    expected = optax.tree.map_params(
        tx, lambda leaf, s: s, state, shardings, transform_non_params=lambda leaf: whole
    )
    batch = jax.device_put(batch_of(0), NamedSharding(mesh, P(("batch", "model"))))
    step = jax.jit(plain_step(row, tx))
    for _ in range(2):
        params, state = step(params, state, batch)
        for tree, where in ((params, shardings), (state, expected)):
            for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(where), strict=True):
                assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.parametrize("name", FEW)
def test_a_method_itself_sends_nothing_but_sums(name):
    """Of divided parameters, with a gradient that sends nothing: no array of their size."""
    row = METHODS[name]
    tx = row.factory(**row.settings)
    mesh = mesh_of(8)
    mesh = jax.sharding.Mesh(mesh.devices, ("model",), axis_types=(AxisType.Auto,))
    params = {f"layer_{i}": jnp.ones((64, 16)) for i in range(3)} | {"bias": jnp.ones(16)}
    params = jax.tree.map(lambda x: jax.device_put(x, sharding_of(x, mesh)), params)
    state = tx.init(params)

    def update(grads, state, params):
        def grad_fn(p, kept=None):
            return jax.tree.map(lambda x: 3 * x + jnp.sin(x), p)

        extra = {}
        if row.call["examples"]:
            extra["example_loss_fn"] = lambda p: jnp.arange(4.0) * optax.tree.sum(p)
        return tx.update(grads, state, params, grad_fn=grad_fn, **extra)

    hlo = jax.jit(update).lower(params, state, params).compile().as_text()
    found = collectives.found(hlo)
    assert {c.kind for c in found} <= {"all-reduce"}
    # A few scalars, or twice the norm of each kernel: 3 layers with 16, and a bias.
    assert all(c.bytes <= 8 * (2 * (3 * 16 + 1) + 8) for c in found)
    one_gradient_without_norms = name == "lpf_sgd"
    assert found or one_gradient_without_norms


# Those that keep arrays of the parameters' size, and one without.
DIVIDED = ["sam", "looksam", "ae_looksam", "vasso", "friendly_sam", "eigen_sam", "msam", "s2_sam"]


@pytest.mark.parametrize("name", few("sam", "ae_looksam", "eigen_sam", "msam", names=DIVIDED))
def test_a_state_may_be_divided_where_the_parameters_are_not(name):
    """ZeRO's first stage on an explicit mesh: the step is the same, and the state stays divided."""
    row = METHODS[name].unnamed
    settings = row.settings | ({"period": 2} if name == "eigen_sam" else {})
    tx = optax.chain(row.factory(**settings), optax.sgd(0.01))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        params = {"kernel": jnp.arange(128.0).reshape(16, 8) / 128, "bias": jnp.ones(8)}
        params = jax.device_put(params, whole)
        x = jax.device_put(jnp.linspace(-1, 1, 256).reshape(16, 16), rows)

        def losses(p):
            return jnp.mean((x @ p["kernel"] + p["bias"]) ** 2, axis=1)

        gradient = jax.grad(lambda p: jnp.mean(losses(p)))

        @jax.jit
        def step(params, state):
            extra = {"example_loss_fn": losses} if name == "esam" else {}
            updates, state = tx.update(
                gradient(params), state, params, grad_fn=lambda p, *kept: gradient(p), **extra
            )
            new = optax.apply_updates(params, updates)
            return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, P()), new), state

        def divided(leaf):
            return jax.device_put(leaf, rows if leaf.ndim and leaf.shape[0] % 8 == 0 else whole)

        state = tx.init(params)
        expected, own = (params, state), (params, jax.tree.map(divided, state))
        for _ in range(3):
            expected, own = step(*expected), step(*own)
        np.testing.assert_allclose(ravel(own[0]), ravel(expected[0]), rtol=1e-6)
        leaves = jax.tree.leaves(own[1])
        assert [leaf.sharding.spec for leaf in leaves if leaf.shape == (16, 8)] == [
            P("data", None) for leaf in leaves if leaf.shape == (16, 8)
        ]
