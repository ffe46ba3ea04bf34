"""Leaves that have no gradient pass through every method, and what does not fit is an error."""

import functools

import chex
from flax.core import FrozenDict
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import KINDS, METHODS, NAMES, initial_params, loss, losses, make_batch

import sam_optax

# Beside the parameters, and what a gradient may hold there.
GAPS = {
    "count": jnp.arange(100_000, 100_003),
    "flag": jnp.array(True),
    "nothing": None,
    "key": jax.random.key(0),
    "rate": np.int64(7),
}
GRADIENTS = {
    "none, as Equinox has it": dict.fromkeys(GAPS),
    "float0, as jax.grad has it": {
        **GAPS,
        "count": np.zeros(3, jax.dtypes.float0),
        "flag": np.zeros((), jax.dtypes.float0),
    },
}


gradient_of_loss = jax.jit(jax.grad(loss))


def directions(name, gaps, gradient_gaps, *, compiled):
    """The directions of a few steps at parameters that stay, and the last state."""
    row = METHODS[name]
    link = row.link()
    params = jax.tree.map(jnp.asarray, initial_params()) | gaps

    def step(state, batch):
        def own(p):
            return {name: leaf for name, leaf in p.items() if name not in gaps}

        def grad_fn(p, indices=slice(None)):
            rows = jax.tree.map(lambda x: x[indices], batch)
            for name, leaf in gaps.items():
                assert p[name] is leaf  # as it was handed over
            return gradient_of_loss(own(p), rows) | gradient_gaps

        extra = {}
        if row.call["examples"]:
            extra["example_loss_fn"] = lambda p: losses(own(p), batch)
        point = sam_optax.gradient_point(state, params) if row.call["at_point"] else params
        direction, state = link.update(grad_fn(point), state, params, grad_fn=grad_fn, **extra)
        for name, leaf in gradient_gaps.items():
            assert direction.pop(name) is leaf
        return direction, state

    call = jax.jit(step) if compiled else step
    state, found = link.init(params), []
    for t in range(4):
        direction, state = call(state, jax.tree.map(jnp.asarray, make_batch(t)))
        found.append(direction)
    return found, state


@functools.cache
def directions_without_gaps(name, *, compiled):
    return directions(name, {}, {}, compiled=compiled)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        pytest.param(
            name,
            gradient,
            marks=()
            if name in (KINDS if gradient.startswith("none") else ("gsam", "eigen_sam", "wsam"))
            else pytest.mark.slow,
        )
        for name in NAMES
        for gradient in GRADIENTS
    ],
)
def test_gaps_pass_through(name, compiled, gradient):
    found, state = directions(name, GAPS, GRADIENTS[gradient], compiled=compiled)
    expected, expected_state = directions_without_gaps(name, compiled=compiled)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.tree.leaves(state), jax.tree.leaves(expected_state)
    )


# What does not fit.


PARAMS = {"a": {"w": jnp.ones(2), "b": jnp.ones(3)}, "n": jnp.arange(2)}
MISFITS = {
    "no mean": (
        {"a": {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}, "n": None},
        r"\['a'\]\['w'\] is float32\[3, 2\] where the parameter is float32\[2\]: did the loss "
        "forget the mean over 3 examples",
    ),
    "another shape": (
        {"a": {"w": jnp.ones(4), "b": jnp.ones(3)}, "n": None},
        r"\['a'\]\['w'\] is float32\[4\] where.*float32\[2\]: it must be the gradient of a scalar",
    ),
    "none": (
        {"a": {"w": jnp.ones(2), "b": None}, "n": None},
        r"\['a'\]\['b'\] is None where.*float32\[3\]: .*sam_optax.masked\(link, mask\)",
    ),
    "float0": (
        {"a": {"w": jnp.ones(2), "b": np.zeros(3, jax.dtypes.float0)}, "n": None},
        r"\['a'\]\['b'\] is \S+\[3\] where the parameter is float32\[3\]: a gradient is a real",
    ),
    "integers": (
        {"a": {"w": jnp.ones(2), "b": jnp.ones(3, int)}, "n": None},
        r"\['a'\]\['b'\] is int32\[3\] where the parameter is float32\[3\]: a gradient is a real",
    ),
    "complex numbers": (
        {"a": {"w": jnp.ones(2), "b": jnp.ones(3, complex)}, "n": None},
        r"\['a'\]\['b'\] is complex64\[3\] where the parameter is float32\[3\]: a gradient is a r",
    ),
    "a word": ({"a": {"w": "1", "b": jnp.ones(3)}, "n": None}, r"\['w'\] is '1' where.*array"),
    "a frozen dictionary": (
        {"a": FrozenDict({"w": jnp.ones(2), "b": jnp.ones(3)}), "n": None},
        r"must have the structure of params: at \['a'\] expected dict, got FrozenDict",
    ),
    "a leaf too few": ({"a": {"w": jnp.ones(2)}, "n": None}, r"there is no \['a'\]\['b'\]"),
    "a leaf too many": (
        {"a": {"w": jnp.ones(2), "b": jnp.ones(3), "c": 1.0}, "n": None},
        r"the parameters have no \['a'\]\['c'\]",
    ),
    "an array for a tree": ({"a": jnp.ones(2), "n": None}, r"at \['a'\] expected dict, got"),
    "a value beside": ((jnp.ones(()), PARAMS), "hand over the gradient alone: use jax.grad"),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("link", [sam_optax.sam(), sam_optax.masked(sam_optax.sam(), True)])
def test_what_does_not_fit_the_parameters_is_named(link, misfit, compiled):
    gradient, message = MISFITS[misfit]
    state = link.init(PARAMS)

    def call(updates, returned):
        def step(state):
            return link.update(updates, state, PARAMS, grad_fn=lambda p: returned)

        return (jax.jit(step) if compiled else step)(state)

    fits = PARAMS | {"n": None}
    with pytest.raises(ValueError, match=rf"^updates.*{message}"):
        call(gradient, fits)
    with pytest.raises(ValueError, match=rf"^what grad_fn returns.*{message}"):
        call(fits, gradient)
    call(fits, fits)


def test_a_value_beside_the_gradient_of_one_array_is_told():
    """There the structure of the parameters is that of a leaf, which takes anything."""
    link, w = sam_optax.sam(), jnp.ones(2)
    message = r"what grad_fn returns is .* float32\[2\]: hand over the gradient alone: use jax.grad"
    with pytest.raises(ValueError, match=message):
        link.update(w, link.init(w), w, grad_fn=jax.value_and_grad(lambda w: (w**2).sum()))


def test_what_perturb_returns_is_checked_too():
    link = sam_optax.sharpness_aware(optax.stateless(lambda g, p: g["a"]))
    message = r"^what perturb returns must have the structure of params: there is no \['a'\]"
    with pytest.raises(ValueError, match=message):
        link.update(PARAMS, link.init(PARAMS), PARAMS, grad_fn=lambda p: p)


def test_boxes_of_other_names_differ_in_their_data():
    from flax import linen as nn

    params = {"a": nn.Partitioned(jnp.ones(2), ("x",))}
    other = {"a": nn.Partitioned(jnp.ones(2), ("y",))}
    link = sam_optax.sam()
    with pytest.raises(ValueError, match="the nodes hold other data than those of params"):
        link.update(other, link.init(params), params, grad_fn=lambda p: p)


def test_the_remedy_for_complex_parameters(x64):
    """Two leaves, joined in the loss."""
    z = jnp.array([3 + 4j, 1 - 2j])
    with pytest.raises(
        TypeError, match=r"params\['z'\] is complex.*by jax.lax.complex in the loss"
    ):
        sam_optax.sam().init({"z": z})
    link = sam_optax.sam(0.5)
    params = {"real": z.real, "imaginary": z.imag}
    c = jnp.array([0.3 - 0.1j, 2.0 + 1j])

    def loss(p):
        return jnp.sum(jnp.abs(jax.lax.complex(p["real"], p["imaginary"]) - c) ** 2)

    grad_fn = jax.grad(loss)
    updates, _ = link.update(grad_fn(params), link.init(params), params, grad_fn=grad_fn)
    gradient = 2 * (np.asarray(z) - np.asarray(c))
    expected = 2 * (np.asarray(z) + 0.5 * gradient / np.linalg.norm(gradient) - np.asarray(c))
    np.testing.assert_allclose(updates["real"] + 1j * updates["imaginary"], expected, rtol=1e-12)


def test_a_scalar_gradient_may_be_a_number_of_python():
    w = {"w": 1.0}
    for link in (sam_optax.sam(0.5), sam_optax.looksam(0.5), sam_optax.r_sam(0.5)):
        updates, _ = link.update(w, link.init(w), w, grad_fn=lambda p: {"w": 2.0})
        assert float(updates["w"]) == 2.0


def test_what_perturb_returns_in_a_gap_is_left_out():
    """As a direction for the whole tree, from outside."""
    w = {"n": jnp.array(3), "w": jnp.array([3.0, 4.0]), "none": None}
    direction = {"n": jnp.array(1), "w": jnp.array([1.0, 2.0]), "none": jnp.ones(2)}
    grad_fn = jax.grad(lambda p: jnp.sum(p["w"] ** 2) / 2, allow_int=True)
    link = sam_optax.sharpness_aware(optax.stateless(lambda updates, params: direction))

    def step(w):
        return link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)[0]["w"]

    for direction_of in (step, jax.jit(step)):
        np.testing.assert_allclose(direction_of(w), [4.0, 6.0], rtol=1e-6)


def test_a_class_among_the_leaves_is_no_number():
    """As an unfiltered module of Equinox may hold one; such a class has an attribute dtype."""
    params = {"w": jnp.array([3.0, 4.0]), "numpy": np.float32, "jax": jnp.float32}

    def grad_fn(p):
        return {"w": p["w"], "numpy": None, "jax": None}

    for mask in (True, {"w": True, "numpy": False, "jax": False}):
        link = sam_optax.masked(sam_optax.sam(5.0), mask)
        updates, _ = link.update(grad_fn(params), link.init(params), params, grad_fn=grad_fn)
        assert updates["numpy"] is updates["jax"] is None
        np.testing.assert_allclose(updates["w"], [6.0, 8.0])


def test_an_offset_may_be_a_number():
    part = optax.stateless(lambda updates, params: 0.5)
    link = sam_optax.sharpness_aware(part)
    w = jnp.array(2.0)
    updates, _ = link.update(w, link.init(w), w, grad_fn=lambda p: p)
    np.testing.assert_allclose(updates, 2.5)


def said(gradient):
    """What is told of a gradient of two numbers that is none."""
    w, link = {"a": jnp.ones(2)}, sam_optax.sam()
    with pytest.raises(ValueError, match=r"^updates\['a'\] is ") as raised:
        link.update({"a": gradient}, link.init(w), w, grad_fn=lambda p: p)
    return str(raised.value)


def test_a_number_is_the_gradient_of_a_scalar_alone():
    assert "it must be an array of that shape" in said(0.5)


@pytest.mark.parametrize(("examples", "forgot"), [(1, False), (2, True), (3, True)])
def test_several_examples_are_taken_for_a_forgotten_mean(examples, forgot):
    message = f"did the loss forget the mean over {examples} examples?"
    assert (message in said(jnp.ones((examples, 2)))) == forgot
