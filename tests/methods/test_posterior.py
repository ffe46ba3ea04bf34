"""What bsam and ivon have learned, and draws from it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax import combine, perturb, sharpness_aware

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
    ("link", "name", "start"),
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
def test_a_part_that_finds_nothing_learned_says_what_it_needs(link, name, start):
    w = jnp.ones(2)
    told = f"{name} divides by what start.{start} learns.* start=sam_optax.start.{start}"
    with pytest.raises(ValueError, match=told):
        link.update(w, link.init(w), w, grad_fn=lambda p: p)
