"""The commands: data, training, comparison, sweep, toy problem, and what goes wrong."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cli, compare, data, models, recipes, runs, sweep, toy, train
from experiments.training import Trainer, optimizer
import sam_optax

SUMMARY_KEYS = {
    "recipe", "method", "method_kwargs", "seed", "epochs", "steps", "ascents", "sam_fraction",
    "gradients_per_step", "train_accuracy", "test_accuracy", "test_loss", "seconds", "device",
    "versions", "commit",
}  # fmt: skip


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS directory with digits prepared."""
    path = tmp_path_factory.mktemp("tfds")
    data.load("digits", data_dir=path)
    return path


def command(monkeypatch, module, *arguments):
    """Runs a command of the shell in this process."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    cli.run(module.main, module.Options)


def read(path):
    return json.loads(path.read_text())


def small_trainer(model, method, *, on_host, **settings):
    recipe = recipes.Recipe(
        dataset="digits", model=model, epochs=1, batch_size=16, learning_rate=0.1
    )
    return Trainer(recipe, method, settings, classes=10, total_steps=30, on_host=on_host)


def tiny(loaded, examples=64):
    return loaded._replace(train=data.Split(*(a[:examples] for a in loaded.train)))


# Data


def test_digits_are_split_by_a_fixed_permutation(data_dir):
    loaded = data.load("digits", data_dir=data_dir)
    assert loaded.train.images.shape == (1437, 8, 8, 1)
    assert loaded.test.images.shape == (360, 8, 8, 1)
    assert loaded.classes == 10
    assert loaded.flipped == 0
    # every class is in both, none rare: a split by position would separate the writers
    assert np.bincount(loaded.test.labels).min() > 20
    np.testing.assert_allclose(loaded.train.images.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(loaded.train.images.std(), 1, rtol=1e-5)


def test_label_noise_flips_its_share_of_the_training_labels_alone(data_dir):
    clean = data.load("digits", data_dir=data_dir, seed=3)
    noisy = data.load("digits", data_dir=data_dir, seed=3, label_noise=0.4)
    again = data.load("digits", data_dir=data_dir, seed=3, label_noise=0.4)
    other = data.load("digits", data_dir=data_dir, seed=4, label_noise=0.4)
    wrong = noisy.train.labels != clean.train.labels
    assert wrong.sum() == round(0.4 * 1437)
    assert noisy.flipped == pytest.approx(wrong.mean())
    np.testing.assert_array_equal(noisy.test.labels, clean.test.labels)
    np.testing.assert_array_equal(noisy.train.labels, again.train.labels)
    assert (noisy.train.labels != other.train.labels).any()


def test_every_wrong_class_is_equally_likely():
    flipped = data.flip(np.full(90_000, 7, np.int32), 1.0, 10, np.random.default_rng(0))
    counts = np.bincount(flipped, minlength=10)
    assert counts[7] == 0
    np.testing.assert_allclose(np.delete(counts, 7), 10_000, rtol=0.05)


def test_the_held_out_part_leaves_the_test_split_alone(data_dir):
    whole = data.load("digits", data_dir=data_dir)
    held = data.load("digits", data_dir=data_dir, validation=0.2)
    assert len(held.test.labels) == 287
    assert len(held.train.labels) == 1150

    seen = np.concatenate([held.train.labels, held.test.labels])
    np.testing.assert_array_equal(np.bincount(seen), np.bincount(whole.train.labels))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_label_noise_outside_the_unit_interval_is_refused(share, data_dir):
    with pytest.raises(ValueError, match=r"label noise must lie in \[0, 1\]"):
        data.load("digits", data_dir=data_dir, label_noise=share)


def test_a_set_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="tfds build cifar10 --file_format=array_record"):
        data.load("cifar10", data_dir=tmp_path)


# Training


@pytest.mark.parametrize("method", ["sgd", "ae_looksam", "r_sam", "esam"])
def test_the_two_ways_to_decide_train_alike(method, data_dir):
    """An epoch decided on the host ends where the compiled one ends."""
    loaded = tiny(data.load("digits", data_dir=data_dir))
    ends = []
    for on_host in (False, True):
        trainer = small_trainer(models.MLP, method, on_host=on_host)
        state = trainer.init(loaded.train.images, seed=1)
        *_, last = trainer.epochs(state, loaded, epochs=2, seed=1)
        ends.append((last.state, last.loss))
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("on_host", [False, True])
def test_batch_statistics_come_from_the_first_pass_alone(on_host, data_dir):
    loaded = tiny(data.load("digits", data_dir=data_dir), 16)
    trainer = small_trainer(models.CNN, "sam", on_host=True, rho=5.0)
    state = trainer.init(loaded.train.images, seed=0)
    step = trainer.host_step if on_host else trainer.jit_step
    images, labels = loaded.train
    variables = {"params": state.params, **state.model_state}
    _, expected = trainer.model.apply(variables, images, train=True, mutable=["batch_stats"])
    after, _ = step(state, images, labels)
    for one, other in zip(
        jax.tree.leaves(after.model_state["batch_stats"]),
        jax.tree.leaves(expected["batch_stats"]),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_optimizer_gives_a_method_what_it_asks_for():
    """total_steps, key, base and the gradient point are found by the names of the arguments."""
    recipe = recipes.RECIPES["digits"]
    params = {"w": jnp.ones(3)}
    state = optimizer(recipe, "r_sam", {}, total_steps=9, seed=5).method.init(params)
    assert state.start.key_data.tolist() == [0, 5]
    wsam = optimizer(recipe, "wsam", {}, total_steps=9)
    assert len(jax.tree.leaves(wsam.method.init(params).combine.base)) == 1  # momentum inside
    assert len(jax.tree.leaves(wsam.base.init(params))) == 1  # the step count of the schedule
    assert optimizer(recipe, "ae_sam", {"total_steps": 3}, total_steps=9).method.init(params)


def test_seeds_differ_in_weights_order_and_numbers(data_dir):
    loaded = tiny(data.load("digits", data_dir=data_dir))
    trainer = small_trainer(models.MLP, "r_sam", on_host=False)
    first, second = (trainer.init(loaded.train.images, seed) for seed in (0, 1))
    assert (first.params["Dense_0"]["kernel"] != second.params["Dense_0"]["kernel"]).any()
    assert (first.method_state.start.key_data != second.method_state.start.key_data).any()


# The commands


def test_train_writes_its_folder(monkeypatch, tmp_path, data_dir, capsys):
    arguments = [
        "digits", "--method", "ae_sam", "--set", "rho=0.1", "lambda_2=0.5", "--epochs", 3,
        "--label-noise", 0.4, "--seed", 2, "--data-dir", data_dir, "--out", tmp_path,
    ]  # fmt: skip
    command(monkeypatch, train, *arguments)
    path = tmp_path / "digits-ae_sam-2"
    summary = read(path / "summary.json")
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["method_kwargs"] == recipes.RECIPES["digits"].settings.get("ae_sam", {}) | {
        "rho": 0.1,
        "lambda_2": 0.5,
    }
    assert summary["steps"] == 3 * (1437 // 64)
    assert 0 < summary["ascents"] < summary["steps"]
    assert summary["sam_fraction"] == summary["ascents"] / summary["steps"]
    assert summary["gradients_per_step"] == 1 + summary["sam_fraction"]
    assert summary["flipped"] == pytest.approx(0.4, abs=1e-3)
    assert summary["versions"]["jax"] == jax.__version__
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["test_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert rows[-1]["ascents"] == summary["ascents"]
    assert rows[-1]["mean"] > 0
    assert read(path / "config.json")["label_noise"] == 0.4
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    for line in ("test accuracy", "test loss", "gradients per step", "share of SAM", "seconds"):
        assert line in said
    assert not list(path.glob("*.part"))


def test_a_run_of_other_options_is_not_overwritten(monkeypatch, tmp_path, data_dir, capsys):
    shared = ["digits", "--method", "sgd", "--epochs", 1, "--data-dir", data_dir, "--out", tmp_path]
    command(monkeypatch, train, *shared)
    before = (tmp_path / "digits-sgd-0" / "summary.json").read_text()
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, *shared, "--label-noise", 0.2)
    assert stop.value.code == 2
    assert "label_noise" in capsys.readouterr().err
    assert (tmp_path / "digits-sgd-0" / "summary.json").read_text() == before
    command(monkeypatch, train, *shared, "--label-noise", 0.2, "--overwrite")
    assert read(tmp_path / "digits-sgd-0" / "summary.json")["label_noise"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "unknown recipe 'digit': did you mean digits"),
        (["zzzzz"], "there are digits"),
        (["--method", "ae_sm"], "unknown method 'ae_sm': did you mean ae_sam"),
        (["--set", "rh=0.1"], "unknown setting of sam 'rh': did you mean rho"),
        (["--set", "rho"], "must read name=value"),
        (["--set", "rho=-1"], r"rho must lie in [0, inf), got -1"),
        (["--method", "coupled_wsam", "--set", "gamma=1.0"], "gamma must lie in [0, 1), got 1.0"),
        (["--label-noise", "1.5"], "label noise must lie in [0, 1], got 1.5"),
        (["--validation", "1"], "validation must lie in [0, 1), got 1"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "5000"], "--batch-size 5000 exceeds the 1437 training images"),
        (["--learning-rate", "-0.1"], "--learning-rate must not be negative"),
        (["--learning-rate", "nan"], "--learning-rate must be a finite number, got nan"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--validation", "0.9999"], "leaves some on both sides"),
        (["--data-dir", "/dev/null/tfds"], "--data-dir /dev/null/tfds cannot be used"),
        (["--name", "../elsewhere"], "--name must be a plain name, got '../elsewhere'"),
        (["--out", "/dev/null/runs"], "cannot write to /dev/null/runs"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, message, monkeypatch, tmp_path, data_dir, capsys):
    shared = ["--epochs", "1", "--data-dir", data_dir, "--out", tmp_path]
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, *shared, *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_diverged_run_keeps_its_metrics_and_writes_no_summary(
    monkeypatch, tmp_path, data_dir, capsys
):
    arguments = ["digits", "--method", "sgd", "--learning-rate", 1e6, "--epochs", 5]
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, *arguments, "--data-dir", data_dir, "--out", tmp_path)
    assert stop.value.code == 2
    assert "lower the learning rate" in capsys.readouterr().err
    assert not (tmp_path / "digits-sgd-0" / "summary.json").exists()


def test_an_interrupted_run_exits_130_and_keeps_its_metrics(monkeypatch, tmp_path, data_dir):
    monkeypatch.setattr(cli.os, "_exit", sys.exit)
    append, rows = runs.append_json, []

    def interrupt(path, row):
        append(path, row)
        rows.append(row)
        if len(rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "append_json", interrupt)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, "--epochs", 5, "--data-dir", data_dir, "--out", tmp_path)
    assert stop.value.code == 130
    path = tmp_path / "digits-sam-0"
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (path / "summary.json").exists()


def test_compare_pairs_the_seeds(monkeypatch, tmp_path, data_dir):
    arguments = ["digits", "--methods", "sam", "ae_sam", "--seeds", 2, "--epochs", 2]
    arguments += ["--equal-gradients", "--data-dir", data_dir, "--out", tmp_path]
    command(monkeypatch, compare, *arguments)
    path = tmp_path / "digits-comparison"
    table = read(path / "table.json")
    for budget, epochs in (("equal epochs", 2), ("equal gradients", 4)):
        rows = {row["method"]: row for row in table["tables"][budget]}
        assert list(rows) == ["sgd", "sam", "ae_sam"]
        assert rows["sgd"]["epochs"] == epochs
        assert rows["sam"]["epochs"] == 2
        assert rows["sam"]["gradients_per_step"] == 2
    assert "| sam | 2 |" in (path / "table.md").read_text()
    assert (path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_of_a_comparison_is_paired():
    """Means, sample deviations and the standard error of the differences, by hand."""

    def runs_of(*accuracies):
        rest = {"epochs": 1, "gradients_per_step": 1.0, "sam_fraction": 0.0, "diverged": False}
        return [{"test_accuracy": a, "seconds": s, **rest} for s, a in enumerate(accuracies)]

    table = {"sgd": runs_of(0.5, 0.6, 0.7), "sam": runs_of(0.6, 0.7, 0.9)}
    table |= {"worse": runs_of(0.4, 0.5, 0.6), "unclear": runs_of(0.7, 0.4, 0.75)}
    sgd, sam, worse, unclear = compare.summarize(table)
    assert sgd["test_accuracy_mean"] == pytest.approx(60)
    assert sgd["test_accuracy_std"] == pytest.approx(10)
    assert sgd["beats_sgd"] == "baseline"
    assert sam["difference_mean"] == pytest.approx(40 / 3)
    assert sam["difference_error"] == pytest.approx(10 / 3)
    assert sam["seconds"] == 1
    assert [row["beats_sgd"] for row in (sam, worse, unclear)] == ["yes", "no", "not shown"]


def test_a_diverged_run_does_not_dilute_the_cost_of_a_method():
    rest = {"test_accuracy": 0.5, "epochs": 1, "sam_fraction": 1.0, "seconds": 1.0}
    ended = {**rest, "gradients_per_step": 2.0, "diverged": False}
    diverged = {**rest, "gradients_per_step": 1.0, "diverged": True}
    _, row = compare.summarize({"sgd": [ended, ended], "sam": [ended, diverged]})
    assert row["gradients_per_step"] == 2
    assert row["diverged"] == 1


def test_sweep_tries_every_combination(monkeypatch, tmp_path, data_dir):
    arguments = ["digits", "--method", "gsam", "--over", "rho=0.05,0.1", "alpha=0.2"]
    arguments += ["learning_rate=0.1,0.05", "--seeds", 2, "--epochs", 1, "--validation", 0.2]
    command(monkeypatch, sweep, *arguments, "--data-dir", data_dir, "--out", tmp_path)
    rows = read(tmp_path / "digits-gsam-sweep" / "sweep.json")["rows"]
    assert [row["cell"] for row in rows] == [
        [f"rho={rho}", "alpha=0.2", f"learning_rate={lr}"]
        for rho in ("0.05", "0.1")
        for lr in ("0.1", "0.05")
    ]
    assert all(0 <= row["accuracy"] <= 100 for row in rows)


def test_the_toy_problem_ends_where_an_independent_check_ended(monkeypatch, tmp_path):
    """Coupled WSAM with γ = 0.95 reaches the flat minimum; all others stay in the sharp one."""
    command(monkeypatch, toy, "--out", tmp_path)
    ends = {(end["method"], end["gamma"]): end for end in read(tmp_path / "toy.json")}
    assert len(ends) == 6
    flat = ends["coupled_wsam", 0.95]
    np.testing.assert_allclose(flat["w"], (19.82, 29.77), atol=0.006)
    assert flat["loss"] == pytest.approx(0.3565, abs=6e-5)
    decoupled = ends["wsam", 0.95]
    np.testing.assert_allclose(decoupled["w"], (-16.84, 13.31), atol=0.006)
    assert decoupled["loss"] == pytest.approx(0.2759, abs=6e-5)
    sharp = [end for key, end in ends.items() if key != ("coupled_wsam", 0.95)]
    assert all(toy.nearest_minimum(end["w"]) == "sharp" for end in sharp)
    assert (tmp_path / "toy.png").exists()


def toy_gradient(w):
    """The gradient of the toy problem's loss, differentiated by hand."""
    mu, sigma = w
    weights, gradients = [], []
    for share, scale, mu_i, sigma_i in ((0.7, 1.8, 20.0, 30.0), (0.3, 1.2, -20.0, 10.0)):
        kl = np.log(sigma_i / sigma) + (sigma**2 + (mu - mu_i) ** 2) / (2 * sigma_i**2) - 0.5
        weights.append(share * np.exp(-kl / scale**2))
        slope = np.array([(mu - mu_i) / sigma_i**2, sigma / sigma_i**2 - 1 / sigma])
        gradients.append(slope / scale**2)
    return sum(w * g for w, g in zip(weights, gradients, strict=True)) / sum(weights)


@pytest.mark.parametrize("method", ["sgd", "sam", "wsam", "coupled_wsam"])
@pytest.mark.parametrize("gamma", [0.6, 0.95])
def test_the_toy_paths_are_those_of_numpy(method, gamma):
    """150 steps with momentum, the sharpness term inside it or beside it."""
    w, velocity, points = np.array(toy.START), np.zeros(2), []
    for _ in range(toy.STEPS):
        points.append(w)
        g = toy_gradient(w)
        difference = toy_gradient(w + toy.RHO * g / np.linalg.norm(g)) - g
        inside = {"sam": 1.0, "coupled_wsam": gamma / (1 - gamma)}.get(method, 0.0)
        velocity = toy.MOMENTUM * velocity + g + inside * difference
        beside = gamma / (1 - gamma) if method == "wsam" else 0.0
        w = w - toy.LEARNING_RATE * (velocity + beside * difference)
    key = (method, gamma if "wsam" in method else None)
    with jax.enable_x64(True):
        path = toy.path_of(toy.optimizers()[key])
    np.testing.assert_allclose(path[:50], points[:50], rtol=1e-8)
    # around a minimum the direction of a vanishing gradient magnifies rounding
    np.testing.assert_allclose(path, [*points, w], atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learning_rate=abc"], "--learning-rate must be a finite number, got 'abc'"),
        (["learning_rate=0.1=2"], "--learning-rate must be a finite number, got '0.1=2'"),
        (["learning_rate=-1"], "--learning-rate must not be negative"),
        (["rho=0.1", "rho=0.2"], "--over names a setting twice"),
        (["rho="], "rho must be a number"),
    ],
)
def test_a_mistake_in_a_sweep_claims_no_folder(
    arguments, message, monkeypatch, tmp_path, data_dir, capsys
):
    shared = ["--data-dir", data_dir, "--out", tmp_path / "out"]
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, sweep, "digits", "--over", *arguments, *shared)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failed_run_leaves_its_name_free_and_nothing_of_an_older_one(
    monkeypatch, tmp_path, data_dir
):
    shared = ["digits", "--method", "sgd", "--data-dir", data_dir, "--out", tmp_path]
    command(monkeypatch, train, *shared, "--epochs", 1)
    path = tmp_path / "digits-sgd-0"
    with pytest.raises(SystemExit):
        command(monkeypatch, train, *shared, "--epochs", 2, "--learning-rate", 1e30, "--overwrite")
    assert not (path / "curves.png").exists()
    assert not (path / "summary.json").exists()
    command(monkeypatch, train, *shared, "--epochs", 2)
    assert read(path / "summary.json")["epochs"] == 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.slow
def test_the_default_command_reaches_97_percent(seed, monkeypatch, tmp_path, data_dir):
    arguments = ["--seed", seed, "--data-dir", data_dir, "--out", tmp_path]
    command(monkeypatch, train, *arguments)
    assert read(tmp_path / f"digits-sam-{seed}" / "summary.json")["test_accuracy"] > 0.97


def test_the_methods_of_the_commands_are_those_of_the_library():
    assert "sgd" in cli.METHODS
    assert {"sam", "wsam", "r_gsam"} < set(cli.METHODS) - {"sharpness_aware", "average"}
    assert all(callable(getattr(sam_optax, m)) for m in cli.METHODS if m != "sgd")
    assert len(cli.METHODS) == 24
