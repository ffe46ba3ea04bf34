"""ASAM's weights are told by their names, whatever boxes the leaves."""

import dataclasses

from flax import linen as nn
from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """As a module of Equinox."""

    weight: jax.Array
    bias: jax.Array


class Net(nnx.Module):
    def __init__(self):
        self.Dense_0 = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))


def nested():
    """With a bias of two axes, as of stacked layers, and a scale of one."""
    return {
        "Dense_0": {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]]), "bias": jnp.ones((1, 2)) * 4},
        "norm": {"scale": jnp.array([5.0, 0.1]), "bias": jnp.array([2.0, 7.0])},
    }


def renamed(tree):
    return {"scale": "weight", "kernel": "weight"}.get(tree, tree)


FORMS = {
    "boxed": lambda tree: jax.tree.map(
        lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), tree
    ),
    "in lists": lambda tree: {
        layer: {name: [leaf] for name, leaf in leaves.items()} for layer, leaves in tree.items()
    },
    "flattened by tuples": traverse_util.flatten_dict,
    "flattened by slashes": lambda tree: traverse_util.flatten_dict(tree, sep="/"),
    "flattened by dots": lambda tree: {
        f"{layer}.{renamed(name)}": leaf
        for layer, leaves in tree.items()
        for name, leaf in leaves.items()
    },
    "modules": lambda tree: {
        "Dense_0": Linear(tree["Dense_0"]["kernel"], tree["Dense_0"]["bias"]),
        "norm": Linear(tree["norm"]["scale"], tree["norm"]["bias"]),
    },
    "raw variables": lambda tree: jax.tree.map(
        lambda variable, leaf: variable.replace(leaf),
        nnx.state(Net(), nnx.Param),
        nnx.State(tree),
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    ),
    "of modules of networks": lambda tree: {"generator": [tree]},
}


def normalized(tree):
    """The direction of ASAM where the gradient is the parameters, as a sorted vector."""
    link = sam_optax.asam(0.7, eta=0.1)
    direction, _ = link.update(tree, link.init(tree), tree, grad_fn=lambda p: p)
    return np.sort(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(direction)]))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_numbers_have_the_same_offset_in_every_tree(form):
    np.testing.assert_allclose(normalized(FORMS[form](nested())), normalized(nested()), rtol=1e-6)


def test_the_nested_tree_has_the_offset_of_the_formula():
    w = nested()
    ones = jax.tree.map(jnp.ones_like, w)
    scale = {
        "Dense_0": {"kernel": abs(w["Dense_0"]["kernel"]) + 0.1, "bias": ones["Dense_0"]["bias"]},
        "norm": {"scale": abs(w["norm"]["scale"]) + 0.1, "bias": ones["norm"]["bias"]},
    }
    ascent = jax.tree.map(jnp.multiply, scale, w)
    length = float(optax.tree.norm(ascent))
    moved = jax.tree.map(lambda p, t, a: p + 0.7 * t * a / length, w, scale, ascent)
    expected = np.sort(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)]))
    np.testing.assert_allclose(normalized(w), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["value", "raw_value"])
def test_a_layer_may_have_the_name_of_a_box(name):
    """As the values of attention do."""
    tree = {
        name: {"bias": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2))},
        "key": {"scale": jnp.ones(2)},
    }
    other = {"query": tree[name], "key": tree["key"]}
    np.testing.assert_allclose(normalized(tree), normalized(other), rtol=1e-6)


def test_a_vector_of_another_name_is_no_weight():
    """Nor one of a known name that says neither bias nor scale."""
    kernel = jnp.array([[3.0, -1.0], [0.5, 2.0]])
    vector = jnp.array([2.0, 7.0])
    as_bias = normalized({"kernel": kernel, "bias": vector})
    for name in ("gate", "embedding", "kernel"):
        tree = {"first": {"kernel": kernel}, "second": {name: vector}}
        np.testing.assert_allclose(normalized(tree), as_bias, rtol=1e-6)
    for name in ("scale", "weight"):
        tree = {"kernel": kernel, name: vector}
        assert np.abs(normalized(tree) - as_bias).max() > 0.01
