"""Runs that are cut short end where uninterrupted ones end, and nothing saved is lost."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

from inprocess import assert_same_end, command, end, interrupt_at, read, small_trainer, undrawn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import train
from experiments.cli.options import TrainingOptions
from experiments.results import folders
from experiments.training import fit, runs
from experiments.training.checkpoints import Checkpoints

SHORT = ("digits", "--epochs", 4, "--steps-per-dispatch", 5)


@pytest.fixture
def run(monkeypatch, tmp_path, data_dir):
    """Runs the command to its end, or to the exit code that is returned."""
    monkeypatch.setattr("os._exit", sys.exit)
    undrawn(monkeypatch)
    # a shell starts what runs in the background with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(*arguments):
        try:
            command(monkeypatch, train, *arguments, "--data-dir", data_dir, "--out", tmp_path)
        except SystemExit as stop:
            return stop.code
        return 0

    yield run
    signal.signal(signal.SIGINT, before)


def trained(tmp_path_factory, data_dir, *arguments):
    """A folder of "whole", a finished run, and of "cut", one that was stopped at step 32."""
    out = tmp_path_factory.mktemp("made")
    words = (*SHORT, *arguments, "--data-dir", data_dir, "--out", out, "--name")
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        patch.setattr("os._exit", sys.exit)
        command(patch, train, *words, "whole")
        interrupt_at(patch, 32)
        with pytest.raises(SystemExit) as stop:
            command(patch, train, *words, "cut")
    assert stop.value.code == 128 + signal.SIGTERM
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_dir):
    return trained(tmp_path_factory, data_dir)


@pytest.fixture
def whole(made, tmp_path):
    """A copy of the finished run, of that name."""
    return shutil.copytree(made / "whole", tmp_path / "whole")


@pytest.fixture
def cut(made, tmp_path):
    """A copy of the stopped run, of that name."""
    return shutil.copytree(made / "cut", tmp_path / "cut")


AUGMENTED = ("--method", "r_sam", "--augmentation", "crop", "flip", "--mixup", 0.5)
SWITCHED = ("--method", "sam", "--switch-at", 2, "--then", "samar", "--decide", "host")
ON_HOST = ("--method", "ae_looksam", "--decide", "host")


@pytest.mark.parametrize(
    ("arguments", "step"),
    [
        pytest.param(AUGMENTED, 30, id="augmented"),
        pytest.param(SWITCHED, 30, id="before the switch", marks=pytest.mark.slow),
        pytest.param(SWITCHED, 44, id="at the switch", marks=pytest.mark.slow),
        pytest.param(SWITCHED, 47, id="behind the switch"),
        pytest.param(ON_HOST, 30, id="on the host", marks=pytest.mark.slow),
    ],
)
def test_a_terminated_run_is_resumed_bit_for_bit(arguments, step, run, tmp_path, monkeypatch):
    dispatch = ("--steps-per-dispatch", 1)
    assert run(*SHORT, *arguments, *dispatch, "--name", "whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        assert run(*SHORT, *arguments, *dispatch, "--name", "cut") == 128 + signal.SIGTERM
    assert end(tmp_path / "cut")[0] == step
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert run(*SHORT, *arguments, *dispatch, "--name", "cut", "--resume") == 0
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


def test_a_run_that_was_cut_behind_its_last_step_is_finished(run, whole, made):
    (whole / "summary.json").unlink()
    (whole / "curves.png").unlink()
    assert run(*SHORT, "--name", "whole", "--resume") == 0
    assert_same_end(whole, made / "whole")
    assert (whole / "curves.png").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(run, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20, signal.SIGINT)
        assert run(*SHORT) == 130
    said = capfd.readouterr().err
    assert "stopping after this step" in said
    assert "saved at step 20 of 88; go on with --resume" in said
    assert Checkpoints(tmp_path / "digits-sam-0" / "checkpoints").steps() == [20]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once(run, tmp_path, monkeypatch):
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda *args: (signal.raise_signal(signal.SIGINT), save(*args))
    )
    interrupt_at(monkeypatch, 20, signal.SIGINT)
    assert run(*SHORT) == 130
    assert Checkpoints(tmp_path / "digits-sam-0" / "checkpoints").steps() == []


def test_an_unfinished_run_is_neither_lost_nor_mistaken(run, cut, capsys):
    for arguments, message in (
        ((), "holds an unfinished run, or one with a damaged file: pass --resume"),
        (("--resume", "--learning-rate", 0.3), "holds a run with other learning_rate"),
        (("--resume", "--method", "gsam"), "other method"),
    ):
        assert run(*SHORT, "--name", "cut", *arguments) == 2
        assert message in capsys.readouterr().err
    assert end(cut)[0] == 32
    assert run(*SHORT, "--name", "cut", "--overwrite") == 0
    assert [row["epoch"] for row in rows(cut)] == [1, 2, 3, 4]


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def written(path):
    """Which file it is, and when it was written."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_a_finished_run_is_kept(run, whole, capsys):
    before = written(whole / "summary.json")
    for flag in ((), ("--resume",)):
        assert run(*SHORT, "--name", "whole", *flag) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "already finished (--overwrite trains it again)" in said
        assert "test accuracy" in said
    assert written(whole / "summary.json") == before


def test_resuming_and_beginning_again_exclude_each_other(run, capsys):
    assert run(*SHORT, "--resume", "--overwrite") == 2
    assert "pass one of them" in capsys.readouterr().err


def test_two_processes_do_not_train_in_one_folder(run, tmp_path, capsys):
    with folders.held(tmp_path / "digits-sam-0", "train"):
        assert run(*SHORT) == 2
        assert "another process works in" in capsys.readouterr().err
    assert run(*SHORT) == 0


def test_a_full_disk_loses_nothing_that_was_saved(run, cut, made, monkeypatch, capsys):
    with monkeypatch.context() as patch:

        def no_room(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(ocp.CheckpointManager, "save", no_room)
        assert run(*SHORT, "--name", "cut", "--resume", "--checkpoint-minutes", 0) == 2
    assert "No space left on device. What was saved before is kept" in capsys.readouterr().err
    assert end(cut)[0] == 32
    assert run(*SHORT, "--name", "cut", "--resume") == 0
    assert_same_end(cut, made / "whole")


def test_a_damaged_checkpoint_is_told(run, cut, capsys):
    for file in (cut / "checkpoints" / "32" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    assert run(*SHORT, "--name", "cut", "--resume") == 2
    assert "cannot read the checkpoint of step 32" in capsys.readouterr().err


def damage_a_number(path):
    """Flips a bit in the largest file of the state."""
    file = max((path / "state").rglob("*"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def forget_the_metrics(path):
    (path / "progress" / "metadata").write_text("{}")


def empty_the_numbers(path):
    max((path / "state").rglob("*"), key=lambda file: file.stat().st_size).write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_a_number, forget_the_metrics, empty_the_numbers])
def test_no_damage_goes_unnoticed(damage, cut, tmp_path, data_dir):
    damage(cut / "checkpoints" / "32")
    # in a process of its own: what is left of a failed read troubles what comes after it
    command = [sys.executable, "-m", "experiments.train", *SHORT, "--name", "cut", "--resume"]
    command += ["--data-dir", data_dir, "--out", tmp_path]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert ended.returncode == 2
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: cannot read the checkpoint of step 32")
    assert len(errors[0]) < 1000


def test_a_checkpoint_beyond_the_end_is_told(run, cut, capsys):
    (cut / "checkpoints" / "32").rename(cut / "checkpoints" / "999")
    assert run(*SHORT, "--name", "cut", "--resume") == 2
    assert "a checkpoint of step 999, beyond the 88" in capsys.readouterr().err


def test_a_signal_before_training_leaves_the_results_to_be_overwritten(
    run, whole, monkeypatch, capsys
):
    load = TrainingOptions.load

    def load_and_send(*args):
        signal.raise_signal(signal.SIGTERM)
        return load(*args)

    monkeypatch.setattr(TrainingOptions, "load", load_and_send)
    assert run(*SHORT, "--name", "whole", "--overwrite") == 128 + signal.SIGTERM
    assert "whole was not begun" in capsys.readouterr().err
    assert (whole / "summary.json").exists()
    assert end(whole)[0] == 88


def test_a_diverged_state_is_not_saved(run, tmp_path, capsys):
    arguments = ("--method", "sgd", "--learning-rate", 1e20, "--checkpoint-minutes", 0)
    assert run(*SHORT, *arguments) == 2
    assert "lower the learning rate" in capsys.readouterr().err
    for step in Checkpoints(tmp_path / "digits-sgd-0" / "checkpoints").steps():
        assert step < 22


def test_a_seed_that_diverges_does_not_stop_the_others(run, tmp_path, monkeypatch, capsys):
    add = runs.Run.add

    def diverge(self, row):
        if self.seed == 1:
            raise fit.DivergedError("the loss is nan")
        add(self, row)

    monkeypatch.setattr(runs.Run, "add", diverge)
    assert run(*SHORT, "--seeds", 0, 1, 2) == 2
    assert "digits-sam-1: the loss is nan" in capsys.readouterr().err
    finished = [(tmp_path / f"digits-sam-{seed}" / "summary.json").exists() for seed in range(3)]
    assert finished == [True, False, True]


@pytest.mark.parametrize("quantity", ["loss", "parameter"])
def test_what_is_not_finite_is_told_before_it_is_saved(quantity, digits):
    trainer = small_trainer("mlp", "sgd", digits, on_host=False)
    state = trainer.init(digits.train.shape, seed=0)
    assert fit.means(state, 1)["loss"] == 0
    if quantity == "loss":
        bad = state._replace(metrics=state.metrics | {"loss": jnp.float32(jnp.nan)})
    else:
        bad = state._replace(params=jax.tree.map(lambda p: np.full_like(p, np.inf), state.params))
    with pytest.raises(fit.DivergedError, match=f"the .*{quantity}.* is .*lower the learning rate"):
        fit.means(bad, 1)


TOGETHER = ("--method", "le_sam", "--seeds", 3, 4, "--vmap-seeds", "--label-noise", 0.2)


@pytest.fixture(scope="module")
def made_together(tmp_path_factory, data_dir):
    return trained(tmp_path_factory, data_dir, *TOGETHER)


@pytest.fixture
def together(made_together, tmp_path):
    """Copies of the finished and of the stopped runs, whose names end with their seeds."""
    return shutil.copytree(made_together, tmp_path, dirs_exist_ok=True)


def test_seeds_at_once_train_as_one_by_one_and_resume(run, together):
    assert run(*SHORT, *TOGETHER, "--name", "cut", "--resume") == 0
    assert run(*SHORT, "--method", "le_sam", "--label-noise", 0.2, "--seed", 4) == 0
    for seed in (3, 4):
        assert_same_end(together / f"cut-{seed}", together / f"whole-{seed}")
    _, one = end(together / "digits-le_sam-4")
    _, other = end(together / "whole-4")
    for leaf, other_leaf in zip(one, other, strict=True):
        np.testing.assert_allclose(leaf, other_leaf, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_switched_run_goes_on_with_parameters_and_momentum(run, tmp_path):
    """Switched from SGD to itself, a run is the run that was not switched."""
    plain = (*SHORT, "--method", "sgd")
    assert run(*plain, "--name", "one") == 0
    assert run(*plain, "--switch-at", 2, "--then", "sgd", "--name", "two") == 0
    for one, other in zip(end(tmp_path / "one")[1], end(tmp_path / "two")[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert run(*plain, "--switch-at", 3, "--then", "sam", "--name", "three") == 0
    shares = [row["sam_fraction"] for row in rows(tmp_path / "three")]
    assert shares == [0, 0, 0, 1]
    summary = read(tmp_path / "three" / "summary.json")
    assert (summary["ascents"], summary["gradients_per_step"]) == (22, 1.25)
    assert summary["then"] == [[3, "sam", {"rho": 0.5}]]


def test_tensorboard_gets_each_epoch(run, tmp_path):
    pytest.importorskip("tensorboardX", reason="it is an extra of its own")
    assert run(*SHORT, "--tensorboard") == 0
    (events,) = (tmp_path / "digits-sam-0" / "tensorboard").iterdir()
    assert events.read_bytes().count(b"test_accuracy") == 4


@pytest.mark.slow
def test_five_kills_at_random_moments_change_nothing(tmp_path, data_dir):
    """SIGKILL between and within checkpoints: none is read half-written, no step is lost."""
    base = [sys.executable, "-m", "experiments.train", *map(str, SHORT), "--method", "ae_looksam"]
    base += ["--epochs", "8", "--checkpoint-minutes", "0", "--data-dir", str(data_dir)]
    base += ["--out", str(tmp_path)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    cut, rng = [*base, "--name", "cut", "--resume"], random.Random(0)
    options = {"env": {**os.environ, **cache}, "stdout": subprocess.DEVNULL}
    subprocess.run([*base, "--name", "whole"], check=True, **options)
    checkpoints = tmp_path / "cut" / "checkpoints"
    last = -1
    for _ in range(5):
        process = subprocess.Popen(cut, **options)
        while process.poll() is None and newest(checkpoints) <= last:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        last = newest(checkpoints)
        assert last > 0
    subprocess.run(cut, check=True, **options)
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


def test_seeds_saved_at_no_common_step_are_neither_resumed_nor_lost(run, together, capsys):
    (together / "cut-4" / "checkpoints" / "32").rename(together / "elsewhere")
    checkpoints = together / "cut-3" / "checkpoints"
    shutil.copytree(checkpoints / "32", checkpoints / "30")
    assert run(*SHORT, *TOGETHER, "--name", "cut", "--resume") == 2
    assert "no checkpoint of a common step" in capsys.readouterr().err
    assert end(together / "cut-3")[0] == 32


def test_seeds_whose_first_checkpoint_was_cut_short_begin_again(run, together):
    """One seed's is written before the other's."""
    (together / "cut-4" / "checkpoints" / "32").rename(together / "elsewhere")
    assert run(*SHORT, *TOGETHER, "--name", "cut", "--resume") == 0
    assert_same_end(together / "cut-3", together / "whole-3")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_seeds_of_which_one_lacks_its_results_get_them(seed, run, together, made_together):
    """As after a kill between the two."""
    (together / f"whole-{seed}" / "summary.json").unlink()
    assert run(*SHORT, *TOGETHER, "--name", "whole", "--resume") == 0
    for each in (3, 4):
        assert_same_end(together / f"whole-{each}", made_together / f"whole-{each}")


def test_checkpoints_behind_the_one_to_go_on_from_are_forgotten(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (5, 7):
        checkpoints.save(step, {"a": jnp.ones(2)}, [], 0.0)
    checkpoints.forget_after(5)
    assert checkpoints.steps() == [5]


def newest(checkpoints):
    """The last step with a complete checkpoint, by the name of its folder alone."""
    names = os.listdir(checkpoints) if checkpoints.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=-1)
