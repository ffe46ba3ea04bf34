"""The measures of sharpness are what they say, on a quadratic and against the dense Hessian."""

import functools
import itertools
import os
from pathlib import Path
import subprocess
import sys

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.analysis import gradients, hessian, landscape, sharpness
from experiments.analysis.objective import AnalysisError, Objective
from sam_optax import perturb

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(3)


@functools.cache
def quadratic():
    """½ (w − c)ᵀ A (w − c) + b, whose A and c differ from example to example, in two leaves."""
    rng = np.random.default_rng(5)
    roots = rng.normal(size=(11, 7, 7))
    matrices = np.einsum("nij,nkj->nik", roots, roots)
    matrices[:, 0, 0] -= 9.0  # a direction of negative curvature
    centers = rng.normal(size=(11, 7))

    def loss_fn(params, batch):
        w = jnp.concatenate([params["a"].ravel(), params["b"]])
        a, c = batch
        return 1.5 + 0.5 * jnp.einsum("ni,nij,nj->n", w - c, a, w - c).mean()

    params = {"a": jnp.asarray(rng.normal(size=(2, 2))), "b": jnp.asarray(rng.normal(size=3))}
    return Objective.divided(loss_fn, (matrices, centers), 4), params, (matrices, centers)


def by_hand(w, matrices, centers):
    """Loss and gradient of the quadratic."""
    pairs = list(zip(matrices, centers, strict=True))
    loss = np.mean([1.5 + 0.5 * (w - c) @ a @ (w - c) for a, c in pairs])
    return loss, np.mean([a @ (w - c) for a, c in pairs], axis=0)


@functools.cache
def network(dtype=jnp.float64):
    """A network of 200 parameters, and its dense Hessian over all examples."""
    rng = np.random.default_rng(0)
    examples = rng.normal(size=(37, 8)), rng.normal(size=(37, 4))
    shapes = {"in": (8, 15), "in_bias": (15,), "out": (15, 4), "out_bias": (4,), "scale": (1,)}
    params = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}

    def loss_fn(params, batch):
        x, y = batch
        hidden = jnp.tanh(x @ params["in"] + params["in_bias"])
        return jnp.square(params["scale"] * hidden @ params["out"] + params["out_bias"] - y).mean()

    flat, unravel = ravel_pytree(params)
    assert flat.size == 200
    examples = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), examples)
    dense = jax.jit(jax.hessian(lambda w: loss_fn(unravel(w), examples)))(flat)
    return Objective.divided(loss_fn, examples, 10), params, np.asarray(dense, np.float64)


def test_the_loss_and_its_derivatives_are_those_of_all_examples():
    """Batches of 4, 4 and 3, each weighted by its examples."""
    objective, params, (matrices, centers) = quadratic()
    w, unravel = ravel_pytree(params)
    loss, gradient = by_hand(np.asarray(w), matrices, centers)
    np.testing.assert_allclose(objective.loss(params), loss, rtol=1e-12)
    np.testing.assert_allclose(ravel_pytree(objective.gradient(params))[0], gradient, rtol=1e-12)
    v = np.arange(7.0) - 2
    product = ravel_pytree(objective.product(params, unravel(v)))[0]
    np.testing.assert_allclose(product, matrices.mean(0) @ v, rtol=1e-12)
    passes = []
    watched = Objective(objective.loss_fn, objective.batches, lambda: passes.append(1))
    watched.loss(params), watched.gradient(params), watched.product(params, params)
    assert len(passes) == 3


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_eigenpairs_of_a_quadratic(k):
    objective, params, (matrices, _) = quadratic()
    values, vectors = np.linalg.eigh(matrices.mean(0))
    found = hessian.top(objective, params, k, key=KEY)
    np.testing.assert_allclose(found.values, values[::-1][:k], rtol=1e-8)
    for i, vector in enumerate(found.vectors):
        flat = np.asarray(ravel_pytree(vector)[0])
        assert abs(flat @ vectors[:, -1 - i]) == pytest.approx(1, abs=1e-8)
        assert jax.tree.structure(vector) == jax.tree.structure(params)


@pytest.mark.slow
def test_ten_eigenvalues_of_eleven_million_parameters_fit_in_four_gigabytes():
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "large_hessian.py", "8"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    parameters, _, _, gigabytes = map(float, done.stdout.split())
    assert parameters > 11e6
    assert gigabytes < 4


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float64, 1e-8), (jnp.float32, 1e-4)])
@pytest.mark.parametrize("k", [1, 10])
def test_the_largest_eigenvalues_of_a_network(k, dtype, rtol):
    """With a basis of 21 vectors, so that the iteration restarts."""
    objective, params, dense = network(dtype)
    expected = np.linalg.eigvalsh(network()[2])[::-1][:k]
    assert expected[-1] > 0 > np.linalg.eigvalsh(dense)[0]
    found = hessian.top(objective, params, k, key=KEY)
    assert found.values.dtype == dtype
    np.testing.assert_allclose(found.values, expected, rtol=rtol)


def test_the_density_has_the_moments_of_its_probes():
    objective, params, dense = network()
    found = hessian.density(objective, params, key=KEY, steps=30, probes=3)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-12)
    probes = [jax.random.normal(key, (200,)) for key in jax.random.split(KEY, 3)]
    units = [v / np.linalg.norm(v) for v in map(np.asarray, probes)]
    for power in (1, 2, 3, 8):
        expected = [v @ np.linalg.matrix_power(dense, power) @ v for v in units]
        moments = (found.weights * found.values**power).sum(1)
        np.testing.assert_allclose(moments, expected, rtol=1e-8)


@pytest.mark.slow
def test_the_density_is_that_of_the_dense_hessian():
    """As a distribution: the share of eigenvalues below each of some bounds, over many probes."""
    objective, params, dense = network()
    found = hessian.density(objective, params, key=KEY, steps=60, probes=30)
    values = np.linalg.eigvalsh(dense)
    for bound in np.quantile(values, [0.02, 0.3, 0.9, 0.98]) + 1e-3:
        share = (found.weights * (found.values <= bound)).sum(1).mean()
        assert share == pytest.approx((values <= bound).mean(), abs=0.03)
    grid = np.linspace(values[0] - 1, values[-1] + 1, 4001)
    assert np.trapezoid(found.smooth(grid, 0.05), grid) == pytest.approx(1, abs=1e-6)


def test_the_trace_of_a_network_within_its_error():
    objective, params, dense = network()
    mean, error = hessian.trace(objective, params, key=KEY, samples=200)
    assert abs(mean - np.trace(dense)) < 3 * error
    # The variance of Hutchinson's estimator with signs is 2 Σ of the squares off the diagonal.
    off = dense - np.diag(np.diag(dense))
    assert error == pytest.approx(np.sqrt(2 * np.sum(off**2) / 200), rel=0.2)


def test_an_estimate_by_hand():
    estimate = hessian.Estimate.of([1.0, 2.0, 6.0])
    assert estimate == pytest.approx((3, np.sqrt(7 / 3)))


def test_the_increase_along_the_ascent_of_a_quadratic():
    objective, params, (matrices, centers) = quadratic()
    w, _ = ravel_pytree(params)
    w, radii = np.asarray(w), (0.1, 0.7)
    loss, g = by_hand(w, matrices, centers)
    expected = [by_hand(w + r * g / np.linalg.norm(g), matrices, centers)[0] - loss for r in radii]
    np.testing.assert_allclose(sharpness.increases(objective, params, radii), expected, rtol=1e-10)
    t = np.where([True] * 4 + [False] * 3, np.abs(w) + 0.01, 1.0)  # "b" is a vector, no weight
    steps = [r * t**2 * g / np.linalg.norm(t * g) for r in radii]
    expected = [by_hand(w + step, matrices, centers)[0] - loss for step in steps]
    found = sharpness.increases(objective, params, radii, perturb.adaptive_ball)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def highest_in_ball(matrix, g, radius):
    """max gᵀε + ½ εᵀAε over the ball: (ν − A) ε = g with ν > λ_max and ‖ε‖ = radius."""
    low, high = np.linalg.eigvalsh(matrix)[-1] + 1e-12, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        epsilon = np.linalg.solve(middle * np.eye(len(g)) - matrix, g)
        low, high = (middle, high) if np.linalg.norm(epsilon) > radius else (low, middle)
    return g @ epsilon + 0.5 * epsilon @ matrix @ epsilon


@pytest.mark.parametrize("radius", [0.2, 2.0])
def test_the_worst_case_of_a_quadratic(radius):
    objective, params, (matrices, centers) = quadratic()
    _, g = by_hand(np.asarray(ravel_pytree(params)[0]), matrices, centers)
    expected = highest_in_ball(matrices.mean(0), g, radius)
    found = sharpness.worst_case(objective, params, radius, steps=40)
    assert found <= expected * (1 + 1e-9)
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_worst_case_of_each_part():
    objective, params, (matrices, centers) = quadratic()
    w = np.asarray(ravel_pytree(params)[0])
    expected = [
        highest_in_ball(
            matrices[i : i + 2].mean(0), by_hand(w, matrices[i : i + 2], centers[i : i + 2])[1], 0.5
        )
        for i in range(0, 10, 2)
    ]
    mean, error = sharpness.m_sharpness(objective, params, 0.5, 2, steps=40)
    assert mean == pytest.approx(np.mean(expected), rel=1e-3)
    assert error == pytest.approx(np.std(expected, ddof=1) / np.sqrt(5), rel=1e-2)
    first = sharpness.m_sharpness(objective, params, 0.5, 2, steps=40, parts=3)
    assert first.mean == pytest.approx(np.mean(expected[:3]), rel=1e-3)


def test_the_worst_case_is_the_highest_seen_and_sams_at_least():
    """On a loss that falls again behind its ridge, which later steps run beyond."""

    def loss_fn(params, batch):
        del batch
        return jnp.sin(params).sum() + 0.01 * params.sum()

    objective = Objective(loss_fn, [jnp.zeros(1)])
    (at_once,) = sharpness.increases(objective, jnp.array([0.2]), [3.0])
    for steps in (1, 3):
        found = sharpness.worst_case(objective, jnp.array([0.2]), 3.0, steps=steps, step_size=2.2)
        points = [3.2]  # SAM's, then back and forth along the sign of the slope, within ±3
        for _ in range(steps - 1):
            slope = np.cos(points[-1]) + 0.01
            points.append(np.clip(points[-1] + 2.2 * np.sign(slope), -2.8, 3.2))
        losses = [np.sin(x) + 0.01 * x for x in (0.2, *points)]
        assert found == pytest.approx(max(losses) - losses[0])
        assert found >= at_once
    assert losses[-1] < max(losses) - 0.1


def test_the_average_case_of_a_quadratic_is_half_the_trace():
    objective, params, (matrices, _) = quadratic()
    expected = 0.5 * 0.3**2 * np.trace(matrices.mean(0))
    mean, error = sharpness.average_case(objective, params, 0.3, key=KEY, samples=200)
    assert abs(mean - expected) < 3 * error < 0.3 * expected


def test_the_landscape_of_a_quadratic():
    objective, params, (matrices, centers) = quadratic()
    w, unravel = ravel_pytree(params)
    w, rng = np.asarray(w), np.random.default_rng(9)
    x, y = rng.normal(size=(2, 7))
    xs, ys = (-1.0, 0.0, 0.5), (-0.3, 2.0)
    found = landscape.plane(objective, params, (unravel(x), unravel(y)), xs, ys)
    expected = [[by_hand(w + i * x + j * y, matrices, centers)[0] for i in xs] for j in ys]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    found = landscape.line(objective, params, unravel(x), (-0.5, 0, 0.25, 1))
    expected = [by_hand((1 - t) * w + t * x, matrices, centers)[0] for t in (-0.5, 0, 0.25, 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_random_direction_is_as_long_as_the_parameters_filter_by_filter():
    rng = np.random.default_rng(2)
    shapes = {"kernel": (3, 3, 2, 5), "dense": (6, 4), "bias": (4,), "scale": ()}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    direction = landscape.filter_normalized(params, KEY)
    for name in ("kernel", "dense"):
        own, of_params = (np.moveaxis(np.asarray(t[name]), -1, 0) for t in (direction, params))
        for one, other in zip(own, of_params, strict=True):
            assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(other))
        assert not np.allclose(direction[name], params[name])
    assert not np.any(direction["bias"])
    assert not np.any(direction["scale"])


def test_two_directions_are_made_orthonormal():
    a, b = {"x": jnp.array([3.0, 0]), "y": jnp.array([4.0])}, {"x": jnp.ones(2), "y": jnp.ones(1)}
    first, second = (np.asarray(ravel_pytree(d)[0]) for d in landscape.orthonormal(a, b))
    np.testing.assert_allclose(first, [0.6, 0, 0.8], rtol=1e-12)
    assert np.linalg.norm(second) == pytest.approx(1)
    assert first @ second == pytest.approx(0, abs=1e-12)
    assert np.linalg.det([first, second, [1, 1, 1]]) == pytest.approx(0, abs=1e-12)
    assert second @ [1, 1, 1] > 0


def test_the_norms_of_the_gradients_of_a_quadratic():
    objective, params, (matrices, centers) = quadratic()
    objective = Objective.divided(objective.loss_fn, (matrices[:10], centers[:10]), 2)
    w = np.asarray(ravel_pytree(params)[0])
    own = [by_hand(w, matrices[i : i + 2], centers[i : i + 2])[1] for i in range(0, 10, 2)]
    found = gradients.norms(objective, params)
    np.testing.assert_allclose(found.squared, [g @ g for g in own], rtol=1e-10)
    assert found.whole == pytest.approx(np.sum(np.mean(own, 0) ** 2))
    assert found.mean == pytest.approx(np.mean([g @ g for g in own]))
    assert found.variance == pytest.approx(np.mean(np.sum((own - np.mean(own, 0)) ** 2, 1)))


def test_how_the_gradient_of_a_quadratic_turns():
    objective, params, (matrices, centers) = quadratic()
    w, radii, gammas = np.asarray(ravel_pytree(params)[0]), (0.1, 1.0), (0.0, 0.4)
    found = gradients.turning(objective, params, radii, gammas, key=KEY, draws=2)
    keys = {0.0: [KEY], 0.4: jax.random.split(KEY, 2)}
    cosines, losses = np.zeros((2, 2)), np.zeros((2, 2))
    for (i, gamma), (j, radius) in itertools.product(enumerate(gammas), enumerate(radii)):
        for key in keys[gamma]:
            noise = np.asarray(ravel_pytree(optax.tree.random_like(key, params))[0])
            start = w + gamma * noise
            first = by_hand(start, matrices, centers)[1]
            loss, g = by_hand(start + radius * first / np.linalg.norm(first), matrices, centers)
            cosine = first @ g / np.linalg.norm(first) / np.linalg.norm(g)
            cosines[i, j] += cosine / len(keys[gamma])
            losses[i, j] += loss / len(keys[gamma])
    np.testing.assert_allclose(found.cosines, cosines, rtol=1e-9)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-9)


def flat(objective):
    """A loss without curvature."""
    return Objective(lambda p, b: optax.tree.sum(p), objective.batches)


BAD = {
    "k must lie between 1 and the 200": lambda o, p: hessian.top(o, p, 201, key=KEY),
    "got 0": lambda o, p: hessian.top(o, p, 0, key=KEY),
    "basis must be greater than k = 5, got 5": lambda o, p: hessian.top(o, p, 5, key=KEY, basis=5),
    "pass a larger basis than 6": lambda o, p: hessian.top(
        o, p, 5, key=KEY, basis=6, tolerance=1e-14, restarts=1
    ),
    "the Hessian is not finite": lambda o, p: hessian.top(
        o, jax.tree.map(lambda x: np.full_like(x, np.nan), p), 1, key=KEY
    ),
    "the 200 parameters of the model, .*got 201": lambda o, p: hessian.density(
        o, p, key=KEY, steps=201
    ),
    "samples must be at least 2 for": lambda o, p: hessian.trace(o, p, key=KEY, samples=1),
    "radius must be positive": lambda o, p: sharpness.worst_case(o, p, 0.0),
    "between 1 and 37 examples, got 38": lambda o, p: sharpness.m_sharpness(o, p, 0.1, 38),
    "two parts of m examples": lambda o, p: sharpness.m_sharpness(o, p, 0.1, 37),
    "broke down, as where the Hessian is zero": lambda o, p: hessian.top(flat(o), p, 1, key=KEY),
    "the Hessian is zero or not finite": lambda o, p: hessian.density(flat(o), p, key=KEY, steps=3),
    "the loss is NaN within": lambda o, p: sharpness.worst_case(
        Objective(lambda p, b: -jnp.log(1e-3 - p["in"]).sum(), o.batches),
        optax.tree.zeros_like(p),
        1.0,
    ),
    "sigma must be positive": lambda o, p: sharpness.average_case(o, p, -1.0, key=KEY),
    "gammas must not be negative": lambda o, p: gradients.turning(o, p, [1.0], [-1.0], key=KEY),
    "different models .*in.* is .8, 15. and missing": lambda o, p: landscape.line(o, p, {}, [0.0]),
    "zero or parallel": lambda o, p: landscape.orthonormal(p, optax.tree.scale(-2.0, p)),
    "one in a batch, got 37 in batches of 0": lambda o, p: Objective.divided(
        o.loss_fn, (jnp.ones(37), jnp.ones(37)), 0
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_computed_is_told(message):
    objective, params, _ = network()
    with pytest.raises(AnalysisError, match=message):
        BAD[message](objective, params)
