"""Each part away from its neutral setting, on L = ½ wᵀAw, with the result written out by hand.

Over two leaves: w = (3 | 2), A = diag(1, 2), so g = (3 | 4) and ‖g‖ = 5. A radius of 5 gives
ε = (3 | 4), w + ε = (6 | 6) and g' = (6 | 12). A norm per leaf would give ε = (5 | 5).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax import combine, perturb, start, when

pytestmark = pytest.mark.usefixtures("x64")


def pair(a, b):
    return {"a": np.array([float(a)]), "b": np.array([[float(b)]])}


W, G = pair(3, 2), pair(3, 4)


def quadratic_gradient(w):
    return {"a": w["a"], "b": 2 * w["b"]}


def directions(link, *gradients, grad_fn=quadratic_gradient):
    """What the link hands on at W for gradients that are fed one after the other."""
    w, state, results = jax.tree.map(jnp.asarray, W), link.init(W), []
    for gradient in gradients:
        gradient = jax.tree.map(jnp.asarray, gradient)
        direction, state = link.update(gradient, state, w, grad_fn=grad_fn)
        results.append(direction)
    return results, state


def assert_pairs(actual, *expected):
    values = [(float(d["a"][0]), float(d["b"][0, 0])) for d in actual]
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


def test_the_second_gradient_is_at_the_end_of_the_unit_first_gradient():
    actual, _ = directions(sam_optax.sam(rho=5.0), G)
    assert_pairs(actual, (6, 12))


def test_the_radius_is_a_schedule_of_the_links_steps_from_zero():
    actual, _ = directions(sam_optax.sam(rho=lambda t: 5.0 * t), G, G, G)
    assert_pairs(actual, (3, 4), (6, 12), (9, 20))


def test_gsam_subtracts_what_the_first_gradient_has_across_the_second():
    # ⟨g, g'⟩ / ‖g'‖² = 66 / 180, so reject(g, g') = (3 − 2.2 | 4 − 4.4).
    actual, _ = directions(sam_optax.gsam(rho=5.0, alpha=0.5), G)
    assert_pairs(actual, (6 - 0.5 * 0.8, 12 + 0.5 * 0.4))


def test_gsam_leaves_the_part_along_the_second_gradient_alone():
    (direction,), _ = directions(sam_optax.gsam(rho=5.0, alpha=0.5), G)
    assert float(optax.tree.vdot(direction, pair(6, 12))) == pytest.approx(180)
    # and descends the surrogate gap: ⟨d, g⟩ < ⟨g', g⟩ = 66.
    assert float(optax.tree.vdot(direction, G)) == pytest.approx(66 - 0.5 * 0.8)


def test_looksam_stores_what_the_second_gradient_has_across_the_first():
    # ⟨g, g'⟩ / ‖g‖² = 66 / 25, so v = (6 − 7.92 | 12 − 10.56).
    actual, state = directions(sam_optax.looksam(rho=5.0, alpha=0.5, period=3), G)
    assert_pairs(actual, (6, 12))
    assert_pairs([state.combine.v], (-1.92, 1.44))


def test_looksam_adds_the_stored_direction_at_the_size_of_the_new_gradient():
    # unit(v) = (−0.8 | 0.6), with ‖(6 | 8)‖ = 10 and then ‖(−3 | 4)‖ = 5; a fresh one at step 3.
    link = sam_optax.looksam(rho=5.0, alpha=0.5, period=3)
    actual, state = directions(link, G, pair(6, 8), pair(-3, 4), pair(-3, 4))
    assert_pairs(actual, (6, 12), (6 - 4, 8 + 3), (-3 - 2, 4 + 1.5), (0, 12))
    assert int(state.ascents) == 2


def test_ae_looksam_reuses_what_its_last_second_gradient_left():
    # s = 25 fires at c = 0; then ‖g‖² = 1 < μ = 0.9 · 2.5 + 0.1: g + ½ · 1 · (−0.8 | 0.6).
    link = sam_optax.ae_looksam(5.0, alpha=0.5, total_steps=9, lambda_1=0.0, lambda_2=0.0)
    actual, state = directions(link, G, pair(0.6, 0.8))
    assert_pairs(actual, (6, 12), (0.6 - 0.4, 0.8 + 0.3))
    assert int(state.ascents) == 1


def test_reuse_hands_on_the_gradient_before_any_second_one():
    link = sam_optax.sharpness_aware(
        perturb.ball(5.0), when=when.adaptive(jnp.inf), combine=combine.reuse(0.5)
    )
    actual, state = directions(link, G)
    assert_pairs(actual, (3, 4))
    assert int(state.ascents) == 0


def test_wsam_keeps_the_sharpness_term_out_of_the_momentum():
    # γ = ¾ gives 3 (g' − g) = (9 | 24) beside the trace g, then 1.5 g.
    actual, _ = directions(sam_optax.wsam(optax.trace(0.5), rho=5.0, gamma=0.75), G, G)
    assert_pairs(actual, (3 + 9, 4 + 24), (4.5 + 9, 6 + 24))


def test_coupled_wsam_lets_the_sharpness_term_into_the_momentum():
    tx = optax.chain(sam_optax.coupled_wsam(rho=5.0, gamma=0.75), optax.trace(0.5))
    actual, _ = directions(tx, G, G)
    assert_pairs(actual, (12, 28), (1.5 * 12, 1.5 * 28))


def test_coupled_wsam_below_one_half_goes_less_than_the_whole_way():
    # γ = ¼ gives a = ⅓.
    actual, _ = directions(sam_optax.coupled_wsam(rho=5.0, gamma=0.25), G)
    assert_pairs(actual, (3 + 3 / 3, 4 + 8 / 3))


def test_wsam_takes_another_geometry():
    link = sam_optax.wsam(optax.identity(), gamma=0.75, perturb=perturb.loss_ball(25.0))
    actual, _ = directions(link, G)  # ε = 25 / 5 · unit(g)
    assert_pairs(actual, (12, 28))


def test_wsam_feeds_weight_decay_to_the_base_alone():
    actual, _ = directions(
        sam_optax.wsam(optax.add_decayed_weights(0.1), rho=5.0, gamma=0.5), pair(3, 4)
    )
    assert_pairs(actual, (6 + 0.3, 12 + 0.2))


def test_le_sam_raises_the_linearised_loss_by_its_budget():
    # N = 5 and ρ = 10 / 5, so ε = 2 (0.6 | 0.8): ⟨g, ε⟩ = 3.6 + 6.4 = 10.
    actual, state = directions(sam_optax.le_sam(budget=10.0), G)
    assert_pairs(actual, (4.2, 7.2))
    assert float(state.perturb.rho) == pytest.approx(2)


def test_le_sam_clips_its_radius_and_shows_the_one_in_force():
    actual, state = directions(sam_optax.le_sam(budget=10.0, rho_max=1.0), G)
    assert_pairs(actual, (3.6, 5.6))
    assert float(state.perturb.rho) == 1


def test_le_sam_bounds_the_norm_softly():
    # At ‖g‖ = 1e-6, N = √2 · 1e-6: ε = 1e-6 / N² · g = ½ (0.6 | 0.8).
    link = sam_optax.le_sam(budget=1e-6)
    actual, state = directions(link, pair(6e-7, 8e-7))
    assert_pairs(actual, (3.3, 4.8))
    assert float(state.perturb.rho) == pytest.approx(1 / 2**0.5)


def test_le_sam_plus_takes_off_the_clean_gradient_and_does_not_rescale():
    actual, _ = directions(sam_optax.le_sam_plus(budget=10.0, alpha=0.5), G)
    assert_pairs(actual, (4.2 - 1.5, 7.2 - 2))


def test_samar_mixes_and_follows_the_ratio_of_norms():
    # λ: ¼, doubled at the first step, doubled as the norm doubles and clipped, halved as it halves.
    link = sam_optax.samar(rho=5.0, gamma=2.0, chi=1.5, lambda_0=0.25, delta=0.1)
    state, lambdas = link.init(W), []
    for scale in (1, 2, 4, 5, 5, 5, 5, 5):
        direction, state = link.update(
            optax.tree.scale(scale, G), state, W, grad_fn=quadratic_gradient
        )
        if scale == 1:
            assert_pairs([direction], (3.75, 6))  # ¾ (3 | 4) + ¼ (6 | 12)
        lambdas.append(float(state.combine.lambda_k))
    np.testing.assert_allclose(lambdas, (0.5, 0.9, 0.9, 0.45, 0.225, 0.1125, 0.1, 0.1))
    assert float(state.combine.previous_norm) == pytest.approx(25)


def test_samar_begins_with_an_unclipped_lambda():
    actual, _ = directions(sam_optax.samar(rho=5.0, lambda_0=1.0, delta=0.25), G, G)
    assert_pairs(actual, (6, 12), (0.25 * 3 + 0.75 * 6, 0.25 * 4 + 0.75 * 12))


def test_samar_grows_at_exactly_chi():
    link = sam_optax.samar(rho=5.0, gamma=2.0, chi=2.0, lambda_0=0.125)
    _, state = directions(link, G, optax.tree.scale(2.0, G))
    assert float(state.combine.lambda_k) == 0.5


@pytest.mark.parametrize(("ratio", "norm"), [("clean", 5), ("perturbed", 180**0.5)])
def test_samar_remembers_the_norm_that_its_ratio_is_of(ratio, norm):
    _, state = directions(sam_optax.samar(rho=5.0, ratio=ratio), G)
    assert float(state.combine.previous_norm) == pytest.approx(norm)


def test_always_fires_whoever_asks():
    fire, _ = when.always().update(G, (), W)
    assert fire is True


def test_the_adaptive_statistics_move_before_the_test():
    # δ = 0.9, s = 25: μ = 2.5, σ² = 0.9 · 0.5 + 0.1 · 22.5²; then s = 0.25.
    link = sam_optax.ae_sam(5.0, total_steps=10, lambda_1=1, lambda_2=1, initial_variance=0.5)
    first, state = directions(link, G)
    assert float(state.when.mean) == pytest.approx(2.5)
    assert float(state.when.variance) == pytest.approx(0.45 + 0.1 * 22.5**2)
    both, state = directions(link, G, pair(0.3, 0.4))
    assert_pairs(first, (6, 12))
    assert_pairs(both, (6, 12), (0.3, 0.4))
    assert float(state.when.mean) == pytest.approx(0.9 * 2.5 + 0.025)


@pytest.mark.parametrize(("c", "fires"), [(2.99, True), (3.01, False)])
def test_the_adaptive_test_uses_the_new_mean_and_the_new_variance(c, fires):
    """From μ = 0, σ² = s²/100, δ = 0.9: μ = s/10 and σ = 3s/10, so s ≥ μ + c σ up to c = 3."""
    policy = {"total_steps": 10, "lambda_1": c, "lambda_2": c, "initial_variance": 25.0**2 / 100}
    _, state = directions(sam_optax.ae_sam(5.0, **policy), G)
    assert int(state.ascents) == fires


def test_adaptive_fires_at_equality():
    policy = when.adaptive(0.0, decay=0.0)  # μ = s
    _, state = directions(sam_optax.sharpness_aware(perturb.ball(5.0), when=policy), G, G)
    assert int(state.ascents) == 2


@pytest.mark.parametrize(("c", "ascents"), [(-np.inf, 2), (np.inf, 0)])
def test_an_infinite_threshold_decides_alone(c, ascents):
    """Also where σ = 0 and its product with c is undefined."""
    policy = when.adaptive(c, initial_variance=0.0)
    link = sam_optax.sharpness_aware(perturb.ball(5.0), when=policy)
    _, state = directions(link, pair(0, 0), pair(0, 0))
    assert int(state.ascents) == ascents


def test_the_bernoulli_coin_lands_with_its_probability():
    policy = when.bernoulli(0.3, key=1)

    def coin(t):
        return policy.update(G, policy.init(W), W, step=t)[0]

    coins = np.array(jax.jit(jax.vmap(coin))(np.arange(400, dtype=np.int32)), int)
    assert abs(np.mean(coins) - 0.3) < 0.07
    assert abs(np.mean(coins[1:] * coins[:-1]) - 0.09) < 0.05  # tosses are independent


def test_the_bernoulli_probability_is_a_schedule():
    policy = when.bernoulli(lambda t: jnp.where(t < 3, 1.0, 0.0))
    link = sam_optax.sharpness_aware(perturb.ball(5.0), when=policy)
    actual, _ = directions(link, G, G, G, G)
    assert_pairs(actual, (6, 12), (6, 12), (6, 12), (3, 4))


# Geometries.


def test_asam_stretches_the_ball_by_the_size_of_each_weight():
    # b, a weight, has T = 2 + η and a has 1: at η = ½, T g = (6 | 8), ε = 5 (6 | 2.5 · 8) / 10.
    weights = {"a": False, "b": True}
    actual, _ = directions(sam_optax.asam(rho=5.0, eta=0.5, weights=weights), pair(6, 3.2))
    assert_pairs(actual, (6, 24))


def test_asam_takes_the_size_of_negative_weights():
    link = sam_optax.asam(rho=5.0, eta=0.5, weights={"a": False, "b": True})
    w = jax.tree.map(jnp.asarray, pair(-3, -2))
    actual, _ = link.update(pair(6, 3.2), link.init(w), w, grad_fn=quadratic_gradient)
    assert_pairs([actual], (-3 + 3, 2 * (-2 + 10)))


def test_asam_takes_which_leaves_are_weights():
    # With T = |w| on both, T g = (3 · 2 | 2 · 4), ε = 5 (3 · 6 | 2 · 8) / 10.
    ones = jax.tree.map(lambda w: w > 0, pair(1, 1))
    everything = {"weights": True}, {"weights": lambda path: True}, {"weights": ones}
    for choice in everything:
        actual, _ = directions(sam_optax.asam(rho=5.0, eta=0.0, **choice), pair(2, 4))
        assert_pairs(actual, (3 + 9, 2 * (2 + 8)))
    first = {"a": True, "b": False}
    for choice in ({"weights": first}, {"weights": lambda path: path[-1].key == "a"}):
        actual, _ = directions(sam_optax.asam(rho=5.0, eta=0.0, **choice), pair(2, 8))
        assert_pairs(actual, (3 + 9, 2 * (2 + 4)))


def test_kernels_embeddings_and_scales_are_weights_and_biases_are_not():
    """Also a bias with two axes, as in attention and in stacked layers.

    ε of a gradient of ones is T² times a number.
    """
    shapes = {
        "dense": {"kernel": (2, 3), "bias": (3,)},
        "norm": {"scale": (3,), "bias": (3,)},
        "attention": {"kernel": (2, 2, 2), "bias": (2, 2)},
        "layers": {"kernel": (4, 2, 2), "bias": (4, 2), "scale": (4, 2)},
        "haiku": {"w": (2, 3), "b": (2, 3), "offset": (1, 1, 3)},
        "cell": {"weight_ih": (6, 2), "bias_n": (4, 2), "in_proj_bias": (4, 2)},
        "embedding": (4, 2),
        "weight": (3,),
        "temperature": (),
    }
    is_shape = {"is_leaf": lambda s: isinstance(s, tuple)}
    params = jax.tree.map(lambda s: np.full(s, 2.0), shapes, **is_shape)
    ones = jax.tree.map(np.ones_like, params)
    geometry = perturb.adaptive_ball(1.0, eta=1.0)
    update = jax.jit(lambda g, w: geometry.update(g, geometry.init(w), w, step=0)[0])
    epsilon = jax.tree.map(np.asarray, update(ones, params))
    stretched = jax.tree.map(lambda e: np.allclose(e / epsilon["dense"]["bias"][0], 9), epsilon)
    assert stretched == {
        "dense": {"kernel": True, "bias": False},
        "norm": {"scale": True, "bias": False},
        "attention": {"kernel": True, "bias": False},
        "layers": {"kernel": True, "bias": False, "scale": True},
        "haiku": {"w": True, "b": False, "offset": False},
        "cell": {"weight_ih": True, "bias_n": False, "in_proj_bias": False},
        "embedding": True,
        "weight": True,
        "temperature": False,
    }


def test_fisher_sam_shrinks_where_the_gradient_is_large():
    # F⁻¹ g = (1/3 | 2/9), ⟨g, F⁻¹ g⟩ = 1/3 + 4/9 = 7/9.
    actual, _ = directions(sam_optax.fisher_sam(rho=7.0, eta=2.0), pair(1, 2))
    scale = 7 / np.sqrt(7 / 9)
    assert_pairs(actual, (3 + scale / 3, 2 * (2 + scale * 2 / 9)))


def test_eigen_sam_leans_to_the_top_eigenvector_on_the_side_of_the_gradient():
    # v = (0 | ±1): reject((0 | 1), ĝ) = (−0.48 | 0.36), u = (0.6 − 0.24 | 0.8 + 0.18), not a unit.
    link = sam_optax.eigen_sam(rho=5.0, alpha=0.5, period=1, power_iterations=60)
    actual, state = directions(link, G, G, pair(-3, -4))
    assert_pairs(actual, (6, 12), (3 + 1.8, 2 * (2 + 4.9)), (3 - 1.8, 2 * (2 - 4.9)))
    assert abs(float(state.perturb.v["b"][0, 0])) == pytest.approx(1)


def test_eigen_sam_estimates_every_period_from_the_last_estimate():
    link = sam_optax.eigen_sam(rho=5.0, period=2, power_iterations=1, key=1)
    estimates = []
    for count in range(1, 6):
        _, state = directions(link, *[G] * count)
        estimates.append(np.array([state.perturb.v["a"][0], state.perturb.v["b"][0, 0]]))
    np.testing.assert_array_equal(estimates[1], 0)  # steps 0 and 1 have none
    np.testing.assert_array_equal(estimates[2], estimates[3])
    product = estimates[2] * [1, 2]
    np.testing.assert_allclose(estimates[4], product / np.linalg.norm(product), rtol=1e-9)
    assert np.linalg.norm(estimates[2]) == pytest.approx(1)


def test_eigen_sam_starts_from_a_draw_of_its_key():
    first = [
        directions(sam_optax.eigen_sam(period=1, power_iterations=1, key=key), G, G)[1].perturb.v
        for key in (0, 0, 1)
    ]
    assert first[0] == first[1]
    assert first[0] != first[2]


def test_vasso_climbs_along_the_moving_average_with_the_new_gradient_in_it():
    # m = ¾ (3 | 4) + ¼ (−9 | 12) = (0 | 6), ε = (0 | 5).
    actual, state = directions(sam_optax.vasso(rho=5.0, theta=0.25), G, pair(-9, 12))
    assert_pairs(actual, (6, 12), (3, 14))
    assert_pairs([state.perturb[0].m], (0, 6))


def test_friendly_sam_climbs_along_what_the_old_moving_average_leaves():
    # m: (3 | 4), then ¾ (3 | 4) + ¼ (1.5 | 6) = (2.625 | 4.5), whatever the direction was.
    link = sam_optax.friendly_sam(rho=5.0, sigma=0.5, decay=0.75)
    actual, state = directions(link, G, pair(1.5, 6), pair(4.3125, 2.25))
    assert_pairs(actual, (6, 12), (3, 14), (8, 4))
    assert_pairs([state.perturb[0].m], (0.75 * 2.625 + 0.25 * 4.3125, 0.75 * 4.5 + 0.25 * 2.25))


def test_ssam_gives_the_perturbed_gradient_the_norm_of_the_clean_one():
    # From ‖g'‖ = √180 down to 5, and at −g, where g' = (0 | −4), up to 5.
    actual, _ = directions(sam_optax.ssam(rho=5.0), G, pair(-3, -4))
    assert_pairs(actual, (6 * 5 / 180**0.5, 12 * 5 / 180**0.5), (0, -5))


def test_ssam_hands_on_zero_where_the_perturbed_gradient_is_zero():
    actual, _ = directions(sam_optax.ssam(rho=13**0.5), pair(-3, -2))
    assert_pairs(actual, (0, 0))


def test_ss_sam_is_sam_or_the_base_optimizer_by_its_coin():
    actual, state = directions(sam_optax.ss_sam(rho=5.0, probability=0.3, key=1), *[G] * 40)
    values = [(float(d["a"][0]), float(d["b"][0, 0])) for d in actual]
    assert set(values) == {(6.0, 12.0), (3.0, 4.0)}
    assert values.count((6.0, 12.0)) == int(state.ascents)
    assert 5 <= int(state.ascents) <= 20


# Efficient SAM.


def hand_on_the_point(link, params, gradient):
    """w + ε: the second gradient is the identity."""

    @jax.jit
    def update(gradient, params):
        return link.update(gradient, link.init(params), params, grad_fn=lambda p: p)[0]

    return jax.tree.map(np.asarray, update(gradient, params))


def test_esam_perturbs_a_random_part_of_the_coordinates_so_much_further():
    params = {"a": np.zeros(300), "b": np.zeros((20, 10))}
    gradient = {"a": np.full(300, 3.0), "b": np.full((20, 10), -2.0)}
    length = np.sqrt(300 * 9 + 200 * 4)
    link = sam_optax.esam(rho=0.1, beta=0.25, gamma=1, key=5)
    epsilon = hand_on_the_point(link, params, gradient)
    for leaf, g in ((epsilon["a"], 3), (epsilon["b"], -2)):
        perturbed = leaf != 0
        np.testing.assert_allclose(leaf[perturbed], 0.1 / 0.25 * g / length, rtol=1e-9)
        assert abs(perturbed.mean() - 0.25) < 0.1


def test_esam_draws_anew_at_each_step():
    params = jnp.zeros(100)
    link = sam_optax.esam(beta=0.5, gamma=1)
    state = link.init(params)
    one, state = link.update(params + 1, state, params, grad_fn=lambda p: p)
    another, _ = link.update(params + 1, state, params, grad_fn=lambda p: p)
    assert (one != another).any()


def test_esam_by_tensors_has_the_whole_radius_in_the_tensors_that_are_active():
    params = {f"leaf{i}": np.zeros((2, 3)) for i in range(40)}
    gradient = {name: np.full((2, 3), i + 1.0) for i, name in enumerate(params)}
    link = sam_optax.esam(rho=0.1, beta=0.25, gamma=1, key=1, mask="tensor")
    epsilon = hand_on_the_point(link, params, gradient)
    active = [name for name, leaf in epsilon.items() if leaf.any()]
    assert 3 <= len(active) <= 18
    assert np.linalg.norm([*epsilon.values()]) == pytest.approx(0.1 / 0.25)
    ratios = [epsilon[name] / gradient[name] for name in active]
    np.testing.assert_allclose(ratios, ratios[0][0, 0])


def kept_examples(losses, gamma):
    """The indices that grad_fn is given, for losses as a function of the parameter."""
    seen = []

    def grad_fn(w, indices):
        seen.extend(np.asarray(indices).tolist())
        return w

    w = jnp.array([1.0])
    link = sam_optax.esam(rho=0.5, beta=1.0, gamma=gamma)
    link.update(w, link.init(w), w, grad_fn=grad_fn, example_loss_fn=losses)
    return seen


def test_esam_keeps_the_examples_whose_loss_rises_most():
    """Not those of the largest loss: slopes (1, 5, −2, 4), losses far apart."""
    slopes, levels = jnp.array([1.0, 5.0, -2.0, 4.0]), jnp.array([0.0, -100.0, 50.0, 7.0])
    kept = kept_examples(lambda w: slopes * w[0] + levels, gamma=0.5)
    assert sorted(kept) == [1, 3]


@pytest.mark.parametrize(
    ("examples", "gamma", "count"), [(5, 0.5, 2), (5, 0.01, 1), (100, 0.29, 29), (7, 0.99, 6)]
)
def test_esam_keeps_so_many_examples(examples, gamma, count):
    kept = kept_examples(lambda w: w[0] * jnp.arange(float(examples)), gamma)
    assert sorted(kept) == list(range(examples - count, examples))


def test_esam_takes_the_clean_losses_from_the_first_pass():
    """Given other clean losses, it ranks by the rise from those, and does not compute its own."""
    w, calls, seen = jnp.array([1.0]), [], []

    def losses(w):
        calls.append(w)
        return jnp.zeros(3) + w[0]

    def grad_fn(w, indices):
        seen.extend(np.asarray(indices).tolist())
        return w

    link = sam_optax.esam(beta=1.0, gamma=0.4)
    given = {"grad_fn": grad_fn, "example_loss_fn": losses}
    link.update(w, link.init(w), w, **given, example_losses=jnp.array([0.0, -5.0, 3.0]))
    assert seen == [1]
    assert len(calls) == 1


def test_esam_on_all_examples_takes_a_grad_fn_of_either_kind():
    w, seen = jnp.array([1.0]), []
    link = sam_optax.esam(rho=0.5, beta=1.0, gamma=1)
    alone, _ = link.update(w, link.init(w), w, grad_fn=lambda p: p)

    def grad_fn(w, indices):
        seen.extend(np.asarray(indices).tolist())
        return w

    given = {"grad_fn": grad_fn, "example_loss_fn": lambda w: jnp.ones(5)}
    indexed, _ = link.update(w, link.init(w), w, **given)
    assert seen == [0, 1, 2, 3, 4]
    assert float(alone[0]) == float(indexed[0]) == 1.5


def test_parts_with_the_same_key_do_not_share_their_bits():
    """The offset, the mask and the start of the power iteration are independent."""
    masks = perturb.random_coordinates(0.5)
    eigen = perturb.eigen_ball(0.1, period=1, power_iterations=1)

    @jax.jit
    def drawn(w):
        noise = start.noise(0.1).init(w)
        kept, _ = masks.update(w, masks.init(w), w, step=0)
        # v = unit(draw 1)
        _, state = eigen.update(w, eigen.init(w), w, step=1, grad_fn=lambda p: p)
        return noise.offset(w), kept, noise._replace(draw=jnp.int32(1)).offset(w), state.v

    offset, kept, other, v = drawn(np.ones(2000))
    assert abs(np.corrcoef(np.sign(offset), kept)[0, 1]) < 0.1
    assert abs(np.corrcoef(other, v)[0, 1]) < 0.1


# One gradient.


def test_lpf_sgd_hands_on_the_gradient_at_the_noisy_point():
    link = sam_optax.lpf_sgd(gamma=0.5)
    point = sam_optax.gradient_point(link.init(W), W)
    assert abs(float(point["a"][0]) - 3) > 1e-3
    actual, state = directions(link, pair(9, 9))  # the gradient at w is not used
    assert_pairs(actual, (float(point["a"][0]), 2 * float(point["b"][0, 0])))
    assert int(state.ascents) == 0


def test_lpf_sgd_averages_over_draws_that_never_come_again():
    link = sam_optax.lpf_sgd(gamma=0.5, samples=3, key=2)
    state, offsets = link.init(W), []
    for _ in range(2):
        offsets += [state.start.offset(W, i) for i in range(3)]
        actual, state = link.update(G, state, W, grad_fn=quadratic_gradient)
    a, b = (np.array([float(jnp.ravel(o[name])[0]) for o in offsets]) for name in "ab")
    assert len(set(a)) == 6
    assert_pairs([actual], (3 + a[3:].mean(), 2 * (2 + b[3:].mean())))


def test_msam_looks_ahead_along_its_momentum():
    # v = (3 | 4), then ½ (3 | 4) + (0 | −4) = (1.5 | −2); δ0 = −(3 | 4), then (−3 | 4).
    link = sam_optax.msam(rho=5.0, decay=0.5)
    actual, state = directions(link, G, G, G)
    assert_pairs(actual, (3, 4), (0, -4), (0, 12))
    assert_pairs([state.start.velocity], (0.75, -1 + 12))
    assert int(state.ascents) == 0


def test_msam_looks_along_the_last_update_of_the_optimizer():
    tx = optax.chain(sam_optax.msam(rho=5.0, decay=0.9), optax.sgd(0.1, momentum=0.9))
    w, state = jax.tree.map(jnp.asarray, W), tx.init(W)
    for _ in range(3):
        updates, state = tx.update(w, state, w, grad_fn=quadratic_gradient)
    ahead = optax.tree.sub(sam_optax.gradient_point(state, w), w)
    expected = optax.tree.scale(5.0 / optax.tree.norm(updates), updates)
    np.testing.assert_allclose(ahead["b"], expected["b"], rtol=1e-9)


def test_s2_sam_climbs_along_the_direction_of_the_step_before():
    # δ0 = (3 | 4), then 5 unit((6 | 12)) = √5 (1 | 2).
    actual, state = directions(sam_optax.s2_sam(rho=5.0), G, G, G)
    assert_pairs(actual, (3, 4), (6, 12), (3 + 5**0.5, 2 * (2 + 2 * 5**0.5)))
    assert_pairs([state.start.previous], (3 + 5**0.5, 2 * (2 + 2 * 5**0.5)))


def test_the_radius_of_a_start_is_a_schedule_of_the_links_steps():
    for method, sign in ((sam_optax.msam, -1), (sam_optax.s2_sam, 1)):
        actual, _ = directions(method(rho=lambda t: 5.0 * t), G, G)
        assert_pairs(actual, (3, 4), (3 + sign * 3, 2 * (2 + sign * 4)))


# The noise of r_sam.

KERNELS = np.ones((50, 8, 3)) * np.array([0.0, 1.0, 4.0]) / 20  # norms 0, 1, 4
NOISY = {"kernel": KERNELS, "bias": np.full(400, 0.1)}  # norm of the bias 2


def offset_of(link, params):
    point = jax.jit(lambda w: sam_optax.gradient_point(link.init(w), w))(params)
    return jax.tree.map(np.subtract, point, params)


@pytest.mark.parametrize(("noise_scale", "power"), [("std", 1.0), ("variance", 0.5)])
def test_the_noise_has_the_scale_of_each_kernel(noise_scale, power):
    """A kernel is a slice along the last axis; a vector is one kernel."""
    offset = offset_of(sam_optax.r_sam(gamma=0.5, noise_scale=noise_scale), NOISY)
    deviations = [*np.std(offset["kernel"], axis=(0, 1)), np.std(offset["bias"])]
    expected = [0.5 * norm**power for norm in (0.0, 1.0, 4.0, 2.0)]
    np.testing.assert_allclose(deviations, expected, rtol=0.15)
    assert abs(np.mean(offset["bias"])) < 4 * expected[-1] / 20


def test_the_noise_of_leaves_is_independent():
    leaf = np.ones(500)
    offset = offset_of(sam_optax.r_sam(), {"a": leaf, "b": leaf})
    assert abs(np.corrcoef(offset["a"], offset["b"])[0, 1]) < 0.2


def test_the_noise_follows_the_current_parameters():
    """Twice the parameters have twice the noise, from the same state."""
    state = sam_optax.r_sam(gamma=0.5).init(NOISY)
    point = jax.jit(lambda w: sam_optax.gradient_point(state, w)["kernel"])
    doubled = {name: 2 * leaf for name, leaf in NOISY.items()}
    once, twice = (np.asarray(point(w)) - w["kernel"] for w in (NOISY, doubled))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-9, atol=1e-15)


def test_every_step_and_every_key_draws_anew():
    w = {"w": jnp.ones(5)}
    offsets = []
    for key in (0, 1, jax.random.key(1)):
        link = sam_optax.r_sam(key=key)
        state = link.init(w)
        for _ in range(2):
            offsets.append(np.asarray(sam_optax.gradient_point(state, w)["w"]))
            _, state = link.update(w, state, w, grad_fn=lambda p: p)
    different = {tuple(offset.round(9)) for offset in offsets}
    assert len(different) == 4  # an int is the key made from it
    np.testing.assert_array_equal(offsets[2], offsets[4])


@pytest.mark.parametrize("normalize", [False, True])
def test_r_sam_climbs_from_the_parameters_along_noise_and_gradient(normalize):
    """d = A (w + ρ unit(δ0 + λ A (w + δ0))), with δ0 read from `gradient_point`."""
    link = sam_optax.r_sam(rho=2.0, gamma=0.5, lambda_=0.7, normalize_gradient=normalize)
    state = link.init(W)
    point = sam_optax.gradient_point(state, W)
    d1, d2 = float(point["a"][0]) - 3, float(point["b"][0, 0]) - 2
    assert abs(d1) > 1e-3 < abs(d2)
    g1, g2 = 3 + d1, 2 * (2 + d2)
    weight = 0.7 / np.hypot(g1, g2) if normalize else 0.7
    a1, a2 = d1 + weight * g1, d2 + weight * g2
    length = np.hypot(a1, a2)
    actual, _ = directions(link, pair(9, 9))  # the gradient at w is not used
    assert_pairs(actual, (3 + 2 * a1 / length, 2 * (2 + 2 * a2 / length)))


def test_r_gsam_rejects_the_smoothed_gradient():
    settings = {"rho": 2.0, "gamma": 0.5}
    link = sam_optax.r_gsam(alpha=0.5, **settings)
    point = sam_optax.gradient_point(link.init(W), W)
    g = np.array([float(point["a"][0]), 2 * float(point["b"][0, 0])])
    (second,), _ = directions(sam_optax.r_sam(**settings), G)
    h = np.array([float(second["a"][0]), float(second["b"][0, 0])])
    expected = h - 0.5 * (g - g @ h / (h @ h) * h)
    assert_pairs(directions(link, G)[0], expected)


@pytest.mark.parametrize("precision_at", ["updated", "previous"])
def test_bsam_perturbs_and_descends_by_the_precision(precision_at):
    """With next to no noise g = (3, 4), ε = g / s = g, g' = (6, 12)."""
    settings = {"beta_1": 0.5, "beta_2": 0.5, "weight_decay": 0.2, "damping": 0.1}
    link = sam_optax.bsam(1.0, ess=1e30, precision_at=precision_at, **settings)
    actual, state = directions(link, G)
    s = 0.5 + 0.5 * (np.array([3, 4]) + 0.3)
    m = 0.5 * (np.array([6, 12]) + 0.2 * np.array([3, 2]))
    assert_pairs([sam_optax.read(state, "s")], s)
    assert_pairs(actual, m / (s if precision_at == "updated" else 1))


def test_ivon_learns_the_hessian_from_its_noise():
    """The first step, with δ0 read from `gradient_point`."""
    settings = {"beta_2": 0.75, "weight_decay": 0.2, "initial_hessian": 0.8}
    link = sam_optax.ivon(50.0, **settings)
    w = np.array([3, 2])
    point = sam_optax.gradient_point(link.init(W), W)
    noise = np.array([float(point["a"][0]), float(point["b"][0, 0])]) - w
    assert (np.abs(noise) > 1e-3).all()
    g = np.array([1, 2]) * (w + noise)
    seen = 50 * noise * g  # λ (h + δ) δ0 g, with h + δ = 1
    h = 0.75 * 0.8 + 0.25 * seen + 0.5 * 0.25**2 * (0.8 - seen) ** 2
    actual, state = directions(link, G)
    assert_pairs([sam_optax.read(state, "h")], h)
    assert_pairs(actual, (g + 0.2 * w) / (h + 0.2))  # times h₀ + δ = 1


def test_a_noise_start_alone_hands_on_the_gradient_at_the_noisy_point():
    link = sam_optax.sharpness_aware(start=start.noise(0.5))
    point = sam_optax.gradient_point(link.init(W), W)
    actual, state = directions(link, G)
    assert_pairs(actual, (float(point["a"][0]), 2 * float(point["b"][0, 0])))
    assert int(state.ascents) == 0


def test_a_mask_in_the_perturb_slot_keeps_a_leaf_where_it_is():
    frozen = {"a": True, "b": False}
    perturbation = optax.chain(optax.masked(optax.set_to_zero(), frozen), perturb.ball(5.0))
    actual, _ = directions(sam_optax.sharpness_aware(perturbation), G)
    assert_pairs(actual, (3, 14))  # ε = (0 | 5)


def test_weight_decay_behind_the_link_stays_outside_the_perturbation():
    tx = optax.chain(sam_optax.sam(5.0), optax.add_decayed_weights(0.1))
    assert_pairs(directions(tx, G)[0], (6 + 0.3, 12 + 0.2))
