"""Streamed sets through the command that trains: made sets of the real formats."""

import dataclasses
import io
import json
import os
from pathlib import Path
import re

from inprocess import command, read, undrawn
import jax
import made
import numpy as np
from PIL import Image
import pytest

from experiments import analyze, recipes, robustness, train
from experiments.analysis import trained as analysed
from experiments.analysis.parts import Look
from experiments.analysis.trained import Trained
from experiments.data import loading, normalization, streams
from experiments.data.disk import NotPreparedError
from experiments.data.pipeline import transforms
from experiments.data.pipeline.batches import LostWorkerError
from experiments.data.pipeline.stream import Stream
from experiments.data.sets import divided
from experiments.recipes import Recipe
from experiments.system.errors import UserError
from experiments.training.checkpoints import Checkpoints

# A model and images so small that a step takes milliseconds.
SMALL = ("--model", "mlp", "--width", 8, "--image-size", 16, "--batch-size", 8)
SMALL += ("--normalization", "imagenet", "--epochs", 2, "--workers", 0)
PLAIN = Recipe(dataset="imagenet2012", model="mlp", epochs=1, batch_size=8, learning_rate=0.1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A TFDS directory with sets in the formats of ImageNet and PACS."""
    path = tmp_path_factory.mktemp("streamed")
    made.imagenet(path, train=20, validation=5, classes=4)
    made.folders(path / "pacs", each=3)
    return path


@pytest.fixture
def streamed(monkeypatch):
    """A recipe of each of them."""
    folders = dataclasses.replace(PLAIN, dataset="pacs", domain="photo", validation=0.2)
    for name, recipe in {"made": PLAIN, "made_folders": folders}.items():
        monkeypatch.setitem(recipes.RECIPES, name, recipe)
    return PLAIN


def run(monkeypatch, sets, out, recipe, *arguments):
    undrawn(monkeypatch)
    arguments = (recipe, *SMALL, "--data-dir", sets, "--out", out, "--name", "run", *arguments)
    command(monkeypatch, train, *arguments)
    return out / "run"


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("method", ["le_sam", pytest.param("ae_sam", marks=pytest.mark.slow)])
def test_a_streamed_run_ends_alike_after_an_interruption(method, sets, tmp_path, monkeypatch):
    """Two steps an epoch, stopped within the second epoch."""
    names = ("inception", "flip", "randaugment")
    arguments = ("--method", method, "--mixup", 0.2, "--augmentation", *names)
    arguments += ("--checkpoint-minutes", 0)
    whole = run(monkeypatch, sets, tmp_path / "whole", "made", *arguments)

    class StoppedError(Exception):
        pass

    save = Checkpoints.save

    def save_and_stop(self, step, *rest):
        save(self, step, *rest)
        if step == 3:
            raise StoppedError

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(StoppedError):
        run(monkeypatch, sets, tmp_path / "cut", "made", *arguments)
    monkeypatch.setattr(Checkpoints, "save", save)
    cut = run(monkeypatch, sets, tmp_path / "cut", "made", *arguments, "--resume")
    lines = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (whole, cut)
    ]
    assert lines[0] == lines[1]
    ends = [Trained(path, sets).weights() for path in (whole, cut)]
    for leaf, same in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(leaf, same)
    one, other = read(whole / "summary.json"), read(cut / "summary.json")
    assert (one["steps"], one["test_loss"]) == (4, other["test_loss"])


@pytest.mark.usefixtures("streamed")
def test_the_other_domains_are_the_test_sets(sets, tmp_path, monkeypatch):
    augmentation = ("--augmentation", "inception", "flip", "jitter", "grayscale")
    path = run(monkeypatch, sets, tmp_path, "made_folders", "--method", "sam", *augmentation)
    summary = read(path / "summary.json")
    others = [name for name in made.DOMAINS if name != "photo"]
    for quantity in ("accuracy", "loss"):
        found = [summary[f"test_{name}_{quantity}"] for name in others]
        assert summary[f"test_{quantity}"] == pytest.approx(np.mean(found))
    assert len(set(found)) == 3  # losses, which tell a mean from any of them
    assert "test_photo_accuracy" not in summary
    assert 0 <= summary["validation_accuracy"] <= 1


def test_held_out_images_are_not_trained_on(sets, streamed):
    recipe = dataclasses.replace(
        streamed,
        dataset="pacs",
        domain="photo",
        validation=0.2,
        image_size=8,
        normalization="half",
    )
    loaded = streams.load(recipe, data_dir=sets, workers=0)
    count = len(made.CLASSES) * 3
    assert loaded.validation.examples == round(0.2 * count)
    assert loaded.train.examples + loaded.validation.examples == count
    split = [
        {image.tobytes() for raw in part.once(batch_size=1) for image in raw.images}
        for part in (loaded.train, loaded.validation)
    ]
    assert len(split[0] | split[1]) == count
    assert not split[0] & split[1]


def test_a_normalization_is_for_any_number_of_channels():
    for channels in (1, 3):
        mean, std = normalization.HALF.of(channels)
        np.testing.assert_allclose((np.zeros(channels) - mean) / std, [-1] * channels)
        np.testing.assert_allclose((np.full(channels, 255) - mean) / std, [1] * channels)
    np.testing.assert_allclose(normalization.IMAGENET.of(3)[0], [123.675, 116.28, 103.53])
    np.testing.assert_allclose(normalization.IMAGENET.of(1)[0], [(123.675 + 116.28 + 103.53) / 3])


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("skip", [False, True])
def test_a_corrupt_image_is_named_or_left_out_and_told(skip, tmp_path, monkeypatch, capsys):
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "jpeg")
    images = [made.jpeg(i) for i in range(15)] + [file.getvalue()[:100]]
    made.imagenet(tmp_path, train=images, validation=4, classes=4)
    arguments = (tmp_path, tmp_path / "out", "made", "--method", "sgd")
    if skip:
        summary = read(run(monkeypatch, *arguments, "--skip-corrupt") / "summary.json")
        (name,) = summary["corrupt"]
        assert "record 15 of imagenet2012" in name
        assert re.search(r"cannot be decoded │ +1 │", capsys.readouterr().out)
        return
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *arguments)
    assert error.value.code == 2
    assert re.search(r"error: record 15 of imagenet2012.*--skip-corrupt", capsys.readouterr().err)


@pytest.mark.usefixtures("streamed")
def test_a_corrupt_image_may_have_any_name(tmp_path, monkeypatch):
    root = made.folders(tmp_path / "pacs", each=2)
    bad = os.fsencode(root / "photo" / "dog") + b"/bad\xff\n.jpg"
    Path(os.fsdecode(bad)).write_bytes(made.jpeg(0)[:100])
    arguments = (tmp_path, tmp_path / "out", "made_folders", "--method", "sgd", "--skip-corrupt")
    path = run(monkeypatch, *arguments, "--validation", 0)
    told = f"photo/dog/bad\\udcff\n.jpg in {root}"  # as JSON has no bytes that are no UTF-8
    assert read(path / "summary.json")["corrupt"] == [told]


def test_a_lost_worker_is_one_line(monkeypatch, capsys):
    def lost(options):
        raise LostWorkerError("a process that decodes images has ended: pass fewer --workers.")

    monkeypatch.setattr(train, "_layout", lost)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, "digits")
    assert stop.value.code == 2
    said = "error: a process that decodes images has ended: pass fewer --workers.\n"
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("streamed")
@pytest.mark.slow
def test_a_streamed_run_is_attacked(sets, tmp_path, monkeypatch):
    path = run(monkeypatch, sets, tmp_path, "made", "--method", "sgd")
    more = ("--data-dir", sets, "--out", tmp_path)
    command(monkeypatch, robustness, path, "--l2", "--linf", 1, "--steps", 1, "--workers", 0, *more)
    (found,) = read(tmp_path / "robustness" / "robustness.json")["runs"]
    assert found["clean"]["examples"] == 5
    assert found["clean"]["accuracy"] == read(path / "summary.json")["test_accuracy"]


@pytest.fixture(scope="module")
def looked_at(sets, tmp_path_factory):
    """A run with held-out images and smooth labels, to look at."""
    arguments = ("--validation", 0.2, "--label-smoothing", 0.3, "--seed", 3)
    arguments += ("--augmentation", "inception", "flip", "--method", "sgd", "--keep-epochs", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, "made", PLAIN)
        return run(patch, sets, tmp_path_factory.mktemp("runs"), "made", *arguments)


def losses(trained, indices):
    """Of some training images, cropped centrally, in float64."""
    images = [
        np.asarray(transforms.centre_crop(Image.open(io.BytesIO(made.jpeg(i))), 16))
        for i in indices
    ]
    seen = (np.array(images) - normalization.IMAGENET.mean) / normalization.IMAGENET.std
    x = seen.reshape(len(seen), -1)
    params, _ = trained.weights()
    for layer in range(3):
        dense = params[f"Dense_{layer}"]
        x = x @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"], np.float64)
        x = np.maximum(x, 0) if layer < 2 else x
    smooth = 0.7 * np.eye(4)[np.array(indices) % 4] + 0.3 / 4
    return (smooth * (np.log(np.exp(x).sum(1, keepdims=True)) - x)).sum(1)


@pytest.mark.parametrize("examples", [None, 5, 100])
def test_the_loss_of_a_streamed_set_is_that_of_its_cropped_training_images(
    examples, looked_at, sets
):
    trained = Trained(looked_at, sets, workers=0)
    params, model_state = trained.weights()
    kept, _ = divided(np.arange(20), 0.2, None, 3)
    kept = np.sort(kept)
    if examples == 5:
        kept = np.random.default_rng(3).choice(kept, 5, replace=False)
    objective = trained.objective(model_state, training=False, size=3, examples=examples)
    assert objective.loss(params) == pytest.approx(losses(trained, kept).mean(), rel=1e-5)
    first = trained.objective(model_state, training=False, size=1, examples=examples)
    loss_fn = jax.jit(first.loss_fn)
    found = [float(loss_fn(params, batch)) for batch in first.batches]
    np.testing.assert_allclose(found, losses(trained, kept), rtol=1e-5)


def test_streamed_images_are_decoded_once_and_forgotten_with_the_data(looked_at, sets, monkeypatch):
    asked, once = [], Stream.once

    def watched(self, **how):
        asked.append(self.examples)
        return once(self, **how)

    monkeypatch.setattr(Stream, "once", watched)
    trained = Trained(looked_at, sets, workers=0)
    for examples in (5, 5, 4, 4):
        trained.objective({}, training=False, size=3, examples=examples)
    assert asked == [5, 4]
    trained.forget()
    trained.objective({}, training=False, size=3, examples=4)
    assert asked == [5, 4, 4]


def test_a_corrupt_test_image_is_told_by_the_attack(looked_at, tmp_path, monkeypatch, capsys):
    images = [made.jpeg(i) for i in range(5)]
    images[3] = images[3][:100]
    made.imagenet(tmp_path, train=20, validation=images, classes=4)
    monkeypatch.setattr(analysed, "changes", lambda then, now: "")  # as where the sizes are alike
    arguments = [robustness, looked_at, "--l2", 1, "--linf", "--steps", 1, "--examples", 4]
    arguments += ["--workers", 0, "--data-dir", tmp_path, "--out", tmp_path]
    with pytest.raises(SystemExit):
        command(monkeypatch, *arguments)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"measured: run, clean: record 3 of imagenet2012.*--skip-corrupt", said)
    command(monkeypatch, *arguments, "--skip-corrupt")
    (found,) = read(tmp_path / "robustness" / "robustness.json")["runs"]
    assert (found["clean"]["examples"], found["clean"]["left_out"]) == (3, 1)
    text = (tmp_path / "robustness" / "robustness.md").read_text()
    assert "on 3 test images (1 left out that cannot be decoded);" in text


def test_too_many_images_for_the_memory_are_refused(looked_at, sets, monkeypatch):
    monkeypatch.setattr(analysed, "MOST_BYTES", 16 * 768 - 1)
    trained = Trained(looked_at, sets, workers=0)
    said = r"all 16 training images of imagenet2012 would take 0\.0 GB .* --examples 2000"
    with pytest.raises(UserError, match=said):
        trained.objective({}, training=False, size=3)
    trained.objective({}, training=False, size=3, examples=16)
    monkeypatch.setattr(analysed, "MOST_BYTES", 16 * 768)
    trained.objective({}, training=False, size=3)


@pytest.mark.slow
def test_a_streamed_run_is_analyzed(looked_at, tmp_path, sets, monkeypatch):
    arguments = ("--parts", "hessian", "steps", "--k", 1, "--steps", 2, "--probes", 1)
    arguments += ("--samples", 2, "--examples", 8, "--workers", 0)
    command(monkeypatch, analyze, looked_at, *arguments, "--data-dir", sets, "--out", tmp_path)
    (found,) = read(tmp_path / "analysis" / "analysis.json")["runs"]
    assert np.isfinite(found["parts"]["hessian"]["evaluation"]["eigenvalues"]).all()
    (epoch,) = found["parts"]["steps"]["epochs"]  # the second, trained once more
    lines = (looked_at / "metrics.jsonl").read_text().splitlines()
    trained = json.loads(lines[1])
    assert [row["step"] for row in epoch["rows"]] == [3, 4]
    for name in ("loss", "accuracy"):
        mean = np.mean([row[name] for row in epoch["rows"]])
        assert mean == pytest.approx(trained[f"train_{name}"], rel=1e-6)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("skip", [False, True])
def test_a_corrupt_image_is_not_looked_at(skip, tmp_path, monkeypatch, capsys):
    images = [made.jpeg(i) for i in range(15)] + [made.jpeg(15)[:100]]
    made.imagenet(tmp_path, train=images, validation=4, classes=4)
    arguments = (tmp_path, tmp_path / "out", "made", "--method", "sgd")
    path = run(monkeypatch, *arguments, "--skip-corrupt")

    def hessian(self):
        self.trained.objective({}, training=False, size=8)
        density = {"values": [[1.0]], "weights": [[1.0]]}
        found = {"eigenvalues": [1.0], "density": density, "parameters": 100}
        return {"evaluation": {**found, "trace": 1.0, "trace_error": 0.1}}

    monkeypatch.setattr(Look, "hessian", hessian)  # looks at all images, and measures nothing
    arguments = [path, "--parts", "hessian"]
    arguments += ["--workers", 0, "--data-dir", tmp_path, "--out", tmp_path / "out"]
    if skip:
        command(monkeypatch, analyze, *arguments, "--skip-corrupt")
        assert "run: 1 images left out that cannot be decoded" in capsys.readouterr().out
        trained = Trained(path, tmp_path, workers=0, skip_corrupt=True)
        batches = trained.objective({}, training=False, size=8).batches
        assert sum(len(labels) for _, labels in batches) == 15
        return
    with pytest.raises(SystemExit):
        command(monkeypatch, analyze, *arguments)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"run, hessian: record 15 of imagenet2012.*--skip-corrupt", said)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize(
    ("recipe", "arguments", "said"),
    [
        ("made", ("--label-noise", 0.2), "--label-noise is for sets in memory"),
        ("made", ("--normalization", "data"), "--normalization must be imagenet or half"),
        ("made", ("--crop-area", 0.5, 0.1, "--augmentation", "inception"), "--crop-area must"),
        ("made", ("--train-examples", 100), "--train-examples must lie in [1, 20]"),
        ("made_folders", ("--domain", "nowhere"), "error: --domain nowhere: "),
        ("made_folders", ("--domain", "nowhere"), "has no split 'nowhere', but art_painting"),
        ("made_folders", ("--label-noise", 0.2), "error: --label-noise is for sets in memory"),
        ("digits", ("--augmentation", "inception"), "lies in memory"),
        ("made", ("--seeds", 0, 1, "--vmap-seeds"), "--vmap-seeds needs a set in memory"),
    ],
)
def test_what_a_streamed_set_cannot_do_is_one_line(
    recipe, arguments, said, sets, tmp_path, monkeypatch, capsys
):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, sets, tmp_path, recipe, "--method", "sgd", *arguments)
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_streamed_set_needs_a_size_and_has_to_be_there(sets, streamed, tmp_path):
    with pytest.raises(ValueError, match="image_size must be given"):
        streams.load(streamed, data_dir=sets)
    folders = dataclasses.replace(
        streamed, dataset="pacs", domain="photo", image_size=8, normalization="half"
    )
    with pytest.raises(NotPreparedError, match="there is no folder"):
        streams.load(folders, data_dir=tmp_path)
    with pytest.raises(UserError, match=f"^--data-dir {tmp_path}: there is no folder"):
        loading.load(folders, 0, tmp_path)
