"""The commands: data, training, comparison, sweep, toy problem, and what goes wrong."""

import dataclasses
import functools
import json
import math
from pathlib import Path
import re
import sys

from inprocess import command, read, small_trainer, undrawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import NAMES, few

from experiments import compare, recipes, sweep, toy, train
from experiments.cli.settings import METHODS
from experiments.data import augment, reading
from experiments.data.feeds import arrays
from experiments.recipes import Recipe
from experiments.results import files
from experiments.training import fit
from experiments.training.objectives import Batch
from experiments.training.optimizers import learning_rate, optimizer
from experiments.training.step import AUGMENTATION
from experiments.training.trainer import Trainer

SUMMARY_KEYS = {
    "recipe", "method", "method_kwargs", "seed", "epochs", "steps", "ascents", "sam_fraction",
    "gradients_per_step", "train_accuracy", "test_accuracy", "test_loss", "seconds", "device",
    "versions", "commit",
}  # fmt: skip


def documented(heading):
    """The names in the first column of the table below a heading of the page of promises."""
    page = (Path(__file__).parents[2] / "docs" / "promises.md").read_text()
    lines = page.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    first = "".join(line.split("|")[1] for line in lines if line.startswith("| `"))
    return set(re.findall("`([^`]*)`", first))


def tiny(loaded, examples=64):
    return loaded._replace(train=reading.Split(*(a[:examples] for a in loaded.train)))


# Training


@pytest.mark.parametrize(
    "method",
    few("sgd", "ae_looksam", "esam", names=["sgd", "ae_looksam", "r_sam", "esam", "s2_sam"]),
)
def test_the_two_ways_to_decide_train_alike(method, digits):
    """Epochs decided on the host end where the compiled ones end, however they are divided."""
    loaded = tiny(digits)
    on_device, on_host = (
        small_trainer("mlp", method, loaded, on_host=on_host) for on_host in (False, True)
    )
    ends = []
    for trainer, most in ((on_device, 100), (on_device, 3), (on_host, 100)):
        state = trainer.init(loaded.train.shape, seed=1)
        phases = [fit.Phase(0, 2, trainer)]
        ends.append(fit.fit(phases, state, arrays(loaded), most=most))
    for one, other, host in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, host, rtol=2e-4, atol=1e-5)


@pytest.fixture(scope="module")
def passed(digits):
    """A trainer, its only batch, and the statistics after a pass with the first weights."""
    loaded = tiny(digits, 16)
    trainer = small_trainer("cnn", "sam", loaded, on_host=True, rho=5.0)

    @jax.jit
    def one_pass(state, train):
        images = augment.normalize(train.images, train.mean, train.std)
        variables = {"params": state.params, **state.model_state}
        _, after = trainer.model.apply(variables, images, train=True, mutable=["batch_stats"])
        return Batch(images, train.labels), after

    state = trainer.init(loaded.train.shape, seed=0)
    return trainer, *one_pass(state, arrays(loaded))


@pytest.mark.parametrize("on_host", [False, True])
def test_batch_statistics_come_from_the_first_pass_alone(on_host, passed, digits):
    trainer, batch, expected = passed
    step = trainer.host_step if on_host else trainer.jit_step
    after = step(trainer.init(digits.train.shape, seed=0), batch)
    for one, other in zip(
        jax.tree.leaves(after.model_state["batch_stats"]),
        jax.tree.leaves(expected["batch_stats"]),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_metrics_of_an_epoch_are_the_means_over_its_steps(digits):
    loaded = tiny(digits)
    trainer = small_trainer("mlp", "ae_sam", loaded, on_host=True)
    train, seen = arrays(loaded), []
    first = jax.jit(trainer.step.first)

    def look(state, batch):
        result = first(state, batch)
        squares = sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(result[0]))
        seen.append((float(result[3]["loss"]), math.sqrt(squares)))
        return result

    trainer.host_step.first = look
    state = trainer.init(loaded.train.shape, seed=1)
    state = fit.fit([fit.Phase(0, 2, trainer)], state, train)
    found = fit.means(state, trainer.steps_per_epoch)
    second_epoch = np.mean(seen[4:], 0)
    np.testing.assert_allclose((found["loss"], found["gradient_norm"]), second_epoch, rtol=1e-5)
    ascents = int(state.method_state.ascents)
    assert len(seen) == 8
    assert 0 <= found["sam_fraction"] * 4 <= ascents <= 8


def test_the_optimizer_gives_a_method_what_it_asks_for():
    """total_steps, key, base and the gradient point are found by the names of the arguments."""
    recipe = recipes.RECIPES["digits"]
    build = functools.partial(optimizer, recipe, epochs=9, steps_per_epoch=1)
    params = {"w": jnp.ones(3)}
    state = build("r_sam", {}, key=5).method.init(params)
    assert state.start.key_data.tolist() == [0, 5]
    wsam = build("wsam", {})
    assert len(jax.tree.leaves(wsam.method.init(params).combine.base)) == 1  # momentum inside
    assert len(jax.tree.leaves(wsam.base.init(params))) == 1  # the step count of the schedule
    assert build("ae_sam", {"total_steps": 3}).method.init(params)


def test_a_method_draws_from_a_stream_of_its_own(digits):
    """Not from those of the weights, the orders of the epochs and the augmentation."""
    trainer = small_trainer("mlp", "r_sam", digits, on_host=False)
    keys = [trainer.init(digits.train.shape, seed).method_state.start.key_data for seed in (0, 1)]
    assert keys[0].tolist() != keys[1].tolist()
    others = [jax.random.key(0)]
    others += [jax.random.fold_in(others[0], stream) for stream in (0, 1, 2, AUGMENTATION)]
    assert all(jax.random.key_data(key).tolist() != keys[0].tolist() for key in others)


def test_a_schedule_of_a_setting_follows_the_run():
    """A budget in epochs, and a radius that follows the run's own learning rate."""
    recipe = dataclasses.replace(recipes.RECIPES["digits"], epochs=10)
    annealed = {"schedule": "budget_annealing", "budget": 0.5, "anneal_from": "50%"}
    follows = {
        "schedule": "rho_from_learning_rate",
        "rho_max": 0.6,
        "rho_min": 0.2,
        "lr_max": recipe.learning_rate,
        "lr_min": 0.0,
    }
    params, grads = {"w": jnp.ones(2)}, {"w": jnp.array([3.0, 4.0])}
    for method, settings, expected in (
        ("le_sam", {"budget": annealed}, {0: 0.5 / 25, 24: 0.5 / 25, 49: 0.0}),
        ("sam", {"rho": follows}, {0: 0.6 / 5, 25: 0.4 / 5}),
    ):
        link = optimizer(recipe, method, settings, epochs=10, steps_per_epoch=5).method
        for step, scale in expected.items():
            state = link.init(params)._replace(steps=jnp.int32(step))
            point, _ = link.update(grads, state, params, grad_fn=lambda p: p)
            np.testing.assert_allclose(point["w"], 1 + scale * grads["w"], rtol=1e-5)


def test_a_schedule_of_a_setting_follows_the_run_behind_a_switch():
    recipe = dataclasses.replace(recipes.RECIPES["digits"], epochs=10)
    annealed = {"schedule": "budget_annealing", "budget": 0.5, "anneal_from": 5}
    grads = {"w": jnp.array([3.0, 4.0])}
    for first, step in ((0, 35), (4, 15)):  # the same step of the run
        link = optimizer(
            recipe,
            "le_sam",
            {"budget": annealed},
            epochs=10 - first,
            first_epoch=first,
            steps_per_epoch=5,
        ).method
        state = link.init(grads)._replace(steps=jnp.int32(step))
        _, state = link.update(grads, state, grads, grad_fn=lambda p: p)
        budget = 0.25 * (1 + math.cos(math.pi * 2 / 4))  # two epochs of the four behind the fifth
        np.testing.assert_allclose(state.perturb.rho, budget / 5, rtol=1e-5)


def test_the_gradients_of_a_step_count_the_samples(monkeypatch, tmp_path, data_dir):
    undrawn(monkeypatch)
    arguments = ["digits", "--method", "lpf_sgd", "--set", "samples=3", "--epochs", 1]
    command(monkeypatch, train, *arguments, "--data-dir", data_dir, "--out", tmp_path)
    assert read(tmp_path / "digits-lpf_sgd-0" / "summary.json")["gradients_per_step"] == 3


def test_a_trainer_refuses_a_set_of_another_size(digits):
    trainer = small_trainer("mlp", "sgd", tiny(digits), on_host=False)
    state = trainer.init(digits.train.shape, seed=0)
    with pytest.raises(ValueError, match="this trainer is for 64 examples, got 1437"):
        next(trainer.dispatches(state, arrays(digits), most=1))


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_base_is_the_optimizer_of_optax(name, decoupled):
    """Three steps of each base against optax's own, with clipping and weight decay."""
    recipe = dataclasses.replace(
        recipes.RECIPES["digits"], optimizer=name, decoupled=decoupled, weight_decay=0.3,
        clip_norm=1.5, momentum=0.8, learning_rate=0.1, schedule="constant",
    )  # fmt: skip
    ours = optimizer(recipe, "sgd", {}, epochs=1, steps_per_epoch=9).base
    decay, clip = optax.add_decayed_weights(0.3), optax.clip_by_global_norm(1.5)
    base = {
        "sgd": optax.trace(0.8),
        "rmsprop": optax.chain(optax.scale_by_rms(0.99), optax.trace(0.8)),
        "adamw": optax.scale_by_adam(),
    }[name]
    order = [base, decay] if decoupled or name == "adamw" else [decay, base]
    theirs = optax.chain(clip, *order, optax.scale(-0.1))
    ends = []
    for tx in (ours, theirs):
        params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("cosine", {2: 0.4, 6: 0.4 * (1 + math.cos(math.pi / 2)) / 2, 10: 0.0}),
        ("cosine_epoch", {2: 0.4, 3: 0.4, 5: 0.4 * (1 + math.cos(math.pi / 4)) / 2, 10: 0.0}),
        ("linear", {2: 0.4, 4: 0.3, 10: 0.0}),
        ("constant", {2: 0.4, 9: 0.4}),
    ],
)
def test_the_learning_rate_follows_its_schedule_after_the_warm_up(schedule, values):
    """Five epochs of two steps, the first of them warming up."""
    recipe = dataclasses.replace(
        recipes.RECIPES["digits"], epochs=5, learning_rate=0.4, warmup_epochs=1, schedule=schedule
    )
    rate = learning_rate(recipe, steps_per_epoch=2)
    for step, value in ({0: 0.0, 1: 0.2} | values).items():
        np.testing.assert_allclose(rate(step), value, atol=1e-6)


def test_seeds_differ_in_weights_order_and_numbers(digits):
    loaded = tiny(digits)
    trainer = small_trainer("mlp", "r_sam", loaded, on_host=False)
    first, second = (trainer.init(loaded.train.shape, seed) for seed in (0, 1))
    assert (first.params["Dense_0"]["kernel"] != second.params["Dense_0"]["kernel"]).any()
    assert (first.method_state.start.key_data != second.method_state.start.key_data).any()
    orders = [
        trainer.step.order(state.seed, epoch) for state in (first, second) for epoch in (0, 1)
    ]
    assert len({tuple(np.ravel(order)) for order in orders}) == 4
    assert all(sorted(np.ravel(order)) == list(range(64)) for order in orders)


def test_soft_labels_train_on_the_cross_entropy_with_them(digits):
    """Label smoothing against the formula, and mixup with a weight for each class."""
    loaded = tiny(digits, 16)
    recipe = Recipe(
        dataset="digits", model="mlp", epochs=2, batch_size=16, learning_rate=0.1,
        label_smoothing=0.2, mixup=1.0, augmentation=("crop", "flip", "cutout"),
    )  # fmt: skip
    trainer = Trainer(recipe, "sgd", {}, data=loaded, on_host=False)
    state, train = trainer.init(loaded.train.shape, 0), arrays(loaded)
    order = trainer.jit_order(state.seed, 0)
    batch = trainer.jit_batch(state, train, order, 0)
    again = trainer.jit_batch(state._replace(step=state.step + 1), train, order, 0)
    assert (batch.images != again.images).any()  # each step draws anew
    np.testing.assert_allclose(batch.labels.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(batch.labels.min(), 0.02, rtol=1e-5)
    apply = jax.jit(functools.partial(trainer.model.apply, train=True))
    logits = np.asarray(apply({"params": state.params}, batch.images))
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(batch.labels * log_softmax).sum(-1).mean()
    loss, _ = jax.jit(trainer.step.loss)(state.params, state.model_state, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


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
    assert rows[-1]["rise"] > 0
    of_method = {"count", "mean", "variance", "checksum"}
    assert set(rows[-1]) - of_method <= documented("What a row of metrics tells")
    assert set(summary) <= documented("What a summary tells") | {"checksum"}
    assert read(path / "config.json")["label_noise"] == 0.4
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    for line in ("test accuracy", "test loss", "gradients per step", "share of SAM", "seconds"):
        assert line in said
    assert not list(path.glob("*.part"))


@pytest.mark.parametrize(("method", "told"), [("sam", True), ("r_sam", False), ("s2_sam", False)])
def test_the_rise_is_told_where_the_loss_at_the_parameters_is_known(method, told, digits):
    """Not where the first gradient is taken elsewhere, nor where there is no second."""
    loaded = tiny(digits)
    trainer = small_trainer("mlp", method, loaded, on_host=False)
    state, rows = trainer.init(loaded.train.shape, seed=1), []

    def on_epoch(phase, epoch, state):
        rows.append(fit.means(state, trainer.steps_per_epoch))

    fit.fit([fit.Phase(0, 1, trainer)], state, arrays(loaded), on_epoch=on_epoch)
    assert ("rise" in rows[0]) == told
    assert rows[0].get("rise", 1.0) > 0


def test_a_run_of_other_options_is_not_overwritten(monkeypatch, tmp_path, data_dir, capsys):
    undrawn(monkeypatch)
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
        (["--label-noise", "1.5"], "--label-noise must lie in [0, 1], got 1.5"),
        (["--validation", "1"], "--validation must lie in [0, 1), got 1"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "5000"], "--batch-size 5000 exceeds the 1437 training images"),
        (["--learning-rate", "-0.1"], "--learning-rate must not be negative"),
        (["--learning-rate", "nan"], "--learning-rate must be a finite number, got nan"),
        (["--seed", "-1"], "--seeds must be at least 0, got -1"),
        (["--seeds", "1", "1"], "--seeds must be different numbers"),
        (["--model", "resnet81"], "unknown model 'resnet81': did you mean resnet18"),
        (["--width", "0"], "--width must be at least 1, got 0"),
        (["--label-smoothing", "1"], "--label-smoothing must lie in [0, 1), got 1"),
        (["--warmup-epochs", "2"], "--warmup-epochs must be less than the 1 epochs, got 2"),
        (["--train-examples", "5000"], "--train-examples must lie in [1, 1437], got 5000"),
        (["--clip-norm", "0"], "--clip-norm must be positive, got 0"),
        (["--checkpoint-minutes", "nan"], "--checkpoint-minutes must be a finite number"),
        (["--method", "r_sam", "--set", "updates_at=params"], "unknown setting of r_sam"),
        (["--switch-at", "1"], "--switch-at and --then go together"),
        (["--switch-at", "1", "--then", "sgd"], "--switch-at must lie between 0 and the 1 epochs"),
        (["--epochs", "3", "--switch-at", "1", "--then", "wsam"], "there is no switching to it"),
        (["--then-set", "rho=1"], "--then-set is for the method of --then"),
        (["--steps-per-dispatch", "0"], "--steps-per-dispatch must be at least 1"),
        (["--seeds", "0", "1", "--vmap-seeds", "--method", "ss_sam"], "leave --vmap-seeds away"),
        (["--validation", "0.9999"], "leaves some on both sides"),
        (["--data-dir", "/dev/null/tfds"], "--data-dir /dev/null/tfds cannot be used"),
        (["--name", ".."], "--name must be a plain name, got '..'"),
        (["--set", "rho={'schedule': 'nope'}"], "a schedule must be a function of sam_optax"),
        (["--set", "rho={'rho_max': 1.0}"], "by its name, got None"),
        (["digits_cnn", "--seeds", "0", "1", "--vmap-seeds"], "leave --vmap-seeds away"),
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


def test_too_little_memory_is_told_in_one_line(monkeypatch, tmp_path, data_dir, capsys):
    def allocate(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")

    monkeypatch.setattr(Trainer, "init", allocate)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, "--data-dir", data_dir, "--out", tmp_path)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory (RESOURCE_EXHAUSTED")
    assert "smaller --batch-size or --width" in error
    assert error.count("\n") == 1


def test_the_papers_best_epoch_stands_beside_our_best():
    summary = {"test_accuracy": 0.9, "test_accuracy_best": 0.95, "paper": 96.0}
    summary |= {"papers_protocol": True, "test_loss": 0.1, "gradients_per_step": 2.0}
    summary |= {"sam_fraction": 1.0, "seconds": 1.0}
    best = train._figures(summary | {"paper_reports": "best"})
    assert best["best test accuracy"] == "95.00 %"
    assert best["test accuracy in the paper, best"] == "96.00 %"
    last = train._figures(summary | {"paper_reports": "last"})
    assert "best test accuracy" not in last
    assert last["test accuracy in the paper"] == "96.00 %"


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        ((), True),
        (("--set", "rho=0.05"), True),
        (("--set", "rho=0.1"), False),
        (("--switch-at", 1, "--then", "sgd"), False),
        (("--mesh", "data=2", "--perturbation", "device"), False),
    ],
)
def test_the_papers_protocol_is_the_recipe_and_no_more(
    options, protocol, monkeypatch, tmp_path, data_dir
):
    undrawn(monkeypatch)
    settings = {"sam": {"rho": 0.05}}
    made = Recipe("digits", "mlp", 2, batch_size=512, learning_rate=0.1, width=8, settings=settings)
    monkeypatch.setitem(recipes.RECIPES, "made", made)
    where = ("--data-dir", data_dir, "--out", tmp_path, "--name", "run")
    command(monkeypatch, train, "made", *where, *options)
    assert read(tmp_path / "run" / "summary.json")["papers_protocol"] is protocol


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
    monkeypatch.setattr("os._exit", sys.exit)
    append, rows = files.append_json, []

    def interrupt(path, row):
        append(path, row)
        rows.append(row)
        if len(rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "append_json", interrupt)
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
    undrawn(monkeypatch)
    arguments = ["digits", "--method", "gsam", "--over", "rho=0.05,0.1", "alpha=0.2"]
    arguments += ["learning_rate=0.1,0.05", "--seeds", 1, "--epochs", 1, "--validation", 0.2]
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


@pytest.mark.parametrize(
    ("method", "gamma"),
    [("sgd", None), ("sam", None)]
    + [(method, gamma) for method in ("wsam", "coupled_wsam") for gamma in (0.6, 0.95)],
)
def test_the_toy_paths_are_those_of_numpy(method, gamma):
    """150 steps with momentum, the sharpness term inside it or beside it."""
    w, velocity, points = np.array(toy.START), np.zeros(2), []
    for _ in range(toy.STEPS):
        points.append(w)
        g = toy_gradient(w)
        difference = toy_gradient(w + toy.RHO * g / np.linalg.norm(g)) - g
        factor = 1.0 if gamma is None else gamma / (1 - gamma)
        inside = factor if method in ("sam", "coupled_wsam") else 0.0
        velocity = toy.MOMENTUM * velocity + g + inside * difference
        beside = factor if method == "wsam" else 0.0
        w = w - toy.LEARNING_RATE * (velocity + beside * difference)
    with jax.enable_x64(True):
        path = toy.path_of(toy.optimizers()[method, gamma])
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


def test_a_run_that_fails_before_it_saves_anything_replaces_nothing(
    monkeypatch, tmp_path, data_dir
):
    undrawn(monkeypatch)
    shared = ["digits", "--method", "sgd", "--data-dir", data_dir, "--out", tmp_path]
    command(monkeypatch, train, *shared, "--epochs", 1)
    path = tmp_path / "digits-sgd-0"
    before = {file.name: file.read_bytes() for file in path.glob("*.*") if file.is_file()}
    with pytest.raises(SystemExit):
        command(monkeypatch, train, *shared, "--epochs", 2, "--learning-rate", 1e30, "--overwrite")
    assert {f.name: f.read_bytes() for f in path.glob("*.*") if f.is_file()} == before
    command(monkeypatch, train, *shared, "--epochs", 2, "--overwrite")
    assert read(path / "summary.json")["epochs"] == 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.slow
def test_the_default_command_reaches_97_percent(seed, monkeypatch, tmp_path, data_dir):
    arguments = ["--seed", seed, "--data-dir", data_dir, "--out", tmp_path]
    command(monkeypatch, train, *arguments)
    assert read(tmp_path / f"digits-sam-{seed}" / "summary.json")["test_accuracy"] > 0.97


def test_the_methods_of_the_commands_are_those_of_the_library():
    assert set(METHODS) == {"sgd", *NAMES}
