"""The parts of gpu_check, on small models and made images."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.benchmark.gpu import (
    child,
    compilation,
    decisions,
    determinism,
    epochs,
    loop,
    peers,
    precision,
    real,
    steps,
    turns,
    wide,
)
from experiments.benchmark.gpu.loop import Asked, Loop
from experiments.benchmark.gpu.setup import Setup
from experiments.benchmark.measure import Turn
from experiments.data import sets

SMALL = {"model": "mlp", "width": 4, "dtype": "float32", "batch_size": 16, "examples": 64}
QUICK = {"seconds": 1e-3, "turns": 2, "epochs": 2, "workers": 2}


@pytest.fixture
def setup(tmp_path):
    """Of a small model on made images."""
    return Setup(**SMALL, **QUICK, data_dir=tmp_path, methods=("looksam", "lpf_sgd"))


def rows_of(part, setup):
    """What is known at the end of each row, by name."""
    found = {}
    for row in part(setup):
        found.setdefault(row["name"], {}).update(row)
    return found


def test_steps_are_measured_beside_sgd(setup):
    rows = rows_of(steps.measure, setup)
    assert list(rows) == ["sgd", "sam", turns.HAND_WRITTEN, "looksam", "lpf_sgd"]
    assert all(row["finite"] and row["milliseconds"] > 0 for row in rows.values())
    assert rows["sgd"]["time_ratio"] == rows["sgd"]["temp_bytes_ratio"] == 1
    shares = {name: row["sam_fraction"] for name, row in rows.items()}
    assert shares == {"sgd": 0, "sam": 1, "looksam": 0.2, "lpf_sgd": 0, turns.HAND_WRITTEN: 1}
    assert rows["sam"]["ideal_ratio"] == pytest.approx(rows["sam"]["time_ratio"] / 2)
    assert [name for name, row in rows.items() if "over_hand_written" in row] == ["sam"]
    assert rows["looksam"]["state_bytes"] > rows["sam"]["state_bytes"]


def test_sam_by_hand_takes_the_steps_of_sam(setup):
    """With the radius of the recipe, so that the two that are compared compute the same."""
    by_hand, sam = Loop(setup, loop.BY_HAND), Loop(setup, Asked("sam"))
    assert setup.recipe.settings["sam"] == {"rho": loop.RHO}
    for one in (by_hand, sam):
        one.run(4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        by_hand.state.params,
        sam.state.params,
    )


def test_decisions_fire_as_often_as_their_names_say(setup, monkeypatch):
    monkeypatch.setattr(
        decisions,
        "ASKED",
        {
            name: asked
            for name, asked in decisions.ASKED.items()
            if name in ("sgd", "ae_sam, never", "ae_looksam, always", "looksam, every 2", "msam")
        },
    )
    shares = {name: row["sam_fraction"] for name, row in rows_of(decisions.measure, setup).items()}
    assert shares == {
        "sgd": 0,
        "ae_sam, never": 0,
        "ae_looksam, always": 1,
        "looksam, every 2": 0.5,
        "msam": 0,
    }


def test_epochs_and_the_suspects_are_measured(setup, monkeypatch):
    monkeypatch.setattr(epochs, "METHODS", ("sgd", "sam"))
    monkeypatch.setattr(epochs, "SUSPECTED", ("sam",))
    monkeypatch.setattr(epochs, "COMMANDS", "NO_SUCH_COMMAND")
    rows = rows_of(epochs.measure, setup)
    ratio = rows["sam"]["seconds"] / rows["sgd"]["seconds"]
    assert rows["sam"]["time_ratio"] == pytest.approx(ratio)
    assert rows["sam"]["ideal_ratio"] == pytest.approx(ratio / 2)
    assert rows["sgd"]["images_per_second"] == pytest.approx(64 / rows["sgd"]["seconds"])
    suspects = {name: row for name, row in rows.items() if "," in name}
    assert suspects.keys() == epochs.suspects(4).keys()
    refused = "sam, command buffers of whole loops"
    assert "XLA refuses it" in suspects.pop(refused)["said"]
    assert all(row["over_today"] > 0 for row in suspects.values())


def test_a_trip_count_that_is_known_changes_no_step(setup):
    known, told = Loop(setup, Asked("sgd", count=4)), Loop(setup, Asked("sgd"))
    text = 'known_trip_count":{"n":"4"}'
    assert [
        text in one.programs[fire].as_text() for one, fire in ((known, None), (told, False))
    ] == [True, False]
    known.run(4)
    told.run(4)
    assert int(known.state.step) == int(told.state.step) == 4
    assert child.digest(known.state.params) == child.digest(told.state.params)
    told.run(1)
    assert child.digest(known.state.params) != child.digest(told.state.params)


def test_running_statistics_stay_where_they_are(setup):
    """So that no reduction over the batch is left; a model with batch norm has statistics."""
    small = Setup(**{**SMALL, "model": "cnn", "examples": 16}, **QUICK, data_dir=setup.data_dir)
    still = Loop(small, Asked("sgd", still=True))
    before = jax.tree.leaves(jax.tree.map(np.asarray, still.state.model_state))
    still.run(1)
    assert before
    usual = Loop(small, Asked("sgd"))
    usual.run(1)
    assert child.digest(still.state.params) != child.digest(usual.state.params)
    for one, other in zip(before, jax.tree.leaves(still.state.model_state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_each_setting_the_different_ends_are_counted(setup, monkeypatch):
    """Processes are not started: in the first wave one end each, in the second one failed."""
    asked = []

    def at_once(setup, method, steps, environments):
        asked.append([variables["XLA_FLAGS"] for variables in environments])
        if len(asked) == 1:
            return [{"digest": end} for end in ("a", "b", "c", "c", "d", "e")]
        return [{"digest": end} for end in ("d", "d", "e")] + [{"said": "it failed"}]

    monkeypatch.setattr(child, "at_once", at_once)
    monkeypatch.setattr(determinism, "in_turns", lambda setup, asked, rivals: iter(()))
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true --mine")
    rows = rows_of(determinism.measure, setup)
    counted = {name: row["different"] for name, row in rows.items() if "different" in row}
    assert counted == {
        determinism.DEFAULT: 2,
        determinism.DETERMINISTIC: 1,
        determinism.CHOICES: 1,
        determinism.PROGRAM: 2,
    }
    assert rows[f"{determinism.PROGRAM}, process 3"]["said"] == "it failed"
    assert asked[0][0] == asked[0][5] == "--mine"
    assert asked[0][2] == asked[0][3] == "--mine --xla_gpu_deterministic_ops=true"


def test_a_child_that_fails_tells_why(setup):
    with child.started(setup, "no_such_method", 1, {}) as process:
        assert "no_such_method" in child.told(process)["said"]


@pytest.mark.slow
def test_processes_end_alike_on_a_cpu(setup):
    rows = rows_of(determinism.measure, setup)
    digests = {row["digest"] for row in rows.values() if "digest" in row}
    assert len(digests) == 1
    assert rows[determinism.DETERMINISTIC]["different"] == 1
    assert rows[f"sam, {determinism.DETERMINISTIC}"]["time_ratio"] > 0


@pytest.mark.slow
def test_a_second_process_reads_what_the_first_has_compiled(setup):
    rows = rows_of(compilation.measure, setup)
    assert rows.keys() == set(compilation.METHODS)
    for row in rows.values():
        assert row["again_compile_seconds"] < row["compile_seconds"]


def test_precision_is_told_of_each_radius(setup, monkeypatch):
    monkeypatch.setattr(precision, "RADII", (0.01, 0.5))
    rows = rows_of(precision.measure, setup)
    for when in ("init", "after 2 epochs"):
        assert rows[f"{when}, highest, ρ 0.01"]["cos"] == pytest.approx(1)
        near, far = (rows[f"{when}, bfloat16, ρ {radius}"] for radius in ("0.01", "0.5"))
        assert near["cos"] < far["cos"] < 1
        assert near["over_g"] < far["over_g"]
        few, many = (rows[f"{when}, weights, ρ {radius}"] for radius in ("0.01", "0.5"))
        assert few["bf16_params_changed"] < many["bf16_params_changed"]
    assert rows["init, highest"]["gradient_error"] == 0 < rows["init, bfloat16"]["gradient_error"]


def test_weights_that_are_bfloat16_move_by_whole_steps():
    """Above 1 bfloat16 has steps of 1/128; below the half of one a weight stays."""
    weights = jnp.array([1.0, 1.0, 1.0, 1.0 + 3 / 1024])
    epsilon = jnp.array([1 / 1024, 1 / 128, 3 / 128, 2 / 1024])
    found = precision.moved(weights, epsilon)
    assert found["bf16_params_changed"] == 0.5
    assert found["f32_params_bf16_cast_changed"] == 0.75
    length = math.hypot(1 / 128, 3 / 128) / float(jnp.linalg.norm(epsilon))
    assert found["bf16_params_step_kept"] == pytest.approx(length)


def test_the_wide_network_is_measured_beside_sgd(setup, monkeypatch):
    assert wide.MODEL == "wrn28_10"
    monkeypatch.setattr(wide, "MODEL", "mlp")
    other = Setup(**{**SMALL, "model": "cnn"}, **QUICK, data_dir=setup.data_dir)
    rows = rows_of(wide.measure, other)
    assert {name: row["sam_fraction"] for name, row in rows.items()} == {"sgd": 0, "sam": 1}
    assert rows["sgd"]["state_bytes"] == Loop(setup, Asked("sgd")).state_bytes


def test_real_images_are_trained_on_epoch_by_epoch(setup, monkeypatch, data_dir):
    load = sets.load
    monkeypatch.setattr(real.sets, "load", lambda name, **asked: load("digits", **asked))
    monkeypatch.setattr(real, "METHODS", ("sam",))
    small = Setup(**SMALL, **QUICK, data_dir=data_dir)
    found = list(real.measure(small))
    assert [(row["name"], row["epochs"], row["sam_fraction"]) for row in found] == [
        ("sam", 1, 1.0),
        ("sam", 2, 1.0),
    ]
    assert 0 <= found[1]["test_accuracy"] <= 1
    assert found[1]["seconds"] > found[0]["seconds"]


def test_what_is_not_there_is_said(setup, monkeypatch):
    (row,) = real.measure(setup)
    assert "Prepare it once" in row["said"]
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = peers.measure(setup)
    assert row["said"].endswith("pip install torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("json"))
    (row,) = peers.measure(setup)
    assert row["said"].endswith("pass --model resnet18")


def test_ours_is_told_over_the_quickest_of_pytorch():
    seconds = {"sam, ours": 1, "eager": 6, "compiled": 4, f"PyTorch {peers.GRAPHS}": 2}
    one = {name: Turn(value, 1.0) for name, value in seconds.items()}
    rows = {row["name"]: row for row in peers.rows([one, one], "sam, ours")}
    assert rows["sam, ours"]["over_torch"] == 0.25
    assert rows["sam, ours"]["over_cuda_graphs"] == 0.5
    assert rows["eager"]["milliseconds"] == 6000


@pytest.mark.peers
def test_pytorch_trains_the_same_network(setup, monkeypatch):
    """Ours is a small model here: convolutions inside a loop take long on a CPU."""
    monkeypatch.setattr(peers, "compiled", lambda asked, made: loop.compiled(setup, made))
    small = {**SMALL, "model": "resnet18", "dtype": "bfloat16", "batch_size": 4}
    rows = rows_of(peers.measure, Setup(**small, **QUICK, data_dir=setup.data_dir))
    for method in ("sgd", "sam"):
        for mode in ("eager", "compiled", peers.GRAPHS):
            assert rows[f"{method}, PyTorch {mode}"]["milliseconds"] > 0
        assert rows[f"{method}, ours"]["over_torch"] > 0
        assert rows[f"{method}, ours"]["over_cuda_graphs"] > 0


@pytest.mark.peers
def test_pytorchs_network_has_as_many_parameters():
    from experiments.benchmark.gpu import torch_resnet

    own = sum(parameter.numel() for parameter in torch_resnet.resnet18(64).parameters())
    made = models.make("resnet18", 10)
    shapes = jax.eval_shape(
        lambda: made.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    assert own == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
