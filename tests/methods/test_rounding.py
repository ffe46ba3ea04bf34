"""Points beside parameters of few bits, rounded up or down at random."""

import json

import bfloat16_digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax

LOW = ["bfloat16", "float16"]
RNG = np.random.default_rng(0)
# Of all sizes, those of float16 that are subnormal, zero and whole numbers among them.
NUMBERS = np.concatenate([RNG.normal(size=24) * 10.0 ** RNG.uniform(-5, 2, 24), [0, 1, -2, 3e-7]])
DRAWS = 10_000


def params(dtype):
    """Several leaves, one of float32 beside."""
    low = jnp.asarray(NUMBERS, dtype).reshape(4, 7)
    return {"kernel": low, "bias": low[0] * 2, "scale": jnp.ones(3, jnp.float32)}


def gradient(w):
    """Of several sizes, so that ε is far below a unit of the last place in most."""
    return jax.tree.map(lambda x: (jnp.arange(x.size).reshape(x.shape) - 5).astype(x.dtype), w)


def told(w):
    """A gradient that is the point where it is taken."""
    return w


def points(link, w, steps):
    """The second point at each of the steps."""
    state = link.init(w)

    @jax.jit
    def at(steps):
        return link.update(gradient(w), state._replace(steps=steps), w, grad_fn=told)[0]

    return jax.jit(jax.vmap(at))(steps)


def exact(w, rho):
    """w + ρ unit(g) in float64."""
    w, g = (jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (w, gradient(w)))
    length = np.sqrt(sum(np.sum(leaf**2) for leaf in g.values()))
    return {name: w[name] + rho * g[name] / length for name in w}


def neighbours(x, dtype):
    """The largest number of the dtype that is not above x, and the smallest that is not below."""
    kind = jnp.finfo(dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(x), float(kind.tiny))))
    unit = 2.0 ** (exponent - kind.nmant)
    return np.floor(x / unit) * unit, np.ceil(x / unit) * unit


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("rho", [0.02, 0.3])
def test_the_mean_of_the_points_is_w_plus_epsilon(rho, dtype):
    """And each of them is one of the two numbers beside it; float32 is added to as ever."""
    w = params(dtype)
    found, expected = points(sam_optax.sam(rho), w, jnp.arange(DRAWS)), exact(w, rho)
    np.testing.assert_array_equal(found["scale"][0], found["scale"][-1])
    np.testing.assert_allclose(found["scale"][0], expected["scale"], rtol=1e-6)
    rounded = 0
    for name in ("kernel", "bias"):
        x, got = expected[name], np.asarray(found[name], np.float64)
        below, above = neighbours(x, dtype)
        slack = 1e-6 * np.abs(x) + 1e-9  # of float32, in which the sum is taken
        assert ((got >= below - slack) & (got <= above + slack)).all()
        error = 0.5 * (above - below) / np.sqrt(DRAWS)
        np.testing.assert_array_less(np.abs(got.mean(0) - x), 5 * error + slack)
        rounded += (got.std(0) > 0).sum()
    assert rounded > 20


@pytest.mark.parametrize(("dtype", "rho"), [("bfloat16", 0.02), ("float16", 0.002)])
def test_rounding_to_the_nearest_would_lose_it(dtype, rho):
    """What the test above can see: with a small radius the nearest number is mostly w itself."""
    w = params(dtype)
    x = exact(w, rho)["kernel"]
    lost = x.astype(w["kernel"].dtype) == np.asarray(w["kernel"])
    assert lost.mean() > 0.25
    mean = np.asarray(points(sam_optax.sam(rho), w, jnp.arange(DRAWS))["kernel"], float).mean(0)
    moved = np.abs(mean - np.asarray(w["kernel"], float))[lost]
    assert (moved > 0).mean() > 0.5


def test_each_step_has_draws_of_its_own_and_none_is_kept():
    w, link = params("bfloat16"), sam_optax.sam(0.3)
    found = points(link, w, jnp.array([3, 3, 4]))["kernel"]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
    assert not jax.tree.leaves(link.init(w).perturb)


@pytest.mark.parametrize("method", ["s2_sam", "msam", "r_sam", "ivon", "lpf_sgd"])
def test_the_gradient_point_is_where_the_first_gradient_is_taken(method):
    """To the bit, on the host and in jit."""
    w = params("bfloat16")
    settings = {"ess": 50.0} if method == "ivon" else {}
    settings |= {"samples": 2} if method == "lpf_sgd" else {}
    link = getattr(sam_optax, method)(**settings)
    state = link.init(w)
    _, state = link.update(gradient(w), state, w, grad_fn=gradient)
    asked = []

    def watched(p):
        asked.append(jax.tree.map(np.asarray, p))
        return gradient(p)

    link.update(gradient(w), state, w, grad_fn=watched)
    for point in (sam_optax.gradient_point, jax.jit(sam_optax.gradient_point)):
        jax.tree.map(np.testing.assert_array_equal, point(state, w), asked[0])


def test_two_points_of_a_step_are_rounded_apart():
    """Both are w + δ0 here."""
    w = params("bfloat16")
    there = optax.GradientTransformationExtraArgs(
        optax.init_empty_state, lambda g, state, w, *, offset, **extra: (offset, state)
    )
    link = sam_optax.sharpness_aware(there, start=sam_optax.start.noise(0.01))
    asked = []

    def watched(p):
        asked.append(np.asarray(p["kernel"]))
        return gradient(p)

    link.update(gradient(w), link.init(w), w, grad_fn=watched)
    first, second = asked
    assert 0 < (first != second).sum() < first.size


@pytest.mark.parametrize("dtype", LOW)
def test_a_first_point_has_the_mean_of_the_offset(dtype):
    w, link = params(dtype), sam_optax.s2_sam(0.05)
    state = link.init(w)
    state = state._replace(start=state.start._replace(previous=gradient(w)))
    found = jax.vmap(lambda steps: sam_optax.gradient_point(state._replace(steps=steps), w))(
        jnp.arange(DRAWS)
    )
    expected = exact(w, 0.05)
    for name in ("kernel", "bias"):
        x, got = expected[name], np.asarray(found[name], np.float64)
        below, above = neighbours(x, dtype)
        error = 0.5 * (above - below) / np.sqrt(DRAWS)
        np.testing.assert_array_less(np.abs(got.mean(0) - x), 5 * error + 2e-6 * np.abs(x) + 4e-9)


def test_devices_and_the_host_round_alike():
    """A mesh whose devices divide the parameters, and a shard_map where each has all of them."""
    w, link = params("bfloat16"), sam_optax.sam(0.3)
    state = link.init(w)._replace(steps=jnp.array(7))

    def update(w, state):
        return link.update(gradient(w), state, w, grad_fn=told)[0]

    expected = update(w, state)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    specs = {"kernel": rows, "bias": whole, "scale": whole}
    divided = jax.tree.map(
        lambda x, spec: jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)), w, specs
    )
    mapped = jax.shard_map(update, mesh=mesh, in_specs=whole, out_specs=whole)
    for found in (jax.jit(update)(divided, state), jax.jit(mapped)(w, state)):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_derivative_is_that_of_the_point():
    w = params("float16")

    def moved(rho):
        link = sam_optax.sam(rho)
        return jnp.sum(link.update(gradient(w), link.init(w), w, grad_fn=told)[0]["kernel"])

    expected = exact(w, 1.0)["kernel"].sum() - np.asarray(w["kernel"], np.float64).sum()
    np.testing.assert_allclose(jax.grad(moved)(0.3), expected, rtol=2e-2)


@pytest.mark.parametrize("dtype", LOW)
def test_what_is_not_finite_stays_so(dtype):
    largest = jnp.finfo(dtype).max
    w = {"w": jnp.array([jnp.inf, -jnp.inf, jnp.nan, largest, 1.0], dtype)}
    link = sam_optax.sharpness_aware(optax.scale(1.0))
    direction = {"w": jnp.array([0, 0, 0, largest, 0], dtype)}
    seen = []
    link.update(direction, link.init(w), w, grad_fn=lambda p: seen.append(p) or p)
    expected = np.array([np.inf, -np.inf, np.nan, np.inf, 1.0])
    np.testing.assert_array_equal(np.asarray(seen[0]["w"], np.float64), expected)


def test_samples_of_a_posterior_are_rounded_apart():
    """So that their mean tells of offsets far below a unit of the last place."""
    w = {"w": jnp.full(64, 1.0, jnp.bfloat16)}
    state = sam_optax.ivon(1e6).init(w)
    sample = jax.jit(lambda i: sam_optax.posterior_sample(i, state, w)["w"])
    samples = np.array([np.asarray(sample(i), np.float64) for i in range(300)])
    assert (samples != 1).any(0).mean() > 0.9  # σ = 1/1000, a unit 1/128


@pytest.mark.usefixtures("x64")
def test_beside_float64_the_offset_is_wider_still():
    w = params("bfloat16") | {"scale": jnp.ones(3, jnp.float64)}
    found, expected = points(sam_optax.sam(0.3), w, jnp.arange(2000)), exact(w, 0.3)
    assert {name: leaf.dtype for name, leaf in found.items()} == {
        name: leaf.dtype for name, leaf in w.items()
    }
    np.testing.assert_allclose(found["scale"][0], expected["scale"], rtol=1e-12)
    below, above = neighbours(expected["kernel"], "bfloat16")
    distance = np.abs(np.asarray(found["kernel"], np.float64).mean(0) - expected["kernel"])
    slack = 1e-6 * np.abs(expected["kernel"]) + 1e-9
    np.testing.assert_array_less(distance, 2.5 * (above - below) / np.sqrt(2000) + slack)


def test_the_page_is_that_of_its_figures():
    results = bfloat16_digits.RESULTS
    figures = json.loads((results / "bfloat16.json").read_text())
    assert bfloat16_digits.page(figures) == (results / "bfloat16.md").read_text()
    assert figures["seeds"] == 10
