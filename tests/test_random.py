"""The package's own Threefry and draws give the numbers of `jax.random` and Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sam_optax import _random, _threefry


def pair(seed=7):
    """A key of JAX's own implementation and the same in the package's."""
    theirs = jax.random.key(seed)
    return theirs, jax.random.wrap_key_data(jax.random.key_data(theirs), impl=_threefry.PRNG)


def assert_same_key(ours, theirs):
    np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 5), (0, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("sampler", [jax.random.normal, jax.random.uniform])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_numbers(sampler, dtype, shape):
    with jax.enable_x64(dtype == "float64"):
        theirs, ours = pair()
        expected = sampler(theirs, shape, dtype)
        drawn = sampler(ours, shape, dtype)
        assert drawn.dtype == expected.dtype == dtype
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_bits(dtype):
    theirs, ours = pair()
    expected = jax.random.bits(theirs, (7, 3), dtype)
    np.testing.assert_array_equal(jax.random.bits(ours, (7, 3), dtype), expected)


@pytest.mark.parametrize("number", [0, 1, 2**31, 2**32 - 1])
def test_keys(number):
    theirs, ours = pair(number)
    assert_same_key(jax.random.fold_in(ours, number), jax.random.fold_in(theirs, number))
    assert_same_key(jax.random.split(ours, (2, 3)), jax.random.split(theirs, (2, 3)))
    assert_same_key(jax.random.key(number, impl=_threefry.PRNG), theirs)


def test_many_keys_at_once():
    keys = [jax.random.split(key, 3) for key in pair()]
    theirs, ours = (jax.vmap(lambda key: jax.random.normal(key, (4,)))(key) for key in keys)
    np.testing.assert_array_equal(ours, theirs)
    theirs, ours = (jax.vmap(jax.random.fold_in)(key, jnp.arange(3)) for key in keys)
    assert_same_key(ours, theirs)


def test_inside_jit():
    theirs, ours = pair()
    draw = jax.jit(lambda key: jax.random.bits(jax.random.fold_in(key, 3), (11,)))
    np.testing.assert_array_equal(draw(ours), draw(theirs))


def test_more_elements_than_a_word_counts():
    """Those are JAX's own: traced alone, as they would take 16 GiB."""
    _, ours = pair()
    drawn = jax.eval_shape(lambda key: jax.random.bits(key, (2**17, 2**16)), ours)
    assert drawn.shape == (2**17, 2**16)


# Draws like a tree.


def test_a_draw_is_that_of_optax():
    shapes = {"a": (3, 4), "b": (4,), "c": (3, 4), "d": (), "e": (4, 3), "f": (3, 4)}
    tree = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    key = jax.random.fold_in(jax.random.key(5), 9)
    expected = optax.tree.random_like(key, tree)
    drawn = _random.draw_like(jax.random.normal, _random.key_data(5), 9, tree)
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)
    assert not np.array_equal(drawn["a"], drawn["c"])


def test_a_draw_is_in_float32_at_least(x64):
    tree = {"half": jnp.zeros(3, jnp.bfloat16), "double": jnp.zeros(3, jnp.float64)}
    drawn = _random.draw_like(jax.random.uniform, _random.key_data(5), 9, tree)
    assert drawn["half"].dtype == jnp.float32
    assert drawn["double"].dtype == jnp.float64


def test_a_draw_grows_with_the_number_of_shapes():
    """A program for each leaf would take longer to compile than a training step."""

    def draw(tree):
        return _random.draw_like(jax.random.normal, _random.key_data(5), 9, tree)

    def loops(leaves):
        tree = {i: jnp.zeros((3, 4) if i % 2 else (4,)) for i in range(leaves)}
        return jax.jit(draw).lower(tree).as_text().count("stablehlo.while")

    assert loops(20) == loops(2) > 0
