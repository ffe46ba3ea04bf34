"""The rows of gpu_check: kept from call to call, shown, and judged by what is promised."""

import signal
import sys

from inprocess import command, read
import pytest

from experiments import gpu_check
from experiments.benchmark.gpu import (
    compilation,
    decisions,
    determinism,
    epochs,
    kept,
    promised,
    report,
)

SMALL = {"model": "mlp", "width": 4, "dtype": "float32", "batch_size": 16, "examples": 64}
ABOUT = {"device": "cpu", "options": SMALL}


def part(*names, then=None):
    """A part that yields rows of these names, and then does something."""

    def measure(setup):
        for number, name in enumerate(names):
            yield {"name": name, "milliseconds": float(number)}
        if then is not None:
            then()

    return measure


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command on parts that are made here, and gives its exit status."""
    monkeypatch.setattr("os._exit", sys.exit)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def run(*arguments, **parts):
        for name, measure in parts.items():
            monkeypatch.setitem(gpu_check.PARTS, name, measure)
        where = ["--data-dir", tmp_path, "--out", tmp_path, "--examples", 128]
        try:
            command(monkeypatch, gpu_check, *where, "--parts", *parts, *arguments)
        except SystemExit as stop:
            return stop.code
        return 0

    yield run
    signal.signal(signal.SIGTERM, before)


def names_in(tmp_path):
    """The names of the rows in the report, by part."""
    found = read(tmp_path / "gpu_check" / "gpu_check.json")
    return {name: [row["name"] for row in found[name]] for name in gpu_check.PARTS if name in found}


def test_the_rows_of_several_calls_are_one_report(run, tmp_path):
    assert run(steps=part("sgd", "sam"), epochs=part("sgd")) == 0
    assert run(steps=part("sam", "asam"), wrn=part("sgd")) == 0
    assert names_in(tmp_path) == {
        "steps": ["sgd", "sam", "asam"],
        "epochs": ["sgd"],
        "wrn": ["sgd"],
    }
    found = read(tmp_path / "gpu_check" / "gpu_check.json")
    assert [row["milliseconds"] for row in found["steps"]] == [0.0, 0.0, 1.0]
    assert "## WRN-28-10" in (tmp_path / "gpu_check" / "gpu_check.md").read_text()


def test_a_signal_loses_no_row(run, tmp_path, capsys):
    stopped = part("sgd", "sam", then=lambda: signal.raise_signal(signal.SIGTERM))
    assert run(steps=stopped, epochs=part("sgd")) == 143
    assert "what was written before is kept" in capsys.readouterr().err
    assert names_in(tmp_path) == {"steps": ["sgd", "sam"]}
    assert run(epochs=part("sgd")) == 0
    assert names_in(tmp_path) == {"steps": ["sgd", "sam"], "epochs": ["sgd"]}


def test_a_part_whose_time_is_over_begins_no_further_row(run, tmp_path, capsys):
    assert run("--minutes", 1e-9, steps=part("sgd", "sam"), epochs=part("sgd", "sam")) == 0
    assert "steps is not complete after 1e-09 minutes" in capsys.readouterr().err
    assert names_in(tmp_path) == {"steps": ["sgd"], "epochs": ["sgd"]}


def test_another_device_is_refused(run, tmp_path, monkeypatch, capsys):
    assert run(steps=part("sgd")) == 0
    found = gpu_check.provenance.provenance()
    other = {**found, "device": "H100"}
    monkeypatch.setattr(gpu_check.provenance, "provenance", lambda: other)
    assert run(epochs=part("sgd")) == 2
    said = capsys.readouterr().err
    assert f"holds what {found['device']} with jax {found['versions']['jax']}" in said
    assert "and this is H100 with" in said
    assert "pass --name for a folder of its own, or --overwrite" in said
    assert run("--overwrite", epochs=part("sgd")) == 0
    assert names_in(tmp_path) == {"epochs": ["sgd"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--parts", "steps", "steps"), "--parts must be different ones"),
        (("--turns", 1), "--turns must be at least 2, got 1"),
        (("--examples", 4), "--examples must be at least --batch-size 128, got 4"),
        (("--minutes", 0), "--minutes must be positive"),
    ],
)
def test_options_that_make_no_sense_are_refused(run, arguments, said, capsys):
    assert run(*arguments, steps=part("sgd")) == 2
    assert said in capsys.readouterr().err


def test_a_row_measured_anew_takes_the_place_of_what_it_was(tmp_path):
    """All of it, since it tells one commit; what one call adds to its own row stays."""
    lines = kept.Kept(tmp_path / "runs.jsonl", "one")
    lines.add("steps", {"name": "sam", "milliseconds": 1.0, "temp_bytes": 2})
    lines.add("steps", {"name": "asam", "said": "it failed"})
    lines = kept.Kept(tmp_path / "runs.jsonl", "two")
    lines.add("steps", {"name": "sam", "milliseconds": 3.0})
    lines.add("steps", {"name": "sam", "state_bytes": 5})
    lines.add("steps", {"name": "asam", "milliseconds": 4.0})
    rows = kept.Kept(tmp_path / "runs.jsonl", "three").parts()["steps"]
    assert [{k: v for k, v in row.items() if k != "at"} for row in rows] == [
        {"name": "sam", "milliseconds": 3.0, "state_bytes": 5, "commit": "two"},
        {"name": "asam", "milliseconds": 4.0, "commit": "two"},
    ]


def test_bars_are_kept_or_not():
    parts = {
        "steps": [
            {"name": "sam", "over_hand_written": 1.01, "over_hand_written_error": 0.002},
            {"name": "gsam", "ideal_ratio": 1.005},
            {"name": "bsam", "ideal_ratio": 1.2},  # of its posterior's arithmetic no bar is
        ],
        "decisions": [{"name": "ae_sam, never", "time_ratio": 1.0, "ideal_ratio": 1.118}],
        "epochs": [{"name": "sam", "seconds": 9.0}],  # not of the card that it is promised of
        "determinism": [{"name": determinism.DETERMINISTIC, "different": 2}],
    }
    found = {one.bar.text: one for one in promised.verdicts(parts, ABOUT)}
    judged = {text: not one.failing for text, one in found.items() if one.farthest}
    assert judged == {
        "time over a hand-written SAM in the same loop, within its noise: sam": False,
        "time over twice SGD's: two-gradient methods": True,
        "time over SGD: a decision that never fires": True,
        "different ends of processes with one seed: deterministic ops": False,
    }
    about = {"device": "NVIDIA H100 80GB", "options": promised.REFERENCE}
    text = report.bars(promised.verdicts(parts, about), promised.who)[2]
    assert text.endswith("| NO: sam (epochs) 9 |")


def test_every_bar_is_about_rows_that_a_part_has():
    """So that no bar goes unjudged for a name that was changed."""
    parts = {
        "steps": [*map(row_of, ("sam", "gsam", "eigen_sam"))],
        "decisions": [*map(row_of, decisions.ASKED)],
        "epochs": [*map(row_of, epochs.METHODS)],
        "determinism": [row_of(determinism.DETERMINISTIC)],
        "compile": [*map(row_of, compilation.METHODS)],
        "peers": [row_of("sam, ours")],
    }
    about = {"device": "H100", "options": promised.REFERENCE}
    assert all(one.farthest for one in promised.verdicts(parts, about))
    named = {one.farthest["name"] for one in promised.verdicts(parts, about)}
    assert named >= {"sam", "ae_sam, never", "msam", "eigen_sam"}


def row_of(name):
    """A row with every figure."""
    return {"name": name} | {
        figure: 0.0 for bar in promised.BARS for figure in (bar.figure, bar.error) if figure
    }


def test_a_loss_that_is_not_finite_is_told_and_a_figure_that_is_missing_is_left_out():
    rows = [
        {"name": "sgd", "milliseconds": 1.0, "temp_bytes": 2_000_000, "finite": True},
        {"name": "sam", "milliseconds": 2.0, "finite": False},
    ]
    assert report.table("steps", rows) == [
        "| | ms a step | temporaries (MB) |",
        "|---|--:|--:|",
        "| sgd | 1.00 | 2 |",
        "| sam (NOT FINITE) | 2.00 |  |",
    ]
