"""The package's own Threefry and draws give the numbers of `jax.random` and Optax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sam_optax import _random, _threefry


def pair(seed=7):
    """A key of JAX's own implementation and the same in the package's."""
    theirs = jax.random.key(seed)
    return theirs, jax.random.wrap_key_data(jax.random.key_data(theirs), impl=_threefry.prng())


def assert_same_key(ours, theirs):
    np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))


def often(sampler, dtype, shape):
    """Each shape for one sampler and dtype, and each of those for one shape."""
    return shape == (5,) or (sampler, dtype) == ("uniform", "float32")


CELLS = [
    pytest.param(*cell, marks=() if often(*cell) else pytest.mark.slow)
    for cell in itertools.product(
        ("normal", "uniform"),
        ("float32", "bfloat16", "float64"),
        [(), (5,), (3, 4, 5), (0, 3), (1, 1)],
    )
]


@pytest.mark.parametrize(("sampler", "dtype", "shape"), CELLS, ids=str)
def test_numbers(sampler, dtype, shape):
    sampler = getattr(jax.random, sampler)
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
    assert_same_key(jax.random.key(number, impl=_threefry.prng()), theirs)


def test_many_keys_at_once():
    keys = [jax.random.split(key, 3) for key in pair()]

    @jax.jit
    @jax.vmap
    def both(key, number):
        return jax.random.normal(key, (4,)), jax.random.fold_in(key, number)

    (theirs, folded), (ours, own) = (both(key, np.arange(3)) for key in keys)
    np.testing.assert_array_equal(ours, theirs)
    assert_same_key(own, folded)


def test_inside_jit():
    theirs, ours = pair()
    draw = jax.jit(lambda key: jax.random.bits(jax.random.fold_in(key, 3), (11,)))
    np.testing.assert_array_equal(draw(ours), draw(theirs))


def test_more_elements_than_a_word_counts():
    """Those are JAX's own: traced alone, as they would take 16 GiB."""

    def program(rows):
        key = jax.random.key_data(pair()[1])
        return str(jax.make_jaxpr(lambda key: _threefry._bits(key, 32, (rows, 2**16)))(key))

    assert "random_bits" not in program(2**16)
    assert "random_bits" in program(2**17)


# Draws like a tree.


SHAPES = {"a": (3, 4), "b": (4,), "c": (3, 4), "d": (), "e": (4, 3), "f": (3, 4), "g": (0, 2)}
TREE = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def draw(count, tree=TREE):
    return _random.draw_like(jax.random.normal, _random.key_data(5), count, tree)


@jax.jit
def theirs(count, tree=TREE):
    return optax.tree.random_like(jax.random.fold_in(jax.random.key(5), count), tree)


def assert_same(drawn, expected):
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_draw_is_that_of_optax(compiled):
    drawn = (jax.jit(draw) if compiled else draw)(9)
    assert_same(drawn, theirs(9))
    assert not np.array_equal(drawn["a"], drawn["c"])


def test_draws_of_several_seeds_at_once():
    drawn = jax.jit(jax.vmap(draw))(np.arange(3))
    for count in range(3):
        assert_same({name: leaf[count] for name, leaf in drawn.items()}, theirs(count))


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices, real or virtual")
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("varies", [True, False])
def test_draws_under_shard_map(kind, check_vma, varies):
    """Each device draws for itself where its key does, as an ensemble trains."""
    types = (jax.sharding.AxisType[kind],)
    mesh = jax.make_mesh((4,), ("x",), axis_types=types)
    spec = jax.sharding.PartitionSpec
    spec = spec("x") if varies else spec()
    tree = {"w": np.zeros((2, 3), np.float32), "v": np.zeros((2, 3), np.float32)}
    counts = np.arange(4 if varies else 1)
    local = jax.jit(
        jax.shard_map(
            lambda count: draw(count[0], tree)["v"],
            mesh=mesh,
            check_vma=check_vma,
            in_specs=spec,
            out_specs=spec,
        )
    )
    drawn = local(jax.device_put(counts, jax.sharding.NamedSharding(mesh, spec)))
    np.testing.assert_array_equal(drawn, np.concatenate([theirs(i, tree)["v"] for i in counts]))


def test_no_key_is_used_twice():
    expected = theirs(9)
    with jax.debug_key_reuse(True):
        drawn = draw(9)
    assert_same(drawn, expected)


def test_a_draw_outside_jit_is_traced_once():
    """Tracing and compiling it at each call would take a hundred times as long."""
    traced = []

    def sampler(*args, **kwargs):
        traced.append(args)
        return jax.random.normal(*args, **kwargs)

    _random.draw_like(sampler, _random.key_data(5), 0, TREE)
    once = len(traced)
    _random.draw_like(sampler, _random.key_data(5), 1, TREE)
    assert len(traced) == once > 0


def test_a_draw_is_in_float32_at_least(x64):
    tree = {"half": jnp.zeros(3, jnp.bfloat16), "double": jnp.zeros(3, jnp.float64)}
    drawn = _random.draw_like(jax.random.uniform, _random.key_data(5), 9, tree)
    assert drawn["half"].dtype == jnp.float32
    assert drawn["double"].dtype == jnp.float64


def test_a_draw_grows_with_the_number_of_shapes():
    """A program for each leaf would take longer to compile than a training step."""

    def loops(leaves):
        tree = {i: jnp.zeros((3, 4) if i % 2 else (4,)) for i in range(leaves)}
        return jax.jit(draw).lower(9, tree).as_text().count("stablehlo.while")

    assert loops(20) == loops(2) > 0
