"""A method on a part of a tree is the method with the rest closed over."""

import dataclasses
import functools

import chex
from flax import linen as nn
from flax import nnx, serialization
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from reference import KINDS, METHODS, NAMES, STEPS, few, sgd

import sam_optax
from sam_optax import perturb
from sam_optax.flax import TrainState, nnx_grad_fn, nnx_pure_fn

pytestmark = pytest.mark.usefixtures("x64")

# One boolean for all of a subtree.
MASK = {"backbone": False, "count": False, "head": True, "none": False}
FROZEN = {name: not chosen for name, chosen in MASK.items()}


def initial():
    """A frozen half, and a trained one of boxed, stacked and scalar leaves and a gap."""
    rng = np.random.default_rng(5)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    return {
        "backbone": {"embedding": nn.Partitioned(normal(4, 5), (None, "model")), "bias": normal(5)},
        "count": jnp.arange(3),
        "head": {
            "kernel": nn.Partitioned(normal(5, 4), ("model", None)),
            "layers": {"kernel": normal(3, 4, 4), "bias": normal(3, 4)},
            "nothing": None,
            "scale": normal(),
        },
        "none": None,
    }


def batches():
    rng = np.random.default_rng(6)
    sizes = np.array([1.0, 3.0, 0.3, 0.2, 2.5, 0.4, 0.3, 0.2, 0.1, 4.0])[:, None, None]
    x = rng.normal(size=(STEPS, 8, 4))
    return jnp.asarray(x), jnp.asarray(sizes * rng.normal(size=(STEPS, 8, 4)))


def losses(params, batch):
    """The gradient of the backbone is much larger than that of the head."""
    x, y = batch
    params = nn.unbox(params)
    backbone, head = params["backbone"], params["head"]
    hidden = jnp.tanh(x @ backbone["embedding"] + backbone["bias"]) @ head["kernel"]
    for i in range(3):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], head["layers"])
        hidden = hidden + jnp.tanh(hidden @ layer["kernel"] + layer["bias"])
    error = head["scale"] * hidden - y
    far = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(backbone))
    return 0.02 * jnp.sum(error**2, axis=1) + 100.0 * far


def identity(p):
    return p


@functools.partial(jax.jit, static_argnames="whole")
def gradient(p, batch, whole=identity):
    return jax.grad(lambda p: jnp.mean(losses(whole(p), batch)), allow_int=True)(p)


def update(row, tx, params, opt_state, batch, whole=identity):
    """One step of the parameters, of which `whole` makes those of the loss."""

    def grad_fn(p, indices=slice(None)):
        return gradient(p, jax.tree.map(lambda x: x[indices], batch), whole)

    extra = {"example_loss_fn": lambda p: losses(whole(p), batch)} if row.call["examples"] else {}
    point = sam_optax.gradient_point(opt_state, params) if row.call["at_point"] else params
    return tx.update(grad_fn(point), opt_state, params, grad_fn=grad_fn, **extra)


def masked_run(row, mode):
    """The heads after each step of the masked method, and the last state of the link."""
    rest = optax.masked(optax.set_to_zero(), FROZEN)
    tx = optax.chain(
        sam_optax.masked(row.link(), MASK), optax.masked(sgd(row.momentum), MASK), rest
    )

    def step(carry, batch):
        params, opt_state = carry
        updates, opt_state = update(row, tx, params, opt_state, batch)
        head = optax.apply_updates(params["head"], updates["head"])
        backbone = optax.apply_updates(params["backbone"], updates["backbone"])
        return ({**params, "head": head, "backbone": backbone}, opt_state), head

    params = initial()
    carry, (x, y) = (params, tx.init(params)), batches()
    if mode == "scan":
        (last, opt_state), heads = jax.jit(functools.partial(jax.lax.scan, step))(carry, (x, y))
        heads = [jax.tree.map(lambda leaf, t=t: leaf[t], heads) for t in range(STEPS)]
    else:
        if mode == "sharded":
            mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
            x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "data")))
            y = jax.device_put(y, NamedSharding(mesh, PartitionSpec(None, "data")))
            carry = jax.device_put(carry, NamedSharding(mesh, PartitionSpec()))
        step = step if mode == "eager" else jax.jit(step)
        heads = []
        for t in range(STEPS):
            carry, head = jax.block_until_ready(step(carry, (x[t], y[t])))
            heads.append(head)
        last, opt_state = carry
    chex.assert_trees_all_equal(last["backbone"], params["backbone"])
    return heads, opt_state[0]


@functools.cache
def closed_over(name):
    """The heads after each step of the method on the head alone, and its last state."""
    row = METHODS[name]
    params = initial()
    head = params["head"]
    tx = optax.chain(row.link(), sgd(row.momentum))
    opt_state = tx.init(head)

    @jax.jit
    def step(head, opt_state, batch):
        updates, opt_state = update(
            row, tx, head, opt_state, batch, lambda head: {**params, "head": head}
        )
        return optax.apply_updates(head, updates), opt_state

    x, y = batches()
    heads = []
    for t in range(STEPS):
        head, opt_state = step(head, opt_state, (x[t], y[t]))
        heads.append(head)
    return heads, opt_state[0]


# In every run, each kind of method under jit, and the other modes where they have most to do.
MODES = {
    "eager": ["ae_looksam", "esam", "msam"],
    "jit": KINDS,
    "scan": ["ae_looksam"],
    "sharded": ["esam"],
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=() if name in kept else pytest.mark.slow)
        for name in NAMES
        for mode, kept in MODES.items()
    ],
)
def test_it_is_the_method_with_the_rest_closed_over(name, mode):
    heads, state = masked_run(METHODS[name], mode)
    expected, expected_state = closed_over(name)
    chex.assert_trees_all_close(heads, expected, rtol=1e-12, atol=1e-13)
    inner = state.inner_state
    chex.assert_trees_all_close(
        jax.tree.leaves(inner), jax.tree.leaves(expected_state), rtol=1e-10, atol=1e-13
    )
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(s)) for s in (state, expected_state)]
    assert sizes[0] == sizes[1]


def test_a_frozen_part_of_large_gradient_does_not_scale_what_looksam_reuses():
    """The figures of a quadratic, worked out apart from the library."""
    params = {"frozen": jnp.array([30.0, 40.0]), "free": jnp.array([3.0, 4.0])}
    curvature = {"frozen": jnp.array([100.0, 1.0]), "free": jnp.array([5.0, 2.0])}
    tx = optax.chain(
        sam_optax.masked(
            sam_optax.looksam(0.05, alpha=0.7, period=5), {"frozen": False, "free": True}
        ),
        optax.sgd(1e-3),
        optax.masked(optax.set_to_zero(), {"frozen": True, "free": False}),
    )

    def grad_fn(p):
        return jax.tree.map(jnp.multiply, curvature, p)

    state = tx.init(params)
    for _ in range(12):
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
    s, w, v = np.array([5.0, 2.0]), np.array([3.0, 4.0]), np.zeros(2)
    for t in range(12):
        g = s * w
        if t % 5 == 0:
            d = s * (w + 0.05 * g / np.linalg.norm(g))
            v = d - (d @ g) / (g @ g) * g
        else:
            d = g + 0.7 * np.linalg.norm(g) * v / np.linalg.norm(v)
        w = w - 1e-3 * d
    np.testing.assert_allclose(params["free"], w, rtol=1e-12)
    np.testing.assert_array_equal(params["frozen"], [30.0, 40.0])


# The mask.


SMALL = {"a": {"w": 3.0, "b": 4.0}, "c": 12.0}


def small():
    return jax.tree.map(lambda x: jnp.array([x]), SMALL)


@pytest.mark.parametrize(
    "mask",
    [
        {"a": True, "c": False},
        {"a": {"w": True, "b": True}, "c": False},
        {"a": np.True_, "c": None},
        {"a": jnp.array(True), "c": np.array(False)},
        lambda params: {"a": True, "c": len(params) == 1},
    ],
)
def test_a_mask_is_a_prefix_or_a_function(mask):
    link = sam_optax.masked(sam_optax.sam(5.0), mask)
    params = small()
    updates, _ = link.update(params, link.init(params), params, grad_fn=identity)
    expected = {"a": {"w": jnp.array([6.0]), "b": jnp.array([8.0])}, "c": params["c"]}
    chex.assert_trees_all_close(updates, expected)


def test_a_mask_that_is_true_everywhere_is_neutral_and_one_that_is_false_hands_on():
    params = small()
    for mask, factor in ((True, 2.0), (False, 1.0)):
        link = sam_optax.masked(sam_optax.sam(13.0), mask)
        updates, state = link.update(params, link.init(params), params, grad_fn=identity)
        chex.assert_trees_all_close(updates, jax.tree.map(lambda x, f=factor: f * x, params))
        assert int(state.inner_state.steps) == 1


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (None, TypeError, "mask must be a tree of booleans.*got None: pass True"),
        ({"a": 1, "c": False}, TypeError, r"mask must be a tree of booleans.*got 1 at \['a'\]"),
        (lambda params: params, TypeError, r"mask must be .*got .* at \['a'\]\['b'\]"),
        ({"a": True}, ValueError, "mask must be a tree of booleans that is a prefix"),
        ({"a": {"w": True}, "c": True}, ValueError, "mask must be a tree of booleans that is a pr"),
    ],
)
@pytest.mark.parametrize("around", [sam_optax.masked, lambda part, mask: only(mask)])
def test_what_is_no_mask_is_an_error(around, mask, error, message):
    with pytest.raises(error, match=message):
        around(sam_optax.sam(), mask).init(small())


def only(mask, part=None):
    return sam_optax.sharpness_aware(perturb.only(mask, part or perturb.ball(5.0)))


def test_what_is_no_link_is_an_error():
    with pytest.raises(TypeError, match=r"link must be a sharpness-aware method.*got 0\.05"):
        sam_optax.masked(0.05, True)
    with pytest.raises(TypeError, match=r"perturb must be an Optax transformation.*got 0\.05"):
        perturb.only(True, 0.05)


def test_a_state_of_another_mask_is_an_error():
    params = small()
    link = sam_optax.masked(sam_optax.sam(), {"a": True, "c": False})
    other = sam_optax.masked(sam_optax.sam(), {"a": False, "c": True})
    for state in (other.init(params), link.init({"a": params["a"]["w"], "c": params["c"]})):
        with pytest.raises(ValueError, match=r"of another mask.*or make one by init\(params\)"):
            link.update(params, state, params, grad_fn=identity)
    with pytest.raises(ValueError, match=r"needs a sam_optax\.MaskedState, got Sharp"):
        link.update(params, sam_optax.sam().init(params), params, grad_fn=identity)
    with pytest.raises(ValueError, match="needs the parameters"):
        link.update(params, link.init(params), grad_fn=identity)


def test_masks_may_be_nested():
    params = small()
    inner = sam_optax.masked(
        sam_optax.sam(3.0), lambda p: {"a": {"w": True, "b": False}, "c": None}
    )
    link = sam_optax.masked(inner, {"a": True, "c": False})
    updates, _ = link.update(params, link.init(params), params, grad_fn=identity)
    expected = {"a": {"w": jnp.array([6.0]), "b": jnp.array([4.0])}, "c": jnp.array([12.0])}
    chex.assert_trees_all_close(updates, expected)


def test_the_gradient_point_moves_the_part_alone():
    params = small()
    mask = {"a": {"w": False, "b": True}, "c": True}
    link = sam_optax.masked(sam_optax.s2_sam(4.0, updates_at="gradient_point"), mask)
    _, state = link.update(params, link.init(params), params)
    point = sam_optax.gradient_point((optax.EmptyState(), state), params)
    length = np.hypot(4, 12)
    expected = {"a": {"w": 3.0, "b": 4 + 16 / length}, "c": 12 + 48 / length}
    chex.assert_trees_all_close(point, jax.tree.map(lambda x: jnp.array([x]), expected))


def test_a_state_is_mapped_and_saved_as_any_other(tmp_path):
    params = small()
    link = sam_optax.masked(sam_optax.looksam(), {"a": {"w": True, "b": False}, "c": True})
    state = link.init(params)
    mapped = optax.tree.map_params(link, lambda leaf: "v", state, transform_non_params=type)
    assert jax.tree.leaves(mapped).count("v") == 2
    _, stepped = link.update(params, state, params, grad_fn=lambda p: {**p, "c": 2 * p["c"]})
    restored = serialization.from_bytes(state, serialization.to_bytes(stepped))
    chex.assert_trees_all_equal(restored, stepped)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", stepped)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", state)
    chex.assert_trees_all_equal(restored, stepped)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.backbone = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.norm(self.backbone(x))))


@pytest.mark.parametrize("name", ["looksam", "msam", "esam"])
def test_nnx_trains_a_part(name):
    """As its own `wrt` does."""
    x = jnp.linspace(-1, 2, 15, dtype=jnp.float32).reshape(5, 3)

    def losses(model, indices=slice(None)):
        return jnp.sum(model(x[indices]) ** 2, axis=1)

    def loss(model, indices=slice(None)):
        return jnp.mean(losses(model, indices))

    def is_head(params):
        return jax.tree.map_with_path(lambda path, _: "head" in jax.tree_util.keystr(path), params)

    def is_rest(params):
        return jax.tree.map(lambda chosen: not chosen, is_head(params))

    def trained(link, wrt, *behind):
        model = Net(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.chain(link, optax.sgd(0.1), *behind), wrt=wrt)

        @nnx.jit
        def step(model, optimizer):
            extra = {}
            if name == "esam":
                extra["example_loss_fn"] = nnx_pure_fn(losses, model, wrt=wrt)
            grad_fn = nnx_grad_fn(loss, model, wrt=wrt)
            grads = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(model)
            optimizer.update(model, grads, grad_fn=grad_fn, **extra)

        for _ in range(4):
            step(model, optimizer)
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    link = METHODS[name].link()
    freeze = optax.masked(optax.set_to_zero(), is_rest)
    masked = trained(sam_optax.masked(link, is_head), nnx.Param, freeze)
    expected = trained(link, nnx.All(nnx.Param, nnx.PathContains("head")))
    chex.assert_trees_all_close(masked, expected, rtol=1e-6)


def test_a_train_state_of_flax_trains_a_part():
    params = small()
    tx = optax.chain(
        sam_optax.masked(
            sam_optax.s2_sam(5.0, updates_at="gradient_point"), {"a": True, "c": False}
        ),
        optax.sgd(1.0),
    )
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    state = state.apply_gradients(grads=state.gradient_point())
    point = optax.tree.sub(state.gradient_point(), state.params)
    expected = {"a": {"w": jnp.array([3.0]), "b": jnp.array([4.0])}, "c": jnp.array([0.0])}
    chex.assert_trees_all_close(point, expected)


@pytest.mark.parametrize("name", few("esam", "ae_looksam", "wsam"))
def test_members_of_an_ensemble_train_a_part_each(name):
    """Under vmap, as one by one."""
    row = METHODS[name]
    tx = sam_optax.masked(row.link(), MASK)
    (x, y), params = batches(), initial()
    heads = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params["head"])

    def direction(head):
        member = {**params, "head": head}

        def step(state, batch):
            updates, state = update(row, tx, member, state, batch)
            return state, updates["head"]

        return jax.lax.scan(step, tx.init(member), (x[:2], y[:2]))[1]

    together = jax.jit(jax.vmap(direction))(heads)
    for i in range(2):
        alone = jax.jit(direction)(jax.tree.map(lambda leaf, i=i: leaf[i], heads))
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-10, atol=1e-13
        )


# A part is perturbed, and all is trained.


def test_only_perturbs_a_part_by_its_own_norm():
    params, seen = small(), []

    def grad_fn(p):
        seen.append(p)
        return p

    link = only({"a": True, "c": False})
    updates, _ = link.update(params, link.init(params), params, grad_fn=grad_fn)
    expected = {"a": {"w": jnp.array([6.0]), "b": jnp.array([8.0])}, "c": params["c"]}
    chex.assert_trees_all_close((updates, seen[0]), (expected, expected))


PARTS = {
    "adaptive_ball": perturb.adaptive_ball(0.4, 0.1),
    "fisher_ball": perturb.fisher_ball(0.4, 2.0),
    "loss_ball": perturb.loss_ball(0.8, 0.3),
    "noisy_ball": perturb.noisy_ball(0.4, 0.7),
    "eigen_ball": perturb.eigen_ball(0.4, 0.5, period=2, key=3),
    "a chain": optax.chain(perturb.ema(0.4), perturb.ball(0.4), perturb.random_coordinates(0.5)),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_the_offset_in_a_part_is_that_of_the_loss_with_the_rest_held_fixed(name, compiled):
    part, params = PARTS[name], initial()
    here = perturb.only(MASK, part)
    head, (x, y) = params["head"], batches()
    # δ0 of a start, which is that of all parameters.
    offset = {**params, "count": None}

    def step(states, t, batch):
        def on_head(head):
            return gradient({**params, "head": head}, batch)["head"]

        def on_all(p):
            return {**gradient({**p, "count": params["count"]}, batch), "count": None}

        extra = {"step": t, "grad_fn": on_head, "offset": head}
        expected, first = part.update(on_head(head), states[0], head, **extra)
        extra |= {"grad_fn": on_all, "offset": offset}
        epsilon, second = here.update(on_all(params), states[1], {**params, "count": None}, **extra)
        return (first, second), expected, epsilon

    states = part.init(head), here.init({**params, "count": None})
    for t in range(4):
        call = jax.jit(step) if compiled else step
        states, expected, epsilon = call(states, jnp.asarray(t), (x[t], y[t]))
        chex.assert_trees_all_close(epsilon["head"], expected, rtol=1e-11, atol=1e-14)
        zeros = jax.tree.map(jnp.zeros_like, params["backbone"])
        chex.assert_trees_all_equal(epsilon["backbone"], zeros)
        chex.assert_trees_all_close(*map(jax.tree.leaves, states), rtol=1e-10, atol=1e-13)


def test_all_of_a_chain_may_stand_in_a_part():
    """Against a mask in front of a ball, which is the same for what keeps no direction."""
    params = small()
    mask, rest = {"a": True, "c": False}, {"a": False, "c": True}
    zero = optax.masked(optax.set_to_zero(), rest)
    links = [only(mask), sam_optax.sharpness_aware(optax.chain(zero, perturb.ball(5.0)))]
    updates = [
        link.update(params, link.init(params), params, grad_fn=identity)[0] for link in links
    ]
    chex.assert_trees_all_close(*updates)


@pytest.mark.parametrize("compatible", [False, True])
def test_a_group_sees_its_share_of_the_offset(compatible):
    """R-SAM's ε = ρ unit(δ0 + λ g), with a norm for each group."""
    params, labels = small(), {"a": "first", "c": "second"}
    radii = {"a": 5.0, "c": 2.0}
    groups = {labels[name]: perturb.noisy_ball(rho, 3.0) for name, rho in radii.items()}
    part = optax.partition(groups, labels, mask_compatible_extra_args=compatible)
    link = sam_optax.sharpness_aware(part, start=sam_optax.start.noise(0.1, key=3))
    state = link.init(params)
    point = sam_optax.gradient_point(state, params)
    expected = {}
    for name, rho in radii.items():
        ascent = jax.tree.map(lambda p, w: p - w + 3 * p, point[name], params[name])
        scale = rho / optax.tree.norm(ascent)
        expected[name] = jax.tree.map(lambda w, a, s=scale: w + s * a, params[name], ascent)
    for step in (link.update, jax.jit(link.update, static_argnames="grad_fn")):
        direction, _ = step(params, state, params, grad_fn=identity)
        chex.assert_trees_all_close(direction, expected, rtol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        lambda mask: optax.masked(perturb.ball(5.0), mask),
        lambda mask: optax.partition(
            {"True": perturb.ball(5.0), "False": optax.identity()}, jax.tree.map(str, mask)
        ),
        lambda mask: optax.masked(perturb.ball(5.0), jax.tree.map(lambda _: False, mask)),
    ],
)
def test_the_gradient_itself_is_no_offset_in_a_part(part, compiled):
    mask, params = {"a": {"w": True, "b": True}, "c": False}, small()
    link = sam_optax.sharpness_aware(part(mask))

    def call(state):
        return link.update(params, state, params, grad_fn=identity)

    message = r"what perturb returns\['[ac]'\].* is the gradient itself.*perturb.only\(mask, part\)"
    with pytest.raises(ValueError, match=message):
        (jax.jit(call) if compiled else call)(link.init(params))


def given():
    """A perturbation along a direction that is an extra argument."""

    def update(updates, state, params=None, *, ascent, **extra):
        del updates, params, extra
        return ascent, state

    return optax.chain(
        optax.GradientTransformationExtraArgs(optax.init_empty_state, update), perturb.ball(5.0)
    )


@pytest.mark.parametrize("around", ["masked", "only", "only in masked"])
def test_an_extra_argument_like_the_parameters_is_cut_to_the_part(around):
    """As a direction from outside; another one stays as it is, of the same structure or not."""
    params = {**small(), "count": jnp.array(3)}
    mask = {"a": True, "c": False, "count": False}
    ascent = jax.tree.map(lambda w: 100.0 * w, params)
    link = {
        "masked": sam_optax.masked(sam_optax.sharpness_aware(given()), mask),
        "only": only(mask, given()),
        "only in masked": sam_optax.masked(only(mask, given()), mask),
    }[around]
    seen = []

    def grad_fn(p):
        seen.append(p)
        return p

    link.update(params, link.init(params), params, grad_fn=grad_fn, ascent=ascent)
    chex.assert_trees_all_close(seen[-1]["a"], {"w": jnp.array([6.0]), "b": jnp.array([8.0])})
    chex.assert_trees_all_equal(seen[-1]["c"], params["c"])


def test_an_extra_argument_unlike_the_parameters_is_not():
    params = small()
    batch = {"a": {"w": jnp.ones((2, 1)), "b": jnp.ones(2)}, "c": jnp.ones(2)}
    found = []

    def update(updates, state, params=None, *, batch, scale, **extra):
        del params, extra
        found.append((batch, scale))
        return updates, state

    part = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    link = sam_optax.masked(
        sam_optax.sharpness_aware(optax.chain(part, perturb.ball(5.0))), {"a": True, "c": False}
    )
    state = link.init(params)
    link.update(params, state, params, grad_fn=identity, batch=batch, scale=jnp.array(2.0))
    chex.assert_trees_all_equal(found[0], (batch, jnp.array(2.0)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Called:
    """A module that is a function of its input, as those of Equinox are."""

    kernel: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return x @ self.kernel + self.bias


def test_a_mask_may_be_a_module_that_can_be_called():
    module = Called(jnp.ones((2, 2)), jnp.ones(2))
    mask = Called(True, False)
    for link in (
        sam_optax.masked(sam_optax.sam(0.5), mask),
        sam_optax.sharpness_aware(perturb.only(mask, perturb.ball(0.5))),
    ):
        updates, _ = link.update(module, link.init(module), module, grad_fn=lambda p: p)
        np.testing.assert_allclose(updates.kernel, 1.25, rtol=1e-12)
        np.testing.assert_allclose(updates.bias, 1.0, rtol=1e-12)
    link = sam_optax.asam(0.5, eta=0.0, weights=mask)
    link.update(module, link.init(module), module, grad_fn=lambda p: p)


def test_the_gradient_itself_may_be_the_offset_of_a_part():
    link = sam_optax.sharpness_aware(perturb.only({"a": True, "b": False}, optax.identity()))
    w = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates, _ = link.update(w, link.init(w), w, grad_fn=lambda p: p)
    np.testing.assert_array_equal(updates["a"], 2.0)
    np.testing.assert_array_equal(updates["b"], 1.0)


def test_a_ball_on_a_part_needs_no_gradient_function():
    geometry = perturb.only({"a": True, "b": False}, perturb.ball(0.5))
    w = {"a": jnp.array([3.0, 4.0]), "b": jnp.ones(2)}
    epsilon, _ = geometry.update(w, geometry.init(w), w, step=0)
    np.testing.assert_allclose(epsilon["a"], [0.3, 0.4], rtol=1e-6)


def test_the_gradient_point_of_a_part_of_a_part_is_that_of_the_inner_one():
    w = {"a": jnp.ones(2), "b": jnp.ones((2, 2)), "c": jnp.ones(3)}
    inner = sam_optax.masked(sam_optax.r_sam(gamma=0.5), {"a": True, "b": False, "c": None})
    link = sam_optax.masked(inner, {"a": True, "b": True, "c": False})
    point = sam_optax.gradient_point(link.init(w), w)
    moved = {name: bool((point[name] != w[name]).any()) for name in w}
    assert moved == {"a": True, "b": False, "c": False}
