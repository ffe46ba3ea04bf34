"""The command that evaluates runs on other test sets: what counts, and what it keeps and tells."""

import dataclasses
import functools
import io
import math
import re
import sys
from types import SimpleNamespace

from inprocess import command, read, undrawn
import jax
import made
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from experiments import evaluate, models, recipes, train
from experiments.analysis.calibration import binned, expected_calibration_error, judged
from experiments.analysis.evaluated import Model, Reading, right_classes
from experiments.analysis.trained import Trained
from experiments.data import othersets
from experiments.data.othersets import CORRUPTIONS, OtherSet, benchmark, expanded
from experiments.data.pipeline import transforms
from experiments.data.sets import load
from experiments.evaluate import grouped
from experiments.recipes import RECIPES, Recipe, r_sam
from experiments.results import plots
import sam_optax

SIZE = 16
NAMES = ("n1", "n2", "n3", "n4", "n5", "n6")
# No class has the number that it has in training.
TURNED = ("n4", "n5", "n6", "n1", "n2", "n3")

REAL, V2, R = "imagenet2012_real", "imagenet_v2/matched-frequency", "imagenet_r"
FEWER, OTHERS = "imagenet_v2/topimages", "imagenet_v2/threshold-0.7"
NOISE, FOG = "imagenet2012_corrupted/gaussian_noise_1", "imagenet2012_corrupted/fog_3"

SMALL = Recipe(
    dataset="imagenet2012",
    model="mlp",
    width=16,
    epochs=3,
    batch_size=8,
    learning_rate=0.1,
    method="sgd",
    image_size=SIZE,
    normalization="imagenet",
)


def decoded(images, fraction=0.875):
    """JPEGs as the model is to see them, uint8 [N, SIZE, SIZE, 3]."""
    opened = (Image.open(io.BytesIO(image)) for image in images)
    return np.stack([np.asarray(transforms.centre_crop(i, SIZE, fraction)) for i in opened])


def logits_of(path, sets, images):
    """The logits of uint8 images, without the command's own code."""
    trained = Trained(path, sets)
    params, state = trained.weights()
    recipe, found = trained.recipe, trained.data
    model = models.make(recipe.model, found.classes, width=recipe.width)
    seen = (images.astype(np.float32) - found.mean) / found.std
    apply = jax.jit(functools.partial(model.apply, train=False))
    return np.asarray(apply({"params": params, **state}, seen))


def likely(logits, names, among=NAMES):
    """The name of the most likely class of each image, among some."""
    chosen = np.where(np.isin(names, among), logits, -np.inf)
    return np.array(names)[chosen.argmax(1)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three trained runs and the sets to evaluate them on, and what is in these.

    The labels are made from what the first run says, so that it is right on so many images.
    """
    sets, out = tmp_path_factory.mktemp("sets"), tmp_path_factory.mktemp("runs")
    made.imagenet(sets, train=16, validation=5, classes=NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, "made", SMALL)
        undrawn(patch)
        more = ("--data-dir", sets, "--out", out, "--workers", 0)
        command(patch, train, "made", "--seeds", 0, 1, "--name", "sgd", *more)
        command(patch, train, "made", "--method", "sam", "--epochs", 1, "--name", "sam", *more)
    images = [made.jpeg(i) for i in range(12)]
    logits = logits_of(out / "sgd-0", sets, decoded(images))
    said = likely(logits, NAMES)
    wrong = np.array([NAMES[(NAMES.index(name) + 2) % 6] for name in said])
    held = {}

    def numbers(names, classes):
        return [classes.index(name) for name in names]

    # 8 of 12 right, each under another number than in training.
    names = np.where(np.arange(12) < 8, said, wrong)
    made.imagenet_v2(sets, test=images, labels=numbers(names, TURNED), classes=TURNED)
    held[V2] = decoded(images), [{name} for name in names]

    # Of the 12 images 8 have a class, of which 6 the one that was said, alone or beside another.
    several = [(), (0,), (1, 0), (1,), (0, 1), ()] * 2
    several = [tuple((said[i], wrong[i])[j] for j in which) for i, which in enumerate(several)]
    right = [numbers(names, TURNED) for names in several]
    made.imagenet_real(sets, validation=images, right=right, classes=TURNED)
    held[REAL] = decoded(images), [set(names) for names in several]

    # All names, and images of three classes, without what is said most often.
    often = max(NAMES, key=list(said).count)
    three = [name for name in NAMES if name != often][:3]
    best = likely(logits, NAMES, three)
    names = [best[i] if i < 9 else three[i % 3] for i in range(12)]
    made.imagenet_r(sets, test=images, labels=numbers(names, TURNED), classes=TURNED)
    held[R] = decoded(images), [{name} for name in names]

    # The names of these three alone, from the last to the first.
    fewer = three[::-1]
    names = [best[i] if i < 7 else three[i % 3] for i in range(12)]
    more = {"test": images, "labels": numbers(names, fewer), "classes": fewer}
    made.imagenet_v2(sets, config="topimages", **more)
    held[FEWER] = decoded(images), [{name} for name in names]

    made.imagenet_v2(sets, config="threshold-0.7", test=2, classes=("n1", "x", "y"))

    squares = [made.jpeg(100 + i, (224, 224)) for i in range(4)]
    said = likely(logits_of(out / "sgd-0", sets, decoded(squares, 1.0)), NAMES)
    for config, count in (("gaussian_noise_1", 3), ("fog_3", 1)):
        names = [
            name if i < count else "n1" if name != "n1" else "n2" for i, name in enumerate(said)
        ]
        numbered = numbers(names, TURNED)
        made.imagenet_corrupted(sets, config, validation=squares, labels=numbered, classes=TURNED)
        held[f"imagenet2012_corrupted/{config}"] = (
            decoded(squares, 1.0),
            [{name} for name in names],
        )
    return sets, out, held


@pytest.fixture
def run(world, monkeypatch, tmp_path):
    """Runs the command on runs by name, and gives its folder."""
    sets, out, _ = world

    def run(names, *arguments):
        paths = [out / name for name in names]
        more = ("--data-dir", sets, "--out", tmp_path, "--workers", 0)
        command(monkeypatch, evaluate, *paths, *more, *arguments)
        return tmp_path / "evaluation"

    return run


def probabilities(logits, names, among):
    """Of the classes, in float64, among some."""
    shown = np.where(np.isin(names, among), logits.astype(float), -np.inf)
    powers = np.exp(shown - shown.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def calibrated(p, right):
    """NLL and ECE of probabilities [N, classes] with the right classes, bool, image by image."""
    nll = -np.mean([math.log(row[good].sum()) for row, good in zip(p, right, strict=True)])
    ece = 0.0
    for i in range(15):
        inside = [(good[row.argmax()], row.max()) for row, good in zip(p, right, strict=True)]
        inside = [pair for pair in inside if i / 15 < pair[1] <= (i + 1) / 15]
        if inside:
            hits, confidences = np.transpose(inside)
            ece += len(inside) / len(p) * abs(hits.mean() - confidences.mean())
    return nll, ece


def by_hand(world, name, one, *, restricted=True):
    """Which images of a set a run is right on, of those with a right class, in plain NumPy."""
    sets, out, held = world
    images, right = held[one]
    among = [*set.union(*right)] if restricted and one in (R, FEWER) else NAMES
    said = likely(logits_of(out / name, sets, images), NAMES, among)
    return [name in names for name, names in zip(said, right, strict=True) if names]


def figures_of(path, name):
    (found,) = (r for r in read(path / "evaluation.json")["runs"] if r["name"] == name)
    return found["evaluated"]


# What counts


def test_the_made_labels_tell_right_from_wrong(world):
    """On them the first run is right as often as they were made for, and not by chance."""
    for one, expected in ((V2, 8 / 12), (REAL, 6 / 8), (NOISE, 3 / 4), (FOG, 1 / 4)):
        assert np.mean(by_hand(world, "sgd-0", one)) == expected
    for one in (R, FEWER):
        without = by_hand(world, "sgd-0", one, restricted=False)
        assert np.mean(by_hand(world, "sgd-0", one)) > np.mean(without)


def test_every_run_has_its_accuracy_on_every_set(world, run):
    asked = (V2, REAL, R, FEWER, NOISE, FOG)
    path = run(("sgd-0", "sgd-1", "sam"), "--on", *asked, "--batch-size", 5)
    for name in ("sgd-0", "sgd-1", "sam"):
        figures = figures_of(path, name)
        assert list(figures) == list(asked)
        for one, measured in figures.items():
            hits = by_hand(world, name, one)
            assert measured["accuracy"] == pytest.approx(np.mean(hits), abs=1e-12), (name, one)
            assert measured["examples"] == len(hits)
            assert measured["left_out"] == (4 if one == REAL else 0)
            assert measured["among"] == (3 if one in (R, FEWER) else 6)
            assert measured["corrupt"] == []


def test_the_own_test_set_is_a_set_too(run, world):
    path = run(("sgd-1",), "--on", "imagenet2012")
    summary = read(world[1] / "sgd-1" / "summary.json")
    assert figures_of(path, "sgd-1")["imagenet2012"]["accuracy"] == summary["test_accuracy"]


def test_a_set_by_its_folder_is_the_same_set(world):
    sets = world[0]
    assert expanded((R, R + "/", V2 + "/"), sets) == [R, V2]
    assert len(expanded(("imagenet2012_corrupted/",), sets)) == 2
    for name in (R, R + "/", str(sets / R)):
        assert len(OtherSet(name, sets).among) == 3


def test_the_first_examples_alone(world, run):
    path = run(("sgd-0",), "--on", V2, REAL, R, "--examples", 7)
    figures = figures_of(path, "sgd-0")
    assert figures[V2]["accuracy"] == pytest.approx(np.mean(by_hand(world, "sgd-0", V2)[:7]))
    assert figures[R]["among"] == 3  # those of the whole set
    # Of the first seven images the first, the sixth and the seventh have no class.
    assert (figures[REAL]["examples"], figures[REAL]["left_out"]) == (4, 3)
    assert figures[REAL]["accuracy"] == pytest.approx(np.mean(by_hand(world, "sgd-0", REAL)[:4]))
    assert "on the first 7 images of each set" in (path / "evaluation.md").read_text()


def test_right_classes_are_by_place_and_may_be_several():
    places = np.array([4, 0, 2])
    np.testing.assert_array_equal(
        right_classes(np.array([0, 2, 1]), places, 5).nonzero(), [[0, 1, 2], [4, 2, 0]]
    )
    several = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], np.uint8)
    np.testing.assert_array_equal(
        right_classes(several, places, 5).nonzero(), [[0, 0, 2], [0, 4, 2]]
    )


def test_images_of_one_square_size_are_seen_whole(world):
    sets = world[0]
    for size in (224, SIZE):
        stream = OtherSet(NOISE, sets).stream(size, 2, workers=0, skip_corrupt=False)
        (batch,) = stream.once(batch_size=2)
        for i, image in enumerate(batch.images):
            opened = Image.open(io.BytesIO(made.jpeg(100 + i, (224, 224))))
            resized = opened.resize((size, size), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(image, resized)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_computes_in_the_dtype_of_the_run(dtype, world, monkeypatch):
    trained, made_with = Trained(world[1] / "sgd-0", world[0]), []
    trained.recipe = dataclasses.replace(trained.recipe, dtype=dtype)
    make = models.make
    monkeypatch.setattr(
        models, "make", lambda *a, **kw: made_with.append(kw["dtype"]) or make(*a, **kw)
    )
    Model(trained, Reading(), None)
    assert made_with[-1] == dtype


def test_a_test_split_without_labels_is_passed_over(tmp_path):
    """The catalogue's builder of the corrupted images writes one where the images are at hand."""
    splits = {"test": made.examples([made.jpeg(0)] * 3, 6, [-1] * 3)}
    splits["validation"] = made.examples([made.jpeg(0)] * 2, 6)
    for name in ("imagenet2012_corrupted", "imagenet2012", "imagenet_r"):
        made.set_of_tfds(tmp_path, name, splits, made.features(6))
        assert len(OtherSet(name, tmp_path).records) == (3 if name == "imagenet_r" else 2)
    made.set_of_tfds(tmp_path, "imagenet_a", {"train": splits["test"]}, made.features(6))
    with pytest.raises(ValueError, match="no test or validation split, but train"):
        OtherSet("imagenet_a", tmp_path)


# How good the probabilities are


def test_likelihood_and_calibration_are_those_of_the_probabilities(world, run):
    """Of several right classes the probabilities add up; classes that are no answer have none."""
    sets, out, held = world
    path = run(("sgd-0",), "--on", V2, REAL, R, "--batch-size", 5)
    for one, measured in figures_of(path, "sgd-0").items():
        images, right = held[one]
        among = [*set.union(*right)] if one == R else NAMES
        p = probabilities(logits_of(out / "sgd-0", sets, images), NAMES, among)
        good = np.array([[name in names for name in NAMES] for names in right])
        counted = good.any(1)
        nll, ece = calibrated(p[counted], good[counted])
        assert measured["nll"] == pytest.approx(nll, rel=1e-5)
        assert measured["ece"] == pytest.approx(ece, rel=1e-5)
        assert measured["samples"] == 0


def test_calibration_by_bins():
    """A confidence on an edge is of the bin below; two that err to two sides may cancel in one."""
    hit = np.array([True, False, True, True])
    confidence = np.array([0.5, 0.52, 1 / 15, 1.0])
    # In the eighth bin, (7/15, 8/15], one hit of two and confidences .5 and .52.
    expected = 2 / 4 * (0.51 - 0.5) + 1 / 4 * (1 - 1 / 15) + 0
    bins = binned(hit, confidence)
    assert expected_calibration_error(bins) == pytest.approx(expected)
    np.testing.assert_allclose(bins[[0, 7, 14]], [[1, 1, 1 / 15], [2, 1, 1.02], [1, 1, 1]])
    assert bins.sum(axis=0) == pytest.approx([4, 3, confidence.sum()])
    assert expected_calibration_error(binned(hit[:1], np.array([1.0]))) == 0
    edge = np.array([1 / 15, 1.5 / 15])
    apart = (abs(1 - edge[0]) + abs(0 - edge[1])) / 2
    assert expected_calibration_error(binned(np.array([True, False]), edge)) == pytest.approx(apart)


def test_the_picture_shows_the_images_of_all_seeds(world, run, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "reliability", lambda path, panels: drawn.update(panels))
    path = run(("sgd-0", "sgd-1", "sam"), "--on", V2, NOISE, FOG)
    assert list(drawn) == [V2, "imagenet2012_corrupted, 2 of 75"]
    for lines in drawn.values():
        assert list(lines) == ["sgd", "sam"]
    bins = [figures_of(path, f"sgd-{seed}")[one]["bins"] for seed in (0, 1) for one in (NOISE, FOG)]
    np.testing.assert_allclose(drawn["imagenet2012_corrupted, 2 of 75"]["sgd"], np.sum(bins, 0))
    assert np.sum(drawn[V2]["sam"], 0)[0] == 12


def test_a_picture_of_reliability_is_drawn(tmp_path):
    bins = binned(np.array([True, False]), np.array([0.5, 0.9]))
    plots.reliability(tmp_path / "a.png", {f"set {i}": {"sgd": bins} for i in range(4)})
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_probability_of_what_is_right_does_not_underflow():
    logits = np.array([[0.0, -200.0, -300.0]], np.float32)
    said = judged(jax.nn.log_softmax(logits), np.array([[False, True, False]]))
    assert not said.hit[0]
    assert said.right[0] == -200


@pytest.fixture(scope="module")
def posteriors(world):
    """Runs of methods that learn a posterior."""
    sets, out, _ = world
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, "made", SMALL)
        undrawn(patch)
        more = ("--data-dir", sets, "--out", out, "--workers", 0, "--learning-rate", 0.01)
        # So few examples that the posterior is wide.
        for name in ("bsam", "ivon"):
            given = ("--method", name, "--set", "ess=5")
            command(patch, train, "made", *given, "--name", name, *more)


@pytest.mark.parametrize("name", ["bsam", "ivon"])
def test_probabilities_are_averaged_over_samples_of_the_posterior(name, posteriors, world, run):
    sets, out, held = world
    path = run((name, "sam"), "--on", V2, "--posterior-samples", 3, "--batch-size", 5)
    trained = Trained(out / name, sets)
    params, state = trained.weights()
    learned, model = trained.posterior(params), trained.model()
    images, right = held[V2]
    seen = (images.astype(np.float32) - trained.data.mean) / trained.data.std
    p = 0
    for i in range(3):
        key = jax.random.fold_in(jax.random.key(0), i)
        drawn = sam_optax.posterior_sample(key, learned, params)
        logits = model.apply({"params": drawn, **state}, seen, train=False)
        p = p + probabilities(np.asarray(logits), NAMES, NAMES) / 3
    good = np.array([[name in names for name in NAMES] for names in right])
    nll, ece = calibrated(p, good)
    measured = figures_of(path, name)[V2]
    assert measured["samples"] == 3
    assert measured["nll"] == pytest.approx(nll, rel=1e-4)
    assert measured["ece"] == pytest.approx(ece, rel=1e-4)
    at_mean = probabilities(logits_of(out / name, sets, images), NAMES, NAMES)
    assert calibrated(at_mean, good)[0] != pytest.approx(nll, rel=1e-2)
    without = figures_of(path, "sam")[V2]
    at_weights = probabilities(logits_of(out / "sam", sets, images), NAMES, NAMES)
    assert without["samples"] == 0
    assert without["nll"] == pytest.approx(calibrated(at_weights, good)[0], rel=1e-5)
    label = trained.label
    said = (path / "evaluation.md").read_text()
    label = label.replace("_", "\\_")
    assert f"Of {label} all figures but those of the own test set" in said


def test_samples_without_a_posterior_are_told(world, run):
    said = (run(("sam",), "--on", V2, "--posterior-samples", 2) / "evaluation.md").read_text()
    assert "No method here has learned a posterior" in said


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_posteriors_of_each_device_are_refused(world, run, refused, monkeypatch):
    sets, out, _ = world
    monkeypatch.setitem(recipes.RECIPES, "made", SMALL)
    undrawn(monkeypatch)
    given = ("made", "--method", "bsam", "--mesh", "data=2", "--perturbation", "device")
    more = ("--data-dir", sets, "--out", out, "--workers", 0, "--name", "apart")
    command(monkeypatch, train, *given, *more)
    given = (("apart",), "--on", V2)
    told = refused(*given, "--posterior-samples", 2)
    assert "a posterior of its own: evaluate it without" in told
    assert figures_of(run(*given, "--overwrite"), "apart")[V2]["samples"] == 0


# Classes by name


def test_classes_are_found_by_name_or_else_by_number(world, tmp_path):
    sets = world[0]
    np.testing.assert_array_equal(OtherSet(V2, sets).places(NAMES), [3, 4, 5, 0, 1, 2])
    fewer = OtherSet(FEWER, sets)
    assert [NAMES[place] for place in fewer.places(NAMES)] == list(fewer.class_names)
    made.imagenet_v2(tmp_path, test=2, classes=6)
    numbered = OtherSet(V2, tmp_path)
    np.testing.assert_array_equal(numbered.places(NAMES), range(6))
    np.testing.assert_array_equal(OtherSet(V2, sets).places(list("012345")), range(6))
    with pytest.raises(ValueError, match="has 6 classes and the model 7, and not all have names"):
        numbered.places([*NAMES, "n7"])
    with pytest.raises(ValueError, match=r"2 of 3 classes that the model was not .* such as x, y:"):
        OtherSet(OTHERS, sets).places(NAMES)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_benchmarks_are_those_of_the_catalogue(name):
    builder = tfds.builder_cls(name)
    module = sys.modules[builder.__module__]
    assert list(CORRUPTIONS[name]) == module.BENCHMARK_CORRUPTIONS
    assert len(benchmark(name)) == 75
    assert set(benchmark(name)) < {f"{name}/{config.name}" for config in builder.BUILDER_CONFIGS}
    assert not benchmark("imagenet_r")


def test_the_sets_of_imagenet_have_its_classes_in_its_order(tmp_path):
    """So that those of R have to be told by its images, and numbers of V2 are its labels."""

    def names(name):
        features = tfds.builder(name, data_dir=tmp_path).info.features
        return (features["real_label"].feature if name == REAL else features["label"]).names

    assert len(names("imagenet2012")) == 1000
    assert names("imagenet2012") == sorted(names("imagenet2012"))
    for name in (REAL, V2, *othersets.OF_SOME_CLASSES, NOISE):
        assert names(name) == names("imagenet2012")


# Sets in memory


def test_a_set_in_memory_is_evaluated_in_memory(data_dir, monkeypatch, tmp_path, capsys):
    sets = tmp_path / "sets"
    (sets / "digits").parent.mkdir()
    (sets / "digits").symlink_to(data_dir / "digits")
    undrawn(monkeypatch)
    more = ("--data-dir", sets, "--out", tmp_path)
    arguments = ("--epochs", 1, "--width", 8, "--batch-size", 256, "--method", "sgd")
    command(monkeypatch, train, "digits", *arguments, "--name", "run", *more)
    digits = load("digits", data_dir=sets).test
    noisy = np.clip(digits.images[:50].astype(int) + 60, 0, 255).astype(np.uint8)
    features = {
        "image": tfds.features.Image(shape=(8, 8, 1)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    examples = [
        {"image": Image.fromarray(image[..., 0]), "label": int(label)}
        for image, label in zip(noisy, digits.labels[:50], strict=True)
    ]
    splits = {"test": examples}
    made.set_of_tfds(sets, "cifar10_corrupted", splits, features, config="fog_2")
    made.imagenet_v2(sets, test=2, classes=10)
    evaluated = ("run", "--on", "digits", "cifar10_corrupted", "--batch-size", 32)
    command(monkeypatch, evaluate, tmp_path / evaluated[0], *evaluated[1:], *more)
    figures = figures_of(tmp_path / "evaluation", "run")
    summary = read(tmp_path / "run" / "summary.json")
    assert figures["digits"]["accuracy"] == summary["test_accuracy"]
    hits = logits_of(tmp_path / "run", sets, noisy).argmax(1) == digits.labels[:50]
    fog = figures["cifar10_corrupted/fog_2"]
    assert fog["accuracy"] == pytest.approx(hits.mean())
    assert fog["accuracy"] != summary["test_accuracy"]
    assert "cifar10_corrupted, 1 of 75 (%)" in (tmp_path / "evaluation/evaluation.md").read_text()
    with pytest.raises(SystemExit):
        command(monkeypatch, evaluate, tmp_path / "run", "--on", V2, *more)
    said = " ".join(capsys.readouterr().err.split())
    assert "images of any x any x 3, and the model was trained on 8 x 8 x 1 (digits)" in said


def test_resized_on_the_device_a_set_may_have_another_size_but_one(world):
    recipe = dataclasses.replace(SMALL, image_size=SIZE)
    OtherSet(NOISE, world[0]).check(recipe, (32, 32, 3))
    with pytest.raises(ValueError, match="images of any x any x 3"):
        OtherSet(V2, world[0]).check(recipe, (32, 32, 3))
    with pytest.raises(ValueError, match=r"images of 224 x 224 x 3, and the model was .* 32 x 32"):
        OtherSet(NOISE, world[0]).check(dataclasses.replace(recipe, image_size=None), (32, 32, 3))


# The table


def test_the_table_has_mean_and_deviation_and_the_papers_figure(world, run, monkeypatch):
    """A benchmark by its name is what of it is prepared; the paper's figure is of its protocol."""
    figures = {REAL: 85.2, "imagenet2012_corrupted": 56.5}
    monkeypatch.setattr(evaluate, "ELSEWHERE", {"made": {"sgd": figures, "sam": figures}})
    path = run(("sgd-0", "sgd-1", "sam"), "--on", REAL, "imagenet2012_corrupted")
    found = read(path / "evaluation.json")
    assert found["sets"] == [REAL, NOISE, FOG]
    assert {"device", "versions", "commit"} <= set(found)
    text = (path / "evaluation.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    heading, _, sgd, sam, *calibration = rows
    corrupted = "imagenet2012_corrupted, 2 of 75 (%)"
    assert heading == [
        *("method", "seeds", "own test set (%)", f"{REAL} (%)", "in the paper", corrupted)
    ]
    assert (sgd[:2], sam[:2]) == (["sgd", "2"], ["sam", "1"])
    assert (sgd[4], sam[4]) == ("85.2", "")  # sam had fewer epochs
    real = [100 * np.mean(by_hand(world, f"sgd-{seed}", REAL)) for seed in (0, 1)]
    assert sgd[3] == f"{np.mean(real):.2f} ± {np.std(real, ddof=1):.2g}"
    means = [
        100 * np.mean([np.mean(by_hand(world, f"sgd-{seed}", one)) for one in (NOISE, FOG)])
        for seed in (0, 1)
    ]
    assert sgd[5] == f"{np.mean(means):.2f} ± {np.std(means, ddof=1):.2g}"
    heading, _, *rows = calibration
    assert heading[2:] == [
        *(
            f"NLL, {REAL}",
            f"ECE (%), {REAL}",
            f"NLL, {corrupted[:-4]}",
            f"ECE (%), {corrupted[:-4]}",
        )
    ]
    assert rows[1][2] == f"{figures_of(path, 'sam')[REAL]['nll']:.4f}"
    eces = [figures_of(path, "sam")[one]["ece"] for one in (NOISE, FOG)]
    assert rows[1][5] == f"{100 * np.mean(eces):.2f}"
    own = read(world[1] / "sam" / "summary.json")["test_accuracy"]
    assert sam[2] == f"{100 * own:.2f}"
    assert f"- {REAL}: 8 images; 4 without a right class left out" in text
    assert "- imagenet2012_corrupted: the mean over 2 of its 75 sets, of 4 images each" in text


def test_the_papers_figures_are_of_finished_runs_of_its_protocol():
    config = {"recipe": "imagenet_vit_s16_r_sam", "then": []}
    run = SimpleNamespace(summary={"papers_protocol": True}, config=config, method="r_sam")
    assert evaluate.paper(run)[R] == 25.1
    for changes in (
        {"summary": {}},
        {"summary": {"papers_protocol": False}},
        {"config": {**config, "then": [[1, "sgd", {}]]}},
        {"config": {**config, "recipe": "imagenet_vit_b16_mixup_r_sam"}},
        {"method": "gsam"},
    ):
        assert evaluate.paper(SimpleNamespace(**{**vars(run), **changes})) == {}


def test_the_papers_figure_of_a_benchmark_is_beside_all_of_it():
    names = benchmark("imagenet2012_corrupted")
    measured = {"examples": 9, "left_out": 0, "corrupt": [], "among": 3, "classes": 6}
    run = {
        "group": "g",
        "label": "sam",
        "figures": {},
        "paper": {"imagenet2012_corrupted": 56.5, R: 26.4},
        "evaluated": {
            name: {**measured, "accuracy": i / 100} for i, name in enumerate([*names, R])
        },
    }
    config = {"examples": None, "posterior_samples": None}
    found = {"config": config, "sets": [*names, R], "runs": [run]}
    whole = evaluate.markdown(found).splitlines()
    assert "| imagenet2012_corrupted, 75 of 75 (%) | in the paper | imagenet_r (%) |" in whole[0]
    assert whole[2] == "| sam | 1 | 37.00 | 56.5 | 75.00 | 26.4 |"
    assert "- imagenet_r: 9 images; predictions among 3 of the 6 classes" in whole
    part = evaluate.markdown({**found, "sets": names[1:]}).splitlines()
    assert part[0] == "| method | seeds | imagenet2012_corrupted, 74 of 75 (%) |"
    assert part[2] == "| sam | 1 | 37.50 |"


def test_extra_corruptions_stand_for_themselves():
    blur = "imagenet2012_corrupted/gaussian_blur_1"
    groups = grouped([FOG, blur, R, NOISE])
    assert [(group.name, group.sets) for group in groups] == [
        ("imagenet2012_corrupted", [FOG, NOISE]),
        (blur, [blur]),
        (R, [R]),
    ]


def test_the_figures_are_those_of_the_papers_table():
    table = {
        "imagenet_vit_b16_r_sam": "sgd 79.8 61.3 20.1 46.6 sam 85.2 67.5 26.4 56.5 "
        "r_sam 86.1 68.6 26.9 56.8",
        "imagenet_vit_s16_r_sam": "sgd 80.4 61.7 20.0 46.5 sam 84.1 65.6 24.7 53.0 "
        "r_sam 84.9 66.7 25.1 53.2",
    }
    assert list(r_sam.ELSEWHERE) == list(table)
    for name, line in table.items():
        assert name in RECIPES
        words = [
            str(word)
            for method, figures in r_sam.ELSEWHERE[name].items()
            for word in (method, *(figures[one] for one in (REAL, V2, R, "imagenet2012_corrupted")))
        ]
        assert words == line.split()


# What is kept, told and refused


def test_a_stopped_command_goes_on(run, refused, monkeypatch):
    asked, measure = [], Model.measure

    def watched(self, one, places):
        asked.append((self._trained.path.name, one.name))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(self, one, places)

    monkeypatch.setattr(Model, "measure", watched)
    monkeypatch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit) as stop:
        run(("sgd-0",), "--on", REAL, V2)
    assert stop.value.code == 130
    path = run(("sgd-0",), "--on", REAL, V2)
    assert asked == [("sgd-0", REAL), ("sgd-0", V2), ("sgd-0", V2)]
    first = figures_of(path, "sgd-0")
    run(("sgd-0", "sam"), "--on", REAL, V2, FOG)
    assert asked[3:] == [("sgd-0", FOG), ("sam", REAL), ("sam", V2), ("sam", FOG)]
    assert figures_of(path, "sgd-0")[V2] == first[V2]
    assert "holds a run with other examples" in refused(("sgd-0",), "--on", V2, "--examples", 3)
    assert len(asked) == 7
    run(("sgd-0",), "--on", V2, "--examples", 3, "--overwrite")
    assert figures_of(path, "sgd-0")[V2]["examples"] == 3


@pytest.mark.parametrize("skip", [False, True])
def test_a_corrupt_image_is_named_or_left_out_and_told(skip, world, tmp_path, monkeypatch, capsys):
    """The other sets are measured either way."""
    sets = tmp_path / "sets"
    made.imagenet(sets, train=1, validation=5, classes=NAMES)
    images = [made.jpeg(0), made.jpeg(1)[:200], made.jpeg(2)]
    made.imagenet_v2(sets, test=images, classes=NAMES)
    arguments = [evaluate, world[1] / "sgd-0", "--on", V2, "imagenet2012"]
    arguments += ["--data-dir", sets, "--out", tmp_path, "--workers", 0]
    if skip:
        command(monkeypatch, *arguments, "--skip-corrupt")
        measured = figures_of(tmp_path / "evaluation", "sgd-0")[V2]
        assert (measured["examples"], measured["left_out"]) == (2, 0)
        (name,) = measured["corrupt"]
        assert "record 1 of imagenet_v2" in name
        text = (tmp_path / "evaluation/evaluation.md").read_text()
        assert "2 images; 1 left out that cannot be decoded" in text
        return
    with pytest.raises(SystemExit):
        command(monkeypatch, *arguments)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"sgd-0, imagenet_v2/\S+: record 1 of imagenet_v2.*--skip-corrupt", said)
    assert list(figures_of(tmp_path / "evaluation", "sgd-0")) == ["imagenet2012"]


def test_a_run_that_has_diverged_is_told_once(run, refused, monkeypatch, tmp_path):
    weights = Trained.weights

    def damaged(self):
        params, state = weights(self)
        factor = np.nan if self.path.name == "sgd-0" else 1
        return {
            name: {k: factor * v for k, v in leaf.items()} for name, leaf in params.items()
        }, state

    monkeypatch.setattr(Trained, "weights", damaged)
    said = refused(("sgd-0", "sam"), "--on", V2, REAL)
    assert said.count("not finite: the run has diverged") == 1
    assert not figures_of(tmp_path / "evaluation", "sgd-0")
    assert len(figures_of(tmp_path / "evaluation", "sam")) == 2


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (("sam",), ("--on",), "--on needs the name of a set"),
        ((), ("--on", V2), "pass the folders of one run or more"),
        (("sam",), ("--on", V2, "imagenet_s"), "unknown data set 'imagenet_s'"),
        (("sam",), ("--on", "imagenet_a"), "tfds build imagenet_a --file_format=array_record"),
        (("sam",), ("--on", "cifar10_corrupted"), "tfds build cifar10_corrupted"),
        (("sam",), ("--on", "imagenet_v2"), "in 3 configurations: pass one of them"),
        (("sam",), ("--on", V2, OTHERS), "2 of 3 classes that the model was not trained on"),
        (("sam",), ("--on", V2, "--examples", 0), "--examples must be at least 1, got 0"),
        (("sam",), ("--on", V2, "--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (
            ("sam",),
            ("--on", V2, "--posterior-samples", 0),
            "--posterior-samples must be at least 1",
        ),
        (("sam",), ("--on", V2, "--workers", -1), "--workers must be at least 0, got -1"),
        (("sam",), ("--on", V2, "--name", "a/b"), "must be a plain name"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_evaluated(
    names, arguments, message, refused, tmp_path
):
    assert message in refused(names, *arguments)
    assert not (tmp_path / "evaluation").exists()
