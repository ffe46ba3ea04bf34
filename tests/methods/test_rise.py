"""L(w + ε) − L(w), which the second pass tells, and what else it returns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import (
    METHODS,
    ROWS,
    STEPS,
    few,
    initial_params,
    make_batch,
    make_step,
    run,
    run_reference,
    small_loss,
    small_params,
)

import sam_optax
from sam_optax import perturb, when

X64 = pytest.mark.usefixtures("x64")
ONE = ("lpf_sgd", "msam", "s2_sam", "ivon")
TWO = [name for name in METHODS if name not in ONE]
SOME = few("sam", "esam", "ae_looksam", "r_gsam", "eigen_sam", "wsam", "bsam", names=TWO)


def rises(steps):
    return np.array([float(sam_optax.read(state, "rise")) for _, state in steps])


def expected(row):
    return np.array([state["rise"] for _, state in run_reference(row)])


def scanned(row):
    """All steps in one scan."""
    step = make_step(row.optimizer(), **row.call, valued=True, compiled=False)
    params = jax.tree.map(jnp.asarray, initial_params())
    batches = jax.tree.map(lambda *x: jnp.stack(x), *map(make_batch, range(STEPS)))

    def body(carry, batch):
        carry = step(*carry, batch)
        return carry, sam_optax.read(carry[1], "rise")

    return jax.jit(lambda: jax.lax.scan(body, (params, row.optimizer().init(params)), batches))()[1]


@X64
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("mode", ["jit", "host", "scan", "mesh"])
def test_rise_is_the_loss_at_the_second_point_over_that_at_the_parameters(name, mode):
    row = ROWS[name]
    options = {**row.call, "valued": True}
    if mode == "scan":
        found = scanned(row)
    elif mode == "host":
        found = rises(run(row.optimizer(), compiled=False, gradient=jax.jit, **options))
    elif mode == "jit":
        found = rises(run(row.optimizer(), **options))
    else:
        mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        step = make_step(row.optimizer(), **options)
        found = rises(
            run(row.optimizer(), lambda p, s, batch: step(p, s, jax.device_put(batch, divided)))
        )
    np.testing.assert_allclose(found, expected(row), rtol=0, atol=1e-12)
    assert len(set(np.asarray(found))) > 2


@X64
@pytest.mark.parametrize("name", ONE)
def test_a_method_without_a_second_gradient_tells_no_rise(name):
    assert (rises(run(METHODS[name].optimizer(), valued=True)) == 0).all()


@X64
def test_a_budget_is_near_the_rise_where_it_is_small():
    row = ROWS["le_sam"]._replace(settings={"budget": 1e-6})
    found = rises(run(row.optimizer(), valued=True))
    np.testing.assert_allclose(found, 1e-6, rtol=1e-2)


def test_the_value_of_a_loss_function_serves_too():
    """As `optax.value_and_grad_from_state` and the line searches have it."""
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make_batch(0))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), small_params())
    value_fn = functools.partial(small_loss, batch=batch)
    value, grads = jax.value_and_grad(value_fn)(params)
    link = sam_optax.sam(0.3)
    _, state = link.update(grads, link.init(params), params, value=value, value_fn=value_fn)
    _, other = link.update(
        grads,
        link.init(params),
        params,
        value=value,
        value_and_grad_fn=jax.value_and_grad(value_fn),
    )
    epsilon = 0.3 / optax.tree.norm(grads)
    point = jax.tree.map(lambda p, g: p + epsilon * g, params, grads)
    np.testing.assert_allclose(state.rise, value_fn(point) - value, rtol=1e-4)
    np.testing.assert_allclose(other.rise, state.rise, rtol=1e-6)


# Where it is not known.

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}


def bowl(p):
    return jnp.sum(p["a"] ** 2) + p["b"] ** 2


def bowl_and_aux(p):
    return bowl(p), {"norm": jnp.sum(jnp.abs(p["a"])), "count": jnp.array(3, jnp.int32)}


LIKE = {"norm": jnp.zeros([]), "count": jnp.zeros([], jnp.int32)}
BOTH = jax.value_and_grad(bowl)
GRADS = jax.grad(bowl)(PARAMS)


@pytest.mark.parametrize(
    "extra",
    [
        {"grad_fn": jax.grad(bowl)},
        {"grad_fn": jax.grad(bowl), "value": bowl(PARAMS)},
        {"value_and_grad_fn": BOTH},
        {"value_fn": bowl},
    ],
)
def test_without_one_of_the_two_losses_it_stays(extra):
    link = sam_optax.sam(0.1)
    state = link.init(PARAMS)._replace(rise=jnp.array(7.0))
    _, state = link.update(GRADS, state, PARAMS, **extra)
    assert state.rise == 7


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_without_a_second_gradient_leaves_rise_and_aux(compiled):
    link = sam_optax.keep_aux(
        sam_optax.sharpness_aware(perturb.ball(0.1), when=when.between(1, 2)), LIKE
    )
    both = jax.value_and_grad(bowl_and_aux, has_aux=True)

    def step(state):
        return link.update(GRADS, state, PARAMS, value=bowl(PARAMS), value_and_grad_fn=both)[1]

    step = jax.jit(step) if compiled else step
    states = [link.init(PARAMS)]
    for _ in range(3):
        states.append(step(states[-1]))
    told = [(float(state.rise), float(state.aux["norm"])) for state in states]
    length = float(optax.tree.norm(PARAMS))
    factor = 1 + 0.1 / length  # along the gradient, which is 2 w
    rise = (factor**2 - 1) * length**2
    np.testing.assert_allclose(told, [(0, 0), (0, 0), *[(rise, 3 * factor)] * 2], rtol=1e-5)
    assert states[-1].aux["count"] == 3
    assert states[-1].aux["count"].dtype == jnp.int32


@pytest.mark.parametrize("compiled", [False, True])
def test_a_second_pass_that_overflows_tells_nothing(compiled):
    link = sam_optax.keep_aux(sam_optax.sam(0.1), LIKE)

    def both(p):
        (value, aux), gradient = jax.value_and_grad(bowl_and_aux, has_aux=True)(p)
        return (value, aux), jax.tree.map(lambda g: g * jnp.inf, gradient)

    def step(state):
        return link.update(GRADS, state, PARAMS, value=bowl(PARAMS), value_and_grad_fn=both)[1]

    state = (jax.jit(step) if compiled else step)(link.init(PARAMS))
    assert (state.rise, state.aux["norm"], state.notfinite) == (0, 0, 1)


def test_aux_that_is_not_kept_may_be_anything():
    def both(p):
        return (bowl(p), "a word"), jax.grad(bowl)(p)

    link = sam_optax.sharpness_aware(perturb.ball(0.1), when=when.every(2))
    for update in (link.update, jax.jit(functools.partial(link.update, value_and_grad_fn=both))):
        _, state = update(
            GRADS,
            link.init(PARAMS),
            PARAMS,
            **({"value_and_grad_fn": both} if update is link.update else {}),
        )
        assert state.ascents == 1
        assert state.aux == ()


def test_the_aux_of_a_part_is_kept():
    link = sam_optax.masked(sam_optax.keep_aux(sam_optax.sam(0.1), LIKE), {"a": True, "b": False})
    both = jax.value_and_grad(bowl_and_aux, has_aux=True)
    _, state = link.update(
        GRADS, link.init(PARAMS), PARAMS, value=bowl(PARAMS), value_and_grad_fn=both
    )
    length = float(jnp.linalg.norm(PARAMS["a"]))
    factor = 1 + 0.1 / length
    np.testing.assert_allclose(sam_optax.read(state, "aux")["norm"], 3 * factor, rtol=1e-6)
    expected = (factor**2 - 1) * length**2
    np.testing.assert_allclose(sam_optax.read(state, "rise"), expected, rtol=1e-5)


def test_devices_with_losses_of_their_own_tell_the_mean():
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make_batch(0, examples=8))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), small_params())
    link = sam_optax.sam(0.3)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    @jax.shard_map(mesh=mesh, in_specs=(spec(), spec(), spec("batch")), out_specs=spec())
    def rise(params, state, own):
        local = jax.lax.pcast(params, "batch", to="varying")
        both = jax.value_and_grad(functools.partial(small_loss, batch=own))
        value, grads = both(local)
        _, state = link.update(
            grads,
            state,
            params,
            value=value,
            value_and_grad_fn=lambda p: both(jax.tree.map(_varying, p)),
        )
        return state.rise

    def _varying(p):
        return (
            p
            if "batch" in jax.typeof(p).manual_axis_type.varying
            else jax.lax.pcast(p, "batch", to="varying")
        )

    each = []
    for i in range(4):
        own = jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch)
        both = jax.value_and_grad(functools.partial(small_loss, batch=own))
        value, grads = both(params)
        _, state = link.update(
            grads, link.init(params), params, value=value, value_and_grad_fn=both
        )
        each.append(float(state.rise))
    found = jax.jit(rise)(params, link.init(params), batch)
    np.testing.assert_allclose(found, np.mean(each), rtol=1e-5)
    assert np.std(each) > 1e-3


# What does not fit.


@pytest.mark.parametrize(
    ("both", "message"),
    [
        (jax.grad(bowl), "must return .value, gradient., or"),
        (lambda p: (p["a"], GRADS), r"must be one real number, got float32\[2\]"),
        (lambda p: (3, GRADS), r"must be one real number, got int\[\]"),
        (lambda p: (bowl(p), {"a": GRADS["a"]}), "what value_and_grad_fn returns must have"),
    ],
)
def test_what_is_no_value_and_gradient_is_told(both, message):
    link = sam_optax.sam(0.1)
    with pytest.raises(ValueError, match=message):
        link.update(GRADS, link.init(PARAMS), PARAMS, value_and_grad_fn=both)


@pytest.mark.parametrize(
    "extra",
    [
        {"value_and_grad_fn": BOTH},
        {"grad_fn": jax.grad(bowl)},
        {
            "value_and_grad_fn": jax.value_and_grad(
                lambda p: (bowl(p), {"norm": p["a"], "count": 1}), has_aux=True
            )
        },
    ],
)
def test_aux_other_than_that_to_keep_is_told(extra):
    link = sam_optax.keep_aux(sam_optax.sam(0.1), LIKE)
    with pytest.raises(ValueError, match=r"keep_aux keeps the aux of value_and_grad_fn"):
        link.update(GRADS, link.init(PARAMS), PARAMS, **extra)


def test_what_cannot_keep_aux_is_told():
    with pytest.raises(TypeError, match="link must be a sharpness-aware method"):
        sam_optax.keep_aux(None, LIKE)
    with pytest.raises(ValueError, match="like must hold an array"):
        sam_optax.keep_aux(sam_optax.sam(), {})
    chain = optax.chain(sam_optax.sam(), optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"needs a sharpness-aware method .* itself, got a link"):
        sam_optax.keep_aux(chain, LIKE).init(PARAMS)


# Devices that each have a loss of their own.


def on_four(step, *, check_vma=True):
    """step(x, y) on four devices, each with examples of its own; one result for all."""
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(rows, rows), out_specs=whole, check_vma=check_vma
    )
    x = jax.random.normal(jax.random.key(0), (8, 2))
    return jax.jit(mapped)(x, jnp.arange(8.0))


def local_loss(w, x, y):
    hits = jnp.mean((x @ w > y).astype(jnp.float32))
    return jnp.mean((x @ w - y) ** 2), hits


def both_of(x, y):
    """Its own loss, and the mean of the gradients."""

    def both(w):
        w = jax.lax.pcast(w, "batch", to="varying")
        found, gradient = jax.value_and_grad(local_loss, has_aux=True)(w, x, y)
        return found, jax.lax.pmean(gradient, "batch")

    return both


def test_the_loss_that_a_combination_sees_is_one_for_all_devices():
    seen = sam_optax.combine.stateless(
        lambda g, h, w, *, second_value, **extra: jax.tree.map(lambda x: second_value * x, h)
    )
    link = sam_optax.sharpness_aware(perturb.ball(0.1), combine=seen)
    w = jnp.ones(2)

    def step(x, y):
        both = both_of(x, y)
        (value, _), grads = both(w)
        return link.update(grads, link.init(w), w, value=value, value_and_grad_fn=both)[0]

    direction = on_four(step)
    x, y = jax.random.normal(jax.random.key(0), (8, 2)), jnp.arange(8.0)
    g = jax.grad(lambda w: local_loss(w, x, y)[0])(w)
    value, h = jax.value_and_grad(lambda w: local_loss(w, x, y)[0])(
        w + 0.1 * g / jnp.linalg.norm(g)
    )
    np.testing.assert_allclose(direction, value * h, rtol=1e-5)


@pytest.mark.parametrize("policy", [None, when.every(2)])
def test_aux_of_each_device_is_kept_as_its_mean(policy):
    link = sam_optax.keep_aux(
        sam_optax.sharpness_aware(perturb.ball(0.1), when=policy), jnp.zeros([])
    )
    w = jnp.ones(2)

    def step(x, y):
        both = both_of(x, y)
        _, state = link.update(both(w)[1], link.init(w), w, value_and_grad_fn=both)
        return state.aux

    x, y = jax.random.normal(jax.random.key(0), (8, 2)), jnp.arange(8.0)
    g = jax.grad(lambda w: local_loss(w, x, y)[0])(w)
    expected = local_loss(w + 0.1 * g / jnp.linalg.norm(g), x, y)[1]
    np.testing.assert_allclose(on_four(step), expected, rtol=1e-6)


def test_aux_may_be_told_by_numbers_of_python():
    link = sam_optax.keep_aux(sam_optax.sam(0.1), {"hits": 0.0, "count": 0})
    state = link.init(jnp.ones(2))
    assert {k: (v.shape, v.dtype) for k, v in state.aux.items()} == {
        "hits": ((), jnp.float32), "count": ((), jnp.int32)
    }  # fmt: skip


def test_the_rise_of_selected_examples_is_that_of_their_losses():
    """Whatever the loss holds besides, such as weight decay."""
    x = jnp.arange(8.0).reshape(4, 2)
    w = jnp.array([1.0, -0.5])

    def example_losses(p):
        return (x @ p - 1) ** 2

    def loss(p, indices=slice(None)):
        return example_losses(p)[indices].mean() + 10 * jnp.sum(p**2)

    link = sam_optax.esam(0.1, beta=1.0, gamma=0.5)
    value, grads = jax.value_and_grad(loss)(w)
    _, state = link.update(
        grads, link.init(w), w, value=value, value_and_grad_fn=jax.value_and_grad(loss),
        example_loss_fn=example_losses,
    )  # fmt: skip
    point = w + 0.1 * grads / jnp.linalg.norm(grads)
    expected = (example_losses(point) - example_losses(w)).mean()
    np.testing.assert_allclose(state.rise, expected, rtol=1e-4)


@pytest.mark.parametrize("value", [jnp.ones(3), "1", 1j, np.int32(1)])
def test_the_value_must_be_one_real_number(value):
    w = jnp.ones(2)
    link = sam_optax.sam(0.1)
    with pytest.raises(ValueError, match=r"^value must be one real number, got .*take the mean"):
        link.update(w, link.init(w), w, value=value, value_and_grad_fn=lambda p: (p.sum(), p))
