"""Parameters that are divided over devices by hand: a step is that of the undivided model."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest
from reference import METHODS, NAMES, few, ravel

import sam_optax
from sam_optax import _random, combine, perturb, sharpness_aware, when

pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices"),
]

DRAWING = ("esam", "r_sam", "r_gsam", "lpf_sgd", "eigen_sam")
CLOSE = {"rtol": 1e-11, "atol": 1e-13}

# Two layers, the hidden units of which lie on four devices; the last bias is on all of them.
SPECS = {
    "up": {"kernel": P(None, "model"), "bias": P("model")},
    "down": {"kernel": P("model", None), "bias": P()},
}
RNG = np.random.default_rng(0)
SHAPES = {"up": {"kernel": (3, 8), "bias": (8,)}, "down": {"kernel": (8, 2), "bias": (2,)}}
PARAMS = jax.tree.map(lambda s: RNG.normal(size=s), SHAPES, is_leaf=lambda x: isinstance(x, tuple))
X, Y = RNG.normal(size=(16, 3)), RNG.normal(size=(16, 2))


SUM_UP = functools.partial(jax.lax.psum, axis_name="model")


def mesh_of(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def total(x):
    """The sum over the devices; its derivative is that of one of the terms."""

    def summed(_, x):
        return jax.lax.psum(x, "model")

    return jax.custom_derivatives.linear_call(summed, lambda _, g: g, (), x)


def losses(p, x, y, total=lambda x: x):
    hidden = jnp.tanh(x @ p["up"]["kernel"] + p["up"]["bias"])
    return jnp.sum((total(hidden @ p["down"]["kernel"]) + p["down"]["bias"] - y) ** 2, axis=1)


def step_of(name, tx, total=lambda x: x, gradient=jax.grad, **extra):
    """A step on (params, state, x, y)."""

    def step(params, state, x, y):
        def loss(p, kept=slice(None)):
            return jnp.mean(losses(p, x, y, total)[kept])

        own = dict(extra)
        if name == "esam":
            own["example_loss_fn"] = lambda p: losses(p, x, y, total)
        grads = gradient(loss)(params)
        updates, state = tx.update(grads, state, params, grad_fn=gradient(loss), **own)
        return optax.apply_updates(params, updates), state

    return step


def trained(step, tx, steps=4):
    params = jax.tree.map(jnp.asarray, PARAMS)
    state, step = tx.init(params), jax.jit(step)
    for _ in range(steps):
        params, state = jax.block_until_ready(step(params, state, X, Y))
    return ravel(params), state


# Parts that no named method has.
PARTS = {
    "layer_ball": lambda: sharpness_aware(perturb.layer_ball(0.2)),
    "noise": lambda: sharpness_aware(perturb.noise(0.2, key=3)),
    "previous": lambda: sharpness_aware(optax.chain(perturb.previous(), perturb.ball(0.3))),
    "interpolate": lambda: sharpness_aware(perturb.ball(0.3), combine=combine.interpolate(0.7)),
    "slerp": lambda: sharpness_aware(perturb.ball(0.3), combine=combine.slerp(1.3)),
    "between": lambda: sharpness_aware(perturb.ball(0.3), when=when.between(1, 3)),
    "any_of": lambda: sharpness_aware(
        perturb.ball(0.3), when=when.any_of(when.between(2, 3), when.adaptive(0.0, decay=0.5))
    ),
}


def optimizer(name):
    if name in PARTS:
        return optax.chain(PARTS[name](), optax.sgd(0.02))
    row = METHODS[name].unnamed
    settings = row.settings | ({"period": 2} if name == "eigen_sam" else {})
    return optax.chain(row.factory(**settings), optax.sgd(0.02))


def divided(name, *, check_vma=True, **extra):
    """Trained on a mesh of data and model, the batch and the hidden units divided."""
    tx, mesh = optimizer(name), mesh_of(data=2, model=4)

    def gradient(loss):
        def mean(p, *kept):
            if check_vma:
                p = jax.lax.pcast(p, "data", to="varying")
            return jax.lax.pmean(jax.grad(loss)(p, *kept), "data")

        return mean

    sum_up = SUM_UP if check_vma else total
    batch = P() if name == "esam" else P("data")  # which selects among all examples
    specs = SPECS, state_specs(tx)
    mapped = jax.shard_map(
        step_of(name, tx, sum_up, gradient, **extra),
        mesh=mesh, in_specs=(*specs, batch, batch), out_specs=specs, check_vma=check_vma,
    )  # fmt: skip
    return trained(mapped, tx)


def state_specs(tx):
    """Where the state lies: what is shaped like parameters as they do, all else everywhere."""
    return optax.tree.map_params(
        tx, lambda _, spec: spec, tx.init(PARAMS), SPECS, transform_non_params=lambda _: P()
    )


def in_parts(sampler, data, count, tree, *, whole=False):
    """The draws of all devices, joined: the key of a divided leaf is folded with their number."""
    leaves, structure = jax.tree.flatten(tree)
    assert structure == jax.tree.structure(PARAMS)
    keys = jax.random.split(_random.fold(data, count), len(leaves))
    drawn = []
    for key, leaf, spec in zip(keys, leaves, jax.tree.leaves(SPECS), strict=True):
        if "model" not in spec or whole:
            drawn.append(sampler(key, leaf.shape, leaf.dtype))
            continue
        axis = spec.index("model")
        shape = [size // 4 if i == axis else size for i, size in enumerate(leaf.shape)]
        own = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, np.arange(4))
        parts = jax.vmap(lambda key, s=shape, d=leaf.dtype: sampler(key, s, d))(own)
        drawn.append(jnp.concatenate(list(parts), axis))
    return jax.tree.unflatten(structure, drawn)


@functools.cache
def undivided(name):
    tx = optimizer(name)
    return trained(step_of(name, tx), tx)


@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    few("asam", "ae_looksam", "le_sam", "r_sam", "msam", "layer_ball", names=[*NAMES, *PARTS]),
)
def test_a_step_is_that_of_the_undivided_model(name, check_vma, monkeypatch):
    actual, state = divided(name, check_vma=check_vma, param_specs=SPECS)
    monkeypatch.setattr(_random, "draw_like", in_parts)
    expected, whole = undivided.__wrapped__(name)
    np.testing.assert_allclose(actual, expected, **CLOSE)
    for leaf, own in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(leaf, own, **CLOSE)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("sam", "ae_looksam") else pytest.mark.slow)
        for name in NAMES
        if name not in DRAWING
    ],
)
def test_what_shard_map_keeps_count_of_needs_not_be_told(name):
    actual, _ = divided(name)
    np.testing.assert_allclose(actual, undivided(name)[0], **CLOSE)


@pytest.mark.parametrize("name", ["r_sam", "r_gsam", "lpf_sgd"])
def test_noise_by_kernels_asks_which_axis_is_divided(name):
    with pytest.raises(ValueError, match=r"params\['down'\]\['kernel'\].*pass .*param_specs"):
        divided(name)


def test_a_bias_is_one_kernel_and_needs_not_be_told():
    """Its noise has the norm of the whole."""
    start = sam_optax.start.noise(0.1)
    bias = jnp.arange(1.0, 9.0)
    params, specs = {"bias": bias, "scale": jnp.ones(3)}, {"bias": P("model"), "scale": P()}
    state = sam_optax.sharpness_aware(start=start).init(params)

    def point(params):
        return sam_optax.gradient_point(state, params)

    @jax.jit
    def draws():
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 2)
        own = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(keys[0], np.arange(4))
        return jax.vmap(lambda key: jax.random.normal(key, (2,)))(own), jax.random.normal(
            keys[1], (3,)
        )

    mapped = jax.shard_map(point, mesh=mesh_of(model=4), in_specs=(specs,), out_specs=specs)
    offset = jax.tree.map(np.subtract, jax.jit(mapped)(params), params)
    of_bias, of_scale = map(np.asarray, draws())
    expected = 0.1 * np.linalg.norm(bias) * of_bias.ravel()
    np.testing.assert_allclose(offset["bias"], expected, rtol=1e-6)
    np.testing.assert_allclose(offset["scale"], 0.1 * np.sqrt(3) * of_scale, rtol=1e-6)


@pytest.mark.parametrize("name", ["msam", "s2_sam", pytest.param("r_sam", marks=pytest.mark.slow)])
def test_the_gradient_point_is_that_of_the_undivided_model(name, monkeypatch):
    row = METHODS[name].unnamed
    tx = row.factory(**row.settings | {"updates_at": "gradient_point"})
    gradient = jax.grad(lambda p, total=lambda x: x: jnp.mean(losses(p, X, Y, total)))

    def steps(params, total=lambda x: x, **told):
        state, own = tx.init(params), functools.partial(gradient, total=total)
        for _ in range(2):
            point = sam_optax.gradient_point(state, params, **told)
            updates, state = tx.update(own(point), state, params, grad_fn=own, **told)
            params = optax.apply_updates(params, jax.tree.map(lambda u: -0.02 * u, updates))
        return sam_optax.gradient_point(state, params, **told)

    told = {"param_specs": SPECS} if name == "r_sam" else {}
    mapped = jax.shard_map(
        functools.partial(steps, total=SUM_UP, **told),
        mesh=mesh_of(model=4), in_specs=(SPECS,), out_specs=SPECS,
    )  # fmt: skip
    actual = ravel(jax.jit(mapped)(jax.tree.map(jnp.asarray, PARAMS)))
    monkeypatch.setattr(_random, "draw_like", in_parts)
    np.testing.assert_allclose(actual, ravel(jax.jit(steps)(PARAMS)), **CLOSE)


def test_a_sample_of_a_posterior_is_that_of_the_undivided_model(monkeypatch):
    """Without the specs each part of a leaf would have the same noise."""
    link = sam_optax.ivon(30.0)

    def sample(params, **told):
        return sam_optax.posterior_sample(5, link.init(params), params, **told)

    mapped = jax.shard_map(
        functools.partial(sample, param_specs=SPECS),
        mesh=mesh_of(model=4), in_specs=(SPECS,), out_specs=SPECS,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, PARAMS)
    actual = ravel(jax.jit(mapped)(params))
    monkeypatch.setattr(_random, "draw_like", in_parts)
    np.testing.assert_allclose(actual, ravel(sample(params)), **CLOSE)
    assert np.abs(actual - ravel(PARAMS)).min() > 0


@pytest.mark.parametrize("how", ["pmap", "vmap"])
def test_other_maps_are_told(how):
    """They keep no count: without the specs each device takes its own norm."""
    link = sam_optax.sam(0.5)
    params = {"w": jnp.arange(8.0), "b": jnp.ones(2)}
    specs = {"w": P("model"), "b": None}
    mapping = {"pmap": jax.pmap, "vmap": lambda *a, **k: jax.jit(jax.vmap(*a, **k))}[how]

    def update(w, b, **told):
        p = {"w": w, "b": b}
        grad_fn = lambda p: jax.tree.map(lambda x: x**3, p)  # noqa: E731
        return link.update(grad_fn(p), link.init(p), p, grad_fn=grad_fn, **told)[0]

    def joined(**told):
        rows = params["w"].reshape(4, 2)
        mapped = mapping(functools.partial(update, **told), in_axes=(0, None), axis_name="model")
        found = mapped(rows, params["b"])
        return found["w"].ravel(), found["b"][0]

    w = np.concatenate(joined(param_specs=specs))
    g = np.concatenate([params["w"], params["b"]])
    np.testing.assert_allclose(w, (g + 0.5 * g**3 / np.linalg.norm(g**3)) ** 3, **CLOSE)
    assert np.abs(np.concatenate(joined()) - w).max() > 1e-3


def test_a_program_is_kept_by_what_is_told():
    """The offset is one program, and what it is told is no array."""
    link = sam_optax.s2_sam(1.0, updates_at="gradient_point")
    w = jnp.arange(1.0, 9.0)
    _, state = link.update(w, link.init(w), w)
    parts = jax.tree.map(lambda x: x.reshape(4, 2) if x.ndim else jnp.stack([x] * 4), (state, w))

    def offset(state, w, **told):
        return sam_optax.gradient_point(state, w, **told) - w

    for told, length in (({}, 2.0), ({"param_specs": P("model")}, 1.0), ({}, 2.0)):
        mapped = jax.vmap(functools.partial(offset, **told), axis_name="model")
        np.testing.assert_allclose(np.linalg.norm(mapped(*parts)), length, rtol=1e-6)


def on_data(function, specs, **options):
    """The function of parameters that are divided, and of their rows, on eight devices."""
    return jax.jit(
        jax.shard_map(
            function, mesh=mesh_of(data=8), in_specs=(specs, P("data")), out_specs=specs, **options
        )
    )


def test_parameters_that_are_gathered_for_the_loss_are_told():
    """All of them divided over the devices of the batch, as in ZeRO's third stage."""
    link, whole, x = sam_optax.sam(0.5), jnp.arange(1.0, 17.0) / 16, RNG.normal(size=(8, 16))

    def loss(w, x):
        return jnp.mean((x @ w) ** 4)

    def gathered(w, x):
        rows = jax.lax.all_gather(w, "data", tiled=True)
        return loss(rows, x) / 8  # whose gradient is scattered, and summed over the devices

    def update(w, x, **told):
        grad_fn = jax.grad(lambda w: gathered(w, x))
        return link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn, **told)[0]

    with pytest.raises(ValueError, match="all parameters differ between the devices along 'data'"):
        on_data(update, P("data"))(whole, x)
    told = functools.partial(update, param_specs=P("data"))
    actual = jax.jit(on_data(told, P("data")))(whole, x)
    grad_fn = jax.grad(loss)
    expected, _ = link.update(
        grad_fn(whole, x), link.init(whole), whole, grad_fn=lambda w: grad_fn(w, x)
    )
    np.testing.assert_allclose(actual, expected, **CLOSE)


@pytest.mark.parametrize("check_vma", [True, False])
def test_models_of_their_own_are_told(check_vma):
    """One that loses its second gradient does not concern the others."""
    link, models = sam_optax.sam(0.5), jnp.asarray(RNG.normal(size=(8, 3)))
    lost = jnp.arange(8) == 3

    def update(w, state, lost, **told):
        def grad_fn(p):
            return jnp.where(lost & (p != w), jnp.inf, p**3)

        return link.update(w**3, state, w, grad_fn=grad_fn, **told)

    def own(w, rest, **told):
        state, lost = jax.tree.map(lambda x: x[0], rest)
        return jax.tree.map(lambda x: x[None], update(w[0], state, lost, **told))

    rest = jax.vmap(link.init)(models), lost
    expected, states = jax.jit(jax.vmap(update))(models, *rest)
    assert states.notfinite.tolist() == lost.tolist()

    def mapped(**told):
        return on_data(functools.partial(own, **told), P("data"), check_vma=check_vma)

    actual, after = mapped(param_specs=P())(models, rest)
    np.testing.assert_allclose(actual, expected, **CLOSE)
    assert after.notfinite.tolist() == lost.tolist()
    if check_vma:
        with pytest.raises(ValueError, match="all parameters differ between the devices"):
            mapped()(models, rest)


def test_an_averaged_gradient_is_no_part_of_one():
    """Of parameters that are only said to vary."""
    link, w = sam_optax.sam(0.5), jnp.arange(1.0, 4.0)

    def update(w, x):
        def grad_fn(p):
            return jax.lax.pmean(p**3 * jnp.sum(x), "data")

        w = jax.lax.pcast(w, "data", to="varying")
        return link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)[0]

    actual = on_data(update, P())(w, jnp.ones(8))
    np.testing.assert_allclose(actual, (w + 0.5 * w**3 / np.linalg.norm(w**3)) ** 3, **CLOSE)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_second_gradient_that_is_lost_in_one_part_is_lost_in_all(check_vma):
    link = sam_optax.sam(0.5)
    params, specs = {"w": jnp.arange(1.0, 9.0), "b": jnp.ones(2)}, {"w": P("model"), "b": P()}

    def update(p):
        def lost(q):
            return jax.tree.map(lambda x: jnp.where(x == 8.5, jnp.inf, x), q)

        first = {"w": jnp.where(p["w"] == 8, 1.0, 0.0), "b": jnp.zeros(2)}
        updates, state = link.update(first, link.init(p), p, grad_fn=lost, param_specs=specs)
        return updates, (state.ascents, state.notfinite)

    mapped = jax.shard_map(
        update, mesh=mesh_of(model=8), in_specs=(specs,), out_specs=(specs, P()),
        check_vma=check_vma,
    )  # fmt: skip
    updates, counts = jax.jit(mapped)(params)
    np.testing.assert_array_equal(updates["w"], np.arange(8) == 7)
    np.testing.assert_array_equal(updates["b"], 0)
    assert counts == (0, 1)


def test_a_part_of_divided_parameters():
    """Masked, and perturbed alone: the specs are those of all."""
    mask = {"up": True, "down": False}
    for link in (
        sam_optax.masked(sam_optax.looksam(0.5, period=2), mask),
        sam_optax.sharpness_aware(sam_optax.perturb.only(mask, sam_optax.perturb.ball(0.5))),
    ):
        tx = optax.chain(link, optax.sgd(0.02))
        step = step_of("sam", tx, SUM_UP, param_specs=SPECS)
        params = jax.tree.map(jnp.asarray, PARAMS)

        def steps(params, step=step, tx=tx):
            state = tx.init(params)
            for _ in range(3):
                params, state = step(params, state, X, Y)
            return params

        mapped = jax.shard_map(steps, mesh=mesh_of(model=4), in_specs=(SPECS,), out_specs=SPECS)
        expected, _ = trained(step_of("sam", tx), tx, steps=3)
        np.testing.assert_allclose(ravel(jax.jit(mapped)(params)), expected, **CLOSE)


def test_a_scan_inside_shard_map_keeps_its_types():
    """The state that init makes there varies as that after a step does."""
    for name in ("sam", "ae_looksam", "msam", "s2_sam", "vasso", "samar", "eigen_sam", "wsam"):
        tx = optimizer(name)
        step = step_of(name, tx, SUM_UP, param_specs=SPECS)

        def run(params, step=step, tx=tx):
            def body(carry, _):
                return step(*carry, X, Y), None

            return jax.lax.scan(body, (params, tx.init(params)), length=2)[0][0]

        mapped = jax.shard_map(run, mesh=mesh_of(model=4), in_specs=(SPECS,), out_specs=SPECS)
        shapes = jax.tree.map(jnp.shape, jax.eval_shape(mapped, PARAMS))
        assert shapes == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.parametrize(
    ("specs", "error", "match"),
    [
        (jax.sharding.NamedSharding(mesh_of(model=8), P()), TypeError, "take its spec"),
        ({"w": "model"}, TypeError, r"got 'model' at \['w'\]"),
        ({"w": P("model")}, ValueError, r"lacks params\['b'\]"),
        (P(None, "model"), ValueError, r"2 axes for params\['b'\], which has 1"),
        ({"w": P("data"), "b": P()}, ValueError, "'data', which is no mapped axis here"),
        (P("model"), ValueError, r"params\['b'\] over 'model', along which it is the same"),
        ({"w": P(), "b": P("model")}, ValueError, r"\['b'\] over 'model', along which it is the"),
    ],
)  # fmt: skip
def test_specs_that_do_not_fit_are_refused(specs, error, match):
    link = sam_optax.sam()
    params, own = {"w": jnp.ones(8), "b": jnp.ones(2)}, {"w": P("model"), "b": P()}

    def update(p):
        return link.update(p, link.init(p), p, grad_fn=lambda p: p, param_specs=specs)[0]

    mapped = jax.shard_map(update, mesh=mesh_of(model=8), in_specs=(own,), out_specs=own)
    with pytest.raises(error, match=match):
        jax.eval_shape(mapped, params)


W = {"w": np.arange(1.0, 9.0) / 8, "b": np.ones(2)}
ROWS = {"w": P("model"), "b": P()}


def cube(p):
    return jax.tree.map(lambda x: x**3, p)


def on_model(function, specs=ROWS, devices=8, **options):
    """The function of parameters that lie so."""
    return jax.jit(
        jax.shard_map(
            function, mesh=mesh_of(model=devices), in_specs=(specs,), out_specs=specs, **options
        )
    )


def test_what_a_test_of_the_own_part_has_chosen_is_refused_and_by_one_for_all_is_taken():
    """The select of docs/recipes.md: without a minimum all parameters and states differ by it."""
    link = sam_optax.sam(0.5)

    def steps(p, test=lambda finite: finite, **told):
        state = link.init(p)
        for _ in range(2):
            g = cube(p)
            finite = test(jnp.isfinite(optax.tree.norm(g)))
            updates, new = link.update(g, state, p, grad_fn=cube, **told)
            moved = jax.tree.map(lambda a, b: a - 0.1 * b, p, updates)
            p, state = optax.tree.where(finite, (moved, new), (p, state))
        return p

    def for_all(finite):
        return jax.lax.pmin(finite.astype(int), "model") > 0

    actual = on_model(functools.partial(steps, test=for_all))(W)
    np.testing.assert_allclose(ravel(actual), ravel(steps(W)), **CLOSE)
    for told, message in (
        ({}, "all parameters differ"),
        ({"param_specs": ROWS}, r"not params\['b'\].*make the test one for all"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(on_model(functools.partial(steps, **told)), W)


def test_a_decision_by_such_a_state_is_refused():
    link = sam_optax.ae_sam(0.5, total_steps=9)

    def update(p):
        state = jax.tree.map(lambda x: jax.lax.pcast(x, "model", to="varying"), link.init(p))
        return link.update(cube(p), state, p, grad_fn=cube)[0]

    with pytest.raises(ValueError, match="'model', over which the parameters are divided"):
        jax.eval_shape(on_model(update), W)


@pytest.mark.parametrize("devices", [4, 8])
def test_a_kernel_is_told_by_the_shape_of_the_whole(devices, monkeypatch):
    """A bias of (heads, size), one head a device, is no bias of (1, size)."""
    ones = lambda sampler, data, count, tree, **_: jax.tree.map(jnp.ones_like, tree)  # noqa: E731
    monkeypatch.setattr(_random, "draw_like", ones)
    params, specs = (
        {"bias": RNG.normal(size=(8, 4)), "w": np.ones(2)},
        {"bias": P("model"), "w": P()},
    )
    for kernels in (None, sam_optax.start.kernel_axes()):
        link = sam_optax.r_sam(0.1, gamma=0.1, kernels=kernels)
        state = link.init(params)

        def point(p, link=link, state=state):
            return sam_optax.gradient_point(state, p, param_specs=specs)

        expected = sam_optax.gradient_point(state, params)
        np.testing.assert_allclose(
            ravel(on_model(point, specs, devices)(params)), ravel(expected), **CLOSE
        )
    with pytest.raises(ValueError, match="which of its axes is divided"):
        on_model(lambda p: sam_optax.gradient_point(state, p), specs, devices)(params)


def test_kernels_that_hang_on_the_whole_shape_are_made_outside():
    link = sam_optax.r_sam(kernels=sam_optax.start.kernel_axes())
    params, specs = {"bias": jnp.ones((8, 4)), "w": jnp.ones(2)}, {"bias": P("model"), "w": P()}

    def updated(p):
        return link.update(p, link.init(p), p, grad_fn=cube, param_specs=specs)[0]

    with pytest.raises(ValueError, match=r"params\['bias'\] depend on its whole shape"):
        on_model(updated, specs)(params)


def test_a_gradient_that_is_the_same_everywhere_is_still_of_every_part():
    link = sam_optax.sam(0.5)

    def update(p):
        first = jax.tree.map(lambda x: jnp.full(x.shape, 2.0), p)
        return link.update(first, link.init(p), p, grad_fn=cube)[0]

    np.testing.assert_allclose(ravel(on_model(update)(W)), ravel(update(W)), **CLOSE)


@pytest.mark.parametrize(
    ("link", "calls"),
    [
        (sam_optax.sharpness_aware(optax.scale(0.05)), "update"),  # without a norm
        (sam_optax.sam(0.5), "gradient_point"),  # the parameters themselves
    ],
)
def test_where_nothing_hangs_on_it_nothing_is_asked(link, calls):
    w = jnp.arange(1.0, 9.0)

    def run(w):
        state = link.init(w)
        if calls == "gradient_point":
            return sam_optax.gradient_point(state, w)
        return link.update(cube(w), state, w, grad_fn=cube)[0]

    np.testing.assert_allclose(on_model(run, P("model"))(w), run(w), **CLOSE)


def test_over_one_device_nothing_is_unclear():
    link, w = sam_optax.sam(0.5), jnp.arange(1.0, 9.0)

    def update(w):
        return link.update(cube(w), link.init(w), w, grad_fn=cube)[0]

    np.testing.assert_allclose(on_model(update, P("model"), 1)(w), update(w), **CLOSE)


@pytest.mark.parametrize("name", ["looksam", "ae_looksam"])
def test_a_state_that_only_begins_the_same_on_all_devices(name):
    """Of a method that decides, with gradients of each device's own."""
    link = METHODS[name].unnamed.link()
    w = jnp.arange(1.0, 4.0)
    state = link.init(w)

    def direction(w, x, state=state):
        extra = {"param_specs": P()}
        grad_fn = lambda p: jnp.sum(x) * cube(p)  # noqa: E731
        for _ in range(2):
            updates, state = link.update(grad_fn(w), state, w, grad_fn=grad_fn, **extra)
        return updates

    def update(w, x):
        return direction(jax.lax.pcast(w, "data", to="varying"), x)[None]

    if name == "ae_looksam":
        link = sam_optax.ae_looksam(0.1, total_steps=9, axis_name="data")
        state = link.init(w)
        direction = functools.partial(direction, state=state)
    x = jnp.arange(1.0, 9.0)
    actual = jax.jit(
        jax.shard_map(update, mesh=mesh_of(data=8), in_specs=(P(), P("data")), out_specs=P("data"))
    )(w, x)
    expected = jax.jit(jax.vmap(lambda x: direction(w, x), axis_name="data"))(x)
    np.testing.assert_allclose(actual, expected, **CLOSE)


def test_schedules_of_optax_inside_an_explicit_mesh():
    """One axis by hand, the other JAX's."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    link = sam_optax.sam(optax.linear_schedule(0.5, 0.1, 5))

    def update(p):
        return link.update(cube(p), link.init(p), p, grad_fn=cube)[0]

    mapped = jax.shard_map(
        update, mesh=mesh, in_specs=(ROWS,), out_specs=ROWS, axis_names={"model"}
    )
    fresh = sam_optax.sam(0.5)
    expected, _ = fresh.update(cube(W), fresh.init(W), W, grad_fn=cube)
    np.testing.assert_allclose(ravel(jax.jit(mapped)(W)), ravel(expected), **CLOSE)


def test_specs_that_leave_a_leaf_out_are_refused():
    link, specs = sam_optax.sam(), {"w": P("model"), "v": P("model"), "b": P()}

    def update(p):
        told = specs | {"v": P()}
        return link.update(cube(p), link.init(p), p, grad_fn=cube, param_specs=told)[0]

    with pytest.raises(ValueError, match=r"over 'model' and not params\['v'\], which differs"):
        jax.eval_shape(on_model(update, specs), W | {"v": np.ones(8)})


def test_specs_of_whole_parameters_are_refused():
    link = sam_optax.sam()

    def update(p):
        return link.update(cube(p), link.init(p), p, grad_fn=cube, param_specs=ROWS)[0]

    with pytest.raises(ValueError, match="'model', along which it is the same on all"):
        jax.eval_shape(on_model(update, P()), W)


def test_whole_arrays_need_no_specs():
    link, w = sam_optax.sam(), jnp.ones(8)
    with pytest.raises(ValueError, match=r"leave param_specs away outside jax\.shard_map"):
        link.update(w, link.init(w), w, grad_fn=lambda p: p, param_specs=P("model"))
