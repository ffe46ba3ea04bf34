"""Zero, tiny and huge gradients, odd trees, and every floating-point type."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import FEW, KINDS, METHODS, NAMES, few

import sam_optax
from sam_optax import perturb, when

DTYPES = {
    "float16": jnp.float16,
    "bfloat16": jnp.bfloat16,
    "float32": jnp.float32,
    "float64": jnp.float64,
}


# Exactness is of float64, and Optax's suite has all four; bfloat16 has the range of float32.
OFTEN = {"float16": (), "bfloat16": NAMES, "float32": KINDS, "float64": ()}


@functools.cache
def link_of(name):
    """One for all tests, which compiles its pieces once for parameters of the same shapes."""
    return METHODS[name].unnamed.link()


def odd_params(dtype):
    """A zero leaf, a scalar, and three kinds of empty subtree."""
    return {
        "zero": jnp.zeros((2, 3), dtype),
        "matrix": jnp.linspace(-1, 1, 6, dtype=dtype).reshape(3, 2),
        "scalar": jnp.asarray(0.5, dtype),
        "empty": {},
        "none": None,
        "tuple": (),
    }


def scaled_gradient(scale):
    def grad_fn(params):
        return jax.tree.map(lambda p: scale.astype(p.dtype) * (jnp.sin(p) + p), params)

    return grad_fn


def optimizer(row):
    """With so small a learning rate that gradients of every size leave the parameters finite."""
    return optax.chain(row.link(), optax.clip(1.0), optax.sgd(0.1, momentum=row.momentum))


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def assert_finite_and_stable(name, dtype, scales, compiled):
    """Steps on the odd tree with gradients times each scale, then on the tree of zeros."""
    tx = optimizer(METHODS[name].unnamed)

    def step(params, state, scale):
        grad_fn = scaled_gradient(scale)
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state, updates

    step = jax.jit(step) if compiled else step
    for params in (odd_params(dtype), optax.tree.zeros_like(odd_params(dtype))):
        state = tx.init(params)
        before = types(state), types(params)
        for scale in scales:
            params, state, updates = step(params, state, jnp.asarray(scale, jnp.float32))
            assert types(updates) == before[1]
            assert (types(state), types(params)) == before
            for leaf in map(np.asarray, jax.tree.leaves((updates, params))):
                assert np.isfinite(leaf.astype(np.float64)).all(), scale
            for leaf in map(np.asarray, jax.tree.leaves(state)):
                assert not np.isnan(leaf.astype(np.float64)).any(), (scale, state)


# 1e4 overflows float16 when squared; 1e15 is beyond float16 itself.
ORDINARY = (1.0, 0.0, 0.0, 1.0, 1e-7, 1e4, 1.0)
EXTREME = (1e15, 0.0, 1e-30, 1e-15, 1e-38, 1e15)


@pytest.mark.parametrize(
    ("name", "dtype_name"),
    [
        pytest.param(name, dtype_name, marks=() if name in often else pytest.mark.slow)
        for dtype_name, often in OFTEN.items()
        for name in NAMES
    ],
)
def test_no_gradient_of_any_size_gives_nan_under_jit(name, dtype_name):
    """Nor zero weights, a scalar leaf or an empty subtree; dtypes and shapes never change."""
    scales = ORDINARY if dtype_name == "float16" else ORDINARY + EXTREME
    with jax.enable_x64(dtype_name == "float64"):
        assert_finite_and_stable(name, DTYPES[dtype_name], scales, compiled=True)


@pytest.mark.parametrize("name", FEW)
def test_no_gradient_of_any_size_gives_nan_eagerly(name):
    assert_finite_and_stable(name, jnp.bfloat16, (1.0, 0.0, 1e4), compiled=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_tree_without_leaves_is_left_alone(name):
    link = link_of(name)
    updates, state = link.update({}, link.init({}), {}, grad_fn=lambda p: p)
    assert updates == {}
    assert int(state.steps) == 1


@pytest.mark.parametrize("name", few(*KINDS, "asam", "r_sam"))
def test_a_single_scalar_is_a_tree(name):
    link = link_of(name)
    w = jnp.asarray(2.0)
    updates, _ = link.update(2 * w, link.init(w), w, grad_fn=lambda p: 2 * p)
    assert updates.shape == ()
    assert jnp.isfinite(updates)


def type_of_updates(name, w, grad_fn):
    link = link_of(name)

    def update(w):
        return link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)[0]

    return types(jax.eval_shape(update, w))


@pytest.mark.parametrize("name", NAMES)
def test_leaves_keep_their_own_dtypes(name):
    w = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3, jnp.float32)}
    assert type_of_updates(name, w, lambda p: p) == types(w)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_another_dtype_than_the_parameters_keep_it(name):
    """As where the caller casts float32 parameters to compute in bfloat16."""
    w = jnp.ones(3)
    assert type_of_updates(name, w, lambda p: p.astype(jnp.bfloat16)) == ((3,), jnp.bfloat16)


def ascent(transformation, first):
    """ε of a geometry for one gradient."""
    state = transformation.init(first)
    return transformation.update(first, state, first, step=jnp.int32(0))[0]


def test_a_squared_norm_that_overflows_float16_does_not_matter():
    """100 elements of 1000 have a norm of 10⁴ and a squared norm of 10⁸."""
    g = {"a": jnp.full(64, 1000, jnp.float16), "b": jnp.full(36, 1000, jnp.float16)}
    for geometry in (perturb.ball(1.0), perturb.noisy_ball(1.0), perturb.loss_ball(1e4)):
        np.testing.assert_allclose(ascent(geometry, g)["a"], 0.1, rtol=1e-3)


def test_a_norm_over_many_small_bfloat16_leaves_is_exact():
    """300 ones sum to 256 where bfloat16 accumulates."""
    g = [jnp.ones((), jnp.bfloat16)] * 300

    @jax.jit
    def first_leaves(g):
        return [ascent(geometry, g)[0] for geometry in (perturb.ball(1.0), perturb.loss_ball(1.0))]

    ball, loss_ball = np.array(first_leaves(g), np.float32)
    np.testing.assert_allclose(ball, 300**-0.5, rtol=5e-3)
    np.testing.assert_allclose(loss_ball, 1 / 300, rtol=5e-3)


def test_inner_products_of_bfloat16_leaves_are_exact():
    """The rejected part of a on b, where bfloat16 sums of the 2s and 4s stop at 512 and 1024."""
    g, h = np.ones(300), np.array([16.0] + [2.0] * 299)
    first, second = (list(jnp.asarray(leaves, jnp.bfloat16)) for leaves in (g, h))
    fresh = sam_optax.combine.surrogate_gap(1.0).fresh
    direction, _ = jax.jit(lambda: fresh(first, second, (), first, step=jnp.int32(0)))()
    expected = h - (g - (g @ h) / (h @ h) * h)
    np.testing.assert_allclose(np.array(direction, np.float32), expected, rtol=1e-2)


@pytest.mark.parametrize("dtype_name", ["float16", "bfloat16", "float32"])
def test_statistics_are_float32_whatever_the_gradient(dtype_name):
    g = jnp.full(100, 200, DTYPES[dtype_name])  # ‖g‖² = 4 · 10⁶
    for name, statistic, value in (
        ("ae_sam", "mean", 0.5 * 4e6),
        ("samar", "previous_norm", 2000),
        ("le_sam", "rho", 0.8 / 2000),
    ):
        link = METHODS[name].unnamed.link()
        _, state = link.update(g, link.init(g), g, grad_fn=lambda p: p)
        actual = optax.tree.get(state, statistic)
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, value, rtol=1e-5)


@pytest.mark.parametrize("dtype_name", DTYPES)
def test_the_noise_of_small_dtypes_is_drawn_in_float32(dtype_name):
    """Drawn in bfloat16, the offset of 10⁴ elements would have only a few hundred values."""
    with jax.enable_x64(dtype_name == "float64"):
        w = jnp.ones(10_000, DTYPES[dtype_name])
        offset = sam_optax.r_sam().init(w).start.offset(w)
        assert offset.dtype == jnp.promote_types(w.dtype, jnp.float32)
        assert len(np.unique(offset)) > 9_000


PARAMS = {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_gradient_moves_nothing(name):
    """But a weight decay of the method's own, which is left out."""
    row, w = METHODS[name], jax.tree.map(jnp.asarray, PARAMS)
    own = {"weight_decay": 0.0} if "weight_decay" in row.settings else {}
    link = row._replace(settings=row.settings | own).unnamed.link()
    zeros = jax.tree.map(jnp.zeros_like, w)
    state = link.init(w)
    for _ in range(2):
        updates, state = link.update(zeros, state, w, grad_fn=lambda p: zeros)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_looksam_without_a_sharp_part_hands_on_the_gradient():
    """g' = g has no part across g: the stored direction must not be rounding noise."""
    w = jnp.linspace(0.3, 1.7, 50)
    g = jnp.linspace(-1.1, 2.3, 50)
    link = sam_optax.looksam(rho=0.1, alpha=0.7, period=2)
    _, state = link.update(g, link.init(w), w, grad_fn=lambda p: g)
    updates, _ = link.update(g, state, w, grad_fn=lambda p: g)
    np.testing.assert_allclose(updates, g, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if "looksam" not in name])
def test_a_norm_beyond_float32_gives_no_nan(name):
    """‖g‖² is infinite in float32: the perturbation vanishes, the direction stays finite.

    LookSAM's direction is a multiple of ‖g‖ itself, and so infinite.
    """
    link, params = link_of(name), jax.tree.map(jnp.asarray, PARAMS)
    gradient = jax.tree.map(lambda p: jnp.asarray(np.float32(1e25) * p), PARAMS)
    state = link.init(params)
    for _ in range(3):
        direction, state = link.update(gradient, state, params, grad_fn=lambda p: gradient)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(direction))


def test_the_momentum_of_large_float16_gradients_does_not_overflow():
    w = jnp.ones(3, jnp.float16)
    link = sam_optax.msam(0.1)
    state = link.init(w)
    for _ in range(20):
        _, state = link.update(w, state, w, grad_fn=lambda p: 3e4 * jnp.ones_like(p))
        assert jnp.isfinite(sam_optax.gradient_point(state, w)).all()


@pytest.mark.parametrize("outlier", [1e15, jnp.inf, jnp.nan])
def test_one_overflow_does_not_stay_in_the_moving_averages(outlier):
    """A step whose statistics are not finite leaves them as they were; later steps decide."""
    policy = when.adaptive(0.0)
    params = jnp.ones(2)
    _, before = policy.update(params, policy.init(params), params, step=0)
    _, state = policy.update(outlier * params, before, params, step=1)
    assert (state.mean, state.variance) == (before.mean, before.variance)
    fire, state = policy.update(2 * params, state, params, step=2)
    assert fire
    assert state.mean > before.mean


@pytest.mark.parametrize("dtype_name", ["float16", "bfloat16"])
def test_looksam_takes_the_rounding_of_small_parameters_for_rounding(dtype_name):
    """With w + ε rounded to the dtype, g' differs from a parallel g by rounding alone: d = g."""
    w = jnp.linspace(-1.1, 2.3, 50).astype(dtype_name)
    link = sam_optax.looksam(rho=0.1, alpha=0.7, period=2)
    _, state = link.update(w, link.init(w), w, grad_fn=lambda p: p)
    direction, _ = link.update(w, state, w, grad_fn=lambda p: p)
    np.testing.assert_array_equal(direction, w)


@pytest.mark.parametrize("name", METHODS)
def test_no_rank_is_promoted_where_jax_is_told_to_refuse(name):
    """A scalar goes with any leaf, and nothing else is broadcast."""
    tx = optimizer(METHODS[name].unnamed)
    params = {"kernel": jnp.ones((2, 4, 3)), "bias": jnp.ones(3)}
    grad_fn = scaled_gradient(jnp.ones([]))

    def steps(params):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return updates

    with jax.numpy_rank_promotion("raise"):
        assert types(jax.eval_shape(steps, params)) == types(params)


def test_the_whole_batch_is_taken_in_its_order():
    """With γ = 1, where nothing is to be selected."""
    w, kept = jnp.ones(2), []

    def grad_fn(p, indices):
        kept.append(list(np.asarray(indices)))
        return p

    link = sam_optax.esam(0.1, beta=1.0, gamma=1.0)
    losses = {"example_loss_fn": lambda p: jnp.arange(4.0) * p.sum()}
    link.update(w, link.init(w), w, grad_fn=grad_fn, **losses)
    assert kept == [[0, 1, 2, 3]]
