"""Every recipe trains: two steps of its own method, narrow, on made images of its set's format."""

import made
import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_experiments import command, read

from experiments import data, train
from experiments.recipes import RECIPES

# Of the narrowest layers; any other model has 2 channels.
WIDTHS = {"vit_small": 12, "mlp": 4}
# Of JPEGs, which no made features decode to.
STREAMED = {name for name, recipe in RECIPES.items() if recipe.image_size is not None}
# The others take half a minute each to compile.
QUICK = {"digits", "digits_cnn", "mnist_noise40"}


@pytest.fixture
def mocked(monkeypatch):
    """Sets of the catalogue with random examples of their features, and nothing on the disk."""

    def read(builder, split, shape=None):
        del shape
        source = builder.as_data_source(split)
        examples = [source[i] for i in range(len(source))]
        images = np.stack([example["image"] for example in examples])
        return data.Split(images, np.array([e["label"] for e in examples], np.int32))

    for name in ("_builder", "opened"):
        monkeypatch.setattr(data, name, lambda name, data_dir: tfds.builder(name))
    monkeypatch.setattr(data, "_read", read)
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
def test_a_recipe_trains_two_steps(name, monkeypatch, tmp_path):
    recipe = RECIPES[name]
    width = WIDTHS.get(recipe.model, 2)
    arguments = [name, "--epochs", 1, "--batch-size", 4, "--train-examples", 8, "--width", width]
    arguments += ["--out", tmp_path, *(["--imbalance", 2] if recipe.imbalance else [])]
    command(monkeypatch, train, *arguments)
    summary = read(tmp_path / f"{name}-{recipe.method}-0" / "summary.json")
    assert summary["steps"] == 2
    assert summary["paper"] == recipe.paper.get(recipe.method)
    assert np.isfinite([summary["train_loss"], summary["test_loss"]]).all()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A TFDS directory with a few JPEGs in the format of ImageNet."""
    path = tmp_path_factory.mktemp("imagenet")
    made.imagenet(path, train=8, validation=4)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STREAMED))
def test_a_recipe_of_imagenet_trains_two_steps(name, imagenet, monkeypatch, tmp_path):
    recipe = RECIPES[name]
    arguments = [name, "--epochs", 1, "--warmup-epochs", 0, "--batch-size", 4, "--image-size", 32]
    arguments += ["--width", 16, "--workers", 1, "--data-dir", imagenet, "--out", tmp_path]
    command(monkeypatch, train, *arguments)
    summary = read(tmp_path / f"{name}-{recipe.method}-0" / "summary.json")
    assert summary["steps"] == 2
    assert summary["paper"] == recipe.paper[recipe.method]
    assert np.isfinite([summary["train_loss"], summary["test_loss"]]).all()
