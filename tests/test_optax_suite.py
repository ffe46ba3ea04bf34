"""What Optax asks of every optimizer in its contrib package, asked of every method."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import METHODS, NAMES, whole_batch

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
}


def gentle(name):
    link = getattr(sam_optax, name)(**GENTLE.get(name, {"rho": 1e-3}))
    link = whole_batch(link) if name == "esam" else link
    return optax.chain(link, optax.sgd(1e-3, momentum=METHODS[name].momentum))


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


@pytest.mark.parametrize("target", [parabola, rosenbrock, matrix_parabola, mixed_tree])
@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_injected_hyperparameters_give_the_same_update_and_state(name):
    row = METHODS[name].unnamed
    factory = optax.inject_hyperparams(row.factory, static_args=row.static_args)
    injected = factory(**row.settings)
    injected = whole_batch(injected) if name == "esam" else injected
    expected, state = three_steps(row.link())
    actual, injected_state = three_steps(injected)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5)
    chex.assert_trees_all_close(injected_state.inner_state, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_are_kept(name, dtype):
    params, grads = optax.tree.cast((PARAMS, GRADS), dtype)
    updates, _ = update(METHODS[name].unnamed.optimizer(), params, grads)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    updated = optax.apply_updates(params, updates)
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", NAMES)
def test_the_first_update_of_multi_steps_is_zero(name):
    """Around a method of one gradient; around a second gradient it is an error, as it would lie."""
    tx = optax.MultiSteps(METHODS[name].unnamed.optimizer(), 4)
    if name in ("lpf_sgd", "msam", "s2_sam"):
        updates, _ = update(tx)
        assert not any(leaf.any() for leaf in updates)
    else:
        with pytest.raises(ValueError, match=r"optax\.MultiSteps around a method with a second"):
            update(tx)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("name", NAMES)
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
