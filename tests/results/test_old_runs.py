"""A run that version 0.2.0 trained is read: its figures, its course and its parameters."""

import json
from pathlib import Path
import tarfile

from inprocess import command
import pytest

from experiments import evaluate, train
from experiments.analysis.trained import Trained
from experiments.results.collected import collect

OLD = Path(__file__).parents[1] / "old" / "digits-le_sam-0-0.2.0.tar.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of results, as it was written."""
    path = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD) as archive:
        archive.extractall(path, filter="data")
    return path


def test_its_figures_and_its_recipe_are_found(folder, data_dir):
    (run,) = collect(folder).runs
    assert (run.recipe, run.method, run.seed, run.epochs) == ("digits", "le_sam", 0, 1)
    assert run.summary["ascents"] == 22
    trained = Trained(run.path, data_dir)
    assert trained.label == "le_sam (budget 0.35, rho_max 0.5)"
    assert trained.rows[-1]["test_accuracy"] == run.summary["test_accuracy"]


def test_its_parameters_have_the_accuracy_of_its_summary(
    folder,
    data_dir,
    tmp_path,
    monkeypatch,
):
    run = folder / "digits-le_sam-0"
    shared = ("--data-dir", data_dir, "--out", tmp_path)
    command(monkeypatch, evaluate, run, "--on", "digits", *shared)
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    then = json.loads((run / "summary.json").read_text())
    (figures,) = (row["evaluated"]["digits"] for row in found["runs"])
    assert figures["accuracy"] == then["test_accuracy"]


def test_it_is_not_gone_on_with(folder, data_dir, monkeypatch, capsys):
    before = sorted(folder.rglob("*"))
    asked = ("--method", "le_sam", "--epochs", 1, "--warmup-epochs", 0, "--width", 4)
    asked += ("--batch-size", 64, "--data-dir", data_dir, "--out", folder, "--resume")
    with pytest.raises(SystemExit):
        command(monkeypatch, train, "digits", *asked)
    assert "Results of an earlier version" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
