"""Products with the Hessian by differences of gradients, against the dense Hessian."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest
from reference import ravel

import sam_optax
from sam_optax import perturb

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(64, 5)), RNG.normal(size=(64, 2))
SHAPES = {"up": (5, 4), "bias": (4,), "down": (4, 2)}
ITERATIONS = 300


def params_of(dtype, scale=1.0):
    rng = np.random.default_rng(6)
    return {name: jnp.asarray(scale * rng.normal(size=s), dtype) for name, s in SHAPES.items()}


def loss(p, scale=1.0):
    """Of a small network whose parameters are measured in another unit."""
    p = jax.tree.map(lambda w: w / scale, p)
    x, y = jnp.asarray(X, p["up"].dtype), jnp.asarray(Y, p["up"].dtype)
    return jnp.mean((jnp.tanh(x @ p["up"] + p["bias"]) @ p["down"] - y) ** 2)


def by_numpy(of, params):
    """The top eigenvector of the Hessian, in float64."""
    leaves, structure = jax.tree.flatten(params)
    shapes = [leaf.shape for leaf in leaves]
    cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
    flat = jnp.concatenate([jnp.ravel(leaf).astype(jnp.float64) for leaf in leaves])

    def whole(w):
        parts = [x.reshape(s) for x, s in zip(jnp.split(w, cuts), shapes, strict=True)]
        return of(jax.tree.unflatten(structure, parts))

    values, vectors = np.linalg.eigh(jax.hessian(whole)(flat))
    return vectors[:, np.argmax(np.abs(values))]


def estimated(grad_fn, params, *, compiled=True, products="differences", **settings):
    """The eigenvector that a step at the same parameters estimates."""
    settings = {"period": 1, "power_iterations": ITERATIONS, "key": 2, **settings}
    link = sam_optax.eigen_sam(0.1, products=products, **settings)

    def step(params, state):
        return link.update(grad_fn(params), state, params, grad_fn=grad_fn)[1]

    step, state = jax.jit(step) if compiled else step, link.init(params)
    for _ in range(2):
        state = step(params, state)
    return sam_optax.read(state, "v")


def angle(v, expected):
    """Between two lines, as the sine."""
    v = ravel(v).astype(np.float64)
    return np.linalg.norm(v - expected * (v @ expected)) / np.linalg.norm(v)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "host"])
@pytest.mark.parametrize(
    ("dtype", "least"), [(jnp.float64, 1e-8), (jnp.float32, 4e-3), (jnp.bfloat16, 0.2)]
)
def test_differences_find_the_top_eigenvector(dtype, least, compiled):
    """As far from it as the third derivatives at the distance, or bfloat16, have it."""
    params = params_of(dtype)
    found = estimated(jax.jit(jax.grad(loss)), params, compiled=compiled)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    assert angle(found, by_numpy(loss, params)) <= least


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_whatever_the_unit_of_the_parameters(scale):
    of, params = functools.partial(loss, scale=scale), params_of(jnp.float32, scale)
    assert angle(estimated(jax.grad(of), params), by_numpy(of, params)) <= 4e-3


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "host"])
def test_from_zero_on(compiled):
    """Where the parameters have no size."""
    curvature = jnp.array([1.0, -5.0, 2.0])
    found = estimated(lambda w: curvature * w, jnp.zeros(3), compiled=compiled)
    np.testing.assert_allclose(np.abs(found), [0, 1, 0], atol=1e-5)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "host"])
def test_a_loss_without_curvature_has_no_eigenvector(compiled):
    found = estimated(lambda w: jnp.ones(3), jnp.ones(3), compiled=compiled)
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "host"])
def test_a_product_is_two_gradients(compiled):
    """One after the other, and none where no estimate is due."""
    calls = []

    def gradient(w):
        jax.debug.callback(lambda: calls.append(1))
        return 2 * w

    link = sam_optax.eigen_sam(0.1, period=2, power_iterations=4, products="differences")
    w = jnp.ones(3)
    update = jax.jit(lambda s: link.update(w, s, w, grad_fn=gradient)[1])
    step = update if compiled else lambda s: link.update(w, s, w, grad_fn=gradient)[1]
    state, counts = link.init(w), []
    for _ in range(4):
        calls.clear()
        state = step(state)
        jax.effects_barrier()
        counts.append(len(calls))
    assert counts == [1, 1, 1 + 2 * 4, 1]


@pytest.mark.usefixtures("x64")
def test_of_a_part_it_is_the_eigenvector_of_its_block():
    params = params_of(jnp.float32)
    mask = {"up": True, "bias": True, "down": False}
    settings = {"period": 1, "power_iterations": ITERATIONS, "products": "differences"}
    link = sam_optax.sharpness_aware(perturb.only(mask, perturb.eigen_ball(0.1, **settings)))
    gradient = jax.grad(loss)

    @jax.jit
    def step(state):
        return link.update(gradient(params), state, params, grad_fn=gradient)[1]

    found = sam_optax.read(step(step(link.init(params))), "v")
    part = {name: params[name] for name in ("bias", "up")}
    expected = by_numpy(lambda p: loss({**params, **p}), part)
    assert angle({name: found[name] for name in part}, expected) <= 4e-3


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_of_divided_parameters_it_is_that_of_the_whole():
    curvature = jnp.arange(1.0, 17.0) ** 2
    link = sam_optax.eigen_sam(0.1, period=1, power_iterations=100, products="differences")
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    specs = optax.tree.map_params(
        link, lambda _: P("model"), link.init(curvature), transform_non_params=lambda _: P()
    )

    def step(state, w, c):
        return link.update(c * w, state, w, grad_fn=lambda w: c * w, param_specs=P("model"))[1]

    parts = (specs, P("model"), P("model"))
    step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=parts, out_specs=specs))
    state = link.init(curvature)
    for _ in range(2):
        state = step(state, jnp.ones(16), curvature)
    np.testing.assert_allclose(np.abs(sam_optax.read(state, "v")), np.eye(16)[15], atol=1e-4)


def test_without_parameters_there_is_nothing_to_multiply():
    w = {"w": jnp.ones(3)}
    method = sam_optax.eigen_sam(0.1, period=1, products="differences")
    link = sam_optax.masked(method, {"w": False})
    direction, _ = link.update(w, link.init(w), w, grad_fn=lambda w: w)
    np.testing.assert_array_equal(direction["w"], w["w"])


@pytest.mark.parametrize("products", ["exact", "differences"])
def test_parameters_may_have_become_wider_since_init(products):
    link = sam_optax.eigen_sam(0.1, period=1, products=products)
    w = {"w": jnp.array([0.5, -1.0, 2.0], jnp.bfloat16)}
    state = link.init(w)
    grad_fn = jax.grad(lambda w: jnp.sum(jnp.array([1.0, 2.0, 5.0]) * w["w"] ** 2))
    wider = {"w": w["w"].astype(jnp.float32)}
    for _ in range(2):
        _, state = link.update(grad_fn(wider), state, wider, grad_fn=grad_fn)
    v = np.asarray(sam_optax.read(state, "v")["w"])
    assert v.dtype == jnp.bfloat16
    assert abs(float(v[2])) > 0.9
