"""Which axes make one kernel of the noise, in layouts other than Flax's."""

import chex
from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import sam_optax
from sam_optax import start
from sam_optax.start import kernel_axes

pytestmark = pytest.mark.usefixtures("x64")


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def deviations(w, kernels=None, power=1.0):
    """σ / γ of each number: the offset over the normal draw behind it."""
    draw = start.noise(2.0, power=0.0).init(w).offset(w)
    offset = start.noise(1.0, power=power, kernels=kernels).init(w).offset(w)
    return jax.tree.map(lambda o, z: np.asarray(2.0 * o / z), offset, draw)


LAYOUTS = {
    # The rank of a leaf, the kernels, and the axes of one.
    "in, out": (2, kernel_axes(), (0,)),
    "window, in, out": (4, kernel_axes(), (0, 1, 2)),
    "bias": (1, kernel_axes(), (0,)),
    "one number": (0, kernel_axes(), ()),
    "out, in": (2, kernel_axes(out_axis=0), (1,)),
    "out, in, window": (4, kernel_axes(out_axis=0), (1, 2, 3)),
    "bias of that": (1, kernel_axes(out_axis=0), (0,)),
    "rows of an embedding": (2, kernel_axes(0), (1,)),
    "heads": (3, kernel_axes((-2, -1)), (0,)),
    "heads by a list": (3, kernel_axes([1, 2]), (0,)),
    "bias of heads": (2, kernel_axes((-2, -1)), (0, 1)),
    "bias of a head": (1, kernel_axes((-2, -1)), (0,)),
    "stacked": (3, kernel_axes(batch_axis=0), (1,)),
    "stacked bias": (2, kernel_axes(batch_axis=0), (1,)),
    "stacked numbers": (1, kernel_axes(batch_axis=0), ()),
    "stacked twice": (4, kernel_axes(batch_axis=(0, 1)), (2,)),
    "stacked heads": (4, kernel_axes((-2, -1), batch_axis=0), (1,)),
    "a function of one's own": (3, lambda path, w: [-1, w.ndim - 3], (0, 2)),
    "every number": (2, lambda path, w: (), ()),
}


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_noise_has_the_scale_of_each_kernel(layout, power):
    rank, kernels, axes = LAYOUTS[layout]
    shape = (4, 5, 3, 2)[:rank]  # one of each rank, so that one compiled draw serves many layouts
    w = random(*shape)
    norms = np.sqrt(np.sum(np.square(np.asarray(w)), axis=axes, keepdims=True))
    expected = np.broadcast_to(norms**power, shape)
    np.testing.assert_allclose(deviations(w, kernels, power), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "kernels", "axes"),
    [
        ((5, 1, 1), kernel_axes(out_axis=0), (0, 1, 2)),
        ((4, 5, 1), kernel_axes(out_axis=1, batch_axis=0), (1, 2)),
        ((1, 5), kernel_axes(), (0, 1)),
    ],
)
def test_a_bias_is_one_kernel_whatever_axes_of_size_1_it_has(shape, kernels, axes):
    """As the bias of a convolution in Equinox, (out, 1, 1); a weight of that shape is several."""
    w = random(*shape)
    whole = np.sqrt(np.sum(np.square(np.asarray(w)), axis=axes, keepdims=True))
    tree = {"conv": {"bias": w, "weight": w}}
    found = deviations(tree, kernels)["conv"]
    np.testing.assert_allclose(found["bias"], np.broadcast_to(whole, shape), rtol=1e-12)
    np.testing.assert_allclose(found["weight"], np.abs(w), rtol=1e-12)


def test_layers_have_the_same_noise_apart_and_stacked():
    layers = [{"kernel": random(6, 6, seed=i), "bias": random(6, seed=9 * i)} for i in (1, 2)]
    apart = [deviations(layer) for layer in layers]
    stacked = deviations(jax.tree.map(lambda *x: jnp.stack(x), *layers), kernel_axes(batch_axis=0))
    chex.assert_trees_all_close(jax.tree.map(lambda *x: np.stack(x), *apart), stacked, rtol=1e-12)


def test_attention_has_the_same_noise_in_one_matrix_and_in_heads():
    query = random(64, 64)
    matrix = deviations(query)
    heads = deviations(query.reshape(64, 8, 8), kernel_axes((-2, -1)))
    np.testing.assert_allclose(heads.reshape(64, 64), matrix, rtol=1e-12)


def test_a_transposed_network_has_the_transposed_noise():
    kernel = random(3, 3, 4, 5)
    transposed = deviations(jnp.transpose(kernel, (3, 2, 0, 1)), kernel_axes(out_axis=0))
    np.testing.assert_allclose(
        transposed, np.transpose(deviations(kernel), (3, 2, 0, 1)), rtol=1e-12
    )


def initial():
    return {
        "embedding": random(3, 2, seed=1),
        "blocks": {"kernel": random(3, 2, 2), "bias": random(3, 2)},
        "head": {"kernel": random(2, 4), "none": None, "steps": jnp.array(3)},
    }


KERNELS = {"embedding": kernel_axes(out_axis=0), "blocks": kernel_axes(batch_axis=0), "head": None}


def loss_fn(p):
    hidden = p["embedding"]
    for i in range(3):
        hidden = jnp.tanh(hidden @ p["blocks"]["kernel"][i] + p["blocks"]["bias"][i])
    return jnp.sum((hidden @ p["head"]["kernel"] - 1) ** 2)


grad_fn = jax.jit(jax.grad(loss_fn, allow_int=True))
METHODS = {
    "r_sam": lambda: sam_optax.r_sam(0.3, 0.1, kernels=KERNELS),
    "r_gsam": lambda: sam_optax.r_gsam(0.3, 0.1, kernels=KERNELS),
    "lpf_sgd": lambda: sam_optax.lpf_sgd(0.1, samples=2, kernels=KERNELS),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_take_a_tree_of_kernels(name):
    """Each leaf has the noise of its layout, step after step, inside jit and outside."""
    params = initial()
    axes = {"embedding": 1, "blocks": {"kernel": 1, "bias": 1}, "head": {"kernel": 0}}
    norms = jax.tree.map(
        lambda axis, w: np.linalg.norm(w, axis=axis, keepdims=True), axes, drop_gaps(params)
    )
    link = METHODS[name]()
    states = [link.init(params), jax.jit(link.init)(params)]
    step = jax.jit(lambda g, s, p: link.update(g, s, p, grad_fn=grad_fn))
    grads = grad_fn(params)
    for _ in range(2):
        point = sam_optax.gradient_point(states[0], params)
        chex.assert_trees_all_close(point, sam_optax.gradient_point(states[1], params), rtol=1e-12)
        assert int(point["head"]["steps"]) == 3
        noise = states[0].start.noise
        alike = start.NoiseState(noise.key_data, noise.draw, noise.gamma, 0 * noise.power)
        z = drop_gaps(alike.offset(whole(drop_gaps(params))))
        expected = jax.tree.map(lambda w, n, z: w + n * z, drop_gaps(params), norms, z)
        chex.assert_trees_all_close(drop_gaps(point), expected, rtol=1e-12)
        _, first = link.update(grads, states[0], params, grad_fn=grad_fn)
        _, second = step(grads, states[1], params)
        states = [first, second]


def drop_gaps(tree):
    return {**tree, "head": {"kernel": tree["head"]["kernel"]}}


def whole(tree):
    return {**tree, "head": {**tree["head"], "none": None, "steps": None}}


def test_the_default_told_is_the_default():
    w = random(4, 3)
    told, plain = start.noise(0.1, kernels=kernel_axes()), start.noise(0.1)
    np.testing.assert_array_equal(told.init(w).offset(w), plain.init(w).offset(w))


def test_the_state_has_no_leaf_more_and_goes_through_checkpoints(tmp_path):
    params = initial()
    link = METHODS["lpf_sgd"]()
    state = link.init(params)
    plain = sam_optax.lpf_sgd(0.1, samples=2).init(params)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(plain))
    _, state = link.update(grad_fn(params), state, params, grad_fn=grad_fn)
    by_flax = serialization.from_bytes(link.init(params), serialization.to_bytes(state))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        by_orbax = checkpointer.restore(tmp_path / "state", link.init(params))
    point = sam_optax.gradient_point(state, params)
    for restored in (by_flax, by_orbax):
        chex.assert_trees_all_equal(sam_optax.gradient_point(restored, params), point)
        link.update(grad_fn(params), restored, params, grad_fn=grad_fn)


def test_a_masked_method_has_kernels_of_its_part():
    params = initial()
    mask = {"embedding": False, "blocks": True, "head": False}
    link = sam_optax.masked(METHODS["r_sam"](), mask)
    state = link.init(params)
    point = sam_optax.gradient_point(state, params)
    np.testing.assert_array_equal(point["embedding"], params["embedding"])
    alone = {"embedding": None, "blocks": params["blocks"], "head": None}
    offset = start.noise(0.1, kernels=KERNELS).init(alone).offset(alone)
    moved = params["blocks"]["kernel"] + offset["blocks"]["kernel"]
    np.testing.assert_allclose(point["blocks"]["kernel"], moved, rtol=1e-12)


def test_a_state_of_other_kernels_is_refused():
    w = random(4, 3)
    link = sam_optax.lpf_sgd(0.1, kernels=kernel_axes(out_axis=0))
    other = sam_optax.lpf_sgd(0.1).init(w)
    with pytest.raises(ValueError, match="start"):
        link.update(w, other, w, grad_fn=lambda p: p)
    w, link = random(4, 3), sam_optax.lpf_sgd(0.1, kernels=kernel_axes(out_axis=1))
    state = sam_optax.lpf_sgd(0.1, kernels=kernel_axes(out_axis=0)).init(w)
    with pytest.raises(ValueError, match="start"):
        link.update(w, state, w, grad_fn=lambda p: p)


@pytest.mark.parametrize("axes", [(2,), (-3,), 0, "0", (0.0,), (True,), None])
def test_axes_that_a_leaf_lacks_are_named_with_the_leaf(axes):
    link = sam_optax.r_sam(kernels=lambda path, w: axes)
    with pytest.raises(ValueError, match=r"kernels must .* from -2 to 1, for params\['w'\], got"):
        link.init({"w": random(2, 2)})
    sam_optax.r_sam(kernels=lambda path, w: (-2, 1)).init({"w": random(2, 2)})


def test_kernels_of_another_tree_are_refused():
    link = sam_optax.r_sam(kernels={"other": kernel_axes()})
    with pytest.raises(ValueError, match=r"kernels must be .* a prefix of the parameters"):
        link.init({"w": random(2, 2)})


@pytest.mark.parametrize("kernels", [0, (0, 1), "embed", {"w": -1}])
def test_what_are_no_kernels_is_refused_at_construction(kernels):
    with pytest.raises(
        TypeError, match=r"kernels must be a function .* name the axes by kernel_axes"
    ):
        sam_optax.r_sam(kernels=kernels)


@pytest.mark.parametrize("argument", ["out_axis", "batch_axis"])
@pytest.mark.parametrize("value", ["0", 1.0, (0, "layers"), True, None])
def test_what_is_no_axis_is_refused(argument, value):
    with pytest.raises(TypeError, match=f"{argument} must be an axis or several"):
        kernel_axes(**{argument: value})


@pytest.mark.parametrize("kernels", [KERNELS, kernel_axes(batch_axis=0)], ids=["tree", "one"])
def test_the_state_goes_through_map_params(kernels):
    link = sam_optax.r_sam(kernels=kernels)
    state = link.init(initial())
    chex.assert_trees_all_equal(optax.tree.map_params(link, lambda leaf: leaf, state), state)
    assert jax.tree.structure(optax.tree.map_params(link, lambda leaf: leaf, state)) == (
        jax.tree.structure(state)
    )


def test_under_inject_hyperparams_kernels_are_static():
    w = random(4, 3)
    make = optax.inject_hyperparams(sam_optax.lpf_sgd, static_args=("samples", "kernels"))
    link = make(gamma=0.1, kernels=kernel_axes(out_axis=0))
    state = link.init(w)
    expected = start.noise(0.1, kernels=kernel_axes(0)).init(w).offset(w)
    point = sam_optax.gradient_point(state, w)
    np.testing.assert_allclose(point, w + expected, rtol=1e-6)
    link.update(w, state, w, grad_fn=lambda p: p)


@pytest.mark.parametrize(("batch", "inside"), [(0, (1,)), (-3, (1,)), (1, (0,)), (-2, (0,))])
def test_an_axis_of_layers_is_told_from_either_end(batch, inside):
    assert start.kernel_axes(batch_axis=batch)(("kernel",), jnp.ones((3, 4, 5))) == inside
