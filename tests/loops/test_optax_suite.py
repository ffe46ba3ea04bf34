"""What Optax asks of every optimizer in its contrib package, asked of every method."""

import contextlib
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import METHODS, NAMES, few, whole_batch

import sam_optax

# With radii, noise and weights so small that the optimum of each target stays the optimum.
GENTLE = {
    "asam": {"rho": 1e-3, "weights": True},
    "gsam": {"rho": 1e-3, "alpha": 0.1},
    "looksam": {"rho": 1e-3, "alpha": 0.1, "period": 2},
    "esam": {"rho": 1e-3, "gamma": 0.5},
    "ae_sam": {"rho": 1e-3, "total_steps": 30_000},
    "ae_looksam": {"rho": 1e-3, "alpha": 0.1, "total_steps": 30_000},
    "le_sam": {"budget": 1e-3, "rho_max": 1e-3},
    "le_sam_plus": {"budget": 1e-3, "rho_max": 1e-3},
    "r_sam": {"rho": 1e-3, "gamma": 1e-4},
    "r_gsam": {"rho": 1e-3, "gamma": 1e-4, "alpha": 0.1},
    "lpf_sgd": {"gamma": 1e-4},
    "s2_sam": {"rho": 1e-4},
    "wsam": {"base": optax.trace(0.9), "rho": 1e-3, "gamma": 0.6},
    "coupled_wsam": {"rho": 1e-3, "gamma": 0.6},
    "bsam": {"rho": 1e-4, "ess": 1e8, "weight_decay": 0.0, "damping": 1.0},
    "ivon": {"ess": 1e4, "weight_decay": 0.0, "rescale": False},
}
# Their steps are divided by a precision.
RATES = {"bsam": 0.01, "ivon": 0.02}

# Each method, and in every run one for each kind of state.
KINDS = ("gsam", "ae_looksam", "msam", "wsam")
FEW = few(*KINDS)


def some(values, first):
    """All values, and in every run the first of these alone."""
    return [pytest.param(v, marks=() if v == first else pytest.mark.slow) for v in values]


def each(values, first):
    """Each method with all values; in every run with the first, and one of each kind with all."""
    return [
        pytest.param(n, v, marks=() if v == first or n in KINDS else pytest.mark.slow)
        for n in NAMES
        for v in values
    ]


def gentle(name):
    link = getattr(sam_optax, name)(**GENTLE.get(name, {"rho": 1e-3}))
    link = whole_batch(link) if name == "esam" else link
    return optax.chain(link, optax.sgd(RATES.get(name, 1e-3), momentum=METHODS[name].momentum))


def parabola():
    final = jnp.array([1.0, -1.0, 1.0])
    return jnp.array([-1.0, 10.0, 1.0]), final, lambda w: jnp.sum((w - final) ** 2)


def rosenbrock():
    def objective(w):
        return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2

    return jnp.zeros(2), jnp.ones(2), objective


def matrix_parabola():
    final = jnp.array([[3.0, -2.0], [1.0, 4.0]])
    return jnp.zeros((2, 2)), final, lambda w: jnp.sum((w - final) ** 2)


def mixed_tree():
    final = (jnp.array([1.0, -1.0, 2.0]), jnp.array([[1.0, 0.0], [-1.0, 1.0]]))

    def objective(w):
        return sum(jnp.sum((x - y) ** 2) for x, y in zip(w, final, strict=True))

    return optax.tree.zeros_like(final), final, objective


@pytest.mark.parametrize(
    ("name", "target"), each([parabola, rosenbrock, matrix_parabola, mixed_tree], rosenbrock)
)
def test_it_converges(name, target):
    """Thirty thousand steps inside one scan, from a state that went through `map_params`."""
    initial, final, objective = target()
    tx, grad_fn = gentle(name), jax.grad(objective)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return (optax.apply_updates(params, updates), state), None

    state = optax.tree.map_params(tx, lambda leaf: leaf, tx.init(initial))
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=30_000)[0])
    params, _ = run((initial, state))
    chex.assert_trees_all_close(params, final, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", NAMES)
def test_an_unexpected_extra_argument_is_accepted_and_nothing_compiles_twice(name):
    tx = METHODS[name].unnamed.optimizer()
    params, _, objective = rosenbrock()
    grad_fn = jax.grad(objective)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(
            grad_fn(params), state, params, grad_fn=grad_fn, an_argument_that_nobody_expects=1
        )
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    params, state = step(params, state)
    with jax.no_tracing():
        step(params, state)


PARAMS = [-jnp.ones((2, 3)), jnp.ones((2, 5, 2))]
GRADS = [jnp.ones((2, 3)), -jnp.ones((2, 5, 2))]


def update(tx, params=PARAMS, grads=GRADS):
    """(updates, state) after the first step, with a gradient that is the same everywhere."""
    state = jax.jit(tx.init)(params)
    return jax.jit(lambda s: tx.update(grads, s, params, grad_fn=lambda p: grads))(state)


def three_steps(tx):
    """(updates, state) after three steps on a gradient that differs from point to point."""

    def grad_fn(params):
        return jax.tree.map(lambda p: jnp.sin(3 * p) + p**3, params)

    params = [jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), jnp.linspace(0.5, 2.0, 4)]
    state = jax.jit(tx.init)(params)
    step = jax.jit(lambda p, s: tx.update(grad_fn(p), s, p, grad_fn=grad_fn))
    for _ in range(3):
        updates, state = step(params, state)
        params = jax.tree.map(lambda p, u: p - 0.1 * u, params, updates)
    return updates, state


@functools.cache
def three_plain_steps(name):
    """`three_steps` of a method with numbers for hyperparameters."""
    return three_steps(METHODS[name].unnamed.link())


@pytest.mark.parametrize("name", few(*(n for n in NAMES if n != "r_sam")))
def test_injected_hyperparameters_give_the_same_update_and_state(name):
    row = METHODS[name].unnamed
    factory = optax.inject_hyperparams(row.factory, static_args=row.static_args)
    injected = factory(**row.settings)
    injected = whole_batch(injected) if name == "esam" else injected
    expected, state = three_plain_steps(name)
    actual, injected_state = three_steps(injected)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5)
    chex.assert_trees_all_close(injected_state.inner_state, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_are_kept(name, dtype):
    params, grads = optax.tree.cast((PARAMS, GRADS), dtype)
    tx = METHODS[name].unnamed.optimizer()

    def step(params, grads):
        updates, _ = tx.update(grads, tx.init(params), params, grad_fn=lambda p: grads)
        return updates, optax.apply_updates(params, updates)

    updates, updated = jax.eval_shape(step, params, grads)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(dtype)}


ONE_GRADIENT = ("lpf_sgd", "msam", "s2_sam", "ivon")


def at_the_gradient_point(name):
    row = METHODS[name].unnamed
    return row._replace(settings=row.settings | {"updates_at": "gradient_point"})


@pytest.mark.parametrize("dtype", some(["float32", "bfloat16"], "float32"))
@pytest.mark.parametrize("name", NAMES)
def test_the_first_update_of_multi_steps_is_zero(name, dtype):
    """Around a method of one gradient that it is given; around a gradient of its own, an error."""
    params, grads = optax.tree.cast((PARAMS, GRADS), dtype)
    if name in ONE_GRADIENT:
        tx = optax.MultiSteps(at_the_gradient_point(name).optimizer(), 4)
        updates, _ = update(tx, params, grads)
        assert not any(leaf.any() for leaf in updates)
    tx = optax.MultiSteps(METHODS[name].unnamed.optimizer(), 4)
    with pytest.raises(
        ValueError, match=r"optax\.MultiSteps around a method that takes a gradient"
    ):
        update(tx, params, grads)


@pytest.mark.parametrize("grad_dtype", some(["float16", "bfloat16", "float32"], "bfloat16"))
@pytest.mark.parametrize("dtype", some(["float16", "bfloat16", "float32"], "float32"))
@pytest.mark.parametrize("name", some(ONE_GRADIENT, "msam"))
def test_multi_steps_keep_dtypes_inside_a_scan(name, dtype, grad_dtype):
    """Over two rounds; what is handed on has the dtype that it has without them."""
    tx = at_the_gradient_point(name).link()
    grads, params = jnp.ones(2, grad_dtype), jnp.ones(2, dtype)

    def stepped(tx):
        def step(state, _):
            updates, state = tx.update(grads, state, params, grad_fn=lambda p: p.astype(grad_dtype))
            return state, updates

        return jax.lax.scan(step, tx.init(params), length=4)

    expected, updates = stepped(tx)
    actual, accumulated = stepped(optax.MultiSteps(tx, 2).gradient_transformation())
    chex.assert_trees_all_equal_dtypes(actual.inner_opt_state, expected)
    assert accumulated.dtype == updates.dtype


@pytest.mark.parametrize(
    ("name", "dtype"), each(["float16", "bfloat16", "float32", "float64"], "bfloat16")
)
def test_the_state_goes_through_a_conditional(name, dtype):
    """Both branches, an update and none, have the types of the initial state."""
    with jax.enable_x64(dtype == "float64"):
        tx = METHODS[name].unnamed.optimizer()
        params = {"a": jnp.ones((2, 3), dtype), "b": jnp.ones((), dtype)}

        def stepped(state):
            return tx.update(params, state, params, grad_fn=lambda p: p)[1]

        state = tx.init(params)
        after = jax.jit(lambda s, flag: jax.lax.cond(flag, stepped, lambda s: s, s))(state, True)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        assert int(optax.tree.get(after, "steps")) == 1


def twice(params):
    """A gradient function without a care for the tree."""
    return jax.tree.map(lambda leaf: 2 * leaf, params)


def types(tree):
    """What JAX traces by: shapes, dtypes, weak types and shardings."""
    return jax.tree.map(jax.typeof, tree)


def of_dtypes(*dtypes):
    """Parameters with two leaves of each, one of them a scalar."""
    return {dtype: (jnp.full((2, 3), 0.5, dtype), jnp.full((), 0.5, dtype)) for dtype in dtypes}


HALVES = ("float16", "bfloat16", "float32")


@pytest.mark.parametrize("name", NAMES)
def test_an_abstract_state_has_the_types_of_a_concrete_one(name):
    """Made in jit, by `eval_shape`, or of shapes: also the weak types are those outside jit."""
    tx = METHODS[name].unnamed.optimizer()
    params = of_dtypes(*HALVES) | {"none": None}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    expected = types(tx.init(params))
    assert types(tx.init(shapes)) == expected
    assert types(jax.eval_shape(tx.init, params)) == expected
    assert types(jax.eval_shape(tx.init, shapes)) == expected


@pytest.mark.parametrize("compiled", some([True, False], True))
@pytest.mark.parametrize("x64", some([False, True], True))
@pytest.mark.parametrize("name", FEW)
def test_leaves_of_several_dtypes_keep_them_and_so_does_the_state(name, x64, compiled):
    """Over so many steps that each method has done all that it does now and then."""
    with jax.enable_x64(x64):
        params = of_dtypes(*HALVES, *["float64"] * x64)
        tx = METHODS[name].unnamed.optimizer()

        def step(params, state):
            updates, state = tx.update(twice(params), state, params, grad_fn=twice)
            return updates, optax.apply_updates(params, updates), state

        step = jax.jit(step) if compiled else step
        state = tx.init(params)
        before = types((params, params, state))
        for _ in range(4):
            updates, params, state = step(params, state)
            assert types((updates, params, state)) == before


def steady(name, dtype):
    """A row; Optax's own trace, the base of wsam, would take on the dtype of wider gradients."""
    row = METHODS[name].unnamed
    base = {"base": optax.trace(0.9, accumulator_dtype=dtype)} if name == "wsam" else {}
    return row._replace(settings=row.settings | base)


@pytest.mark.parametrize("grad_dtype", some(HALVES, "bfloat16"))
@pytest.mark.parametrize("dtype", some(HALVES, "float32"))
@pytest.mark.parametrize("name", FEW)
def test_the_dtype_of_the_gradients_is_that_of_the_direction_and_not_of_the_state(
    name, dtype, grad_dtype
):
    link, params = steady(name, dtype).link(), jnp.ones((2, 3), dtype)

    def grad_fn(params):
        return params.astype(grad_dtype)

    @jax.jit
    def step(state):
        return link.update(grad_fn(params), state, params, grad_fn=grad_fn)

    state = link.init(params)
    before = types(state)
    for _ in range(2):
        direction, state = step(state)
        assert direction.dtype == grad_dtype
        assert types(state) == before


@pytest.mark.parametrize("grad_dtype", some(["bfloat16", "float32"], "bfloat16"))
@pytest.mark.parametrize("dtype", some(["bfloat16", "float32"], "bfloat16"))
@pytest.mark.parametrize("injected", some(["bfloat16", "float32", None], "float32"))
@pytest.mark.parametrize("name", FEW)
def test_injected_hyperparameters_keep_their_dtype(name, injected, dtype, grad_dtype):
    """One that is asked for, or that of the parameters."""
    row, params = steady(name, dtype), jnp.ones((2, 3), dtype)
    tx = optax.inject_hyperparams(row.factory, row.static_args, injected and jnp.dtype(injected))
    tx = whole_batch(tx(**row.settings)) if name == "esam" else tx(**row.settings)

    def grad_fn(params):
        return params.astype(grad_dtype)

    state = jax.jit(tx.init)(params)
    before = types(state)
    numbers = [x for x in state.hyperparams.values() if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in numbers} == {jnp.dtype(injected or dtype)}
    direction, state = jax.jit(lambda s: tx.update(grad_fn(params), s, params, grad_fn=grad_fn))(
        state
    )
    assert direction.dtype == grad_dtype
    assert types(state) == before


def scheduled(settings, factory, wrap):
    """The settings with each number that may be a schedule made one."""
    parameters = inspect.signature(factory).parameters
    return {
        name: wrap(value) if parameters[name].annotation.startswith("Schedulable") else value
        for name, value in settings.items()
    }


@pytest.mark.parametrize("name", FEW)
def test_a_schedule_that_is_constant_is_its_number(name):
    """Also one with a state of its own, which `inject_hyperparams` alone takes."""
    row = METHODS[name].unnamed

    def made(factory, settings):
        link = factory(**settings)
        return whole_batch(link) if name == "esam" else link

    def wrapped(value):
        return optax.schedules.WrappedSchedule(optax.constant_schedule(value))

    expected, state = three_plain_steps(name)
    constants = scheduled(row.settings, row.factory, optax.constant_schedule)
    actual, same = three_steps(made(row.factory, constants))
    chex.assert_trees_all_close((actual, same), (expected, state), rtol=1e-6)
    injected = optax.inject_hyperparams(row.factory, static_args=row.static_args)
    actual, same = three_steps(made(injected, scheduled(row.settings, row.factory, wrapped)))
    chex.assert_trees_all_close((actual, same.inner_state), (expected, state), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("dtype", some(["float16", "float32"], "float16"))
@pytest.mark.parametrize("name", FEW)
def test_a_state_divided_along_the_second_axis_is_the_same_in_jit_and_outside(name, dtype):
    """From zeros, whose gradient has no direction; a state made of shapes alone is divided too."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    tx = METHODS[name].unnamed.optimizer()

    def step(state, params):
        return tx.update(params, state, params, grad_fn=twice)

    with jax.set_mesh(mesh):
        params = jnp.zeros((2, 8, 4), dtype, out_sharding=sharding)
        first = state = tx.init(params)
        before = types((params, state))
        assert types(jax.jit(tx.init)(params)) == before[1]
        shape = jax.ShapeDtypeStruct(params.shape, params.dtype, sharding=sharding)
        assert types(tx.init(shape)) == before[1]
        abstract = jax.eval_shape(tx.init, shape)
        # What is not divided has no mesh here, and prints alike.
        assert jax.tree.map(str, types(abstract)) == jax.tree.map(str, before[1])
        assert types(jax.jit(step)(first, params)) == before
        for _ in range(4):
            updates, state = step(state, params)
            assert types((updates, state)) == before


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("name", few(*(n for n in NAMES if n not in ("r_sam", "lpf_sgd"))))
def test_sharding_types_are_kept_on_an_explicit_mesh(name):
    """Parameter-shaped state is sharded like the parameters, and stays so."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = jax.device_put(jnp.ones((16, 3)), jax.sharding.PartitionSpec("x"))
        params = {"a": rows, "b": jnp.ones(5)}
        tx = METHODS[name].unnamed.optimizer()

        @jax.jit
        def step(params, state):
            updates, state = tx.update(
                params, state, params, grad_fn=lambda p: jax.tree.map(jnp.sin, p)
            )
            return optax.apply_updates(params, updates), state

        state = jax.jit(tx.init)(params)
        before = jax.tree.map(jax.typeof, (params, state))
        for _ in range(4):
            params, state = step(params, state)
            assert jax.tree.map(jax.typeof, (params, state)) == before
        for leaf in jax.tree.leaves(state):
            if leaf.shape == (16, 3):
                assert jax.typeof(leaf).sharding == jax.typeof(params["a"]).sharding
        assert np.isfinite(params["a"]).all()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("within", [jax.set_mesh, contextlib.nullcontext])
def test_examples_are_selected_from_a_batch_that_is_sharded_on_an_explicit_mesh(within):
    """The indices are those of the whole batch, also where the arrays alone know the mesh."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    link, w, seen = sam_optax.esam(rho=0.5, beta=1.0, gamma=0.25), jnp.array([1.0]), []
    slopes = jnp.arange(16.0) * (-1.0) ** jnp.arange(16)

    def grad_fn(w, indices):
        jax.debug.callback(lambda i: seen.extend(sorted(i.tolist())), indices)
        return w

    with within(mesh):
        spec = jax.sharding.PartitionSpec("x")
        slopes = jax.device_put(slopes, jax.sharding.NamedSharding(mesh, spec))

        @jax.jit
        def step(w, state, slopes):
            return link.update(
                w, state, w, grad_fn=grad_fn, example_loss_fn=lambda w: slopes * w[0]
            )

        jax.block_until_ready(step(w, link.init(w), slopes))
        jax.effects_barrier()
    assert seen == [8, 10, 12, 14]
