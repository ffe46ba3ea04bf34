"""The compositions that the documentation shows, against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import (
    STEPS,
    Row,
    adaptive,
    norm,
    ravel,
    reject,
    run,
    run_reference,
    unit,
    unravel,
)

import sam_optax
from sam_optax import combine, perturb, sharpness_aware, when

pytestmark = pytest.mark.usefixtures("x64")

RHO = 0.4
POLICY = {"total_steps": STEPS, "lambda_1": -1.0, "lambda_2": 1.0}
STATISTICS = {"decay": 0.5, "initial_variance": 0.5}


def euclidean(w, g):
    return RHO * unit(g)


def loss_equated(w, g):
    return min(0.8 / norm(g), 0.3) * unit(g)


def relative(w, g):
    """ASAM's, with η = 0.1 on the kernels and the scale."""
    leaves = unravel(w)
    scale = {name: np.abs(leaf) + 0.1 for name, leaf in leaves.items()}
    scale = ravel({**scale, "dense_bias": np.ones(2)})
    return RHO * scale**2 * g / norm(scale * g)


def fisher(w, g):
    inverse = 1 / (1 + 2.0 * g**2)
    return RHO * inverse * g / math.sqrt(np.dot(g, inverse * g))


def by_sign(w, g):
    return 0.1 * np.sign(g)


def biases_only(w, g):
    """SAM-ON, with the vector and the scalar for the normalisation layers."""
    leaves = unravel(g)
    kept = {name: leaf if leaf.ndim < 2 else np.zeros_like(leaf) for name, leaf in leaves.items()}
    return RHO * unit(ravel(kept))


def sam_in(geometry):
    return lambda w, gradient, t, state: (gradient(w + geometry(w, gradient(w))), state)


def wsam_in(geometry, momentum):
    def step(w, gradient, t, state):
        g = gradient(w)
        second = gradient(w + geometry(w, g))
        trace = g + momentum * state.get("trace", 0.0)
        return trace + 4.0 * (second - g), {"trace": trace}

    return step


def adaptive_in(geometry):
    def step(w, gradient, t, state):
        g = gradient(w)
        fire, state = adaptive(state, norm(g) ** 2, t, **POLICY, **STATISTICS)
        return (gradient(w + geometry(w, g)) if fire else g), state

    return step


def look_in(geometry):
    def step(w, gradient, t, state):
        g = gradient(w)
        if t % 3 == 0:
            second = gradient(w + geometry(w, g))
            return second, {"v": reject(second, g)}
        return g + 0.7 * norm(g) * unit(state["v"]), state

    return step


def vasso_in(geometry):
    def step(w, gradient, t, state):
        g = gradient(w)
        m = g if t == 0 else 0.6 * state["m"] + 0.4 * g
        return gradient(w + geometry(w, m)), {"m": m}

    return step


def masked_asam_with_examples(w, gradient, t, state):
    epsilon = relative(w, gradient(w))
    rise = gradient.losses(w + epsilon) - gradient.losses(w)
    return gradient(w + epsilon, np.argsort(-rise)[:3]), state


def kernels(params):
    return jax.tree.map(lambda p: p.ndim >= 2, params)


policy = when.adaptive(sam_optax.schedules.linear_threshold(-1.0, 1.0, STEPS), **STATISTICS)
adaptive_ball = perturb.adaptive_ball(RHO, eta=0.1)
fisher_ball = perturb.fisher_ball(RHO, eta=2.0)
loss_ball = perturb.loss_ball(0.8, 0.3)

COMPOSITIONS = {
    "wsam in the geometry of asam": (
        lambda: sam_optax.wsam(optax.trace(0.9), gamma=0.8, perturb=adaptive_ball),
        wsam_in(relative, 0.9),
        None,
    ),
    "wsam in the geometry of fisher_sam": (
        lambda: sam_optax.wsam(optax.trace(0.9), gamma=0.8, perturb=fisher_ball),
        wsam_in(fisher, 0.9),
        None,
    ),
    "coupled_wsam in the geometry of asam": (
        lambda: sharpness_aware(adaptive_ball, combine=combine.weigh(0.8)),
        wsam_in(relative, 0.0),
        0.9,
    ),
    "coupled_wsam in the geometry of fisher_sam": (
        lambda: sharpness_aware(fisher_ball, combine=combine.weigh(0.8)),
        wsam_in(fisher, 0.0),
        0.9,
    ),
    "le_sam under the policy of ae_sam": (
        lambda: sharpness_aware(loss_ball, when=policy),
        adaptive_in(loss_equated),
        0.9,
    ),
    "asam under the policy of ae_sam": (
        lambda: sharpness_aware(adaptive_ball, when=policy),
        adaptive_in(relative),
        0.9,
    ),
    "looksam in the geometry of asam": (
        lambda: sharpness_aware(adaptive_ball, when=when.every(3), combine=combine.reuse(0.7)),
        look_in(relative),
        0.9,
    ),
    "vasso in the geometry of asam": (
        lambda: sharpness_aware(optax.chain(perturb.ema(0.4), adaptive_ball)),
        vasso_in(relative),
        0.9,
    ),
    "only what is no kernel": (
        lambda: sharpness_aware(
            optax.chain(optax.masked(optax.set_to_zero(), kernels), perturb.ball(RHO))
        ),
        sam_in(biases_only),
        0.9,
    ),
    "a sign ball": (
        lambda: sharpness_aware(optax.chain(optax.scale_by_sign(), optax.scale(0.1))),
        sam_in(by_sign),
        0.9,
    ),
    "asam on the most sensitive examples": (
        lambda: sam_optax.select_examples(sharpness_aware(adaptive_ball), 0.5),
        masked_asam_with_examples,
        0.9,
    ),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_composition_is_its_formula(name):
    factory, step, momentum = COMPOSITIONS[name]
    row = Row(factory, {}, step, momentum)
    library = run(row.optimizer(), examples="examples" in name)
    for t, ((params, opt_state), (w, state)) in enumerate(
        zip(library, run_reference(row), strict=True)
    ):
        np.testing.assert_allclose(ravel(params), w, 1e-10, 1e-13, err_msg=f"step {t}")
        assert int(optax.tree.get(opt_state, "ascents")) == state["ascents"]


def muon_axes(grads):
    return jax.tree.map(lambda g: optax.contrib.MuonDimensionNumbers(), grads)


def test_the_direction_of_muon_is_a_ball_of_the_spectral_norm():
    """ε / ρ = U Vᵀ, of the gradient's U S Vᵀ, as far as Newton and Schulz have come."""
    direction = optax.contrib.scale_by_muon(
        beta=0.0,
        nesterov=False,
        ns_coeffs=(1.875, -1.25, 0.375),  # these converge, where the default only comes near
        ns_steps=30,
        weight_dimension_numbers=muon_axes,
    )
    link = sharpness_aware(optax.chain(direction, optax.scale(0.05)))
    params = {"kernel": jnp.zeros((6, 4))}
    gradient = {"kernel": jax.random.normal(jax.random.key(0), (6, 4))}
    epsilon, _ = link.update(gradient, link.init(params), params, grad_fn=lambda p: p)
    u, _, v = np.linalg.svd(gradient["kernel"], full_matrices=False)
    np.testing.assert_allclose(epsilon["kernel"], 0.05 * u @ v, rtol=1e-4, atol=1e-6)


def test_a_two_step_ball_takes_its_second_half_from_the_middle():
    """The custom part of the documentation, on L = ½ wᵀ diag(1, 2) w."""

    def update(first, state, params, *, grad_fn, **extra):
        half = perturb.ball(2.5)
        one, _ = half.update(first, state, params, **extra)
        two, _ = half.update(grad_fn(optax.tree.add(params, one)), state, params, **extra)
        return optax.tree.add(one, two), state

    link = sharpness_aware(optax.GradientTransformationExtraArgs(optax.init_empty_state, update))
    w, curvature = jnp.array([3.0, 2.0]), jnp.array([1.0, 2.0])
    direction, _ = link.update(curvature * w, link.init(w), w, grad_fn=lambda p: curvature * p)
    middle = np.array([3 + 1.5, 2 + 2.0])
    second = middle * [1, 2]
    end = middle + 2.5 * second / np.linalg.norm(second)
    np.testing.assert_allclose(direction, end * [1, 2], rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_further_points_have_the_dtype_of_the_parameters(dtype):
    seen = []

    def both_sides(g, h, params, *, grad_fn, epsilon, **extra):
        return optax.tree.add(h, grad_fn(optax.tree.sub(params, epsilon)))

    link = sharpness_aware(perturb.ball(0.1), combine=combine.stateless(both_sides))
    w = jnp.ones(3, dtype)

    def grad_fn(p):
        seen.append(p.dtype)
        return p

    direction, _ = link.update(w, link.init(w), w, grad_fn=grad_fn)
    assert set(seen) == {w.dtype}
    assert direction.dtype == dtype
