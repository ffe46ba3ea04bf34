"""Random trees, masks and faults: every method is that of the plain leaves, or an error.

A tree of containers, boxes, gaps, stacks and dtypes is drawn, and a mask that is a prefix of it.
The method on the part must do what it does to the plain list of the part's leaves; with a fault put
in, it must say so.
"""

import re
from typing import Any, NamedTuple

from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import METHODS, NAMES

import sam_optax

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 4
ALL = np.arange(4)  # the examples
KEYS = ["kernel", "bias", "scale", "weight", "v", "m", "rho", "block.kernel", "a/bias"]
DTYPES = ["float64", "float64", "float32", "bfloat16"]


class Pair(NamedTuple):
    kernel: Any
    bias: Any


class Tree(NamedTuple):
    """A drawn tree, and a mask that is a prefix of it."""

    params: Any
    mask: Any


def draw_leaf(rng):
    kind = rng.choice(["float"] * 6 + ["int", "bool", "none", "empty"])
    shape = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 4)))
    if kind == "int":
        return jnp.asarray(rng.integers(0, 100_000, shape))
    if kind == "bool":
        return jnp.asarray(rng.integers(0, 2, shape), bool)
    if kind == "none":
        return None
    if kind == "empty":
        return jnp.zeros((0, 2))
    return jnp.asarray(rng.normal(size=shape), rng.choice(DTYPES))


def draw(rng, depth=0, mask=None):
    """A tree and a prefix of it; below a boolean of the prefix there is no more of it."""
    if mask is None and depth and rng.random() < 0.3:
        mask = bool(rng.random() < 0.7)

    def drawn(n):
        children = [draw(rng, depth + 1, mask) for _ in range(n)]
        return [child.params for child in children], [child.mask for child in children]

    def made(build, params, masks):
        return Tree(build(params), mask if mask is not None else build(masks))

    if depth > 2 or (depth and rng.random() < 0.35):
        leaf = draw_leaf(rng)
        chosen = mask if mask is not None else bool(rng.random() < 0.7)
        if isinstance(leaf, jax.Array) and rng.random() < 0.3:
            boxes = [
                lambda x: nn.Partitioned(x, names=(None,) * x.ndim),
                lambda x: nn.LogicallyPartitioned(x, names=(None,) * x.ndim),
                nnx.Param,
            ]
            return Tree(boxes[rng.integers(3)](leaf), chosen)
        return Tree(leaf, chosen)
    kind = rng.choice(["dict", "frozen", "list", "tuple", "named"])
    if kind == "named":
        return made(lambda children: Pair(*children), *drawn(2))
    params, masks = drawn(int(rng.integers(1, 4)))
    if kind in ("list", "tuple"):
        return made({"list": list, "tuple": tuple}[kind], params, masks)
    names = [str(name) for name in rng.choice(KEYS, len(params), replace=False)]
    build = {"dict": dict, "frozen": FrozenDict}[kind]
    return made(lambda children: build(zip(names, children, strict=True)), params, masks)


def is_float(leaf):
    return leaf is not None and jnp.issubdtype(leaf.dtype, jnp.floating)


def is_none(node):
    return node is None


def flatten(tree):
    return jax.tree.flatten(tree, is_leaf=is_none)


def inside(tree):
    """For each leaf, gaps among them, whether the method is to live on it."""
    leaves, structure = flatten(tree.params)
    booleans = jax.tree.broadcast(tree.mask, jax.tree.unflatten(structure, range(len(leaves))))
    pairs = zip(leaves, jax.tree.leaves(booleans), strict=True)
    return [chosen and is_float(leaf) for leaf, chosen in pairs]


def losses(leaves):
    """Of four examples; each leaf has a curvature of its own, and all are coupled."""
    floats = [x.astype(jnp.float64) for x in leaves if is_float(x)]
    far = jnp.asarray([1.0, 0.5, -1.0, 2.0])
    each = sum(
        (1 + i % 3) * jnp.sum((x - far.reshape(4, *[1] * x.ndim)) ** 2, axis=range(1, 1 + x.ndim))
        for i, x in enumerate(floats)
    )
    return each + jnp.sin(sum(jnp.sum(x) for x in floats)) * far


def name_of(path):
    """The last name on a key path, without boxes and places in lists."""
    names = [str(getattr(k, "key", getattr(k, "name", ""))) for k in path]
    names = [n for n in names if n not in ("", "value", "raw_value") and not n.isdigit()]
    return names[-1].replace("/", ".").split(".")[-1] if names else ""


def is_weight(path, leaf):
    """What `asam` takes for one, from the words of its docstring."""
    name = name_of(path)
    return name in ("scale", "weight") or (leaf.ndim > 1 and name != "bias")


def row_of(name, tree):
    """The row of a method, and that for the list of the part's leaves."""
    row, paths = METHODS[name], jax.tree.leaves_with_path(tree.params, is_leaf=is_none)
    chosen = [pair for pair, i in zip(paths, inside(tree), strict=True) if i]
    if name == "asam":
        told = {"weights": [is_weight(path, leaf) for path, leaf in chosen]}
    elif name in ("r_sam", "r_gsam", "lpf_sgd"):  # a bias is one kernel, by its name
        axes = [sam_optax.start.kernel_axes()(path, leaf) for path, leaf in chosen]
        told = {"kernels": [lambda path, leaf, own=own: own for own in axes]}
    else:
        return row, row
    return row, row._replace(settings=row.settings | told)


def moved(p, u):
    """By NumPy, which compiles nothing for each shape and dtype."""
    return jnp.asarray(np.asarray(p) - 0.01 * np.asarray(u))


def run(row, params, moving, loss_of, link, gradient_like=lambda g: g):
    """The directions of a few steps, and the last state; the leaves that are not moving stay."""
    leaves, structure = flatten(params)

    @jax.jit
    def gradient(p, indices):
        return jax.grad(lambda p: jnp.mean(loss_of(p)[indices]), allow_int=True)(p)

    def grad_fn(p, indices=ALL):
        return gradient_like(gradient(p, indices))

    state = link.init(params)
    found = []
    for _ in range(STEPS):
        extra = {"example_loss_fn": jax.jit(loss_of)} if row.call["examples"] else {}
        point = sam_optax.gradient_point(state, params) if row.call["at_point"] else params
        updates, state = link.update(grad_fn(point), state, params, grad_fn=grad_fn, **extra)
        found.append(updates)
        triples = zip(leaves, structure.flatten_up_to(updates), moving, strict=True)
        leaves = [moved(p, u) if moves else p for p, u, moves in triples]
        params = jax.tree.unflatten(structure, leaves)
    return found, state


def as_equinox(gradient):
    """None where there is no gradient."""
    return jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, gradient)


def cases(number):
    """The tree of a draw; numbers in the part, and in the rest but for one draw of five."""
    rng = np.random.default_rng(number)
    while True:
        tree = draw(rng)
        pairs = zip(inside(tree), flatten(tree.params)[0], strict=True)
        numbers = {chosen for chosen, leaf in pairs if is_float(leaf) and leaf.size}
        if True in numbers and (number % 5 == 0 or False in numbers):
            return rng, tree


def check_method(number):
    name = NAMES[number % len(NAMES)]
    rng, tree = cases(number)
    row, plain_row = row_of(name, tree)
    leaves, structure = flatten(tree.params)
    part = inside(tree)
    mask = tree.mask if rng.random() < 0.5 else (lambda params: tree.mask)
    like = as_equinox if rng.random() < 0.5 else (lambda g: g)

    def of_part(mine):
        following = iter(mine)
        return losses([next(following) if i else x for x, i in zip(leaves, part, strict=True)])

    def of_tree(params):
        return losses(flatten(params)[0])

    if name == "asam" and not has_known_name(tree):
        with pytest.raises(ValueError, match="weights=None goes by the names"):
            run(row, tree.params, part, of_tree, sam_optax.masked(row.link(), mask), like)
        return
    mine = [leaf for leaf, i in zip(leaves, part, strict=True) if i]
    expected, plain_state = run(plain_row, mine, [True] * len(mine), of_part, plain_row.link())
    # The rest stands still here too, but has a gradient.
    link = sam_optax.masked(row.link(), mask)
    actual, state = run(row, tree.params, part, of_tree, link, like)
    for here, there in zip(actual, expected, strict=True):
        updates = structure.flatten_up_to(here)
        own = [u for u, i in zip(updates, part, strict=True) if i]
        for u, v in zip(own, there, strict=True):
            assert u.dtype == v.dtype
            np.testing.assert_allclose(
                np.asarray(u, float),
                np.asarray(v, float),
                rtol=tolerance(mine),
                atol=tolerance(mine),
            )
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == sum(
        leaf.nbytes for leaf in jax.tree.leaves(plain_state)
    )


def tolerance(leaves):
    """That of the coarsest dtype among them, to which w + ε is rounded."""
    return {8: 1e-12, 4: 1e-5, 2: 3e-2}[min(leaf.dtype.itemsize for leaf in leaves)]


def has_known_name(tree):
    paths = jax.tree.leaves_with_path(tree.params, is_leaf=is_none)
    kept = [path for (path, _), i in zip(paths, inside(tree), strict=True) if i]
    return any(name_of(path) in ("kernel", "bias", "scale", "weight") for path in kept)


# What a caller may get wrong in one leaf of a gradient, and what the error says.
FAULTS = {
    "a forgotten mean": (lambda g: jnp.stack([g, g, g]), "forget the mean over 3 examples"),
    "another shape": (lambda g: jnp.zeros((7, *g.shape[1:])), "where the parameter is"),
    "no gradient": (lambda g: None, "is None where"),
    "integers": (lambda g: jnp.zeros(g.shape, int), "a gradient is a real number"),
    "complex": (lambda g: g.astype(complex), "a gradient is a real number"),
}


def check_fault(number):
    """A fault in one leaf of the part, in `updates` or in what grad_fn returns."""
    name = NAMES[number % len(NAMES)]
    rng, tree = cases(number)
    row = METHODS[name].unnamed
    link = sam_optax.masked(row.link(), tree.mask)
    paths = jax.tree.leaves_with_path(tree.params, is_leaf=is_none)
    place = rng.choice([i for i, chosen in enumerate(inside(tree)) if chosen])
    fault, told = FAULTS[rng.choice(list(FAULTS))]
    in_updates = rng.random() < 0.5 and name not in STARTS

    def spoiled(gradient):
        leaves, structure = jax.tree.flatten(gradient, is_leaf=is_none)
        leaves[place] = fault(leaves[place])
        return jax.tree.unflatten(structure, leaves)

    params = tree.params
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(losses(flatten(p)[0])), allow_int=True))
    here, there = (spoiled, lambda g: g) if in_updates else (lambda g: g, spoiled)
    extra = {"example_loss_fn": lambda p: losses(flatten(p)[0])} if row.call["examples"] else {}

    def step(p):
        return link.update(
            here(gradient(p)),
            link.init(p),
            p,
            grad_fn=lambda p, indices=None: there(gradient(p)),
            **extra,
        )

    where = "updates" if in_updates else "what grad_fn returns"
    where += jax.tree_util.keystr(paths[place][0])
    for call in (step, jax.jit(step)):
        with pytest.raises(ValueError, match=f"{re.escape(where)} .*{told}"):
            call(params)


# These take no notice of `updates`, which XLA removes.
STARTS = ("r_sam", "r_gsam", "lpf_sgd", "msam", "s2_sam")

FEW = 12


@pytest.mark.parametrize("number", range(FEW))
def test_a_method_on_a_part_of_any_tree_is_that_of_its_plain_leaves(number):
    check_method(number)


@pytest.mark.parametrize("number", range(FEW))
def test_a_fault_in_any_leaf_is_told_with_its_place(number):
    check_fault(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(FEW, 300))
def test_three_hundred_trees(number):
    check_method(number)
    check_fault(number)
