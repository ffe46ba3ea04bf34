"""GLMC: its mixtures, weights, loss and gradient against NumPy, its network, and a run of it."""

import functools
import itertools
import json
import sys

from flax import linen as nn
from inprocess import assert_same_end, command, interrupt_at, read, undrawn
import jax
import jax.numpy as jnp
import made
import numpy as np
import pytest

from experiments import analyze, models, robustness, train
from experiments.analysis.trained import Trained
from experiments.data import reading, streams
from experiments.data.feeds import arrays
from experiments.data.sets import Data
from experiments.models import PyramidNet, ResNet, WideResNet
from experiments.recipes import Recipe
from experiments.system.mesh import Layout, place
from experiments.training import glmc, objectives
from experiments.training.glmc import Glmc, GlmcNetwork, Mixtures, Outputs
from experiments.training.trainer import Trainer

CLASSES, SIDE = 4, 6
SIZES = (24, 12, 6, 3)  # of the classes
RECIPE = Recipe(
    dataset="made", model="resnet32", width=1, epochs=4, batch_size=8, learning_rate=0.1,
    objective="glmc",
)  # fmt: skip
# One block: what compiles in a second.
TINY = functools.partial(ResNet, blocks=(1,), width=2, stem_stride=2)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", TINY)
    return "tiny"


def loaded(images, labels):
    """A set as it is loaded, its pixels left as they are by its mean and deviation."""
    split = reading.Split(np.asarray(images, np.uint8), np.asarray(labels, np.int32))
    return Data(
        train=split, test=split, validation=None, classes=CLASSES, flipped=0.0,
        mean=np.zeros(3, np.float32), std=np.ones(3, np.float32),
    )  # fmt: skip


def numbered(sizes=SIZES):
    """A set whose images have their own number in each pixel."""
    labels = np.repeat(np.arange(CLASSES), sizes)
    pixels = np.ones((1, SIDE, SIDE, 3), np.uint8)
    return loaded(np.arange(len(labels))[:, None, None, None] * pixels, labels)


def batches(made_set, count, indices, progress=0.0, **changes):
    """So many batches of the same examples, on a leading axis."""
    objective = Glmc(RECIPE if not changes else Recipe(**{**vars(RECIPE), **changes}), CLASSES)
    on_device = arrays(made_set)
    draw = jax.vmap(lambda key: objective.batch(key, progress, on_device, jnp.asarray(indices)))
    return jax.tree.map(np.asarray, jax.jit(draw)(jax.random.split(jax.random.key(3), count)))


# Weights and probabilities


class_weights = jax.jit(glmc.class_weights, static_argnums=1)
probabilities = jax.jit(glmc.probabilities, static_argnums=1)


@pytest.mark.parametrize("power", [0.0, 0.2, 1.0, 1.3])
@pytest.mark.usefixtures("x64")
def test_class_weights_and_probabilities_are_those_of_numpy(power):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), SIZES))
    raw = np.array([1.0 / n**power for n in SIZES])
    weights = class_weights(labels, CLASSES, power)
    np.testing.assert_allclose(weights, raw / raw.sum() * CLASSES, rtol=1e-12)
    each = np.array([1.0 / SIZES[label] ** power for label in labels])
    p = probabilities(labels, CLASSES, power)
    np.testing.assert_allclose(p, each / each.sum(), rtol=1e-12)


def test_a_class_without_examples_weighs_nothing_and_changes_no_other():
    labels = np.array([0, 0, 2])
    np.testing.assert_allclose(class_weights(labels, 4, 1.0), [2 / 3, 0, 4 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(probabilities(labels, 4, 1.0), [0.25, 0.25, 0.5], rtol=1e-6)


# Mixtures


@pytest.mark.usefixtures("x64")
def test_the_box_is_that_of_numpy():
    height, width = 7, 10
    box = jax.jit(glmc.box, static_argnums=2)
    for weight in (0.0, 0.01, 0.3, 0.75, 0.99, 1.0):
        rows, columns = (int(np.ceil(side * np.sqrt(1 - weight))) // 2 for side in (height, width))
        for row, column in itertools.product((0, 3, 6), (0, 4, 9)):
            expected = np.zeros((height, width), bool)
            top, left = max(row - rows, 0), max(column - columns, 0)
            expected[top : row + rows, left : column + columns] = True
            found = box(weight, jnp.array([row, column]), (height, width))
            np.testing.assert_array_equal(found, expected)


def test_a_batch_is_the_two_mixtures_with_what_was_drawn():
    """Examples, partners, λ and box are read off the pixels, and the rest follows by NumPy."""
    made_set, indices = numbered(), np.array([0, 30, 37, 43, 44, 2, 11, 25])
    labels, one_hot = made_set.train.labels, np.eye(CLASSES)
    w = np.array([1 / n for n in SIZES])
    w *= CLASSES / w.sum()
    centres = np.array(list(itertools.product(range(SIDE), repeat=2)))
    boxes_of = jax.jit(
        lambda weight: jax.vmap(lambda c: glmc.box(weight, c, (SIDE, SIDE)))(centres)
    )
    partial = repeated = 0
    found = batches(made_set, 40, indices, progress=0.5)
    for i in range(40):
        global_, local, p, q, share = (leaf[i].astype(float) for leaf in found)
        first = one_hot[labels[indices]]
        weight = p[first == 1].min()  # where the partner is of another class
        drawn = ((global_[:, 0, 0, 0] - weight * indices) / (1 - weight)).round().astype(int)
        second = one_hot[labels[drawn]]
        np.testing.assert_allclose(p, weight * first + (1 - weight) * second, atol=1e-6)
        np.testing.assert_allclose(
            q, weight * first * w + (1 - weight) * second * w, atol=1e-6 * w.max()
        )
        mixed = (weight * indices + (1 - weight) * drawn)[:, None, None, None]
        np.testing.assert_allclose(global_, np.broadcast_to(mixed, global_.shape), atol=1e-4)
        inside = (local != indices[:, None, None, None])[indices != drawn][0, :, :, 0]
        assert (inside == boxes_of(weight)).all((1, 2)).any()
        chosen = np.where(
            inside[..., None], drawn[:, None, None, None], indices[:, None, None, None]
        )
        np.testing.assert_array_equal(local, np.broadcast_to(chosen, local.shape))
        np.testing.assert_allclose(share, 1 - 0.5**2)
        repeated += len(set(drawn)) < len(drawn)
        partial += 0 < inside.sum() < SIDE**2
    assert repeated > 5  # drawn with replacement
    assert partial > 20


def test_partners_follow_their_probabilities_and_weights_are_uniform():
    """Of 4000 batches, within four standard deviations."""
    made_set = numbered()
    found = batches(made_set, 4000, [0, 1])
    first = found.labels[:, :, 0]  # λ, or more where the partner is of class 0 too
    of_class = np.where(
        first > 1 - 1e-6, 0, found.labels[:, :, 1:].argmax(-1) + 1
    )  # both examples are of class 0
    n = np.array(SIZES)
    expected = n**0.8 / (n**0.8).sum()
    shares = np.bincount(of_class.ravel(), minlength=CLASSES) / of_class.size
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / of_class.size))
    weights = first[:, 0][of_class[:, 0] > 0]
    np.testing.assert_allclose(weights.mean(), 0.5, atol=4 * np.sqrt(1 / 12 / len(weights)))
    np.testing.assert_allclose(weights.var(), 1 / 12, atol=4 * np.sqrt(1 / 180 / len(weights)))


def test_each_view_is_an_augmentation_of_its_own(monkeypatch):
    """On images all alike, flips of x_1, x'_1, x_2 and x'_2 come in all sixteen combinations."""
    upper = jnp.broadcast_to(jnp.arange(SIDE)[:, None] < SIDE // 2, (SIDE, SIDE))
    monkeypatch.setattr(glmc, "box", lambda weight, centre, shape: upper)
    image = np.zeros((SIDE, SIDE, 3))
    image[:, : SIDE // 2] = 1
    labels = np.repeat(np.arange(CLASSES), SIZES)
    images = np.broadcast_to(image, (len(labels), SIDE, SIDE, 3))
    found = batches(loaded(images, labels), 40, [0, 1, 24, 25], augmentation=("flip",))
    combinations = set()
    for global_, local, p in zip(found.global_, found.local, found.labels, strict=True):
        weight = p[np.arange(4), [0, 0, 1, 1]].min()
        # What the left of the global mixture is where each of its two is flipped or not.
        pairs = list(itertools.product((False, True), repeat=2))
        left = [weight * (not one) + (1 - weight) * (not other) for one, other in pairs]
        for mixed, cut in zip(global_[:, 0, 0, 0], local[:, :, 0, 0], strict=True):
            pair = pairs[int(np.abs(left - mixed).argmin())]
            combinations.add((*pair, cut[-1] == 0, cut[0] == 0))
    assert len(combinations) == 16


# The loss


def outputs(rng, count=5, width=3):
    """Random outputs of the heads in float64, as NumPy arrays."""
    widths = (CLASSES, CLASSES, width, width)
    return Outputs(*(rng.normal(size=(count, w)) for w in widths))


def mixtures(rng, count=5, shape=(SIDE, SIDE, 3)):
    """A random batch in float64."""
    images = rng.normal(size=(2, count, *shape))
    labels = rng.dirichlet(np.ones(CLASSES), count)
    return Mixtures(*images, labels, labels * rng.uniform(0.1, 3, CLASSES), np.full(count, 0.7))


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def by_hand(one, other, batch, fixed=None, contrast=10.0):
    """The loss of a batch as the paper has it, with the projections to compare with, if fixed."""
    z = (one.projection, other.projection) if fixed is None else fixed
    plain = -(log_softmax(one.plain) * batch.labels).sum(-1).mean()
    plain -= (log_softmax(other.plain) * batch.labels).sum(-1).mean()
    balanced = -(log_softmax(one.balanced) * batch.reweighted).sum(-1).mean()
    balanced -= (log_softmax(other.balanced) * batch.reweighted).sum(-1).mean()
    cosines = (unit(one.prediction) * unit(z[1])).sum(-1).mean()
    cosines += (unit(other.prediction) * unit(z[0])).sum(-1).mean()
    share = batch.plain_share[0]
    return share * plain + (1 - share) * balanced - contrast * cosines


@pytest.mark.usefixtures("x64")
def test_the_loss_and_its_gradient_are_those_of_numpy():
    rng = np.random.default_rng(0)
    one, other, batch = outputs(rng), outputs(rng), mixtures(rng)
    example_losses = jax.jit(glmc.example_losses)
    losses = example_losses(one, other, batch)
    assert losses.shape == (5,)
    np.testing.assert_allclose(losses.mean(), by_hand(one, other, batch), rtol=1e-12)
    half = by_hand(one, other, batch) + by_hand(one, other, batch, contrast=2.0)
    both = losses + example_losses(one, other, batch, contrast=2.0)
    np.testing.assert_allclose(both.mean(), half, rtol=1e-12)

    gradient = jax.grad(lambda *found: example_losses(*found, batch).sum(), argnums=(0, 1))
    for found, its, others in zip(gradient(one, other), (one, other), (other, one), strict=True):
        for name, labels, share in (
            ("plain", batch.labels, 0.7),
            ("balanced", batch.reweighted, 0.3),
        ):
            softmax = np.exp(log_softmax(getattr(its, name)))
            expected = share * (softmax * labels.sum(-1, keepdims=True) - labels)
            np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, atol=1e-12)
        u, z = unit(its.prediction), unit(others.projection)
        expected = -10 * (z - (u * z).sum(-1, keepdims=True) * u)
        expected /= np.linalg.norm(its.prediction, axis=-1, keepdims=True)
        np.testing.assert_allclose(found.prediction, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(found.projection, 0)


def test_zero_vectors_agree_with_nothing_and_have_no_gradient():
    zero, some = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    both = jax.jit(jax.value_and_grad(lambda a, b: glmc.cosine(a, b).sum(), argnums=(0, 1)))
    for pair in ((zero, some), (some, zero), (zero, zero)):
        value, gradients = both(*pair)
        assert value == 0
        np.testing.assert_array_equal(gradients, 0)


# The network


class Encoder(nn.Module):
    """A dense layer behind a batch norm of the pixels."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
        return nn.Dense(5)(x)


@pytest.fixture
def network(x64):
    """The module, its variables in float64, and a batch."""
    del x64
    rng = np.random.default_rng(1)
    module, batch = GlmcNetwork(Encoder(), CLASSES, width=3), mixtures(rng, shape=(2, 2, 1))
    variables = jax.jit(functools.partial(module.init, train=False))(
        jax.random.key(0), batch.global_
    )
    return module, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) ** 2, variables), batch


def heads(params, images):
    """The outputs by NumPy, batch norm in training mode."""
    x = images.reshape(len(images), -1)
    norm = params["encoder"]["BatchNorm_0"]
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * norm["scale"] + norm["bias"]

    def dense(inputs, layer):
        return inputs @ layer["kernel"] + layer["bias"]

    h = dense(x, params["encoder"]["Dense_0"])
    z = dense(h, params["projection"])
    found = (dense(h, params["plain"]), dense(h, params["balanced"]), z)
    return Outputs(*found, dense(z, params["prediction"]))


def test_a_step_of_the_network_is_that_of_numpy(network):
    """Each mixture normalised by itself; the gradient by differences with projections held."""
    module, variables, batch = network
    objective, params = Glmc(RECIPE, CLASSES), variables["params"]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_fn(params):
        losses, hits, state = objective.losses(module, {**variables, "params": params}, batch)
        return losses.mean(), (hits, state)

    (loss, (hits, state)), gradient = loss_fn(params)
    one, other = (heads(params, images) for images in batch[:2])
    np.testing.assert_allclose(loss, by_hand(one, other, batch), rtol=1e-10)
    np.testing.assert_array_equal(hits, one.balanced.argmax(-1) == batch.labels.argmax(-1))

    mean, var = (variables["batch_stats"]["encoder"]["BatchNorm_0"][n] for n in ("mean", "var"))
    for images in batch[:2]:
        x = images.reshape(len(images), -1)
        mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0)
    statistics = state["batch_stats"]["encoder"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-10)
    np.testing.assert_allclose(statistics["var"], var, rtol=1e-10)

    def at(step, direction):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        fixed = one.projection, other.projection
        return by_hand(*(heads(moved, images) for images in batch[:2]), batch, fixed)

    rng = np.random.default_rng(2)
    for _ in range(5):
        direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
        slope = (at(1e-6, direction) - at(-1e-6, direction)) / 2e-6
        along = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        np.testing.assert_allclose(along, slope, rtol=1e-6)


def test_the_balanced_classifier_gives_the_logits_at_evaluation(network):
    module, variables, batch = network

    @jax.jit
    def applied(variables, images):
        encoder = {name: tree["encoder"] for name, tree in variables.items()}
        return (
            module.apply(variables, images, train=False),
            module.apply(variables, images, train=False, method="heads"),
            module.encoder.apply(encoder, images, train=False),
        )

    logits, found, features = applied(variables, batch.global_)
    np.testing.assert_array_equal(logits, found.balanced)
    assert not np.allclose(logits, found.plain)
    layer = variables["params"]["balanced"]
    np.testing.assert_allclose(logits, features @ layer["kernel"] + layer["bias"], rtol=1e-12)


@pytest.mark.parametrize("name", ["resnet32", "imagenet_resnet50", "wrn28_10", "pyramidnet110"])
def test_a_residual_network_is_an_encoder_in_its_width_and_dtype(name):
    encoder = models.encoder(name, dtype=jnp.bfloat16, width=3)
    assert encoder == models.make(name, None, dtype=jnp.bfloat16, width=3)
    assert (encoder.classes, encoder.width) == (None, 3)


@pytest.mark.parametrize(
    "kind",
    [
        TINY,
        functools.partial(WideResNet, depth=10, factor=1, width=2),
        functools.partial(PyramidNet, depth=8, alpha=6, width=2),
    ],
    ids=["ResNet", "WideResNet", "PyramidNet"],
)
def test_features_are_those_in_front_of_the_logits(kind):
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    classifier, encoder = kind(classes=7), kind(classes=None)

    @jax.jit
    def both(key):
        variables = classifier.init(key, images, train=False)
        head = variables["params"]["head"]
        rest = {name: leaf for name, leaf in variables["params"].items() if name != "head"}
        logits = classifier.apply(variables, images, train=False)
        features = encoder.apply({**variables, "params": rest}, images, train=False)
        return logits, features, features @ head["kernel"] + head["bias"]

    logits, features, expected = both(jax.random.key(0))
    assert features.shape[0] == 2
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_heads_start_as_in_the_authors_code():
    images = np.zeros((1, 4, 4, 3), np.float32)
    init = jax.jit(functools.partial(GlmcNetwork(Encoder(), 100).init, train=False))
    params = init(jax.random.key(0), images)["params"]
    for name, inputs in (("plain", 5), ("balanced", 5), ("projection", 5), ("prediction", 128)):
        kernel = params[name]["kernel"]
        assert kernel.shape[0] == inputs
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / inputs), rtol=0.15)
        np.testing.assert_array_equal(params[name]["bias"], 0)
    assert params["projection"]["kernel"].shape == (5, 128)


# In the trainer


def trainer_of(made_set, **arguments):
    recipe = Recipe(**{**vars(RECIPE), "model": "tiny", "width": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", TINY)
        return Trainer(recipe, "sgd", {}, data=made_set, on_host=True, **arguments)


@pytest.fixture(scope="module")
def begun():
    """A trainer, its first state, its set and the order of the first epoch."""
    trainer, train_ = trainer_of(numbered()), arrays(numbered())
    state = trainer.init((SIDE, SIDE, 3), 5)
    return trainer, state, train_, trainer.jit_order(state.seed, 0)


def test_a_batch_follows_from_seed_and_step_and_the_share_from_the_epoch(begun):
    trainer, state, train_, order = begun
    assert trainer.steps_per_epoch == sum(SIZES) // 8 == 5

    def batch(step, seed=5):
        now = state._replace(step=jnp.int32(step), seed=jnp.uint32(seed))
        return trainer.jit_batch(now, train_, order, 1)

    for one, other in zip(batch(7), batch(7), strict=True):
        np.testing.assert_array_equal(one, other)
    for other in (batch(8), batch(7, seed=6)):
        assert (other.global_ != batch(7).global_).any()
        assert (other.labels != batch(7).labels).any()
    shares = [batch(step).plain_share[0] for step in (0, 4, 5, 19)]
    np.testing.assert_allclose(shares, [1, 1, 1 - 1 / 16, 1 - 9 / 16])


def test_seeds_at_once_have_the_batches_and_the_class_counts_of_each(begun):
    trainer, state, train_, order = begun
    sets = [train_, arrays(numbered((3, 6, 12, 24)))]
    states = [state, state._replace(seed=jnp.uint32(2))]
    stacked = [jax.tree.map(lambda *a: jnp.stack(a), *trees) for trees in (states, sets)]
    # The states share all but their seeds: no step is taken here.
    batch = jax.jit(jax.vmap(trainer.step.batch, in_axes=(0, 0, None, None)))
    together = batch(*stacked, order, 2)
    for i in range(2):
        alone = trainer.jit_batch(states[i], sets[i], order, 2)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one[i], other, rtol=1e-6)


def test_what_is_drawn_is_no_decision_that_seeds_at_once_would_pay_for(begun):
    trainer, state, train_, _ = begun
    assert not trainer.skips_gradients([state], train_)


def test_devices_divide_the_batch_that_one_has(begun):
    trainer, state, train_, order = begun
    expected = trainer.jit_batch(state, train_, order, 0)
    layout = Layout({"data": 2, "model": 2})
    divided = trainer_of(numbered(), layout=layout)
    state, order = (place(tree, layout.everywhere(tree)) for tree in (state, order))
    found = divided.jit_batch(state, arrays(numbered(), layout), order, 0)
    for one, other in zip(found, expected, strict=True):
        assert one.sharding.is_equivalent_to(layout.batch, one.ndim)
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_gradient_on_the_examples_kept_is_that_of_their_batch(begun):
    """As ESAM selects them, in all leaves of the batch."""
    trainer, state, train_, order = begun
    batch, kept = trainer.jit_batch(state, train_, order, 0), np.array([6, 1, 3])
    selected = trainer.host_step.second(state.model_state, batch, state.params, kept)
    of_them = Mixtures(*(np.asarray(leaf)[kept] for leaf in batch))
    expected = trainer.host_step.second(state.model_state, of_them, state.params)
    for one, other in zip(*map(jax.tree.leaves, (selected, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# Mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 0.2}, "mixup must be 0 with the objective glmc, .* got 0.2: pass 0"),
        ({"label_smoothing": 0.1}, "label_smoothing must be 0 with the objective glmc"),
        ({"model": "mlp"}, "model must give features, as a ResNet, .* got 'mlp': pass such as"),
        ({"model": "cnn"}, "model must give features"),
        ({"model": "vit_small"}, "model must give features"),
        ({"objective": "focal"}, "objective must be cross_entropy or glmc, got 'focal'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    recipe = Recipe(**{**vars(RECIPE), **changes})
    with pytest.raises(ValueError, match=f"^{message}"):
        objectives.make(recipe, CLASSES).model()
    with pytest.raises(ValueError, match=f"^{message}"):
        Trainer(recipe, "sgd", {}, data=numbered(), on_host=True)


def test_a_streamed_set_is_refused(tmp_path):
    recipe = Recipe(**{**vars(RECIPE), "dataset": "imagenet2012", "image_size": 32})
    with pytest.raises(ValueError, match=r"^objective must be cross_entropy for imagenet2012"):
        streams.load(recipe, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mixup", 0.2), "error: --mixup must be 0 with the objective glmc"),
        (("--model", "mlp"), "error: --model must give features"),
    ],
)
def test_the_command_refuses_it_in_one_line(arguments, message, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, NAME, *arguments, "--out", tmp_path)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


# A run

NAME = "cifar100_resnet32_lt100_le_sam"
SHORT = (NAME, "--model", "tiny", "--width", 2, "--epochs", 2, "--batch-size", 16)
SHORT += ("--warmup-epochs", 0, "--imbalance", 4, "--keep-epochs", 1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A TFDS directory with a set called cifar100, of small images of five classes."""
    path = tmp_path_factory.mktemp("tfds")
    made.cifar100(path, train=100, test=30, classes=5, side=8)
    return path


@pytest.fixture(scope="module")
def folder(sets, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", TINY)
        undrawn(patch)
        command(patch, train, *SHORT, "--name", "whole", "--data-dir", sets, "--out", out)
    return out


def test_a_run_trains_and_tells_its_figures(folder):
    summary, config = (
        read(folder / "whole" / "summary.json"),
        read(folder / "whole" / "config.json"),
    )
    assert config["objective"] == "glmc"
    assert summary["method"] == "le_sam"
    assert (summary["gradients_per_step"], summary["paper"]) == (2, 58.65)
    assert not summary["papers_protocol"]
    rows = [json.loads(r) for r in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(np.isfinite(row["train_loss"]) and row["rho"] > 0 for row in rows[:1])


@pytest.mark.usefixtures("tiny")
def test_a_terminated_run_is_resumed_bit_for_bit(folder, sets, monkeypatch):
    undrawn(monkeypatch)
    arguments = (*SHORT, "--name", "cut", "--data-dir", sets, "--out", folder)
    with monkeypatch.context() as patch:
        patch.setattr("os._exit", sys.exit)
        interrupt_at(patch, 5)  # of 6
        with pytest.raises(SystemExit):
            command(patch, train, *arguments)
    assert not (folder / "cut" / "summary.json").exists()
    command(monkeypatch, train, *arguments, "--resume")
    assert_same_end(folder / "cut", folder / "whole")


@pytest.mark.usefixtures("tiny")
def test_a_run_is_looked_at_by_the_logits_that_are_evaluated(folder, sets):
    trained = Trained(folder / "whole", sets)
    assert isinstance(trained.model(), GlmcNetwork)
    params, state = trained.weights()
    loss = trained.objective(state, training=False, size=20).loss(params)
    assert loss == pytest.approx(trained.summary["train_loss"], rel=1e-5)


@pytest.mark.usefixtures("tiny")
def test_a_run_is_attacked_by_the_logits_that_are_evaluated(folder, sets, tmp_path, monkeypatch):
    undrawn(monkeypatch)
    shared = (folder / "whole", "--data-dir", sets, "--out", tmp_path)
    command(monkeypatch, robustness, *shared, "--linf", 8, "--l2", "--steps", 2)
    summary = read(folder / "whole" / "summary.json")
    (found,) = read(tmp_path / "robustness" / "robustness.json")["runs"]
    assert found["clean"]["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    assert found["clean"]["accuracy"] == pytest.approx(summary["test_accuracy"])
    assert found["attacked"]["linf"][0]["loss"] > found["clean"]["loss"]


@pytest.mark.slow  # every part compiles gradients of its own
@pytest.mark.usefixtures("tiny")
def test_a_run_is_analyzed_in_all_parts(folder, sets, tmp_path, monkeypatch):
    little = ("--grid", 3, "--steps", 5, "--probes", 1, "--samples", 2, "--ascent-steps", 2)
    little += ("--draws", 1, "--k", 2, "--radii", 0.1, "--m", 20, "--batch-size", 20)
    shared = (folder / "whole", "--data-dir", sets, "--out", tmp_path)
    command(monkeypatch, analyze, *shared, *little)
    (found,) = read(tmp_path / "analysis" / "analysis.json")["runs"]
    assert found["parts"].keys() == {"hessian", "sharpness", "gradients", "landscape", "steps"}
    (epoch,) = found["parts"]["steps"]["epochs"]
    rows = [json.loads(r) for r in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    replayed = np.mean([row["loss"] for row in epoch["rows"]])
    assert replayed == pytest.approx(rows[1]["train_loss"], rel=1e-5)
