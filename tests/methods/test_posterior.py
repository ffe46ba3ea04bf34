"""What bsam and ivon have learned, and draws from it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax import combine, perturb, sharpness_aware, start

W = {"a": jnp.linspace(-1.0, 1.0, 4000), "b": jnp.ones((2, 3), jnp.bfloat16)}
LINKS = {
    "bsam": (lambda: sam_optax.bsam(ess=100.0, initial_precision=4.0), 100 * 4),
    "ivon": (lambda: sam_optax.ivon(50.0, initial_hessian=0.5, weight_decay=0.3), 50 * 0.8),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_sample_has_the_mean_and_the_precision_of_the_posterior(name):
    make, precision = LINKS[name]
    state = optax.chain(make(), optax.sgd(0.1)).init(W)
    samples = [sam_optax.posterior_sample(key, state, W) for key in (0, 1, jax.random.key(1))]
    for sample in samples:
        assert sample["b"].dtype == jnp.bfloat16
        away = np.asarray(sample["a"] - W["a"])
        assert abs(away.mean()) < 4 / np.sqrt(4000 * precision)
        np.testing.assert_allclose(away.std(), precision**-0.5, rtol=0.05)
    assert not np.allclose(samples[0]["a"], samples[1]["a"])
    np.testing.assert_array_equal(samples[1]["a"], samples[2]["a"])
    # Not the noise that the coming step is taken with.
    assert not np.allclose(samples[0]["a"], sam_optax.gradient_point(state, W)["a"])


@pytest.mark.parametrize("name", LINKS)
def test_a_changed_sample_size_takes_effect_one_step_later(name):
    w = {"a": jnp.ones(3)}
    tx = optax.inject_hyperparams(getattr(sam_optax, name))(ess=50.0)
    state = tx.init(w)
    state.hyperparams["ess"] = jnp.asarray(200.0)
    _, state = tx.update(w, state, w, grad_fn=lambda p: p)
    assert sam_optax.read(state, "ess") == 200


def test_an_overflow_leaves_what_was_learned():
    for name, quantity in (("bsam", "s"), ("ivon", "h")):
        link = getattr(sam_optax, name)(ess=50.0, updates_at="gradient_point")
        w = jnp.ones(2)
        huge = jnp.array([3e38, 1.0])
        state = link.init(w)
        state = state._replace(start=state.start._replace(**{quantity: jnp.full(2, 4.0)}))
        _, after = link.update(huge, state, w, grad_fn=lambda p: p)
        found = np.asarray(sam_optax.read(after, quantity))
        assert np.isfinite(found).all()
        assert found[1] != 4


@pytest.mark.parametrize("name", LINKS)
def test_what_a_mask_leaves_out_is_not_drawn(name):
    """The rest is drawn as if it were alone."""
    make, _ = LINKS[name]
    params = {"frozen": jnp.ones(3), "trained": W, "steps": jnp.array(3)}
    mask = {"frozen": False, "trained": True, "steps": False}
    tx = optax.chain(sam_optax.masked(make(), mask), optax.sgd(0.1))
    sample = sam_optax.posterior_sample(4, tx.init(params), params)
    alone = sam_optax.posterior_sample(4, make().init(W), W)
    chex.assert_trees_all_equal(sample, {**params, "trained": alone})
    both = optax.chain(sam_optax.masked(make(), mask), sam_optax.sam(0.1), optax.sgd(0.1))
    chex.assert_trees_all_equal(sam_optax.posterior_sample(4, both.init(params), params), sample)


@pytest.mark.parametrize(
    ("link", "name", "needed"),
    [
        (sharpness_aware(perturb.over_precision(0.1)), "over_precision", "precision"),
        (
            sharpness_aware(perturb.ball(0.1), combine=combine.newton_precision()),
            "newton_precision",
            "precision",
        ),
        (sharpness_aware(combine=combine.newton_hessian()), "newton_hessian", "hessian"),
    ],
)
def test_a_part_that_finds_nothing_learned_says_what_it_needs(link, name, needed):
    w = jnp.ones(2)
    told = f"{name} divides by what start.{needed} learns.* start=sam_optax.start.{needed}"
    with pytest.raises(ValueError, match=told):
        link.update(w, link.init(w), w, grad_fn=lambda p: p)


def test_the_precision_stays_above_zero_where_the_decay_falls():
    """h may be below 0 by less than δ."""
    w = {"a": jnp.ones(3)}
    tx = optax.inject_hyperparams(sam_optax.ivon)(ess=50.0, weight_decay=0.1)
    state = tx.init(w)
    inner = state.inner_state
    inner = inner._replace(start=inner.start._replace(h={"a": jnp.array([-0.09, 0.5, 0.02])}))
    state = state._replace(inner_state=inner)
    state.hyperparams["weight_decay"] = jnp.asarray(0.05)
    for _ in range(3):
        updates, state = tx.update(w, state, w, grad_fn=lambda p: p)
    assert np.isfinite(updates["a"]).all()
    assert int(sam_optax.read(state, "notfinite")) == 0
    h = np.asarray(sam_optax.read(state, "h")["a"])
    assert (h + np.float32(0.05) > 0).all()
    np.testing.assert_allclose(h, [-0.04, 0.5, 0.02], rtol=1e-2, atol=2e-3)


def test_a_precision_is_cut_where_a_part_is_perturbed():
    w = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}
    learned = start.precision(5.0, initial_precision=2.0)
    only = perturb.only({"a": True, "b": False}, perturb.over_precision(0.1))
    labels = {"a": "some", "b": "none"}
    kinds = {"some": perturb.over_precision(0.1), "none": optax.set_to_zero()}
    for part in (only, optax.partition(kinds, labels)):
        link = sharpness_aware(part, start=learned, combine=combine.newton_precision())
        seen = []

        def grad_fn(p, seen=seen):
            seen.append(p)
            return p

        link.update(w, link.init(w), w, grad_fn=grad_fn)
        first, second = seen[-2:]
        np.testing.assert_allclose(second["a"], w["a"] + 0.1 * first["a"] / 2.0, rtol=1e-6)
        np.testing.assert_array_equal(second["b"], w["b"])


def test_noise_and_a_noisy_start_are_drawn_apart():
    w = {"a": jnp.ones(1000)}
    link = sharpness_aware(perturb.noise(0.1), start=start.noise(0.1))
    points = []
    link.update(w, link.init(w), w, grad_fn=lambda p: points.append(p["a"]) or p)
    assert abs(np.corrcoef(*points[-2:])[0, 1]) < 0.1


def test_both_dampings_of_numpy_are_zero_too():
    with pytest.raises(ValueError, match="must not both be 0"):
        sam_optax.bsam(ess=5.0, weight_decay=np.float32(0), damping=0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("compiled", [True, False])
def test_ivon_learns_from_the_point_as_it_was_rounded(dtype, compiled):
    """With a quadratic loss f is λ (h + δ) d (w + d) H for the d that w was moved by."""
    w = jnp.linspace(0.5, 2.0, 64).astype(dtype)
    link = sam_optax.ivon(1e5, beta_2=0.9, updates_at="gradient_point")
    state = link.init(w)
    point = sam_optax.gradient_point(state, w)
    g = 3 * point.astype(jnp.float32)
    update = jax.jit(link.update) if compiled else link.update
    _, after = update(g, state, w, grad_fn=None)
    d = np.asarray(point, np.float64) - np.asarray(w, np.float64)
    assert len(set(d)) < 64  # many are rounded alike
    share, h, delta = 0.1, 1.0, 1e-4
    f = 1e5 * (h + delta) * d * np.asarray(g, np.float64)
    expected = 0.9 * h + share * f + share**2 / 2 * (h - f) ** 2 / (h + delta)
    np.testing.assert_allclose(after.start.h, expected, rtol=1e-3)


def test_in_float32_ivon_learns_from_the_noise_as_it_was_drawn():
    """Which is known to more digits than the point is."""
    w = jnp.ones(64)
    link = sam_optax.ivon(1e10, beta_2=0.9, updates_at="gradient_point")
    state = link.init(w)
    d = np.asarray(state.start.offset(w), np.float64)
    _, after = link.update(jnp.ones(64), state, w, grad_fn=None)
    f = 1e10 * (1 + 1e-4) * d
    expected = 0.9 + 0.1 * f + 0.005 * (1 - f) ** 2 / (1 + 1e-4)
    np.testing.assert_allclose(after.start.h, expected, rtol=1e-5)
