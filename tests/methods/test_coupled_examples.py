"""ESAM where the loss of an example depends on the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax

pytestmark = pytest.mark.usefixtures("x64")

RHO, GAMMA = 0.3, 0.5


def contrastive(w, x):
    """In-batch negatives."""
    a, b = x[0] @ w, x[1] @ w
    return optax.softmax_cross_entropy_with_integer_labels(a @ b.T, jnp.arange(len(a)))


def normalized(w, x):
    """Statistics of the batch."""
    h = x[0] @ w
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
    return jnp.sum((h - x[1] @ jnp.eye(3, 2)) ** 2, axis=1)


@pytest.mark.parametrize("losses", [contrastive, normalized])
def test_the_gradient_within_the_batch_is_that_of_the_definition(losses):
    """d = ∇ mean over S of ℓ_i(w + ε), ℓ_i the loss of example i of the whole batch."""
    rng = np.random.default_rng(0)
    w, x = jnp.asarray(rng.normal(size=(3, 2))), jnp.asarray(rng.normal(size=(2, 8, 3)))
    each = jax.jit(lambda w: losses(w, x))
    grads = jax.jit(jax.grad(lambda w: each(w).mean()))(w)
    epsilon = RHO * np.asarray(grads) / np.linalg.norm(grads)
    rise = np.asarray(each(w + epsilon)) - np.asarray(each(w))
    kept = np.argsort(-rise)[:4]
    expected = np.asarray(jax.jit(jax.jacrev(each))(w + epsilon))[kept].mean(0)

    def direction(loss):
        link = sam_optax.esam(RHO, beta=1.0, gamma=GAMMA)
        grad_fn = jax.jit(jax.grad(loss))
        return link.update(grads, link.init(w), w, grad_fn=grad_fn, example_loss_fn=each)[0]

    within = direction(lambda w, i: losses(w, x)[i].mean())
    np.testing.assert_allclose(within, expected, rtol=1e-12)
    alone = direction(lambda w, i: losses(w, x[:, i]).mean())
    assert np.linalg.norm(alone - expected) > 0.3 * np.linalg.norm(expected)
