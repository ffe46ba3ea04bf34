"""Projected gradient descent: against closed forms, a NumPy re-derivation, and its own promises."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.analysis.attacks import pgd

NORMS = ("linf", "l2")
KEY = jax.random.key(5)


@jax.jit
def losses(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@functools.cache
def gradient_of(logits_fn):
    """Of each image's own loss."""
    return jax.grad(lambda images, labels: losses(logits_fn(images), labels).sum())


@functools.cache
def linear(classes, scale=1.0, size=6):
    """Weights of a linear model of flat images, and images far from 0 and 1 with its labels."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(0, scale, (size, classes)), jnp.float32)
    images = jnp.asarray(rng.uniform(0.4, 0.6, (200, size)), jnp.float32)
    return w, images, np.asarray(logits_of(w)(images)).argmax(1)


@jax.jit
def linear_logits(w, images):
    """About the middle of the range, so that no class has all images."""
    return (images - 0.5) @ w


@functools.partial(jax.grad, argnums=1)
def linear_gradient(w, images, labels):
    return losses(linear_logits(w, images), labels).sum()


def logits_of(w):
    return functools.partial(linear_logits, w)


def gradient_at(w):
    """One function of all linear models, so that one compiled step serves all tests."""
    return jax.tree_util.Partial(linear_gradient, w)


@functools.cache
def network(dtype=np.float32, size=(4, 3, 1), classes=3):
    """A small random perceptron on images of pixels in [0, 1], some on the border."""
    rng = np.random.default_rng(1)
    shapes = (np.prod(size), 9), (9, classes)
    w, v = (rng.normal(0, 2, shape).astype(dtype) for shape in shapes)

    @jax.jit
    def logits_fn(images):
        return jnp.tanh(images.reshape(len(images), -1) @ w) @ v

    images = np.clip(rng.uniform(-0.3, 1.3, (20, *size)), 0, 1).astype(dtype)
    return logits_fn, (w, v), images, rng.integers(0, classes, 20)


def lengths(delta, norm):
    flat = np.asarray(delta).reshape(len(delta), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.sqrt((flat**2).sum(1))


def worst_margins(w, images, labels, epsilon, norm):
    """The least margin over each other class, where an attack of this radius is at its best."""
    logits, dual = np.asarray(logits_of(w)(images)), 1 if norm == "linf" else 2
    margins = []
    for row, label in zip(logits, np.asarray(labels), strict=True):
        others = [j for j in range(w.shape[1]) if j != label]
        lowered = [np.linalg.norm(w[:, label] - w[:, j], dual) * epsilon for j in others]
        margins.append(min(row[label] - row[j] - d for j, d in zip(others, lowered, strict=True)))
    return np.array(margins)


@pytest.mark.parametrize("norm", NORMS)
def test_of_two_linear_classes_the_worst_point_is_found(norm):
    """The margin sinks by ε times the dual norm of the difference of weights."""
    w, images, labels = linear(2)
    epsilon = {"linf": 0.005, "l2": 0.02}[norm]
    attacked = pgd(gradient_at(w), images, labels, epsilon=epsilon, norm=norm, steps=4)
    logits = np.asarray(logits_of(w)(attacked))
    rows = np.arange(len(labels))
    margins = np.asarray(logits[rows, labels] - logits[rows, 1 - labels])
    expected = worst_margins(w, images, labels, epsilon, norm)
    np.testing.assert_allclose(margins, expected, atol=2e-6)
    assert 0.1 < np.mean(expected > 0) < 0.9


@pytest.mark.parametrize("norm", NORMS)
def test_of_many_linear_classes_no_more_than_the_exact_share_falls(norm):
    """An image that withstands every attack of its radius is not lost, and hardly one is missed."""
    w, images, labels = linear(5, scale=30.0)  # the loss is nearly the largest of the margins
    epsilon = {"linf": 0.02, "l2": 0.04}[norm]
    attacked = pgd(gradient_at(w), images, labels, epsilon=epsilon, norm=norm, steps=40)
    right = np.asarray(logits_of(w)(attacked)).argmax(1) == labels
    exact = worst_margins(w, images, labels, epsilon, norm) > 0
    assert right[exact].all()
    assert 0.1 < exact.mean() < 0.9
    assert right.mean() <= exact.mean() + 0.02


@pytest.mark.parametrize("start", [None, KEY])
@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_stays_in_the_ball_and_among_the_images(norm, start):
    logits_fn, _, images, labels = network()
    before = np.asarray(losses(logits_fn(images), labels))
    for epsilon in (1e-3, 0.1, 0.7):
        attacked = pgd(
            gradient_of(logits_fn), images, labels, epsilon=epsilon, norm=norm, steps=7, key=start
        )
        assert attacked.dtype == jnp.float32
        assert attacked.shape == images.shape
        attacked = np.asarray(attacked)
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        reached = lengths(attacked - images, norm)
        assert reached.max() <= epsilon * (1 + 1e-5) + 1e-7
        assert reached.max() > 0.9 * epsilon
        assert np.mean(losses(logits_fn(attacked), labels)) > before.mean()


@pytest.mark.parametrize("norm", NORMS)
def test_five_steps_are_those_of_numpy(norm, x64):
    """Backpropagation, step and projection by hand, in float64."""
    logits_fn, (w, v), images, labels = network(np.float64)
    epsilon, step_size = 0.3, 0.11
    attacked = pgd(
        gradient_of(logits_fn),
        images,
        labels,
        epsilon=epsilon,
        norm=norm,
        steps=5,
        step_size=step_size,
    )
    at, clipped = images.copy(), False
    for _ in range(5):
        for i, (origin, label) in enumerate(zip(images, labels, strict=True)):
            hidden = np.tanh(at[i].ravel() @ w)
            powers = np.exp(hidden @ v)
            error = powers / powers.sum() - np.eye(3)[label]
            g = (w @ ((1 - hidden**2) * (v @ error))).reshape(origin.shape)
            step = np.sign(g) if norm == "linf" else g / np.sqrt(np.sum(g**2))
            delta = at[i] + step_size * step - origin
            if norm == "linf":
                delta = np.where(np.abs(delta) > epsilon, epsilon * np.sign(delta), delta)
            elif np.sqrt(np.sum(delta**2)) > epsilon:
                delta = delta * epsilon / np.sqrt(np.sum(delta**2))
            clipped |= np.any((origin + delta < 0) | (origin + delta > 1))
            at[i] = np.minimum(np.maximum(origin + delta, 0), 1)
    assert clipped
    assert attacked.dtype == jnp.float64
    np.testing.assert_allclose(attacked, at, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_without_a_gradient_stays(norm):
    logits_fn, _, images, labels = network()
    moves = jnp.arange(len(images)) % 2

    def gradient(images, labels):
        g = gradient_of(logits_fn)(images, labels)
        return g * moves[:, None, None, None]

    attacked = pgd(gradient, images, labels, epsilon=0.1, norm=norm, steps=3)
    moved = lengths(attacked - images, norm)
    np.testing.assert_array_equal(moved[::2], 0)
    assert (moved[1::2] > 0.01).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_tiny_gradient_moves_an_image_as_a_large_one_does(norm):
    """A model that is sure has gradients whose squares are 0 in float32."""
    w, images, labels = linear(2)
    ends = [
        pgd(
            lambda x, y, scale=scale: scale * gradient_at(w)(x, y),
            images,
            labels,
            epsilon=0.05,
            norm=norm,
            steps=1,
        )
        for scale in (1.0, 1e-30)
    ]
    np.testing.assert_allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_steps_reach_as_far_as_they_are_long(norm):
    """A step of an nth of ε stops short of the surface until the nth, and then stays there."""
    w, images, labels = linear(2)
    for steps in (1, 2, 4, 6):
        attacked = pgd(
            gradient_at(w),
            images,
            labels,
            epsilon=0.08,
            norm=norm,
            steps=steps,
            step_size=0.02,
        )
        reached = lengths(attacked - images, norm)
        np.testing.assert_allclose(reached, min(0.02 * steps, 0.08), rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_is_by_default_two_and_a_half_radii_over_the_steps(norm):
    w, images, labels = linear(3)
    ends = [
        pgd(
            gradient_at(w),
            images,
            labels,
            epsilon=0.08,
            norm=norm,
            steps=5,
            step_size=step_size,
        )
        for step_size in (None, 0.04)
    ]
    np.testing.assert_allclose(*ends, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_convex_loss_more_steps_do_no_less_harm(norm):
    w, images, labels = linear(5, scale=3.0)
    gradient, means = gradient_at(w), []
    for steps in range(1, 9):
        attacked = pgd(
            gradient, images, labels, epsilon=0.1, norm=norm, steps=steps, step_size=0.02
        )
        means.append(float(np.mean(losses(logits_of(w)(attacked), labels))))
    assert all(after >= before - 1e-6 for before, after in itertools.pairwise(means))
    assert means[0] < means[4] - 0.2


def zero(images, labels):
    return jnp.zeros_like(images)


def starts(images, key, norm, epsilon=0.1):
    """Where attacks start: a gradient of zero leaves them there."""
    labels = np.zeros(len(images), np.int32)
    return pgd(zero, images, labels, epsilon=epsilon, norm=norm, steps=1, key=key)


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_is_uniform_in_the_ball(norm):
    """The share within r of the centre is r to the number of dimensions; the mean is the centre."""
    images = np.full((4000, 3), 0.5, np.float32)
    delta = np.asarray(starts(images, KEY, norm) - images)
    shares = lengths(delta, norm) / 0.1
    assert shares.max() <= 1 + 1e-5
    for r in (0.5, 0.8, 0.9):
        assert np.mean(shares < r) == pytest.approx(r**3, abs=4 * 0.5 / 4000**0.5)
    assert np.abs(delta.mean(0)).max() < 4 * 0.1 / 4000**0.5


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_depends_on_the_key_and_the_place_alone(norm):
    images = np.full((6, 2, 2, 1), 0.5, np.float32)
    first = np.asarray(starts(images, KEY, norm))
    np.testing.assert_array_equal(first, starts(images, KEY, norm))
    np.testing.assert_array_equal(first[:4], starts(images[:4], KEY, norm))
    assert not np.any(np.isclose(first, starts(images, jax.random.key(6), norm)))
    assert not np.any(np.isclose(first[1:], first[:-1]))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(6))
    np.testing.assert_array_equal(first[3:], starts(images[3:], keys[3:], norm))


@pytest.mark.parametrize("norm", NORMS)
def test_one_compiled_step_serves_all_radii_and_weights(norm):
    traced = []

    def gradient(w, images, labels):
        traced.append(None)
        return gradient_at(w)(images, labels)

    w, images, labels = linear(3)
    for scale, epsilon in ((1.0, 0.01), (2.0, 0.02), (-1.0, 0.03)):
        bound = jax.tree_util.Partial(gradient, scale * w)
        attacked = pgd(bound, images, labels, epsilon=epsilon, norm=norm, steps=3)
        expected = pgd(
            gradient_at(scale * w),
            images,
            labels,
            epsilon=epsilon,
            norm=norm,
            steps=3,
        )
        np.testing.assert_allclose(attacked, expected, atol=1e-6)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive and finite, got 0.0"),
        ({"epsilon": float("nan")}, "epsilon must be positive"),
        ({"step_size": -1.0}, "step_size must be positive and finite, got -1.0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"norm": "l1"}, "norm must be linf or l2, got 'l1'"),
        ({"images": jnp.full((200, 6), 3, jnp.uint8)}, "floats in .0, 1., got uint8: divide"),
        ({"images": jnp.full((200, 6), 1.5)}, r"must be floats in \[0, 1\]"),
        ({"images": jnp.full((200, 6), jnp.nan)}, r"must be floats in \[0, 1\]"),
    ],
)
def test_wrong_arguments_are_told(changed, message):
    w, images, labels = linear(2)
    given = {"images": images, "epsilon": 0.1, "steps": 2, **changed}
    with pytest.raises(ValueError, match=message):
        pgd(gradient_at(w), given.pop("images"), labels, **given)
