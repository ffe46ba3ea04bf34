"""Attacks on images: small perturbations that raise the loss of a trained model."""

from collections.abc import Callable
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

NORMS = ("linf", "l2")


def pgd(
    gradient: Callable[[jax.Array, jax.Array], jax.Array],
    images: jax.Array,
    labels: jax.Array,
    *,
    epsilon: float,
    norm: Literal["linf", "l2"] = "linf",
    steps: int,
    step_size: float | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """x ← Π(x + α d(∇ₓL(x, y))), a number of times, with d = sign for L∞ and g/‖g‖₂ for L2.

    Π goes to the nearest point of the ball ‖x − x₀‖ ≤ ε around the image and then clips to [0, 1].
    For L∞ that is the nearest point of both. For L2 it need not be, but it lies in both: clipping
    moves each pixel towards x₀. An image whose gradient is zero stays where it is.

    The loop runs in Python around one compiled step, the same for all ε and α, since on CPU the
    gradients of convolutions are slow inside compiled loops.

    Args:
      gradient: gradient(images, labels) is for each image the gradient of its own loss, not divided
        by the number of images. Arrays that it needs are best bound by `jax.tree_util.Partial`: the
        compiled step then serves other values of them too.
      images: floats in [0, 1], [B, ...].
      labels: what gradient takes, [B, ...].
      epsilon: ε, the radius of the ball, positive.
      norm: of the ball and of the step, "linf" or "l2".
      steps: how many, at least 1.
      step_size: α, positive; 2.5 ε/steps where left out: from any point of the ball to any other,
        with some steps left to move along its surface.
      key: of a start that is uniform in the ball, one for all images or one for each of them; with
        one for all, each image draws by its place in the batch. None to start at the image.

    Returns:
      The attacked images of the last step.

    Raises:
      ValueError: an argument is out of its range.

    References:
      Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks, section 2.1.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be {' or '.join(NORMS)}, got {norm!r}: pass one of them.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: pass such as 10.")
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}: pass such as 0.03.")
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    if not floating or (images.size and not (images.min() >= 0 and images.max() <= 1)):
        raise ValueError(
            f"images must be floats in [0, 1], got {images.dtype}: divide bytes by 255."
        )
    if not isinstance(gradient, jax.tree_util.Partial):
        gradient = jax.tree_util.Partial(gradient)
    attacked = images
    if key is not None:
        places = jnp.arange(len(images))
        keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        attacked = _start(keys, images, epsilon, norm)
    for _ in range(steps):
        attacked = _step(gradient, images, labels, attacked, epsilon, step_size, norm)
    return attacked


@functools.partial(jax.jit, static_argnames="norm")
def _step(gradient, images, labels, attacked, epsilon, step_size, norm):
    g = gradient(attacked, labels)
    direction = jnp.sign(g) if norm == "linf" else _unit(g)
    return _project(attacked + step_size * direction, images, epsilon, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _start(keys, images, epsilon, norm):
    """Points uniform in the ball around each image, clipped to [0, 1]."""

    def delta(key, image):
        if norm == "linf":
            return jax.random.uniform(key, image.shape, image.dtype, -1, 1)
        direction_key, radius_key = jax.random.split(key)
        normal = jax.random.normal(direction_key, image.shape, image.dtype)
        # The share of a ball's volume within r of its centre is r to the number of dimensions.
        radius = jax.random.uniform(radius_key, dtype=image.dtype) ** (1 / image.size)
        return radius * _unit(normal[None])[0]

    return _project(images + epsilon * jax.vmap(delta)(keys, images), images, epsilon, norm)


def _project(points, images, epsilon, norm):
    """The nearest point of the ball around each image, clipped to [0, 1]."""
    delta = points - images
    if norm == "linf":
        delta = jnp.clip(delta, -epsilon, epsilon)
    else:
        length = _norms(delta)
        delta = delta * jnp.where(length > epsilon, epsilon / length, 1)
    return jnp.clip(images + delta, 0, 1)


def _unit(vectors):
    """Each vector over its norm; a zero vector stays one."""
    # The square of a small gradient, as of a model that is sure, would be 0 in float32.
    largest = jnp.abs(vectors).max(axis=_inner(vectors), keepdims=True)
    scaled = vectors / jnp.where(largest > 0, largest, 1)
    length = _norms(scaled)
    return scaled / jnp.where(length > 0, length, 1)


def _norms(vectors):
    """The L2 norm of each, with axes of one in place of its own."""
    return jnp.sqrt((vectors**2).sum(axis=_inner(vectors), keepdims=True))


def _inner(vectors):
    return tuple(range(1, vectors.ndim))
