"""Folders of results: nobody's files are touched, and nothing is removed before it is replaced."""

import json
import os
from pathlib import Path
import shutil
import signal
import sys

from inprocess import command, undrawn
import pytest

from experiments import (
    analyze,
    compare,
    evaluate,
    gpu_check,
    robustness,
    scaling,
    sweep,
    tables,
    toy,
    train,
)
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import growth
from experiments.benchmark import pipeline as pipeline_benchmark
from experiments.results import files, folders
from experiments.system.errors import UserError

SHORT = ("digits", "--epochs", 1, "--train-examples", 128, "--batch-size", 64)
CNN = ("--models", "mlp", "--methods", "sam", "--batch-size", 8, "--width", 8, "--turns", 0)
SEEN = ("--images", 64, "--batch-size", 32, "--size", 16, "--workers", 1, "--rounds", 1)
STEPS = ("--parts", "steps", "--model", "mlp", "--width", 4, "--seconds", 0.001, "--turns", 2)
# Each command that writes into --out, and what makes it quick; RUN is a trained run.
COMMANDS = {
    "train": (train, *SHORT),
    "compare": (compare, *SHORT, "--methods", "sgd", "--seeds", 2),
    "sweep": (sweep, *SHORT, "--seeds", 1, "--over", "rho=0.1"),
    "analyze": (analyze, "RUN", "--parts", "steps"),
    "robustness": (robustness, "RUN", "--linf", 1, "--l2", "--examples", 8),
    "evaluate": (evaluate, "RUN", "--on", "digits", "--examples", 8),
    "benchmark": (benchmark, *CNN),
    "benchmark.growth": (growth, "--most", 10**5, "--turns", 2, "--seconds", 0.001),
    "scaling": (scaling, "--methods", "sgd", "--batch-size", 1, "--model", "mlp"),
    "gpu_check": (gpu_check, *STEPS, "--methods", "sgd", "--examples", 8, "--batch-size", 4),
    "benchmark.pipeline": (pipeline_benchmark, *SEEN, "--memory-images", 32),
    "toy": (toy,),
    "tables": (tables,),
}
FOREIGN = (
    *("config.json", "summary.json", "table.json", "table.md", "sweep.json", "metrics.jsonl"),
    *("runs.jsonl", "toy.json", "toy.png", "tables.md", "tables.json", "curves.png", "notes"),
    *("benchmark.json", "growth.json", "gpu_check.json", "scaling.json", "analysis.json"),
    *("pipeline.json", "robustness.json", "evaluation.json", "report.html", ".lock"),
    *("checkpoints/5/state", "tensorboard/events", "table.json.part", ".git/config"),
)


def test_every_command_is_among_them():
    top = {path.stem for path in Path(train.__file__).parent.glob("*.py")} - {"__init__"}
    assert top <= COMMANDS.keys()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """The folder of a trained run."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        command(patch, train, *SHORT, "--name", "run", "--data-dir", data_dir, "--out", out)
    return out / "run"


@pytest.fixture
def run(monkeypatch, trained, data_dir):
    """Runs a command of the table with its results in a folder, and gives its exit status."""
    monkeypatch.setattr("os._exit", sys.exit)
    undrawn(monkeypatch)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(name, folder, *arguments):
        module, *own = COMMANDS[name]
        own = [trained if word == "RUN" else word for word in own]
        if "data_dir" in module.Options.__dataclass_fields__:
            own += ["--data-dir", data_dir]
        if "name" in module.Options.__dataclass_fields__:
            own += ["--out", folder.parent, "--name", folder.name]
        else:
            own += ["--out", folder]
        if name == "tables":
            own += ["--runs", trained]
        try:
            command(monkeypatch, module, *own, *arguments)
        except SystemExit as stop:
            return stop.code
        return 0

    yield run
    signal.signal(signal.SIGINT, before)


def tree(folder):
    """Every path below a folder with its content."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def names(folder):
    """The paths below a folder, but for those that Orbax draws inside a checkpoint."""
    return {str(path) for path in tree(folder) if len(path.parts) < 4}


def fill(folder, theirs=FOREIGN):
    """Makes files of somebody else's."""
    for name in theirs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'{{"name": "{name}"}}')


@pytest.mark.parametrize("flags", [(), ("--overwrite",)], ids=["plain", "overwrite"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_of_foreign_files_stays_as_it_is(name, flags, run, tmp_path, capsys):
    folder = tmp_path / "theirs"
    fill(folder)
    before = tree(tmp_path)
    if flags and "overwrite" not in COMMANDS[name][0].Options.__dataclass_fields__:
        flags = ()
    assert run(name, folder, *flags) == 2
    said = capsys.readouterr().err
    assert f"is neither empty nor a folder that experiments.{name} wrote" in said
    assert said.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "link to a file", "link to nowhere"])
@pytest.mark.parametrize("name", ["train", "toy", "compare"])
def test_what_is_no_folder_stays_as_it_is(name, kind, run, tmp_path, capsys):
    (tmp_path / "file").write_text("theirs")
    folder = tmp_path / "folder"
    if kind == "file":
        folder.write_text("theirs")
    else:
        folder.symlink_to(tmp_path / ("file" if kind == "link to a file" else "nowhere"))
    before = tree(tmp_path)
    assert run(name, folder) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tree(tmp_path) == before


QUICK = ("train", "compare", "sweep", "robustness", "evaluate", "benchmark", "toy", "tables")


@pytest.mark.parametrize("name", QUICK)
def test_foreign_files_beside_our_own_stay(name, run, tmp_path, capsys):
    """Also where all that the command wrote is replaced."""
    folder = tmp_path / "ours"
    assert run(name, folder) == 0
    assert not (folder / folders.LOCK).exists()
    ours = names(folder)
    fill(folder, ["notes.md", "more/notes.md", "theirs.json"])
    theirs = {
        path: text
        for path, text in tree(folder).items()
        if path.parts[0] in ("notes.md", "more", "theirs.json")
    }
    assert run(name, folder) == 0
    if "overwrite" in COMMANDS[name][0].Options.__dataclass_fields__:
        assert run(name, folder, "--overwrite") == 0
    after = tree(folder)
    assert {path: after.get(path) for path in theirs} == theirs
    assert names(folder) - {str(path) for path in theirs} == ours


def test_a_foreign_file_of_the_name_of_a_result_is_not_replaced(run, tmp_path, capsys):
    folder = tmp_path / "ours"
    assert run("sweep", folder) == 0
    fill(folder, ["sweep.png"])
    before = tree(folder)
    assert run("sweep", folder, "--over", "weight_decay=0,0.1") == 2
    assert tree(folder) == before
    assert "sweep.png is there already, and experiments.sweep did not" in capsys.readouterr().err


@pytest.mark.parametrize(("first", "second"), [("train", "sweep"), ("sweep", "compare")])
def test_a_command_does_not_replace_what_another_wrote(first, second, run, tmp_path, capsys):
    folder = tmp_path / "ours"
    assert run(first, folder) == 0
    before = tree(folder)
    assert run(second, folder, "--overwrite") == 2
    assert f"holds what experiments.{first} wrote" in capsys.readouterr().err
    assert tree(folder) == before


@pytest.mark.parametrize("name", QUICK)
def test_one_lock_for_all_commands(name, run, tmp_path, capsys):
    folder = tmp_path / "ours"
    with folders.held(folder, name):
        assert run(name, folder) == 2
        assert "another process works in" in capsys.readouterr().err
    assert not folder.exists()


CONFIG = {"a": 1.0, "b": float("-inf")}


def wrote(path, config=None, name="summary.json", text="new"):
    """What a command that replaces results does."""
    with folders.held(path, "train") as folder:
        folder.begin(config or CONFIG)
        files.write_text(folder.file(name), text)
        folder.done()


class StoppedError(Exception):
    """The end of a process, where it is."""


def test_what_is_replaced_is_there_until_the_new_is_complete(tmp_path):
    path = tmp_path / "a"
    wrote(path, text="old")
    with folders.held(path, "train") as folder:
        folder.begin({"a": 2})
        files.write_text(folder.file("curves.png"), "half of the new")
        aside = path / folders.REPLACED / "1"
        assert (aside / "summary.json").read_text() == "old"
    # StoppedError: something of the new is saved, and all of the old is there still.
    assert (aside / "summary.json").read_text() == "old"
    wrote(path)
    assert (path / "summary.json").read_text() == "new"
    assert sorted(os.listdir(path)) == [".sam_optax.json", "config.json", "summary.json"]


def test_what_was_to_be_replaced_by_nothing_comes_back(tmp_path):
    path = tmp_path / "a"
    wrote(path, text="old")
    before = tree(path)
    with folders.held(path, "train") as folder:
        folder.begin({"a": 2})
        files.write_text(folder.file(folders.METRICS), "")
    assert (path / "summary.json").read_text() == "old"
    assert files.read_json(path / "config.json") == CONFIG
    assert {p: t for p, t in tree(path).items() if p in before} == before | {
        p: t for p, t in tree(path).items() if p.name == files.MANIFEST
    }


def test_what_a_kill_left_half_replaced_is_put_back_before_it_is_looked_at(
    run, trained, tmp_path, capsys
):
    folder = shutil.copytree(trained, tmp_path / "ours")
    with folders.held(folder, "train") as held:
        held.begin({"a": 2})
        held.tidy = lambda: None  # as where the process is killed
    assert not (folder / "summary.json").exists()
    assert run("train", folder) == 0
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize("after", range(1, 14))
def test_a_kill_at_any_call_loses_nothing(after, tmp_path, monkeypatch):
    """Every rename and removal of replacing results, and of undoing that, is the last one once."""
    path = tmp_path / "a"
    with folders.held(path, "train") as folder:
        folder.begin(CONFIG)
        for name in ("summary.json", "curves.png"):
            files.write_text(folder.file(name), "old")
        folder.done()
    calls = []

    def killed(function):
        def call(*args, **kwargs):
            calls.append(function)
            if len(calls) >= after:
                raise StoppedError
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, killed(getattr(os, name)))
        try:
            with folders.held(path, "train") as folder:
                folder.begin({"a": 2})
                raise StoppedError
        except StoppedError:
            pass
    with folders.held(path, "train"):
        pass
    found = {file.name: file.read_text() for file in path.rglob("*") if file.is_file()}
    assert (found["summary.json"], found["curves.png"]) == ("old", "old")
    assert files.read_json(path / "config.json") == CONFIG
    assert set(found) == {files.MANIFEST, "summary.json", "curves.png", "config.json"}


def test_a_manifest_that_is_damaged_is_told(tmp_path):
    path = tmp_path / "a"
    wrote(path)
    manifest = path / files.MANIFEST
    for damaged in ("", "[]", "{}", manifest.read_text().replace("train", "sweep")):
        manifest.write_text(damaged)
        before = tree(path)
        with pytest.raises(UserError, match="is damaged, and nothing else tells"):
            wrote(path)
        assert tree(path) == before


def test_a_manifest_cannot_name_what_lies_elsewhere(tmp_path):
    path = tmp_path / "a"
    (tmp_path / "theirs").write_text("theirs")
    wrote(path)
    files.write_json(path / files.MANIFEST, {"command": "train", "files": ["../theirs"]})
    with pytest.raises(UserError, match="is damaged"):
        wrote(path)
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_folder_in_which_nothing_was_written_is_not_there(tmp_path):
    with pytest.raises(StoppedError), folders.held(tmp_path / "a" / "b", "train"):
        raise StoppedError
    assert list(tmp_path.iterdir()) == []


def test_json_is_json_and_shows_damage(tmp_path):
    path = tmp_path / "a.json"
    value = {"rho": float("-inf"), "nan": float("nan"), "deep": [{"x": float("inf")}], "n": 1}
    files.write_json(path, value)
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    held = files.read_json(path)
    assert held["nan"] != held["nan"]
    assert {**held, "nan": 0} == {**value, "nan": 0}
    (tmp_path / files.MANIFEST).write_text("")
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert repr(files.read_json(path)) == repr(held)
            except files.DamagedError:
                continue
    path.write_text('{"n": 1}')
    with pytest.raises(files.DamagedError, match="checksum"):
        files.read_json(path)


def test_the_metrics_of_what_saved_nothing_replace_nothing(tmp_path):
    path = tmp_path / "a"
    wrote(path, text="old")
    with folders.held(path, "train") as folder:
        folder.begin({"a": 2})
        files.append_json(folder.file(folders.METRICS), {"epoch": 1})
    assert (path / "summary.json").read_text() == "old"
    assert not (path / folders.METRICS).exists()


@pytest.mark.parametrize("name", ["old", ".DS_Store", "7"])
def test_what_lies_among_what_was_set_aside_is_no_trouble(name, tmp_path):
    path = tmp_path / "a"
    wrote(path, text="old")
    (path / folders.REPLACED / name).mkdir(parents=True)
    (path / folders.REPLACED / name / "theirs").write_text("theirs")
    wrote(path)
    assert (path / "summary.json").read_text() == "new"
    if not name.isdecimal():
        assert (path / folders.REPLACED / name / "theirs").read_text() == "theirs"


def test_a_file_of_the_name_of_a_half_written_one_stays(tmp_path):
    path = tmp_path / "a"
    wrote(path)
    (path / "summary.json.part").write_text("theirs")
    wrote(path)
    assert (path / "summary.json.part").read_text() == "theirs"


@pytest.mark.parametrize("name", ["", ".", "..", "../theirs", "a/b"])
def test_a_manifest_names_what_lies_in_its_folder(name, tmp_path):
    path = tmp_path / "a"
    wrote(path)
    files.write_json(path / files.MANIFEST, {"command": "train", "files": [name]})
    with pytest.raises(UserError, match="is damaged"):
        wrote(path)


def test_results_of_an_earlier_version_are_told_apart(tmp_path):
    path = tmp_path / "a"
    fill(path, ["config.json", "summary.json"])
    with pytest.raises(UserError, match="of an earlier version, or copied without their"):
        wrote(path)


def test_nothing_is_removed_where_nothing_comes_back(tmp_path):
    """As where somebody has moved away what was set aside, or put something else there."""
    path = tmp_path / "a"
    with folders.held(path, "train") as folder:
        folder.begin(CONFIG)
        files.append_json(folder.file(folders.METRICS), {"epoch": 1})
    (path / folders.REPLACED / "theirs").mkdir(parents=True)
    before = tree(path)
    with folders.held(path, "train"):
        pass
    assert tree(path) == before
