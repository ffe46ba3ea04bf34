"""Compositions that no named method is: random parts on random trees."""

import chex
from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from test_gradient_counts import Counter

from sam_optax import combine, gradient_point, perturb, sharpness_aware, start, when

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 5
POWER_ITERATIONS = 2


def no_vectors(params):
    return jax.tree.map(lambda p: jnp.ndim(p) != 1, params)


def eigen_ball():
    return perturb.eigen_ball(0.3, 0.5, period=2, power_iterations=POWER_ITERATIONS)


STARTS = (
    lambda: None,
    lambda: start.noise(0.3, key=2),
    lambda: start.noise(0.2, power=0.5, samples=2),
    lambda: start.momentum(0.2, 0.7),
    lambda: start.previous(lambda t: 0.1 * (t + 1)),
)
PERTURBS = (
    lambda: None,
    lambda: perturb.ball(0.3),
    lambda: perturb.adaptive_ball(0.3, 0.1, weights=True),
    lambda: perturb.fisher_ball(0.3, lambda t: 0.5 * t),
    lambda: perturb.loss_ball(0.2, 0.5),
    lambda: perturb.noisy_ball(0.3, 0.5),
    eigen_ball,
    lambda: optax.chain(perturb.ema(0.4), perturb.adaptive_ball(0.3, weights=True)),
    lambda: optax.chain(perturb.subtract_ema(0.7, 0.6), perturb.loss_ball(0.2, 0.5)),
    lambda: optax.chain(perturb.ball(0.3), perturb.random_coordinates(0.5, key=5)),
    lambda: optax.chain(perturb.random_coordinates(0.6, mask="tensor"), perturb.fisher_ball(0.3)),
    lambda: optax.chain(optax.masked(optax.set_to_zero(), no_vectors), perturb.ball(0.3)),
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
    combine.renormalize,
    lambda: combine.reuse(0.5),
)
SLOTS = (STARTS, PERTURBS, WHENS, COMBINES)


def both_sides(g, h, params, *, grad_fn, epsilon, **extra):
    """A third gradient, behind the parameters."""
    return optax.tree.add(h, optax.tree.scale(0.5, grad_fn(optax.tree.sub(params, epsilon))))


def three_gradients():
    return combine.stateless(both_sides)


ALL_SLOTS = (
    STARTS,
    (
        *PERTURBS,
        lambda: perturb.layer_ball(0.2),
        lambda: perturb.noise(0.2, key=6),
        lambda: optax.chain(perturb.previous(), perturb.ball(0.3)),
        lambda: perturb.only(no_vectors, perturb.layer_ball(lambda t: 0.1 * t)),
    ),
    (
        *WHENS,
        lambda: when.between(1, 3),
        lambda: when.all_of(when.bernoulli(0.7, key=7), when.between(0, 4)),
        lambda: when.any_of(when.adaptive(0.0, decay=0.6), when.every(3)),
    ),
    (
        *COMBINES,
        lambda: combine.interpolate(lambda t: 0.2 * t),
        lambda: combine.slerp(1.2),
        three_gradients,
    ),
)
# Few shapes, so that what is compiled for one draw serves others.
LEAVES = ((), (3,), (2, 3), (1, 2, 2))
DTYPES = ("float16", "bfloat16", "float32", "float64")


@jax.jit
def gradient_at(w, centre):
    """Not that of a quadratic."""
    return jax.tree.map(lambda x, c: jnp.sin(x) + 0.5 * (x - c.astype(x.dtype)) ** 3, w, centre)


class Draw:
    """A composition, a tree of parameters, and the centres of its loss."""

    def __init__(self, seed, slots):
        rng = np.random.default_rng(seed)
        self.parts = [options[rng.integers(len(options))] for options in slots]
        self.at_point = bool(seed % 2)
        shapes = [LEAVES[i] for i in rng.integers(len(LEAVES), size=rng.integers(1, 5))]
        leaves = {f"leaf{i}": rng.normal(size=shape) for i, shape in enumerate(shapes)}
        self.params = {**leaves, "nested": [{}, (None, rng.normal(size=3))]}
        self.centres = [
            jax.tree.map(lambda w: rng.normal(size=w.shape), self.params) for _ in range(STEPS)
        ]
        self.dtypes = jax.tree.map(lambda w: DTYPES[rng.integers(len(DTYPES))], self.params)

    def link(self):
        first, geometry, policy, join = (part() for part in self.parts)
        slots = {} if geometry is None else {"when": policy, "combine": join}
        updates_at = "gradient_point" if self.at_point else "params"
        return sharpness_aware(geometry, start=first, updates_at=updates_at, **slots)

    def step(self, tx, counter=lambda f: f):
        def step(carry, centre):
            params, state = carry

            grad_fn = counter(lambda w: gradient_at(w, centre))
            point = gradient_point(state, params) if self.at_point else params
            updates, state = tx.update(grad_fn(point), state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), state

        return step

    def gradients(self, ascents):
        """The gradients of all steps, the caller's first included."""
        first = self.parts[0]()
        samples = first.samples if first else 1
        firsts = samples if self.at_point or first is None else samples + 1
        products = POWER_ITERATIONS * ((STEPS - 1) // 2)
        ascents *= 2 if self.parts[3] is three_gradients and self.parts[1]() is not None else 1
        return STEPS * firsts + ascents + (products if self.parts[1] is eigen_ball else 0)


def ravel(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def run(draw, mode):
    """(parameters after each step, the last state, gradients taken)."""
    tx, counter = optax.chain(draw.link(), optax.sgd(0.1)), Counter()
    step = draw.step(tx, counter)
    params = jax.tree.map(jnp.asarray, draw.params)
    carry = params, tx.init(params)
    centres = [jax.tree.map(jnp.asarray, centre) for centre in draw.centres]
    if mode == "scan":

        def body(carry, centre):
            carry = step(carry, centre)
            return carry, carry[0]

        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *centres)
        carry, points = jax.jit(lambda c: jax.lax.scan(body, c, stacked))(carry)
        points = [jax.tree.map(lambda leaf, t=t: leaf[t], points) for t in range(STEPS)]
    else:
        step, points = jax.jit(step) if mode == "jit" else step, []
        for centre in centres:
            carry = step(carry, centre)
            points.append(carry[0])
    jax.effects_barrier()
    return [ravel(point) for point in points], carry[1], counter.calls


def assert_a_good_citizen(draw, path):
    trajectories = []
    for mode in ("eager", "jit", "scan"):
        points, state, calls = run(draw, mode)
        assert calls == draw.gradients(int(optax.tree.get(state, "ascents"))), mode
        trajectories.append(points)
    assert np.isfinite(trajectories).all()
    for other in trajectories[1:]:
        np.testing.assert_allclose(other, trajectories[0], rtol=1e-8, atol=1e-10)
    assert_types_are_kept(draw)
    assert_the_state_survives(state, path)


def assert_types_are_kept(draw):
    """Of parameters and state, on leaves of every dtype side by side."""
    tx = optax.chain(draw.link(), optax.sgd(0.1))
    params = jax.tree.map(jnp.asarray, draw.params, draw.dtypes)
    before = params, tx.init(params)
    after = jax.eval_shape(draw.step(tx), before, draw.centres[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(after, jax.eval_shape(lambda: before))


def assert_the_state_survives(state, path):
    """Two checkpoints: Flax's bytes and Orbax's files."""
    blank = jax.tree.map(lambda leaf: jnp.asarray(np.zeros_like(leaf)), state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        checkpointer.wait_until_finished()
        by_orbax = checkpointer.restore(path / "state", blank)
    by_flax = serialization.from_bytes(blank, serialization.to_bytes(state))
    for restored in (by_orbax, by_flax):
        chex.assert_trees_all_equal_structs(restored, state)
        chex.assert_trees_all_equal_dtypes(restored, state)
        chex.assert_trees_all_equal(restored, state)


@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=() if i < 6 else pytest.mark.slow) for i in range(20)]
)
def test_a_random_composition_is_a_good_citizen(seed, tmp_path):
    """Finite, counted, the same eagerly, jitted and scanned; it keeps types, and is restored."""
    assert_a_good_citizen(Draw(seed, SLOTS), tmp_path)


@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=() if i < 24 else pytest.mark.slow) for i in range(20, 500)]
)
def test_480_more_compositions_of_all_parts_are_good_citizens(seed, tmp_path):
    assert_a_good_citizen(Draw(seed, ALL_SLOTS), tmp_path)
