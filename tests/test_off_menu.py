"""Compositions that no named method is: random parts on random trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_gradient_counts import Counter

from sam_optax import combine, gradient_point, perturb, sharpness_aware, start, when

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 5

STARTS = (lambda: None, lambda: start.noise(0.3, key=2), lambda: start.noise(0.2, power=0.5))
PERTURBS = (
    lambda: perturb.ball(0.3),
    lambda: perturb.loss_ball(0.2, 0.5),
    lambda: perturb.noisy_ball(0.3, 0.5),
    lambda: optax.chain(optax.ema(0.8, debias=False), perturb.ball(0.3)),
    lambda: optax.chain(optax.scale_by_sign(), optax.scale(0.1)),
    lambda: optax.chain(optax.scale_by_adam(), perturb.ball(lambda t: 0.1 * (t + 1))),
)
WHENS = (
    when.always,
    lambda: when.every(2),
    lambda: when.bernoulli(0.5, key=4),
    lambda: when.adaptive(0.0, decay=0.6),
)
COMBINES = (
    combine.perturbed,
    lambda: combine.mix(1.5, 1.0, 0.7),
    lambda: combine.weigh(0.7, optax.trace(0.5)),
    lambda: combine.weigh(0.7, optax.scale_by_adam()),
    lambda: combine.extrapolate(0.3),
    lambda: combine.surrogate_gap(0.5),
    lambda: combine.reuse(0.5),
)


def draw(seed):
    """A composition, a tree of parameters, and the gradient of its loss at step t."""
    rng = np.random.default_rng(seed)
    parts = [options[rng.integers(len(options))] for options in (STARTS, PERTURBS, WHENS, COMBINES)]
    updates_at = ("params", "gradient_point")[seed % 2]
    shapes = [tuple(rng.integers(1, 4, size=rng.integers(0, 4))) for _ in range(rng.integers(1, 5))]
    params = {f"leaf{i}": rng.normal(size=shape) for i, shape in enumerate(shapes)}
    params["nested"] = [{}, {"last": rng.normal(size=2)}]
    centres = [jax.tree.map(lambda w: rng.normal(size=w.shape), params) for _ in range(STEPS)]

    def link():
        first, geometry, policy, join = (part() for part in parts)
        return sharpness_aware(
            geometry, start=first, when=policy, combine=join, updates_at=updates_at
        )

    def gradient(w, centre):
        return jax.tree.map(lambda x, c: jnp.sin(x) + 0.5 * (x - c) ** 3, w, centre)

    return link, params, centres, gradient, updates_at == "gradient_point"


@pytest.mark.parametrize("seed", range(10))
def test_a_random_composition_is_finite_counted_and_the_same_in_every_mode(seed):
    link, initial, centres, gradient, at_point = draw(seed)
    offset = bool(link().init(initial).start)
    trajectories = []
    for mode in ("eager", "jit", "host"):
        tx, counter = optax.chain(link(), optax.sgd(0.1)), Counter()
        evaluate = jax.jit(gradient) if mode == "host" else gradient

        def step(params, state, centre, tx=tx, counter=counter, evaluate=evaluate):
            grad_fn = counter(lambda w: evaluate(w, centre))
            point = gradient_point(state, params) if at_point else params
            updates, state = tx.update(grad_fn(point), state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), state

        step = jax.jit(step) if mode == "jit" else step
        params = jax.tree.map(jnp.asarray, initial)
        state, points = tx.init(params), []
        for centre in centres:
            params, state = step(params, state, jax.tree.map(jnp.asarray, centre))
            points.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]))
        jax.effects_barrier()
        # The caller's gradient, a further one where it is not the first, and the second ones.
        firsts = STEPS * (2 if offset and not at_point else 1)
        assert counter.calls == firsts + int(optax.tree.get(state, "ascents")), mode
        trajectories.append(points)
    assert np.isfinite(trajectories).all()
    for other in trajectories[1:]:
        np.testing.assert_allclose(other, trajectories[0], rtol=1e-8, atol=1e-10)
