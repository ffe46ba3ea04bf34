"""Runs that begin with the weights of a file."""

import contextlib
import dataclasses
import functools
import hashlib

from inprocess import command, read, undrawn
import jax
import made
import numpy as np
import pytest
from test_pretrained import save, vit_state

from experiments import compare, models, recipes, sweep, train
from experiments.analysis.trained import Trained
from experiments.models.pretrained import WeightsError
from experiments.models.vit import ViT
from experiments.models.weights import Weights
from experiments.recipes import RECIPES, Recipe
from experiments.training.checkpoints import Checkpoints

CLASSES = 4
# Of images of 16 in patches of 4, for the model below.
SHAPES = {"width": 64, "depth": 1, "tokens": 17}
RECIPE = Recipe(
    dataset="imagenet2012",
    model="tiny_vit",
    epochs=1,
    batch_size=8,
    learning_rate=0.1,
    image_size=16,
    normalization="imagenet",
    pretrained="a tiny model's",
    settings={"sam": {"rho": 0.05}},
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets")
    made.imagenet(path, train=16, validation=4, classes=CLASSES)
    return path


@pytest.fixture(autouse=True)
def begun(monkeypatch):
    """A recipe that begins with weights, and its model."""
    model = functools.partial(ViT, patch=4, width=64, depth=1)
    monkeypatch.setitem(models.MODELS, "tiny_vit", model)
    monkeypatch.setitem(recipes.RECIPES, "made", RECIPE)


@pytest.fixture
def run(monkeypatch, sets, tmp_path):
    """Trains by the command into one folder."""
    undrawn(monkeypatch)

    def run(*arguments, module=train):
        always = ("--data-dir", sets, "--out", tmp_path, "--name", "run", "--workers", 0)
        command(monkeypatch, module, "made", *always, *arguments)
        return tmp_path / "run"

    return run


def file(path, classes=CLASSES, name="weights.safetensors", **shapes):
    state = vit_state(classes=classes, **{**SHAPES, **shapes})
    return save(path / name, state), state


class StoppedError(Exception):
    """What a run is cut short by."""


@contextlib.contextmanager
def cut_short(monkeypatch):
    """Within it a run ends as its first checkpoint is written."""
    save = Checkpoints.save

    def save_and_stop(self, step, *rest):
        save(self, step, *rest)
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(StoppedError):
            yield


def test_a_run_begins_with_the_weights_of_the_file(run, sets, tmp_path):
    """At a learning rate of 0 it ends with them."""
    path, state = file(tmp_path)
    folder = run("--weights", path, "--learning-rate", 0)
    params, _ = Trained(folder, sets).weights()
    kernel = state["conv_proj.weight"].transpose(2, 3, 1, 0).reshape(-1, SHAPES["width"])
    np.testing.assert_array_equal(params["patches"]["kernel"], kernel)
    np.testing.assert_array_equal(params["positions"], state["encoder.pos_embedding"])
    np.testing.assert_array_equal(params["head"]["kernel"], state["heads.head.weight"].T)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read(folder / "config.json")["weights"] == sha256
    told = read(folder / "summary.json")["weights"]
    size = sum(array.size for array in state.values())
    assert told["file"] == "weights.safetensors"
    assert told["sha256"] == sha256
    assert told["parameters"] == size
    assert not told["new_head"]


def test_a_classifier_of_other_classes_is_new(run, sets, tmp_path):
    path, _ = file(tmp_path, classes=7)
    folder = run("--weights", path, "--learning-rate", 0)
    params, _ = Trained(folder, sets).weights()
    assert params["head"]["kernel"].shape == (SHAPES["width"], CLASSES)
    assert not params["head"]["kernel"].any()
    assert read(folder / "summary.json")["weights"]["new_head"]


@pytest.mark.slow
def test_on_a_mesh_every_device_begins_with_them(run, sets, tmp_path):
    path, state = file(tmp_path)
    folder = run("--weights", path, "--learning-rate", 0, "--mesh", "data=2")
    params, _ = Trained(folder, sets).weights()
    np.testing.assert_array_equal(params["positions"], state["encoder.pos_embedding"])


def test_a_run_without_weights_begins_with_the_seeds(run, monkeypatch, tmp_path):
    monkeypatch.setitem(recipes.RECIPES, "made", dataclasses.replace(RECIPE, pretrained=None))
    folder = run()
    summary = read(folder / "summary.json")
    assert summary["weights"] is None
    assert summary["papers_protocol"]
    assert read(folder / "config.json")["weights"] is None
    told = read(run("--weights", file(tmp_path)[0], "--overwrite") / "summary.json")
    assert told["weights"] is not None
    assert not told["papers_protocol"]


def test_it_goes_on_with_the_same_file_alone(run, tmp_path, capsys):
    path, _ = file(tmp_path)
    assert read(run("--weights", path) / "summary.json")["papers_protocol"]
    again, _ = file(tmp_path, name="copied.safetensors")
    run("--weights", again, "--resume")  # the bytes count, and it is finished
    other, _ = file(tmp_path, classes=7, name="other.safetensors")
    with pytest.raises(SystemExit) as error:
        run("--weights", other, "--resume")
    assert error.value.code == 2
    assert "weights" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_with_weights_ends_alike_after_an_interruption(run, sets, tmp_path, monkeypatch):
    """Two steps, stopped after the first."""
    arguments = ("--weights", file(tmp_path)[0], "--checkpoint-minutes", 0)
    whole = Trained(run(*arguments), sets).weights()

    with cut_short(monkeypatch):
        run(*arguments, "--overwrite")
    cut = Trained(run(*arguments, "--resume"), sets)
    assert cut.summary["steps"] == 2
    jax.tree.map(np.testing.assert_array_equal, cut.weights(), whole)


@pytest.mark.parametrize(
    ("name", "shapes", "said"),
    [
        ("w.safetensors", {"width": 128}, "does not fit the model. Differences: "),
        ("w.safetensors", {"depth": 2}, "unexpected: encoder.layers.encoder_layer_1"),
        ("w.npz", None, "cannot be read as .npz"),
    ],
)
@pytest.mark.parametrize("module", [train, compare, sweep])
def test_a_file_that_does_not_fit_is_told_before_training(
    module, name, shapes, said, run, tmp_path, capsys
):
    path, _ = file(tmp_path, name=name, **(shapes or {}))
    if shapes is None:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit) as error:
        run("--weights", path, module=module)
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --weights: {path}")
    assert said in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "begins with pretrained weights, a tiny model's: pass their file by --weights."),
        (("--weights", "nowhere.npz"), "error: --weights: nowhere.npz cannot be read: No such"),
        (("--weights", "no.npz", "--mesh", "data=2"), "error: --weights: no.npz cannot be read"),
    ],
)
def test_a_missing_file_is_told_in_one_line(arguments, said, run, capsys):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_file_that_changes_after_the_command_began_is_told(tmp_path):
    path, _ = file(tmp_path)
    weights = Weights.of(path, None)
    file(tmp_path, classes=7)
    model = models.make("tiny_vit", CLASSES)
    init = jax.jit(functools.partial(model.init, train=False))
    state = init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
    with pytest.raises(WeightsError, match="has changed since this command began: start it again"):
        weights.onto(model, state["params"], {})


def test_weights_of_other_images_are_refused_unless_the_user_insists(
    run, tmp_path, monkeypatch, capsys
):
    path, _ = file(tmp_path)
    monkeypatch.setitem(recipes.RECIPES, "made", dataclasses.replace(RECIPE, normalization="half"))
    with pytest.raises(SystemExit):
        run("--weights", path)
    assert "pass --normalization imagenet, or --normalization half" in capsys.readouterr().err
    assert read(run("--weights", path, "--normalization", "half") / "summary.json")["weights"]


def test_a_comparison_begins_with_them(run, tmp_path, monkeypatch):
    """They are read once to be checked, and once for each run."""
    path, _ = file(tmp_path)
    read_them, onto = [], Weights.onto
    monkeypatch.setattr(Weights, "onto", lambda *a: read_them.append(a) or onto(*a))
    arguments = ("--weights", path, "--methods", "sam", "--seeds", 2)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    folder = run(*arguments, module=compare)
    assert read(folder / "config.json")["weights"] == sha256
    assert f"batch 8, pretrained weights {sha256[:12]}." in (folder / "table.md").read_text()
    assert len(read_them) == 1 + 2 * 2  # sgd and sam


def test_a_sweep_begins_with_them(run, tmp_path):
    path, _ = file(tmp_path)
    arguments = ("--weights", path, "--over", "rho=0.1", "--seeds", 1, "--validation", 0)
    folder = run(*arguments, module=sweep)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read(folder / "config.json")["weights"] == sha256
    assert f", weights {sha256[:12]}" in (folder / "sweep.md").read_text()


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.pretrained])
def test_recipes_that_need_weights_say_which(name, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command(monkeypatch, train, name, "--out", tmp_path)
    assert f"{RECIPES[name].pretrained}: pass their file" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.pretrained])
def test_recipes_that_need_weights_name_a_model_that_takes_them(name):
    model = models.make(RECIPES[name].model, 2)
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), np.zeros((1, 224, 224, 3))
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["head"]))
    assert count in (2 * 769, 2 * 513)  # of ViT-B and of ResNet-18
