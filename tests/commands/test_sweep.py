"""Sweeps: every run in its cell, none lost or trained twice, and pictures that show them."""

import errno
import os
import signal
import subprocess
import sys
import time

from inprocess import command, read
import numpy as np
import pytest

from experiments import sweep
from experiments.results import folders, lines, sweep_plots
from experiments.training import fit

SHORT = ("digits", "--method", "ae_sam", "--epochs", 1, "--batch-size", 256)
GRID = ("--over", "lambda_1=-2,1", "--over", "lambda_2=-9,2")


@pytest.fixture
def run(monkeypatch, tmp_path, data_dir):
    """Runs the command to its end, or to the exit code that is returned."""
    monkeypatch.setattr("os._exit", sys.exit)
    # a shell starts what runs in the background with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(*arguments):
        try:
            command(monkeypatch, sweep, *arguments, "--data-dir", data_dir, "--out", tmp_path)
        except SystemExit as stop:
            return stop.code
        return 0

    yield run
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def trained(monkeypatch):
    """The learning rates and seeds that are trained, in place of training: with made figures."""
    seen = []

    def train(trainer, data, *, seed, on_dispatch):
        del data
        rate = trainer.recipe.learning_rate
        on_dispatch(None, 1, None)
        seen.append((rate, seed))
        if rate > 1:
            raise fit.DivergedError
        figures = {"sam_fraction": rate, "gradients_per_step": 1 + rate, "seconds": 1.0}
        return {"validation_accuracy": rate + (seed - 1000) / 10, "test_accuracy": 0.0, **figures}

    monkeypatch.setattr(sweep, "train", train)
    return seen


def result(tmp_path, name="digits-ae_sam-sweep"):
    return read(tmp_path / name / "sweep.json")


def without_seconds(found):
    """The rows and the runs, but for how long they took."""
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in (*found["rows"], *found["runs"])
    ]


def row(cell, accuracy=50.0, std=1.0, sam_fraction=0.5, diverged=0):
    return {
        "cell": cell.split(),
        "accuracy": accuracy,
        "std": std,
        "sam_fraction": sam_fraction,
        "sam_fraction_std": None if std is None else 0.01,
        "diverged": diverged,
    }


# The command


@pytest.mark.parametrize(
    "given",
    [
        ("--over", "momentum=0.5,0.9", "learning_rate=0.1,0.2"),
        ("--over", "momentum=0.5,0.9", "--over", "learning_rate=0.1,0.2"),
    ],
    ids=["one --over", "two"],
)
def test_over_takes_several_settings_and_may_be_repeated(given, run, trained, tmp_path):
    assert run(*SHORT, *given, "--seeds", 1) == 0
    assert [" ".join(row["cell"]) for row in result(tmp_path)["rows"]] == [
        f"momentum={momentum} learning_rate={rate}"
        for momentum in ("0.5", "0.9")
        for rate in ("0.1", "0.2")
    ]


@pytest.mark.slow
def test_a_killed_sweep_ends_where_a_whole_one_ends(run, tmp_path, data_dir, monkeypatch):
    """SIGKILL while it trains, and a line cut in the middle: no finished run is trained again."""
    arguments = (*SHORT, *GRID, "--seeds", 2, "--name")
    assert run(*arguments, "whole") == 0
    shared = ("--data-dir", data_dir, "--out", tmp_path)
    words = map(str, ("-m", "experiments.sweep", *arguments, "cut", *shared))
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    options = {"env": {**os.environ, **cache}, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *words], **options)
    kept = tmp_path / "cut" / "runs.jsonl"
    while process.poll() is None and not kept.exists():
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "sweep.json").exists()
    before = kept.read_text().splitlines()
    with kept.open("a") as file:
        file.write('{"cell": ["lambda_1=')
    seeds, train = [], sweep.train

    def counted(*args, seed, **kwargs):
        seeds.append(seed)
        return train(*args, seed=seed, **kwargs)

    monkeypatch.setattr(sweep, "train", counted)
    assert run(*arguments, "cut") == 0
    after = kept.read_text().splitlines()
    assert 0 < len(before) < 8
    assert after[: len(before)] == before
    assert len(seeds) == 8 - len(before)
    assert without_seconds(result(tmp_path, "cut")) == without_seconds(result(tmp_path, "whole"))
    assert run(*arguments, "cut") == 0
    assert len(seeds) == 8 - len(before)


def test_each_run_stands_in_its_cell(run, trained, tmp_path):
    over = ("--over", "learning_rate=0.3,0.1", "--over", "momentum=0.5,0.9")
    assert run(*SHORT, *over, "--seeds", 3) == 0
    rows = result(tmp_path)["rows"]
    assert [row["cell"] for row in rows] == [
        [f"learning_rate={rate}", f"momentum={momentum}"]
        for rate in ("0.3", "0.1")
        for momentum in ("0.5", "0.9")
    ]
    np.testing.assert_allclose([row["accuracy"] for row in rows], [40, 40, 20, 20])
    np.testing.assert_allclose([row["std"] for row in rows], 10)
    np.testing.assert_allclose([row["sam_fraction"] for row in rows], [0.3, 0.3, 0.1, 0.1])
    assert [run["seed"] for run in result(tmp_path)["runs"]] == 4 * [1000, 1001, 1002]
    path = tmp_path / "digits-ae_sam-sweep"
    assert "| learning_rate=0.3 momentum=0.5 | 40.00 ± 10.00 |" in (path / "sweep.md").read_text()
    assert (path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_more_seeds_and_values_train_what_is_missing(run, trained, tmp_path):
    assert run(*SHORT, "--over", "learning_rate=0.1,0.2", "momentum=0.9", "--seeds", 2) == 0
    assert trained == [(0.1, 1000), (0.1, 1001), (0.2, 1000), (0.2, 1001)]
    trained.clear()
    assert run(*SHORT, "--over", "momentum=0.9", "learning_rate=0.3,0.2", "--seeds", 3) == 0
    assert trained == [(0.3, 1000), (0.3, 1001), (0.3, 1002), (0.2, 1002)]
    assert [row["accuracy"] for row in result(tmp_path)["rows"]] == pytest.approx([40, 30])
    trained.clear()
    assert run(*SHORT, "--over", "learning_rate=0.1", "momentum=0.9", "--seeds", 1) == 0
    assert not trained
    assert [row["accuracy"] for row in result(tmp_path)["rows"]] == pytest.approx([10])
    assert not (tmp_path / "digits-ae_sam-sweep" / "sweep.png").exists()


ONE = ("--over", "learning_rate=0.1,0.2", "--seeds", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", 2), "holds a run with other epochs"),
        (("--validation", 0.5), "holds a run with other validation"),
        (("--method", "sam", "--name", "digits-ae_sam-sweep"), "other method, method_kwargs"),
        (("--over", "rho=0.1,0.10"), "--over must read name=value,value with different values"),
        (("--over", "rho"), "--over must read name=value,value"),
        (("--over", "learning_rate=0.3"), "names a setting twice: learning_rate learning_rate"),
        (("--name", "a/b"), "--name must be a plain name"),
        (("--seeds", 0), "--seeds must be at least 1"),
    ],
)
def test_a_mistake_leaves_the_finished_runs(arguments, message, run, trained, tmp_path, capsys):
    assert run(*SHORT, *ONE) == 0
    folder = tmp_path / "digits-ae_sam-sweep"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(*SHORT, *ONE, *arguments) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(trained) == 2


def test_overwrite_begins_again(run, trained, tmp_path):
    assert run(*SHORT, *ONE) == 0
    assert run(*SHORT, *ONE, "--epochs", 2, "--overwrite") == 0
    assert len(trained) == 4
    assert len((tmp_path / "digits-ae_sam-sweep" / "runs.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_says_how_to_go_on(
    number, run, trained, tmp_path, monkeypatch, capsys
):
    train = sweep.train

    def train_and_send(trainer, data, *, seed, on_dispatch):
        if seed == 1001:
            signal.raise_signal(number)
        return train(trainer, data, seed=seed, on_dispatch=on_dispatch)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train", train_and_send)
        assert run(*SHORT, *ONE, "--seeds", 3) == 128 + number
    path = tmp_path / "digits-ae_sam-sweep"
    assert f"1 of 6 runs are kept in {path}; the same command goes on." in capsys.readouterr().err
    assert trained == [(0.1, 1000)]
    assert run(*SHORT, *ONE, "--seeds", 3) == 0
    assert len(trained) == 6


def test_training_heeds_the_signal_between_two_dispatches(run, tmp_path, monkeypatch):
    fit_ = fit.fit

    def fit_and_send(phases, state, train, *, on_epoch, on_dispatch):
        signal.raise_signal(signal.SIGINT)
        return fit_(phases, state, train, on_epoch=on_epoch, on_dispatch=on_dispatch)

    monkeypatch.setattr(fit, "fit", fit_and_send)
    assert run(*SHORT, *ONE) == 130
    assert not (tmp_path / "digits-ae_sam-sweep" / "runs.jsonl").exists()


def test_what_is_damaged_is_told_or_healed(run, trained, tmp_path, capsys):
    assert run(*SHORT, *ONE) == 0
    folder = tmp_path / "digits-ae_sam-sweep"
    kept = folder / "runs.jsonl"
    whole = kept.read_bytes()
    for cut in (whole[:-20], whole + b"\0\0\0", whole[:-1]):
        kept.write_bytes(cut)
        trained.clear()
        assert run(*SHORT, *ONE) == 0
        assert kept.read_bytes() == whole
        assert len(trained) == (len(cut) == len(whole) - 20)
    for damaged, message in (
        (b"\xff" + whole, f"line 1 of {kept} is damaged ("),
        (b"5\n" + whole, f"line 1 of {kept} is damaged (it holds no JSON object but 5): remove"),
        (b"{}\n" + whole, "its checksum is not that of what was written"),
    ):
        kept.write_bytes(damaged)
        assert run(*SHORT, *ONE) == 2
        assert message in capsys.readouterr().err
    kept.write_bytes(whole)
    (folder / "config.json").unlink()
    assert run(*SHORT, *ONE) == 2
    assert "without the config.json that tells their options" in capsys.readouterr().err
    assert kept.read_bytes() == whole


def test_two_sweeps_do_not_train_in_one_folder(run, trained, tmp_path, capsys):
    with folders.held(tmp_path / "digits-ae_sam-sweep", "sweep"):
        assert run(*SHORT, *ONE, "--overwrite") == 2
    assert "another process works in" in capsys.readouterr().err


def test_a_full_disk_is_told_in_one_line(run, trained, monkeypatch, capsys):
    def no_room(path, value):
        raise lines.files.WriteError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(lines.files, "append_json", no_room)
    assert run(*SHORT, *ONE) == 2
    assert "No space left on device. What was written before is kept" in capsys.readouterr().err


def test_a_diverged_run_counts_as_a_guess_and_without_its_costs(run, trained, tmp_path):
    assert run(*SHORT, "--over", "learning_rate=0.1,9", "--seeds", 2) == 0
    ended, diverged = result(tmp_path)["rows"]
    assert ended["diverged"] == 0
    assert (diverged["diverged"], diverged["accuracy"], diverged["sam_fraction"]) == (2, 10, None)
    assert trained == [(0.1, 1000), (0.1, 1001), (9, 1000), (9, 1001)]
    written = (tmp_path / "digits-ae_sam-sweep" / "sweep.md").read_text()
    assert "| learning_rate=9 | 10.00 ± 0.00, 2 diverged |  |  |  |" in written


def test_the_row_of_a_cell_by_hand():
    def made(accuracy, fraction, seconds):
        costs = {"sam_fraction": fraction, "gradients_per_step": 1 + fraction, "seconds": seconds}
        return {"accuracy": accuracy, "diverged": False, **costs}

    diverged = {"accuracy": 10.0, "diverged": True, **dict.fromkeys(sweep.COSTS)}
    row = sweep.summarize(("rho=1",), [made(60, 0.4, 9.0), made(80, 0.6, 1.0), diverged])
    assert row == {
        "cell": ["rho=1"],
        "accuracy": 50,
        "std": pytest.approx(1300**0.5),
        "sam_fraction": 0.5,
        "sam_fraction_std": pytest.approx(0.02**0.5),
        "gradients_per_step": 1.5,
        "seconds": 5,
        "diverged": 1,
    }
    alone = sweep.summarize((), [made(60, 0.4, 9.0)])
    assert (alone["std"], alone["sam_fraction_std"]) == (None, None)


# The pictures


def test_the_matrix_has_the_first_setting_across_and_the_second_up():
    axes = {"lambda_1": ["-1", "2"], "lambda_2": ["-3", "0", "3"]}
    rows = [
        row(f"lambda_2={up} rho=1 lambda_1={across}", accuracy=10 * int(across) + int(up))
        for up in ("0", "3", "-3")
        for across in ("2", "-1")
    ]
    rows[-1]["accuracy"] = None
    found = sweep_plots.matrix(rows, axes, "accuracy")
    np.testing.assert_array_equal(found, [[np.nan, 17], [-10, 20], [-7, 23]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["2", "-1", "1e-3"], ["-1", "1e-3", "2"]),
        (["True", "False"], ["True", "False"]),
        (["0.5", "None", "0.1"], ["0.5", "None", "0.1"]),
        (["inf", "0", "1"], ["inf", "0", "1"]),
    ],
)
def test_numbers_are_put_in_order_and_other_values_left(values, expected):
    assert sweep_plots.ordered(values) == expected


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws rows and returns the figure."""
    kept, save = [], sweep_plots.save

    def save_and_keep(figure, path):
        figure.canvas.draw()
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(sweep_plots, "save", save_and_keep)

    def draw(rows, axes):
        path = tmp_path / "sweep.png"
        shared = {"title": "digits, sam, 2 seeds", "fixed": {"rho": 0.8}, "code": "0123456789ab"}
        sweep_plots.picture(path, rows, axes, **shared)
        assert path.read_bytes().startswith(b"\x89PNG")
        return kept.pop()

    return draw


def test_two_settings_are_heat_maps_of_accuracy_and_share(drawn):
    axes = {"lambda_1": ["1", "-1"], "rho_max": ["0.1", "None"], "gamma": ["0.5"]}
    values = [("1", "0.1", 90, 0.2), ("1", "None", 40, 0.4), ("-1", "0.1", 60, 0.6)]
    rows = [
        row(f"lambda_1={one} rho_max={two} gamma=0.5", accuracy, sam_fraction=share)
        for one, two, accuracy, share in values
    ]
    rows.append(row("lambda_1=-1 rho_max=None gamma=0.5", 10, 0.0, None, diverged=2))
    rows[-1]["sam_fraction_std"] = None
    figure = drawn(rows, axes)
    accuracy, share = figure.axes[:2]
    np.testing.assert_array_equal(accuracy.images[0].get_array(), [[60, 90], [10, 40]])
    np.testing.assert_allclose(share.images[0].get_array(), [[60, 20], [np.nan, 40]])
    assert accuracy.images[0].origin == "lower"
    said = {text.get_position(): text.get_text() for text in accuracy.texts}
    assert said[1, 0] == "90.00\n± 1.00"
    assert said[0, 1] == "10.00\n± 0.00\n2 diverged"
    shares = ["60.0\n± 1.0", "20.0\n± 1.0", "–", "40.0\n± 1.0"]
    assert [text.get_text() for text in share.texts] == shares
    colors = {text.get_text()[:2]: text.get_color() for text in accuracy.texts}
    assert (colors["90"], colors["10"]) == ("black", "white")
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("λ₁", "rho max")
    assert (accuracy.get_title(), share.get_title()) == ("accuracy (%)", "share of SAM steps (%)")
    assert "ρ = 0.8" in figure.get_supxlabel()
    assert "guess" in figure.get_supxlabel()
    assert "Code: 0123456789ab" in figure.get_supxlabel()


def test_a_share_that_does_not_vary_has_no_panel(drawn):
    rows = [row("rho=0.1", std=None), row("rho=0.2", std=None)]
    figure = drawn(rows, {"rho": ["0.1", "0.2"]})
    assert [axis.get_ylabel() for axis in figure.axes] == ["accuracy (%)"]
    assert "deviation" not in figure.get_supxlabel()
    assert "guess" not in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("values", "places", "scale"),
    [
        (["1", "0.01", "0.1"], [0.01, 0.1, 1], "log"),
        (["0.1", "0.3", "0.2"], [0.1, 0.2, 0.3], "linear"),
        (["-2", "0", "100"], [-2, 0, 100], "linear"),
        (["True", "False"], [0, 1], "linear"),
    ],
)
def test_one_setting_is_a_line_through_its_values(values, places, scale, drawn):
    accuracies = {value: float(i) for i, value in enumerate(values)}
    rows = [row(f"rho={value}", accuracies[value]) for value in values]
    (axis,) = drawn(rows, {"rho": values}).axes
    line, (bars,) = axis.lines[0], axis.collections
    expected = [accuracies[value] for value in sweep_plots.ordered(values)]
    np.testing.assert_array_equal(line.get_xydata(), np.transpose([places, expected]))
    np.testing.assert_allclose([np.ptp(bar[:, 1]) for bar in bars.get_segments()], 2)
    assert axis.get_xscale() == scale
    assert line.get_linestyle() == ("None" if "True" in values else "-")


def test_three_settings_are_the_best_cells_in_order(drawn):
    axes = {"rho": ["1", "2"], "gamma": ["1", "2", "3"], "alpha": ["1", "2", "3", "4"]}
    rows = [
        row(f"rho={rho} gamma={gamma} alpha={alpha}", float(rho + gamma + alpha))
        for rho in axes["rho"]
        for gamma in axes["gamma"]
        for alpha in axes["alpha"]
    ]
    (axis,) = drawn(rows, axes).axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == 20
    assert (labels[0], labels[-1]) == ("ρ = 2, γ = 3, α = 4", "ρ = 1, γ = 2, α = 1")
    assert axis.get_title() == "the best 20 of 24 cells"
    assert axis.yaxis_inverted()
