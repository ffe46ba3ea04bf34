"""The Flax helpers: what they forward, and that batch statistics and dropout move once per step."""

import functools
import inspect
import re

import chex
import equinox as eqx
from flax import linen as nn
from flax import nnx, serialization
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT as SCALES
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import KINDS, METHODS, NAMES

import sam_optax
from sam_optax.flax import TrainState, nnx_grad_fn, nnx_pure_fn

X = jax.random.normal(jax.random.key(1), (16, 4))
Y = jax.random.normal(jax.random.key(2), (16, 2))
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def ravel(tree):
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


# Linen.


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.Dropout(0.4, deterministic=not train)(nn.relu(x)))


class BatchNormState(TrainState):
    batch_stats: dict


def linen_loss(params, batch_stats, key):
    out, new = Net().apply(
        {"params": params, "batch_stats": batch_stats},
        X,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    return jnp.mean((out - Y) ** 2), new["batch_stats"]


GRADIENT = jax.jit(jax.value_and_grad(linen_loss, has_aux=True))


def linen_state(tx):
    variables = Net().init(jax.random.key(0), X, train=False)
    return BatchNormState.create(apply_fn=Net().apply, tx=tx, **variables)


def linen_step(state, key):
    point = state.gradient_point()
    (_, batch_stats), grads = GRADIENT(point, state.batch_stats, key)
    return state.apply_gradients(
        grads=grads,
        grad_fn=lambda p: GRADIENT(p, state.batch_stats, key)[1],
        batch_stats=batch_stats,
    )


OPTIMIZERS = {
    "sam": lambda: sam_optax.sam(0.1),
    "ae_looksam": lambda: sam_optax.ae_looksam(0.1, total_steps=3),
    "msam": lambda: sam_optax.msam(0.1, updates_at="gradient_point"),
    "r_sam": lambda: sam_optax.r_sam(0.1, updates_at="gradient_point"),
}


@pytest.mark.parametrize(
    ("name", "compiled"),
    [(name, True) for name in OPTIMIZERS]
    + [("ae_looksam", False), ("msam", False)]
    + [pytest.param(name, False, marks=pytest.mark.slow) for name in ("sam", "r_sam")],
)
def test_a_linen_step_is_the_step_by_hand(name, compiled):
    tx = optax.chain(OPTIMIZERS[name](), optax.sgd(0.1, momentum=0.9))
    state = linen_state(tx)
    step = jax.jit(linen_step) if compiled else linen_step
    params, opt_state, batch_stats = state.params, tx.init(state.params), state.batch_stats
    for t in range(3):
        key = jax.random.key(t)
        state = step(state, key)
        point = sam_optax.gradient_point(opt_state, params)
        (_, new), grads = GRADIENT(point, batch_stats, key)

        def grad_fn(p, key=key, batch_stats=batch_stats):
            return GRADIENT(p, batch_stats, key)[1]

        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        params, batch_stats = optax.apply_updates(params, updates), new
    assert int(state.step) == 3
    for actual, expected in (
        (state.params, params),
        (state.opt_state, opt_state),
        (state.batch_stats, batch_stats),
    ):
        np.testing.assert_allclose(ravel(actual), ravel(expected), **CLOSE)
    assert state.tx is tx


def test_batch_statistics_move_once_per_linen_step():
    state = linen_state(optax.chain(sam_optax.sam(0.1), optax.sgd(0.1)))
    key = jax.random.key(0)
    (_, once), _ = GRADIENT(state.params, state.batch_stats, key)
    np.testing.assert_allclose(ravel(linen_step(state, key).batch_stats), ravel(once), **CLOSE)


def test_the_train_state_forwards_every_extra_argument_that_is_no_field():
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=tx)
    state = state.apply_gradients(grads={"w": jnp.ones(2)}, grad_fn=len, value=3.0, apply_fn=max)
    assert seen == {"grad_fn": len, "value": 3.0}
    assert state.apply_fn is max


def test_a_misspelt_field_is_an_error():
    state = linen_state(optax.chain(sam_optax.sam(), optax.sgd(0.1)))
    grads = optax.tree.zeros_like(state.params)
    message = "'batch_stat' is no field of BatchNormState: did you mean 'batch_stats'?"
    with pytest.raises(TypeError, match=re.escape(message)):
        state.apply_gradients(grads=grads, grad_fn=lambda p: p, batch_stat={})


def test_the_train_state_takes_multi_steps():
    """An object that is no Optax transformation by type, as Flax's own train state does."""
    tx = optax.MultiSteps(
        optax.chain(sam_optax.msam(updates_at="gradient_point"), optax.sgd(0.1)), 2
    )
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=tx)
    for _ in range(2):
        state = state.apply_gradients(grads={"w": jnp.ones(2)}, grad_fn=lambda p: p)
    assert float(state.params["w"][0]) < 1


def test_a_train_state_survives_a_checkpoint():
    state = linen_state(optax.chain(sam_optax.vasso(), optax.sgd(0.1)))
    stepped = linen_step(state, jax.random.key(0))
    restored = serialization.from_bytes(state, serialization.to_bytes(stepped))
    np.testing.assert_array_equal(ravel(restored), ravel(stepped))


def test_the_train_state_of_a_plain_optimizer_is_flaxs_own():
    grads = {"w": jnp.array([1.0, 2.0])}
    states = [
        kind.create(apply_fn=None, params=grads, tx=optax.sgd(0.1)).apply_gradients(grads=grads)
        for kind in (TrainState, train_state.TrainState)
    ]
    np.testing.assert_array_equal(states[0].params["w"], states[1].params["w"])


def test_a_train_state_without_grad_fn_says_what_is_missing():
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=sam_optax.sam())
    with pytest.raises(ValueError, match="needs grad_fn"):
        state.apply_gradients(grads={"w": jnp.ones(2)})


# NNX.


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def nnx_loss(model, x, y, scale=1.0):
    return scale * jnp.mean((model(x) - y) ** 2)


def nnx_step(model, optimizer):
    grad_fn = nnx_grad_fn(nnx_loss, model, X, Y)
    grads = nnx.grad(nnx_loss)(model, X, Y)
    optimizer.update(model, grads, grad_fn=grad_fn)


def pure(model, *filters):
    return nnx.as_pure(nnx.state(model, *filters))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", [pytest.param("sam", marks=pytest.mark.slow), "ae_looksam"])
def test_an_nnx_step_is_the_step_on_pure_arrays(name, compiled):
    """From the same model: parameters, batch statistics and the count of dropout masks."""
    tx = optax.chain(OPTIMIZERS[name](), optax.sgd(0.1, momentum=0.9))
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)
    opt_state = tx.init(params)

    def loss(params, rest):
        merged = nnx.merge(graphdef, params, rest)
        value = nnx_loss(merged, X, Y)
        return value, nnx.as_pure(nnx.split(merged, nnx.Param, ...)[2])

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    step = nnx.jit(nnx_step) if compiled else nnx_step
    for _ in range(3):
        step(model, optimizer)
        grads, new = gradient(params, rest)

        def grad_fn(p, rest=rest):
            return gradient(p, rest)[0]

        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        params, rest = optax.apply_updates(params, updates), new
    np.testing.assert_allclose(ravel(pure(model, nnx.Param)), ravel(params), **CLOSE)
    for statistic in ("mean", "var"):
        actual = pure(model, nnx.BatchStat)["norm"][statistic]
        np.testing.assert_allclose(actual, rest["norm"][statistic], **CLOSE)
    assert int(optimizer.opt_state[0].steps[...]) == 3


def test_nnx_statistics_and_dropout_counts_move_once_per_step():
    models = [Model(nnx.Rngs(0)) for _ in range(2)]
    tx = optax.chain(sam_optax.sam(0.1), optax.sgd(0.1))
    nnx_step(models[0], nnx.Optimizer(models[0], tx, wrt=nnx.Param))
    models[1](X)  # one forward pass
    for kind in (nnx.BatchStat, nnx.RngCount):
        np.testing.assert_allclose(
            ravel(pure(models[0], kind)), ravel(pure(models[1], kind)), **CLOSE
        )
    assert ravel(pure(models[0], nnx.RngCount)).sum() > 0


def test_both_passes_see_the_same_dropout_mask():
    """At the parameters the function is the first gradient, however often it is called."""
    model = Model(nnx.Rngs(0))
    grad_fn = nnx_grad_fn(nnx_loss, model, X, Y)
    params = pure(model, nnx.Param)
    grads = ravel(pure(nnx.grad(nnx_loss)(model, X, Y), nnx.Param))
    for _ in range(2):
        np.testing.assert_allclose(ravel(grad_fn(params)), grads, **CLOSE)
    late = nnx_grad_fn(nnx_loss, model, X, Y)  # after the first gradient: another mask
    assert np.abs(ravel(late(params)) - grads).max() > 1e-3


def test_aux_and_keyword_arguments_of_the_loss():
    model = Model(nnx.Rngs(0))
    params = pure(model, nnx.Param)

    def with_aux(model, x, y, scale):
        return nnx_loss(model, x, y, scale), "aux"

    once = nnx_grad_fn(nnx_loss, model, X, Y)(params)
    twice = nnx_grad_fn(with_aux, model, X, Y, has_aux=True, scale=2.0)(params)
    np.testing.assert_allclose(ravel(twice), 2 * ravel(once), **CLOSE)


def test_esam_on_an_nnx_model():
    """The indices follow the other arguments, and the losses come from a pure function too."""

    def losses(model, x, y, kept=slice(None)):
        return jnp.mean((model(x[kept]) - y[kept]) ** 2, axis=1)

    def mean_loss(*args):
        return losses(*args).mean()

    model = Model(nnx.Rngs(0))
    tx = optax.chain(sam_optax.esam(0.1, gamma=0.25), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    kept = []
    gradient = jax.jit(nnx_grad_fn(mean_loss, model, X, Y))
    example_loss_fn = jax.jit(nnx_pure_fn(losses, model, X, Y))

    def grad_fn(params, indices):
        kept.append(indices)
        return gradient(params, indices)

    grads = nnx.jit(nnx.grad(mean_loss))(model, X, Y)
    before = pure(model, nnx.Param)
    expected = nnx.jit(losses)(Model(nnx.Rngs(0)), X, Y)
    np.testing.assert_allclose(example_loss_fn(before), expected)
    optimizer.update(model, grads, grad_fn=grad_fn, example_loss_fn=example_loss_fn)
    assert [indices.shape for indices in kept] == [(4,)]
    assert np.abs(ravel(pure(model, nnx.Param)) - ravel(before)).max() > 0


def test_only_the_variables_that_are_trained_are_arguments():
    """With wrt the output layer alone, the rest is fixed."""
    model = Model(nnx.Rngs(0))
    out = nnx.All(nnx.Param, nnx.PathContains("out"))
    tx = optax.chain(sam_optax.sam(0.1), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=out)
    before = pure(model, nnx.Param)
    grad_fn = nnx_grad_fn(nnx_loss, model, X, Y, wrt=out)
    grads = nnx.grad(nnx_loss, argnums=nnx.DiffState(0, out))(model, X, Y)
    optimizer.update(model, grads, grad_fn=grad_fn)
    after = pure(model, nnx.Param)
    np.testing.assert_array_equal(after["hidden"]["kernel"], before["hidden"]["kernel"])
    assert np.abs(after["out"]["kernel"] - before["out"]["kernel"]).max() > 0


OUT = nnx.All(nnx.Param, nnx.PathContains("out"))


@pytest.mark.parametrize(
    ("trained", "wrt", "where"),
    [
        (OUT, nnx.Param, r"wrt=Param, and \['hidden'\]\['bias'\] is in those of the model and not"),
        (nnx.Param, OUT, r"wrt=.*out.*, and \['hidden'\]\['bias'\] is in params and not in those"),
    ],
    ids=["fewer", "more"],
)
def test_another_wrt_than_the_optimizers_is_named(trained, wrt, where):
    model = Model(nnx.Rngs(0))
    tx = optax.chain(sam_optax.sam(0.1), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=trained)
    grads = nnx.grad(nnx_loss, argnums=nnx.DiffState(0, trained))(model, X, Y)
    before = pure(model, nnx.Param)
    with pytest.raises(ValueError, match=where):
        optimizer.update(model, grads, grad_fn=nnx_grad_fn(nnx_loss, model, X, Y, wrt=wrt))
    np.testing.assert_array_equal(ravel(pure(model, nnx.Param)), ravel(before))
    optimizer.update(model, grads, grad_fn=nnx_grad_fn(nnx_loss, model, X, Y, wrt=trained))


def test_variables_are_no_gradient_of_arrays():
    """As nnx.grad returns them, in a grad_fn of the caller's own."""
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    link = sam_optax.sam(0.1)

    def loss_fn(model):
        return jnp.mean((model(X) - Y) ** 2)

    def in_variables(params):
        return nnx.grad(loss_fn)(nnx.merge(graphdef, params))

    def step(params, grad_fn):
        return link.update(grad_fn(params), link.init(params), params, grad_fn=grad_fn)[0]

    arrays = nnx.as_pure(params)
    with pytest.raises(ValueError, match=r"updates\['bias'\] is a Param where .*flax.nnx.as_pure"):
        step(arrays, in_variables)
    expected = step(arrays, lambda p: nnx.as_pure(in_variables(p)))
    np.testing.assert_array_equal(ravel(nnx.as_pure(step(params, in_variables))), ravel(expected))


class Float8(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8, dot_general_cls=nn.Fp8DirectDotGeneralOp)(x))
        return nn.Dense(2)(x)


@functools.cache
def float8():
    """The variables, and jitted gradients of all of them."""
    model = Float8()
    variables = model.init(jax.random.key(0), X)

    def losses(variables, kept=slice(None)):
        return jnp.mean((model.apply(variables, X[kept]) - Y[kept]) ** 2, axis=1)

    losses = jax.jit(losses)
    return variables, losses, jax.jit(jax.grad(lambda v, *kept: losses(v, *kept).mean()))


def float8_state(name, **settings):
    row = METHODS[name]
    points = {"updates_at": "gradient_point"}
    has_point = "updates_at" in inspect.signature(row.factory).parameters
    link = row.factory(**row.settings, **(points if has_point else {}), **settings)
    tx = optax.chain(link, optax.sgd(0.1))
    return link, TrainState.create(apply_fn=None, params=float8()[0], tx=tx)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
        for name in NAMES
        if name != "eigen_sam"
    ],
)
def test_the_scales_of_float8_are_no_parameters(name):
    """A step is that of the parameters with the scales closed over, which the first pass moves."""
    variables, losses, gradient = float8()
    link, state = float8_state(name)
    params, link_state = variables["params"], link.init(variables["params"])
    for _ in range(2):
        scales = state.params[SCALES]

        def whole(p, scales=scales):
            return {"params": p, SCALES: scales}

        def grad_fn(p, *kept, whole=whole):
            return gradient(whole(p), *kept)["params"]

        point = sam_optax.gradient_point(link_state, params)
        extra = inside = {}
        if name == "esam":
            extra = {"example_loss_fn": losses}
            inside = {"example_loss_fn": lambda p, whole=whole: losses(whole(p))}
        direction, link_state = link.update(
            grad_fn(point), link_state, params, grad_fn=grad_fn, **inside
        )
        params = jax.tree.map(lambda w, d: w - 0.1 * d, params, direction)
        grads = gradient(state.gradient_point())
        state = state.apply_gradients(grads=grads, grad_fn=gradient, **extra)
        np.testing.assert_allclose(ravel(state.params["params"]), ravel(params), **CLOSE)
        chex.assert_trees_all_equal(state.params[SCALES], grads[SCALES])
    assert np.abs(ravel(state.params[SCALES]) - ravel(variables[SCALES])).max() > 0


def test_the_loss_of_float8_variables_may_be_value_fn():
    """With other arguments by their names, and none that is there and None."""
    variables, losses, gradient = float8()
    _, state = float8_state("sam")

    def value_fn(variables, kept):
        return losses(variables, kept).mean()

    grads = gradient(variables)
    expected = state.apply_gradients(grads=grads, grad_fn=lambda v: gradient(v, jnp.arange(8)))
    found = state.apply_gradients(grads=grads, grad_fn=None, value_fn=value_fn, kept=jnp.arange(8))
    np.testing.assert_allclose(ravel(found.params), ravel(expected.params), **CLOSE)


def test_param_specs_are_those_of_all_variables_or_of_the_parameters():
    """Of a model in one piece."""
    variables, _, gradient = float8()
    _, state = float8_state("msam")
    whole = jax.sharding.PartitionSpec()
    own = jax.tree.map(lambda _: whole, variables["params"])
    for specs in (whole, {"params": whole, SCALES: whole}, own):
        point = state.gradient_point(param_specs=specs)
        found = state.apply_gradients(grads=gradient(point), param_specs=specs)
        expected = state.apply_gradients(grads=gradient(state.gradient_point()))
        np.testing.assert_allclose(ravel(found.params), ravel(expected.params), **CLOSE)


def test_eigen_sam_tells_that_float8_has_no_forward_mode_and_takes_differences():
    """Flax defines the derivatives of its float8 layers for reverse mode alone."""
    variables, _, gradient = float8()
    _, state = float8_state("eigen_sam")
    with pytest.raises(TypeError, match="custom_vjp in the way: pass products='differences'"):
        state.apply_gradients(grads=gradient(variables), grad_fn=gradient)
    _, state = float8_state("eigen_sam", products="differences")
    for _ in range(4):
        grads = gradient(state.params)
        state = state.apply_gradients(grads=grads, grad_fn=gradient)
    v = sam_optax.read(state.opt_state, "v")
    assert float(optax.tree.norm(v)) == pytest.approx(1.0, rel=1e-5)


class Noisy(nnx.Module):
    """Dropout by Rngs from outside, and variables that hold trees of arrays."""

    def __init__(self, seed):
        self.hidden = nnx.Linear(4, 8, rngs=nnx.Rngs(seed))
        self.dropout = nnx.Dropout(0.4)
        self.scales = nnx.Param({"in": jnp.ones(4), "out": (jnp.full(2, 0.5),)})
        self.ranges = nnx.BatchStat({"low": jnp.full(8, -0.9), "high": jnp.full(8, 0.9)})
        self.out = nnx.Linear(8, 2, rngs=nnx.Rngs(seed + 1))

    def __call__(self, x, rngs):
        scales, ranges = self.scales.get_value(), self.ranges.get_value()
        hidden = jnp.clip(jnp.tanh(self.hidden(x * scales["in"])), ranges["low"], ranges["high"])
        return self.out(self.dropout(hidden, rngs=rngs)) * scales["out"][0]


def noisy_loss(model, x, y, rngs, metrics=None, teacher=None):
    predicted = model(x, rngs)
    value = jnp.mean((predicted - y) ** 2)
    if teacher is not None:
        value += jnp.mean((predicted - teacher(x, rngs)) ** 2)
    if metrics is not None:
        metrics.update(values=value)
    return value


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_may_take_rngs_metrics_and_other_models(compiled):
    """All of them are as they were when the gradient was made, and the first pass changes them."""
    link = sam_optax.sam(0.1)

    def step(model, optimizer, rngs, metrics, teacher):
        extra = {"metrics": metrics, "teacher": teacher}
        grad_fn = nnx_grad_fn(noisy_loss, model, X, Y, rngs, **extra)
        grads = nnx.grad(noisy_loss)(model, X, Y, rngs, **extra)
        optimizer.update(model, grads, grad_fn=grad_fn)

    def by_hand(params, graphdef, rest, teacher):
        def value(params):
            model = nnx.merge(graphdef, params, rest)
            return noisy_loss(model, X, Y, nnx.Rngs(7), teacher=teacher)

        gradient = jax.jit(jax.grad(value))
        direction, _ = link.update(gradient(params), link.init(params), params, grad_fn=gradient)
        return jax.tree.map(lambda w, d: w - 0.1 * d, params, direction)

    model, teacher, rngs = Noisy(0), Noisy(5), nnx.Rngs(7)
    metrics = nnx.metrics.Average()
    graphdef, params, rest = nnx.split(Noisy(0), nnx.Param, ...)
    expected = by_hand(params, graphdef, rest, Noisy(5))
    optimizer = nnx.Optimizer(model, optax.chain(link, optax.sgd(0.1)), wrt=nnx.Param)
    before = ravel(pure(teacher, nnx.Param))
    run = nnx.jit(step) if compiled else step
    run(model, optimizer, rngs, metrics, teacher)
    np.testing.assert_allclose(ravel(pure(model, nnx.Param)), ravel(expected), **CLOSE)
    np.testing.assert_array_equal(ravel(pure(teacher, nnx.Param)), before)
    assert int(metrics.count[...]) == 1  # of the first pass alone
    assert int(rngs.default.count[...]) == 2  # a mask of the model, and one of the teacher


def test_the_train_state_of_nnx_hands_no_gradient_on():
    """As the recipe says, which sends its users to nnx.Optimizer."""
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    tx = optax.chain(sam_optax.sam(0.1), optax.sgd(0.1))
    state = nnx.TrainState.create(graphdef, params=params, tx=tx)
    with pytest.raises(ValueError, match="needs grad_fn"):
        state.apply_gradients(params)


def test_variables_that_arguments_share_with_the_model_stay_shared():
    model = Noisy(0)
    model.rngs = nnx.Rngs(7)
    params = pure(model, nnx.Param)

    def twice(model, rngs):
        return noisy_loss(model, X, Y, rngs) + noisy_loss(model, X, Y, model.rngs)

    found = nnx_grad_fn(twice, model, model.rngs)(params)
    expected = nnx.grad(lambda model: twice(model, model.rngs))(model)
    chex.assert_trees_all_close(found, nnx.as_pure(expected), rtol=1e-6)


def test_the_gradient_point_of_an_nnx_model():
    """There and back: the parameters move by the gradient at the point."""
    model = Model(nnx.Rngs(0))
    tx = optax.chain(sam_optax.lpf_sgd(0.5, updates_at="gradient_point"), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = pure(model, nnx.Param)
    grad_fn = nnx_grad_fn(nnx_loss, model, X, Y)
    point = sam_optax.gradient_point(nnx.as_pure(optimizer.opt_state), params)
    nnx.update(model, point)
    grads = nnx.grad(nnx_loss)(model, X, Y)
    nnx.update(model, params)
    optimizer.update(model, grads)
    expected = ravel(params) - 0.1 * ravel(grad_fn(point))
    np.testing.assert_allclose(ravel(pure(model, nnx.Param)), expected, **CLOSE)
    assert np.abs(ravel(point) - ravel(params)).max() > 0


class EquinoxModel(eqx.Module):
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear


def test_asam_finds_the_weights_of_nnx_and_equinox_by_their_names():
    """The scale of a normalisation layer is a weight, a bias is not."""
    out = eqx.nn.Linear(8, 2, key=jax.random.key(0))
    for model, names in (
        (pure(Model(nnx.Rngs(0)), nnx.Param), {"kernel", "scale"}),
        (EquinoxModel(eqx.nn.LayerNorm(8), out), {"weight"}),
    ):
        ones = jax.tree.map(jnp.ones_like, model)
        geometry = sam_optax.perturb.adaptive_ball(1.0, eta=2.0)
        epsilon, _ = geometry.update(ones, geometry.init(ones), ones, step=0)
        shortest = min(leaf.min() for leaf in jax.tree.leaves(epsilon))
        for path, leaf in jax.tree_util.tree_leaves_with_path(epsilon):
            name = getattr(path[-1], "key", getattr(path[-1], "name", None))
            np.testing.assert_allclose(leaf / shortest, 9 if name in names else 1, rtol=1e-5)


def test_a_functional_gradient_of_nnx_is_that_of_the_outputs():
    """d = J(w + ε)ᵀ ∂L/∂F(w), by hand."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    x, y = jnp.arange(12.0).reshape(4, 3) / 10, jnp.ones((4, 2))

    def loss(outputs):
        return jnp.mean((jnp.tanh(outputs) - y) ** 2)

    grad_fn = sam_optax.flax.nnx_functional_grad_fn(lambda m, x: m(x) ** 2, loss, model, x)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    grads = nnx.as_pure(nnx.grad(lambda m: loss(m(x) ** 2))(model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grad_fn(params), grads)
    link = sam_optax.sam(0.5)
    direction, _ = link.update(grads, link.init(params), params, grad_fn=grad_fn)
    w, b = params["kernel"], params["bias"]
    scale = 0.5 / optax.tree.norm(grads)
    outputs = (x @ w + b) ** 2
    error = 2 * (jnp.tanh(outputs) - y) * (1 - jnp.tanh(outputs) ** 2) / y.size
    linear = x @ (w + scale * grads["kernel"]) + b + scale * grads["bias"]
    np.testing.assert_allclose(direction["kernel"], x.T @ (error * 2 * linear), rtol=1e-4)


def test_a_train_state_of_float8_tells_the_rise():
    """What is overwritten is left out of the gradient beside the value, too."""
    scales = {"scale": jnp.ones(1)}
    variables = {"params": {"w": jnp.array([3.0, 4.0])}, SCALES: scales}
    tx = optax.chain(sam_optax.sam(5.0), optax.sgd(0.1))
    state = TrainState.create(apply_fn=None, params=variables, tx=tx)
    both = jax.value_and_grad(lambda v: jnp.sum(v["params"]["w"] ** 2) / 2)
    value, grads = both(state.params)
    grads = {**grads, SCALES: scales}
    state = state.apply_gradients(grads=grads, value=value, value_and_grad_fn=both)
    rise = sam_optax.read(state.opt_state, "rise")
    np.testing.assert_allclose(rise, (10**2 - 5**2) / 2, rtol=1e-6)
