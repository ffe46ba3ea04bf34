"""Every recipe trains and resumes: two steps of its own method, narrow, on made images.

The images are of the format of its set.
"""

from inprocess import command, read, undrawn
import made
import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_pretrained import resnet_state, save, vit_state
from test_weights import cut_short

from experiments import models, train
from experiments.data import disk, reading
from experiments.recipes import RECIPES
from experiments.results.folders import CHECKPOINTS
from experiments.training.checkpoints import Checkpoints

# Of the narrowest layers; any other model has 2 channels.
WIDTHS = {"vit_small": 12, "mlp": 4}
# Of JPEGs, which no made features decode to.
STREAMED = {n for n, r in RECIPES.items() if r.dataset == "imagenet2012" or r.domain is not None}
# The others take half a minute each to compile, or have other tests, as digits.
QUICK = {"digits_cnn", "mnist_noise40"}


@pytest.fixture
def mocked(monkeypatch):
    """Sets of the catalogue with random examples of their features, and nothing on the disk."""

    def read(builder, split, shape=None):
        del shape
        source = builder.as_data_source(split)
        examples = [source[i] for i in range(len(source))]
        images = np.stack([example["image"] for example in examples])
        return reading.Split(images, np.array([e["label"] for e in examples], np.int32))

    for module, name in ((reading, "builder_of"), (disk, "opened")):
        monkeypatch.setattr(module, name, lambda name, data_dir: tfds.builder(name))
    monkeypatch.setattr(reading, "_read", read)
    monkeypatch.setattr(reading, "_state", lambda builder: (object(),))  # of no file
    with tfds.testing.mock_data(num_examples=400):
        yield


@pytest.mark.usefixtures("mocked")
@pytest.mark.parametrize(
    "name",
    [
        n if n in QUICK else pytest.param(n, marks=pytest.mark.slow)
        for n in RECIPES
        if n not in STREAMED
    ],
)
def test_a_recipe_trains_two_steps_and_resumes(name, monkeypatch, tmp_path):
    recipe = RECIPES[name]
    width = WIDTHS.get(recipe.model, 2)
    arguments = [name, "--epochs", 1, "--batch-size", 4, "--train-examples", 8, "--width", width]
    arguments += ["--out", tmp_path, *(["--imbalance", 2] if recipe.imbalance else [])]
    if recipe.image_size is not None:
        arguments += ["--image-size", 32]
    if recipe.warmup_epochs:
        arguments += ["--warmup-epochs", 0]
    arguments += begun(recipe, width, tmp_path)
    assert_trains(recipe, arguments, tmp_path / f"{name}-{recipe.method}-0", monkeypatch)


def assert_trains(recipe, arguments, path, monkeypatch):
    """A run of two steps that is cut short after the first, and goes on, to its end."""
    undrawn(monkeypatch)
    arguments += ["--checkpoint-minutes", 0, "--steps-per-dispatch", 1]
    with cut_short(monkeypatch):
        command(monkeypatch, train, *arguments)
    assert Checkpoints(path / CHECKPOINTS, read_only=True).steps() == [1]
    command(monkeypatch, train, *arguments, "--resume")
    summary = read(path / "summary.json")
    assert summary["steps"] == 2
    assert summary["paper"] == recipe.paper.get(recipe.method)
    assert np.isfinite([summary["train_loss"], summary["test_loss"]]).all()


def begun(recipe, width, path):
    """A file of weights for images of 32, where a recipe begins with one, as options."""
    if recipe.pretrained is None:
        return []
    if recipe.model.startswith("vit"):
        state = vit_state(width=width, depth=12, patch=16, classes=1000)
    else:
        state = resnet_state(models.make(recipe.model, 1000, width=width))
    return ["--weights", save(path / "weights.safetensors", state)]


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A TFDS directory with a few JPEGs in the formats of ImageNet, PACS and VLCS."""
    path = tmp_path_factory.mktemp("streamed")
    made.imagenet(path, train=8, validation=4)
    made.folders(path / "PACS", each=2)
    domains, classes = {r.domain for r in RECIPES.values() if r.dataset == "VLCS"}, "abcde"
    made.folders(path / "VLCS", splits=sorted(domains), class_names=classes, each=3)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STREAMED))
def test_a_streamed_recipe_trains_two_steps_and_resumes(name, streamed, monkeypatch, tmp_path):
    recipe = RECIPES[name]
    arguments = [name, "--epochs", 1, "--warmup-epochs", 0, "--batch-size", 4, "--image-size", 32]
    arguments += ["--width", 16, "--workers", 1, "--data-dir", streamed, "--out", tmp_path]
    # So small that a hundred layers bear it, whose statistics are of two steps and four images.
    arguments += ["--learning-rate", 0.001]
    arguments += ["--train-examples", 8, *begun(recipe, 16, tmp_path)]
    assert_trains(recipe, arguments, tmp_path / f"{name}-{recipe.method}-0", monkeypatch)
