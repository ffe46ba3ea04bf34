"""A state of another method, or of other parameters, is a clear error at the update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import FEW, METHODS

import sam_optax
from sam_optax import perturb, start

W = {"w": jnp.ones(2), "b": jnp.ones(3)}
REMEDY = r"pass the state of this method, or make one by init\(params\)"


def identity(p):
    return p


def update(link, state, params=W):
    return link.update(params, state, params, grad_fn=identity)


OTHERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9).init(W),
    "empty": lambda: optax.EmptyState(),
    "the chain around it": lambda: optax.chain(sam_optax.sam(), optax.sgd(0.1)).init(W),
    "restored without types": lambda: sam_optax.sam().init(W)._asdict(),
    "none": lambda: None,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_no_method_is_an_error(name):
    message = rf"needs a sam_optax.SharpnessAwareState, got \w+, which is of another.*{REMEDY}"
    with pytest.raises(ValueError, match=message):
        update(sam_optax.sam(), OTHERS[name]())


# Each with a state of its own kind.
KINDS = ["sam", "looksam", "ss_sam", "ae_sam", "samar", "vasso", "eigen_sam", "le_sam"]
KINDS += ["r_sam", "msam", "s2_sam", "wsam"]


@functools.cache
def state_of(name):
    return METHODS[name].link().init(W)


@pytest.mark.parametrize(
    ("name", "compiled"),
    [(name, False) for name in KINDS]
    + [
        pytest.param(name, True, marks=() if name in ("looksam", "msam") else pytest.mark.slow)
        for name in KINDS
    ],
)
def test_a_state_of_another_method_is_an_error(name, compiled):
    """Restored or not: the link has made no state of its own, or has made one."""
    link = METHODS[name].link()
    call = (lambda s: update(link, s)) if not compiled else jax.jit(lambda s: update(link, s))
    for other in KINDS:
        if other != name:
            with pytest.raises(ValueError, match=f"another method.*{REMEDY}"):
                call(state_of(other))
    call(link.init(W))
    with pytest.raises(ValueError, match=f"another method.*{REMEDY}"):
        call(state_of("msam" if name != "msam" else "sam"))


@pytest.mark.parametrize("name", ["looksam", "vasso", "eigen_sam", "msam", "s2_sam", "wsam"])
@pytest.mark.parametrize(
    "other", [{"w": jnp.ones(4), "b": jnp.ones(3)}, {"w": jnp.ones(2)}, {"v": jnp.ones(2)}]
)
def test_a_state_of_other_parameters_is_an_error(name, other):
    link = METHODS[name].link()
    with pytest.raises(ValueError, match=f"of other parameters.*{REMEDY}"):
        update(link, link.init(other))
    with pytest.raises(ValueError, match=f"of other parameters.*{REMEDY}"):
        update(link, link.init(W), other)


def test_the_message_names_the_leaf_and_its_shapes():
    link = sam_optax.looksam()
    state = link.init({**W, "w": jnp.ones(4)})
    message = r"combine\.v\['w'\] has shape \[4\], and these parameters take \[2\]"
    with pytest.raises(ValueError, match=message):
        update(link, state)


@pytest.mark.parametrize("name", FEW)
def test_the_state_of_the_same_method_made_anew_is_taken(name):
    """And as NumPy arrays, as a checkpoint gives it back."""
    row = METHODS[name]
    state = jax.tree.map(np.asarray, row.link().init(W))
    link = row.link()
    _, state = update(link, state)
    assert int(update(link, state)[1].steps) == 2


def test_a_part_of_the_callers_may_keep_what_it_likes():
    """Its init is not asked again, which might be no function of shapes."""

    def init(params):
        return float(params["w"].sum())

    part = optax.GradientTransformation(init, lambda g, s, p=None: (g, s))
    link = sam_optax.sharpness_aware(optax.chain(part, perturb.ball(0.1)))
    _, state = update(link, link.init(W))
    assert update(link, state)


def test_the_other_slots_are_checked_beside_a_part_of_the_callers():
    part = optax.stateless(lambda g, p: g)
    link = sam_optax.sharpness_aware(part)
    state = sam_optax.sharpness_aware(part, start=start.momentum(0.1)).init(W)
    with pytest.raises(ValueError, match="holds in start what this method does not keep there"):
        update(link, state)


def test_a_start_by_a_schedule_in_python_is_checked_too():
    link = sam_optax.msam(rho=lambda step: 0.1 if step < 3 else 0.2)
    update(link, link.init(W))
    with pytest.raises(ValueError, match="another method"):
        update(link, sam_optax.s2_sam().init(W))


def test_links_made_anew_look_at_the_parameters_once(monkeypatch):
    """`inject_hyperparams` makes one for each update: only the first traces its init."""
    traced = []
    eval_shape = jax.eval_shape
    monkeypatch.setattr(jax, "eval_shape", lambda *args: traced.append(1) or eval_shape(*args))
    w = jnp.ones((3, 5, 7))  # of no other test
    tx = optax.inject_hyperparams(sam_optax.vasso)(rho=0.1)
    state = tx.init(w)
    counts = []
    for _ in range(3):
        _, state = tx.update(w, state, w, grad_fn=identity)
        counts.append(len(traced))
    assert 0 < counts[0] == counts[2]


@pytest.mark.parametrize("name", FEW)
def test_a_state_is_made_of_shapes_as_of_arrays(name):
    """As Optax's own init does, for a checkpoint to be restored into."""
    row = METHODS[name].unnamed
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), W)
    state, expected = row.link().init(shapes), row.link().init(W)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
