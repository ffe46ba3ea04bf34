"""Loops as in Flax's own examples, with a method in the chain, against the same steps by hand."""

import functools
import math
from typing import NamedTuple

from flax import linen as nn
from flax import nnx
import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax.flax import TrainState, nnx_grad_fn

pytestmark = pytest.mark.slow

RHO = 0.05
# In float64, where Adam cannot blow a rounding of a tiny gradient up to a step.
CLOSE = {"rtol": 1e-8, "atol": 1e-11}


def pure(node, *filters):
    return nnx.as_pure(nnx.state(node, *filters))


def ravel(tree):
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def widen(node):
    """All floats of the default width, which NNX makes float32."""

    def one(x):
        return x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x

    nnx.update(node, jax.tree.map(one, nnx.state(node)))
    return node


# One step of a loop: by the library, with no method, and by hand.


def value_and_grad(loss_fn, wrt):
    return nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, wrt), has_aux=True)


@functools.partial(nnx.jit, static_argnums=(0, 1))
def step(loss_fn, wrt, model, optimizer, *args):
    """As users write it."""
    grad_fn = nnx_grad_fn(loss_fn, model, *args, wrt=wrt, has_aux=True)
    (loss, aux), grads = value_and_grad(loss_fn, wrt)(model, *args)
    optimizer.update(model, grads, grad_fn=grad_fn)
    return loss, aux


@functools.partial(nnx.jit, static_argnums=(0, 1))
def plain_step(loss_fn, wrt, model, optimizer, *args):
    (loss, aux), grads = value_and_grad(loss_fn, wrt)(model, *args)
    optimizer.update(model, grads)
    return loss, aux


@functools.partial(nnx.jit, static_argnums=(0, 1))
def both_gradients(loss_fn, wrt, model, *args):
    """Aux, g and the gradient at w + ρ g/‖g‖, by a twin that still has all keys and statistics."""
    twin, *others = nnx.clone((model, *args))
    (_, aux), grads = value_and_grad(loss_fn, wrt)(model, *args)
    params, grads = pure(model, wrt), nnx.as_pure(grads)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    nnx.update(twin, jax.tree.map(lambda w, g: w + RHO * g / norm, params, grads))
    _, sharp = value_and_grad(loss_fn, wrt)(twin, *others)
    return aux, grads, nnx.as_pure(sharp)


class ByHand:
    """Steps along rule(g, g') by Optax alone, the rule on flat vectors of NumPy."""

    def __init__(self, loss_fn, model, tx, rule, wrt=nnx.Param):
        self.loss_fn, self.model, self.rule, self.wrt = loss_fn, model, rule, wrt
        self.update = jax.jit(tx.update)
        self.state = tx.init(pure(model, wrt))

    def step(self, *args):
        aux, grads, sharp = both_gradients(self.loss_fn, self.wrt, self.model, *args)
        flat, unravel = ravel_pytree(grads)
        direction = self.rule(np.asarray(flat), np.asarray(ravel_pytree(sharp)[0]))
        params = pure(self.model, self.wrt)
        updates, self.state = self.update(unravel(jnp.asarray(direction)), self.state, params)
        nnx.update(self.model, optax.apply_updates(params, updates))
        return aux


# What the methods make of both gradients.


def sam_rule(g, sharp):
    del g
    return sharp


class LookSam:
    def __init__(self, alpha, period):
        self.alpha, self.period, self.t, self.v = alpha, period, 0, None

    def __call__(self, g, sharp):
        fires, self.t = self.t % self.period == 0, self.t + 1
        if fires:
            self.v = sharp - g * (sharp @ g) / (g @ g)
            return sharp
        return g + self.alpha * np.linalg.norm(g) * self.v / np.linalg.norm(self.v)


class AeSam:
    def __init__(self, total_steps):
        self.total_steps, self.mean, self.variance = total_steps, 0.0, math.exp(-10)
        self.fired = []

    def __call__(self, g, sharp):
        s, threshold = g @ g, 1 - 2 * len(self.fired) / self.total_steps
        self.mean = 0.9 * self.mean + 0.1 * s
        self.variance = 0.9 * self.variance + 0.1 * (s - self.mean) ** 2
        self.fired.append(bool(s >= self.mean + threshold * math.sqrt(self.variance)))
        return sharp if self.fired[-1] else g


METHODS = {
    "sam": (lambda: sam_optax.sam(RHO), lambda: sam_rule),
    "looksam": (
        lambda: sam_optax.looksam(RHO, alpha=0.5, period=2),
        lambda: LookSam(0.5, 2),
    ),
    "ae_sam": (lambda: sam_optax.ae_sam(RHO, total_steps=8), lambda: AeSam(8)),
}


def assert_same(actual, expected, *filters):
    for kind in filters:
        found = ravel(pure(actual, kind))
        assert found.size > 0
        np.testing.assert_allclose(found, ravel(pure(expected, kind)), **CLOSE)


def assert_moved(actual, before, distance=1e-3):
    assert np.abs(ravel(actual) - ravel(before)).max() > distance


# Digits by a small convolutional net: dropout by Rngs from outside, batch norm, metrics.


class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.8, rngs=rngs)
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.3)
        self.out = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, images, rngs=None):
        x = nnx.relu(self.dropout(self.norm(self.conv(images)), rngs=rngs))
        x = nnx.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.out(self.dropout(x, rngs=rngs))


def digits_batch(t):
    """Sixteen noisy copies of five shapes."""
    shapes = jax.random.normal(jax.random.key(100), (5, 8, 8, 1))
    labels = jax.random.randint(jax.random.key(2 * t), (16,), 0, 5)
    noise = jax.random.normal(jax.random.key(2 * t + 1), (16, 8, 8, 1))
    return shapes[labels] + 0.3 * noise, labels


def digits_loss(model, rngs, batch):
    logits = model(batch[0], rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), logits


def digits_loss_with_metrics(model, rngs, metrics, batch):
    """The metrics are counted inside, where a second pass could count them again."""
    loss, logits = digits_loss(model, rngs, batch)
    metrics.update(loss=loss, logits=logits, labels=batch[1])
    return loss, logits


def digits_start():
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
    return widen(Cnn(nnx.Rngs(0))), nnx.Rngs(dropout=7), widen(metrics)


def digits_optimizer(model, *links):
    return nnx.Optimizer(model, optax.chain(*links, optax.adamw(0.005, b1=0.9)), wrt=nnx.Param)


def test_digits_train():
    """And are told apart with the running statistics and no dropout."""
    model, rngs, metrics = digits_start()
    optimizer = digits_optimizer(model, sam_optax.sam(RHO))
    losses = []
    for t in range(60):
        batch = digits_batch(t)
        loss, _ = step(digits_loss_with_metrics, nnx.Param, model, optimizer, rngs, metrics, batch)
        losses.append(float(loss))
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])
    np.testing.assert_allclose(metrics.compute()["loss"], np.mean(losses), rtol=1e-5)
    assert int(optimizer.step[...]) == 60
    model.eval()
    images, labels = digits_batch(1000)
    assert np.mean(model(images).argmax(-1) == labels) > 0.8


@pytest.mark.usefixtures("x64")
def test_steps_on_digits_are_those_by_hand():
    (model, rngs, metrics), hand = digits_start(), digits_start()
    optimizer = digits_optimizer(model, sam_optax.sam(RHO))
    by_hand = ByHand(digits_loss_with_metrics, hand[0], optax.adamw(0.005, b1=0.9), sam_rule)
    before = pure(model)
    for t in range(5):
        batch = digits_batch(t)
        step(digits_loss_with_metrics, nnx.Param, model, optimizer, rngs, metrics, batch)
        by_hand.step(*hand[1:], batch)
        assert_same(model, hand[0], nnx.Param, nnx.BatchStat)
    assert_same(rngs, hand[1], nnx.RngCount)
    assert_same(metrics, hand[2], nnx.metrics.MetricState)
    for kind in ("conv", "norm", "hidden", "out"):
        assert_moved(pure(model)[kind], before[kind])


@pytest.mark.usefixtures("x64")
def test_the_state_of_a_loop_on_digits_moves_as_without_a_method():
    """Counts of keys and of metrics at every step; statistics at the first, of equal parameters."""
    (model, rngs, metrics), plain = digits_start(), digits_start()
    optimizer = digits_optimizer(model, sam_optax.sam(RHO))
    plain_optimizer = digits_optimizer(plain[0])
    loss_fn = digits_loss_with_metrics
    for t in range(4):
        batch = digits_batch(t)
        step(loss_fn, nnx.Param, model, optimizer, rngs, metrics, batch)
        plain_step(loss_fn, nnx.Param, plain[0], plain_optimizer, *plain[1:], batch)
        if t == 0:
            assert_same(model, plain[0], nnx.BatchStat)
            assert_same(metrics, plain[2], nnx.metrics.MetricState)
        assert_same(rngs, plain[1], nnx.RngCount)
        assert int(rngs.dropout.count[...]) == 2 * (t + 1)  # two layers of dropout
        assert int(metrics.loss.count[...]) == t + 1
        assert int(metrics.accuracy.count[...]) == 16 * (t + 1)
    assert_moved(pure(model, nnx.Param), pure(plain[0], nnx.Param))


@pytest.mark.usefixtures("x64")
def test_looksam_decides_on_the_host_for_digits():
    """Outside jit, as is right for convolutions on CPU: every third step has a second gradient."""
    (model, rngs, _), hand = digits_start(), digits_start()
    optimizer = digits_optimizer(model, sam_optax.looksam(RHO, alpha=0.6, period=3))
    by_hand = ByHand(digits_loss, hand[0], optax.adamw(0.005, b1=0.9), LookSam(0.6, 3))
    first = nnx.jit(value_and_grad(digits_loss, nnx.Param))
    calls = []
    for t in range(7):
        batch = digits_batch(t)
        second = nnx_grad_fn(digits_loss, model, rngs, batch, has_aux=True)

        def grad_fn(params, t=t, second=second):
            calls.append(t)
            return second(params)

        _, grads = first(model, rngs, batch)
        optimizer.update(model, grads, grad_fn=grad_fn)
        by_hand.step(hand[1], batch)
        assert_same(model, hand[0], nnx.Param, nnx.BatchStat)
    assert calls == [0, 3, 6]
    assert_same(rngs, hand[1], nnx.RngCount)


# A language model with causal attention, a smoothed loss over what is no padding, and warm-up.

VOCABULARY, WIDTH, HEADS, LENGTH = 11, 16, 2, 10


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.inputs = nnx.LinearGeneral(WIDTH, (3, HEADS, WIDTH // HEADS), rngs=rngs)
        self.outputs = nnx.LinearGeneral((HEADS, WIDTH // HEADS), WIDTH, axis=(-2, -1), rngs=rngs)

    def __call__(self, x, mask):
        query, key, value = jnp.moveaxis(self.inputs(x), 2, 0)
        query, key = turned(query), turned(key)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(WIDTH // HEADS)
        weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -1e9))
        self.sow(nnx.Intermediate, "peak", weights.max(-1).mean())
        return self.outputs(jnp.einsum("bhqk,bkhd->bqhd", weights, value))


def turned(x):
    """Pairs of channels turned by angles that grow with the position."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * 100.0 ** (-jnp.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List([nnx.RMSNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = Attention(rngs)
        self.gate = nnx.Linear(WIDTH, 2 * WIDTH, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)

    def __call__(self, x, mask, rngs):
        x += self.dropout(self.attention(self.norms[0](x), mask), rngs=rngs)
        y = self.norms[1](x)
        return x + self.dropout(self.down(nnx.gelu(self.gate(y)) * self.up(y)), rngs=rngs)


class LanguageModel(nnx.Module):
    """The embedding is the output layer too, and the logits are bounded."""

    def __init__(self, rngs):
        self.embedding = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens, rngs):
        mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool)) & (tokens > 0)[:, None]
        x = self.embedding(tokens) * math.sqrt(WIDTH)
        for block in self.blocks:
            x = block(x, mask, rngs)
        return 30 * jnp.tanh(self.embedding.attend(self.norm(x)) / 30)


def text_batch(t):
    """Tokens that count up in circles by a step of their own, with padding behind."""
    keys = jax.random.split(jax.random.key(t), 3)
    start = jax.random.randint(keys[0], (8, 1), 0, 10)
    pace = jax.random.randint(keys[1], (8, 1), 1, 4)
    sizes = jax.random.randint(keys[2], (8, 1), 5, LENGTH + 2)
    places = jnp.arange(LENGTH + 1)
    tokens = jnp.where(places < sizes, 1 + (start + pace * places) % 10, 0)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


def text_loss(model, rngs, batch):
    logits, sown = nnx.capture(model, nnx.Intermediate)(batch["inputs"], rngs)
    soft = optax.smooth_labels(jax.nn.one_hot(batch["targets"], VOCABULARY), 0.05)
    weights = batch["targets"] > 0
    correct = (logits.argmax(-1) == batch["targets"]) & weights
    loss = jnp.sum(optax.softmax_cross_entropy(logits, soft) * weights) / weights.sum()
    return loss, {"correct": correct.sum(), "tokens": weights.sum(), "sown": nnx.as_pure(sown)}


def text_tx(*links):
    """AdamW with warm-up and the inverse root of the step, behind clipping."""
    rate = optax.join_schedules(
        [optax.linear_schedule(0.002, 0.02, 4), lambda count: 0.02 / jnp.sqrt(1 + count / 8)], [4]
    )
    adam = optax.adamw(rate, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.1)
    return optax.chain(*links, optax.clip_by_global_norm(1.0), adam)


def text_start():
    return widen(LanguageModel(nnx.Rngs(0))), nnx.Rngs(dropout=3)


@pytest.mark.parametrize("name", ["sam", "looksam"])
def test_a_language_model_trains(name):
    model, rngs = text_start()
    optimizer = nnx.Optimizer(model, text_tx(METHODS[name][0]()), wrt=nnx.Param)
    losses = []
    for t in range(60):
        loss, _ = step(text_loss, nnx.Param, model, optimizer, rngs, text_batch(t))
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:5])
    assert int(rngs.dropout.count[...]) == 60 * 4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", METHODS)
def test_steps_of_a_language_model_are_those_by_hand(name):
    """Parameters, keys, counts, and what the layers sow, which is that of the first pass alone."""
    link, rule = (make() for make in METHODS[name])
    (model, rngs), hand = text_start(), text_start()
    optimizer = nnx.Optimizer(model, text_tx(link), wrt=nnx.Param)
    by_hand = ByHand(text_loss, hand[0], text_tx(), rule)
    for t in range(8):
        batch = text_batch(t)
        _, aux = step(text_loss, nnx.Param, model, optimizer, rngs, batch)
        expected = by_hand.step(hand[1], batch)
        assert ravel(aux).shape == (4,)  # two counts, and a number of each block
        np.testing.assert_allclose(ravel(aux), ravel(expected), **CLOSE)
        assert_same(model, hand[0], nnx.Param)
    assert_same(rngs, hand[1], nnx.RngCount)
    if name == "ae_sam":
        ascents = int(sam_optax.read(nnx.as_pure(optimizer.opt_state), "ascents"))
        assert ascents == sum(rule.fired)
        assert 0 < ascents < 8


class Variables(TrainState):
    """As where a loop keeps the variables of an NNX model, and merges them inside the loss."""

    def loss_fn(self, params, key, batch):
        model = nnx.merge(self.apply_fn, params)
        return text_loss(model, nnx.Rngs(dropout=key), batch)


@jax.jit
def variables_step(state, key, batch):
    gradient = jax.grad(state.loss_fn, has_aux=True)
    grads, aux = gradient(state.params, key, batch)
    grad_fn = functools.partial(gradient, key=key, batch=batch)
    return state.apply_gradients(grads=grads, grad_fn=lambda p: grad_fn(p)[0]), aux


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", METHODS)
def test_a_train_state_may_hold_the_variables_of_a_language_model(name):
    link, rule = (make() for make in METHODS[name])
    (model, _), (hand, _) = text_start(), text_start()
    graphdef, params = nnx.split(model, nnx.Param)
    state = Variables.create(apply_fn=graphdef, params=params, tx=text_tx(link))
    by_hand = ByHand(text_loss, hand, text_tx(), rule)
    for t in range(5):
        key = jax.random.fold_in(jax.random.key(3), t)
        state, aux = variables_step(state, key, text_batch(t))
        expected = by_hand.step(nnx.Rngs(dropout=key), text_batch(t))
        np.testing.assert_allclose(ravel(aux), ravel(expected), **CLOSE)
        np.testing.assert_allclose(ravel(state.params), ravel(pure(hand, nnx.Param)), **CLOSE)
    leaves = jax.tree.leaves(state.params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert {type(leaf) for leaf in leaves} == {nnx.Param}


# Layers that a scan goes through, computed again in the backward pass, each with its own keys.


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(jnp.tanh(self.linear(x)))


class Scanned(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.split_rngs(splits=3)(nnx.vmap(Residual))(rngs)

    def __call__(self, x):
        through = nnx.scan(
            nnx.remat(lambda layer, x: layer(x)), in_axes=(0, nnx.Carry), out_axes=nnx.Carry
        )
        return through(self.layers, x)


def scanned_loss(model, x):
    error = model(x) - jnp.roll(x, 1, axis=1)
    return jnp.mean(error**2), error


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["sam", "looksam"])
def test_steps_of_scanned_layers_are_those_by_hand(name):
    link, rule = (make() for make in METHODS[name])
    model, hand = (widen(Scanned(nnx.Rngs(0))) for _ in range(2))
    optimizer = nnx.Optimizer(model, optax.chain(link, optax.adam(0.01)), wrt=nnx.Param)
    by_hand = ByHand(scanned_loss, hand, optax.adam(0.01), rule)
    losses = []
    for t in range(10):
        x = jax.random.normal(jax.random.key(t), (32, 8))
        losses.append(float(step(scanned_loss, nnx.Param, model, optimizer, x)[0]))
        by_hand.step(x)
        assert_same(model, hand, nnx.Param, nnx.RngCount)
    assert losses[-1] < 0.95 * losses[0]
    counts = [int(c) for c in pure(model, nnx.RngCount)["layers"]["dropout"]["rngs"]["count"]]
    assert counts == [10] * 3


# Low-rank adaptation: frozen layers below, and dropout by Rngs that the model holds.


class Adapted(nnx.Module):
    def __init__(self, rngs):
        base = [nnx.Linear(6, 12, rngs=rngs), nnx.Linear(12, 3, rngs=rngs)]
        self.norm = nnx.BatchNorm(12, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.layers = nnx.List(
            nnx.LoRA(b.in_features, 2, b.out_features, base_module=b, rngs=rngs) for b in base
        )

    def __call__(self, x):
        x = self.dropout(jnp.tanh(self.norm(self.layers[0](x))))
        return self.layers[1](x)


BASE = nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam))
OTHERS = (nnx.BatchStat, nnx.RngCount)


def adapted_batch(t):
    x = jax.random.normal(jax.random.key(t), (16, 6))
    return x, jnp.tanh(x @ jax.random.normal(jax.random.key(1000), (6, 3)))


def adapted_loss(model, batch):
    error = model(batch[0]) - batch[1]
    return jnp.mean(error**2), error


def adapted_optimizer(model, *links):
    return nnx.Optimizer(model, optax.chain(*links, optax.adam(0.01)), wrt=nnx.LoRAParam)


def test_low_rank_adaptation_trains_and_leaves_the_base_alone():
    model = Adapted(nnx.Rngs(0))
    optimizer = adapted_optimizer(model, sam_optax.sam(RHO))
    base, start = pure(model, BASE), pure(model, nnx.LoRAParam)
    losses = [
        float(step(adapted_loss, nnx.LoRAParam, model, optimizer, adapted_batch(t))[0])
        for t in range(80)
    ]
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])
    np.testing.assert_array_equal(ravel(pure(model, BASE)), ravel(base))
    assert ravel(base).size == 6 * 12 + 12 + 12 * 3 + 3 + 2 * 12  # with the scales of the norm
    assert_moved(pure(model, nnx.LoRAParam), start)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["sam", "looksam"])
def test_steps_of_low_rank_adaptation_are_those_by_hand(name):
    """The norm is that of what is trained alone; statistics and masks move once per step."""
    link, rule = (make() for make in METHODS[name])
    model, hand, plain = (widen(Adapted(nnx.Rngs(0))) for _ in range(3))
    optimizer, plain_optimizer = adapted_optimizer(model, link), adapted_optimizer(plain)
    by_hand = ByHand(adapted_loss, hand, optax.adam(0.01), rule, nnx.LoRAParam)
    base = pure(model, BASE)
    for t in range(6):
        batch = adapted_batch(t)
        step(adapted_loss, nnx.LoRAParam, model, optimizer, batch)
        plain_step(adapted_loss, nnx.LoRAParam, plain, plain_optimizer, batch)
        by_hand.step(batch)
        assert_same(model, hand, nnx.LoRAParam, *OTHERS)
        assert_same(model, plain, nnx.RngCount)
    np.testing.assert_array_equal(ravel(pure(model, BASE)), ravel(base))


@pytest.mark.usefixtures("x64")
def test_the_radius_of_low_rank_adaptation_is_spent_on_what_is_trained():
    """Where the gradient is taken: ρ away, by the norm without the base, which stays."""
    model = widen(Adapted(nnx.Rngs(0)))
    points = []
    grad_fn = nnx_grad_fn(adapted_loss, model, adapted_batch(0), wrt=nnx.LoRAParam, has_aux=True)

    def seen(params):
        points.append(params)
        return grad_fn(params)

    start = pure(model, nnx.LoRAParam)
    # As by Flax's default, of all parameters: the optimizer takes of it what it trains.
    grads, _ = nnx.grad(adapted_loss, has_aux=True)(model, adapted_batch(0))
    adapted_optimizer(model, sam_optax.sam(RHO)).update(model, grads, grad_fn=seen)
    epsilon = jax.tree.map(jnp.subtract, points[0], start)
    trained = nnx.as_pure(nnx.state(grads, nnx.LoRAParam))
    assert jax.tree.structure(epsilon) == jax.tree.structure(trained)
    unit = ravel(trained) / np.linalg.norm(ravel(trained))
    np.testing.assert_allclose(ravel(epsilon), RHO * unit, **CLOSE)
    assert np.linalg.norm(ravel(nnx.as_pure(grads))) > 1.1 * np.linalg.norm(ravel(trained))


# A variational autoencoder in Linen, whose loss draws from a key of the step.


class Autoencoder(nn.Module):
    def setup(self):
        self.encoder = nn.Sequential([nn.Dense(16, param_dtype=float), nn.relu])
        self.moments = nn.Dense(2 * 3, param_dtype=float)
        self.decoder = nn.Sequential(
            [nn.Dense(16, param_dtype=float), nn.relu, nn.Dense(20, param_dtype=float)]
        )

    def __call__(self, x, key):
        mean, log_variance = jnp.split(self.moments(self.encoder(x)), 2, axis=-1)
        noise = jax.random.normal(key, mean.shape)
        return self.decoder(mean + jnp.exp(log_variance / 2) * noise), mean, log_variance


def codes(t):
    """Binary patterns, four with flipped places."""
    patterns = jax.random.bernoulli(jax.random.key(50), 0.5, (4, 20))
    chosen = jax.random.randint(jax.random.key(3 * t), (16,), 0, 4)
    flips = jax.random.bernoulli(jax.random.key(3 * t + 1), 0.05, (16, 20))
    return (patterns[chosen] ^ flips).astype(float)


def elbo(params, x, key):
    logits, mean, log_variance = Autoencoder().apply({"params": params}, x, key)
    reconstruction = optax.sigmoid_binary_cross_entropy(logits, x).sum(-1).mean()
    divergence = jnp.sum(jnp.exp(log_variance) + mean**2 - 1 - log_variance, axis=-1).mean() / 2
    return reconstruction + divergence, {"reconstruction": reconstruction, "kl": divergence}


class Loop(NamedTuple):
    losses: list
    params: list  # after each step
    aux: list
    state: TrainState


GRADIENT = jax.value_and_grad(elbo, has_aux=True)


@jax.jit
def autoencoder_step(state, x, key):
    (loss, aux), grads = GRADIENT(state.params, x, key)
    state = state.apply_gradients(grads=grads, grad_fn=lambda p: GRADIENT(p, x, key)[1])
    return state, loss, aux


@jax.jit
def point_step(state, x, key):
    """With one gradient, and no grad_fn for a second one."""
    (loss, aux), grads = GRADIENT(state.gradient_point(), x, key)
    return state.apply_gradients(grads=grads), loss, aux


def first_params():
    return Autoencoder().init(jax.random.key(0), jnp.ones((1, 20)), jax.random.key(1))["params"]


def autoencoder_loop(link, step, steps):
    tx = optax.chain(link, optax.adam(0.01))
    state = TrainState.create(apply_fn=Autoencoder().apply, params=first_params(), tx=tx)
    key, losses, params, auxes = jax.random.key(9), [], [], []
    for t in range(steps):
        key, own = jax.random.split(key)
        state, loss, aux = step(state, codes(t), own)
        losses.append(float(loss))
        params.append(state.params)
        auxes.append(aux)
    return Loop(losses, params, auxes, state)


def autoencoder_by_hand(point, steps):
    """Params and aux of each step; point gives where the loss is reported, and where d is."""
    tx, params, memory = optax.adam(0.01), first_params(), {}
    opt_state, key = tx.init(params), jax.random.key(9)
    gradient = jax.jit(jax.value_and_grad(elbo, has_aux=True))
    update = jax.jit(tx.update)
    for t in range(steps):
        key, own = jax.random.split(key)
        first, last = point(params, memory, lambda p, t=t, own=own: gradient(p, codes(t), own)[1])
        (_, aux), _ = gradient(first, codes(t), own)
        direction = gradient(last, codes(t), own)[1]
        memory["last"] = direction
        updates, opt_state = update(direction, opt_state, params)
        params = optax.apply_updates(params, updates)
        yield params, aux


def shifted(params, direction, rho):
    norm = np.linalg.norm(ravel(direction))
    return jax.tree.map(lambda w, v: w + rho * v / norm, params, direction)


def sam_point(params, memory, gradient):
    del memory
    return params, shifted(params, gradient(params), RHO)


def msam_point(params, memory, gradient):
    """Against the sum of past gradients, from the second step on; one gradient for both."""
    del gradient
    if "last" not in memory:
        return params, params
    old = memory.get("velocity", jax.tree.map(jnp.zeros_like, params))
    memory["velocity"] = jax.tree.map(lambda v, g: 0.9 * v + g, old, memory["last"])
    point = shifted(params, memory["velocity"], -0.2)
    return point, point


AUTOENCODER = {
    "sam": (lambda: sam_optax.sam(RHO), autoencoder_step, sam_point),
    "msam": (
        lambda: sam_optax.msam(0.2, decay=0.9, updates_at="gradient_point"),
        point_step,
        msam_point,
    ),
}


@pytest.mark.parametrize("name", AUTOENCODER)
def test_a_variational_autoencoder_trains(name):
    make, step, _ = AUTOENCODER[name]
    loop = autoencoder_loop(make(), step, 80)
    assert np.mean(loop.losses[-10:]) < 0.75 * np.mean(loop.losses[:5])
    assert int(loop.state.step) == 80


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", AUTOENCODER)
def test_steps_of_a_variational_autoencoder_are_those_by_hand(name):
    """With the noise of a step the same in both passes, and the loss that of the first."""
    make, step, point = AUTOENCODER[name]
    loop = autoencoder_loop(make(), step, 6)
    for t, (params, aux) in enumerate(autoencoder_by_hand(point, 6)):
        np.testing.assert_allclose(ravel(loop.params[t]), ravel(params), **CLOSE)
        np.testing.assert_allclose(ravel(loop.aux[t]), ravel(aux), **CLOSE)


@pytest.mark.usefixtures("x64")
def test_msam_of_a_variational_autoencoder_takes_the_same_steps_with_two_gradients():
    """With the first at the parameters, of whose loss the loop tells."""
    make, step, _ = AUTOENCODER["msam"]
    one = autoencoder_loop(make(), step, 4)
    two = autoencoder_loop(sam_optax.msam(0.2, decay=0.9), autoencoder_step, 4)
    np.testing.assert_allclose(ravel(one.params[-1]), ravel(two.params[-1]), **CLOSE)
    assert_moved(one.aux[-1], two.aux[-1])
