"""The command that puts runs beside the papers' figures: what counts, and what is told beside."""

import dataclasses
import json
import os
from pathlib import Path
import re
import statistics

from inprocess import command, read
import pytest

from experiments import tables, train
from experiments.cli.settings import METHODS
from experiments.recipes import RECIPES, small
from experiments.results import files, folders
from experiments.results.collected import collect
from experiments.results.paper_tables import PAPERS, Paper, PaperTable
from experiments.training import runs

AE, NOISE = "cifar10_resnet18_ae_sam", "cifar10_resnet18_noise20_wsam"


@pytest.fixture
def made(tmp_path):
    """Writes the folder of a run as train does, its results by hand; returns its path."""

    def made(recipe, method, seed=0, accuracy=0.5, *, best=None, ended=True, name=None, **options):
        if RECIPES[recipe].pretrained and "weights" not in options:
            options["weights"] = tmp_path / "weights"
            options["weights"].write_text("of which no more than the digest is taken")
        options = train.Options(
            recipe=recipe, method=method, seeds=(seed,), out=tmp_path / "runs", name=name, **options
        )
        run = runs.Run(options, train._plan(options, None), seed)
        run.path.mkdir(parents=True)
        files.write_json(run.path / "config.json", run.config())
        if ended:
            best = accuracy if best is None else best
            figures = {"test_accuracy": accuracy, "test_accuracy_best": best, "commit": "abc"}
            files.write_json(run.path / "summary.json", {"seed": seed, **figures})
        return run.path

    return made


@pytest.fixture
def found(tmp_path):
    """What the command finds, of all papers or of those named."""
    return lambda *names: tables.gathered(collect(tmp_path / "runs"), names or [*PAPERS])


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command, and gives what it prints."""

    def run(*arguments):
        command(monkeypatch, tables, "--runs", tmp_path / "runs", *arguments)
        return capsys.readouterr().out

    return run


def table(found, title):
    """A table by the beginning of its title."""
    return next(t for p in found["papers"] for t in p["tables"] if t["title"].startswith(title))


def cell(found, title, method, heading):
    (row,) = (row for row in table(found, title)["rows"] if row["method"] == method)
    return row["cells"][heading]


def changed(path, file="config.json", **changes):
    """Other values in a file of JSON; ... removes one."""
    held = {**files.read_json(path / file), **changes}
    text = json.dumps({name: value for name, value in held.items() if value is not ...})
    (path / file).write_text(text)


# The declarations


def every():
    """Each table with the name of its paper."""
    return [(name, table) for name, paper in PAPERS.items() for table in paper.tables]


def test_every_column_is_a_recipe_and_every_row_a_method():
    for name, table in every():
        assert {*table.columns.values()} <= {*RECIPES}, (name, table.title)
        assert {*table.rows} <= {*METHODS}, (name, table.title)


def test_every_published_figure_has_a_cell():
    cells = {(r, m) for _, table in every() for r in table.columns.values() for m in table.rows}
    assert {(name, method) for name in RECIPES for method in RECIPES[name].paper} <= cells


def test_every_recipe_of_a_paper_is_in_a_table_of_its_own_paper():
    for name in RECIPES.keys() - small.RECIPES.keys():
        (paper,) = (paper for paper in PAPERS if name in PAPERS[paper].recipes)
        assert name.endswith(f"_{paper}")


def test_the_columns_of_a_table_report_alike():
    """One line under its title says which accuracy it is."""
    for name, table in every():
        assert len({RECIPES[recipe].reports for recipe in table.columns.values()}) == 1, name


def test_the_papers_that_report_errors_and_best_epochs_do_so(found):
    for paper in found()["papers"]:
        for held in paper["tables"]:
            best = paper["name"] == "samar" or "CIFAR-100-LT" in held["title"]
            expected = "best test accuracy" if best else "test accuracy"
            if paper["name"] == "wsam" and not held["title"].startswith("Table 6"):
                expected = "test error"
            assert held["shows"] == expected, held["title"]


# What fills a cell


def test_a_cell_is_the_mean_and_sample_deviation_over_seeds(made, found):
    accuracies = (0.9651, 0.9672, 0.9659)
    for seed, accuracy in enumerate(accuracies):
        made(AE, "ae_sam", seed, accuracy, best=0.99)
    made(AE, "sgd", 7, 0.95)
    one, single = (
        cell(found("ae_sam"), "Table 1: CIFAR-10", method, "ResNet-18")
        for method in ("ae_sam", "sgd")
    )
    percent = [100 * accuracy for accuracy in accuracies]
    assert one["paper"] == 96.63
    assert one["ours"]["mean"] == pytest.approx(sum(percent) / 3, abs=1e-12)
    assert one["ours"]["deviation"] == pytest.approx(statistics.stdev(percent), abs=1e-12)
    assert one["ours"]["by_seed"] == pytest.approx(dict(enumerate(percent)))
    assert one["gap"] == pytest.approx(96.6066667 - 96.63, abs=1e-6)
    assert single["ours"]["by_seed"] == {7: 95.0}
    assert single["ours"]["deviation"] is None


def test_a_cell_is_read_at_a_glance(made, run):
    for seed, accuracy in enumerate((0.9651, 0.9672, 0.9659)):
        made(AE, "ae_sam", seed, accuracy)
    made(AE, "sgd", 0, 0.95)
    lines = [line.split() for line in run("--paper", "ae_sam").splitlines()]
    first = lines.index(["ERM", "paper", "95.41", "96.34", "96.62", "86.69"])
    assert lines[first + 1] == ["ours", "95.00", "(1)", "—", "—", "—"]
    assert lines[first + 2] == ["gap", "-0.41"]
    ours = lines.index(["AE-SAM", "paper", "96.63", "97.30", "97.90", "87.77"]) + 1
    assert lines[ours] == ["ours", "96.61", "±", "0.11", "(3)", "—", "—", "—"]
    assert lines[ours + 1] == ["gap", "-0.02"]
    assert lines[-1] == ["filled", "2", "of", "119", "cells"]


def test_errors_are_100_less_the_accuracy_on_both_sides(made, found):
    recipe = "cifar100_wrn28_10_wsam"
    for seed, accuracy in enumerate((0.83, 0.84)):
        made(recipe, "wsam", seed, accuracy)
    made(NOISE, "wsam", 0, 0.95)
    held = found("wsam")
    for title in ("Table 2", "Table 8"):
        error = cell(held, title, "wsam", "CIFAR-100 WRN-28-10")
        assert error["paper"] == pytest.approx(16.33)
        assert error["ours"]["mean"] == pytest.approx(16.5)
        assert error["ours"]["deviation"] == pytest.approx(0.5**0.5)
        assert error["gap"] == pytest.approx(16.5 - 16.33)
    noisy = cell(held, "Table 6", "wsam", "20 % noise")  # this table has accuracies
    assert (noisy["paper"], noisy["ours"]["mean"]) == (95.18, 95.0)
    assert held["filled"] == 3


def test_the_best_epoch_counts_where_the_paper_reports_it(made, found):
    made("cifar10_resnet34_samar", "samar", 0, 0.95, best=0.96)
    best = cell(found("samar"), "Table I:", "samar", "ResNet-34")
    assert best["ours"]["mean"] == 96
    assert best["paper"] == 96.297


def test_a_methods_own_epochs_are_the_protocol(made, found):
    made("cifar10_resnet18_wsam", "sgd", 0)
    made("cifar10_resnet18_wsam", "sam", 0, epochs=400)
    held = found("wsam")
    assert cell(held, "Table 2", "sgd", "CIFAR-10 ResNet18")["ours"]["mean"] == 50
    assert cell(held, "Table 2", "sam", "CIFAR-10 ResNet18")["ours"] is None
    assert held["papers"][0]["other_runs"] == [
        "cifar10_resnet18_wsam sam, epochs 200 → 400: 50.00 (1)"
    ]


def test_where_a_run_decided_and_that_seeds_ran_at_once_change_no_experiment(made, found):
    made(AE, "sgd", 0, decide="host", vmap_seeds=True)
    assert found("ae_sam")["filled"] == 1


def test_a_setting_that_is_the_recipes_own_is_no_change(made, found):
    made(AE, "sam", 0, set=("rho=0.05",), name="given")
    assert found("ae_sam")["filled"] == 1


def test_a_field_younger_than_the_run_has_its_default(made, found):
    path = made(AE, "sam", 0)
    changed(path, label_smoothing=..., crop_area=..., weights=..., then=...)
    assert found("ae_sam")["filled"] == 1
    changed(path, validation=...)  # of which the recipe has another value than the default
    assert found("ae_sam")["papers"][0]["other_runs"] == [
        f"{AE} sam, validation 0.1 → 0.0: 50.00 (1)"
    ]


def test_a_seed_counts_once(made, found):
    made(AE, "sam", 0, 0.96, name="a")
    made(AE, "sam", 0, 0.97, name="b")
    held = found("ae_sam")
    assert cell(held, "Table 1: CIFAR-10", "sam", "ResNet-18")["ours"]["by_seed"] == {0: 96.0}
    assert held["papers"][0]["other_runs"] == [
        f"{AE} sam, again with a seed that is counted: 97.00 (1)"
    ]


def test_a_cell_has_runs_from_the_same_weights(made, found, tmp_path):
    recipe, other = "cifar10_vit_b16_le_sam", tmp_path / "other"
    other.write_text("others")
    made(recipe, "sam", 0, 0.96)
    made(recipe, "sam", 1, 0.97, weights=other)
    made(recipe, "sam", 2, 0.98)
    changed(made(recipe, "sam", 3, 0.99), weights=None)
    held = found("le_sam")
    one = cell(held, "Table 3", "sam", "CIFAR-10")
    assert one["ours"]["by_seed"] == {0: 96.0, 2: 98.0}
    assert held["papers"][0]["other_runs"] == [
        f"{recipe} sam, from other weights than those counted: 97.00 (1)",
        f"{recipe} sam, weights pretrained → none: 99.00 (1)",
    ]


# Averages


@pytest.fixture
def averaged(monkeypatch):
    """A paper of one table over two recipes with an average."""
    columns = {"noise": NOISE, "clean": "cifar10_resnet18_wsam"}
    one = PaperTable("Table 1", columns, {"sgd": "SGD", "coupled_wsam": "C"}, average=True)
    monkeypatch.setattr(tables, "PAPERS", {"wsam": Paper("A paper", (one,))})
    return columns


def averages(held):
    return {row["method"]: row["average"] for row in held["papers"][0]["tables"][0]["rows"]}


def test_an_average_is_over_the_recipes_of_the_seeds_that_all_have(averaged, made, found):
    for i, recipe in enumerate(averaged.values()):
        for seed in range(3 - i):
            made(recipe, "sgd", seed, 0.5 + 0.1 * seed + 0.2 * i)
    average = averages(found("wsam"))["sgd"]
    assert average["paper"] == pytest.approx((88.06 + 95.68) / 2)
    assert average["ours"]["by_seed"] == pytest.approx({0: 60, 1: 70})
    assert average["ours"]["mean"] == pytest.approx(65)
    assert average["ours"]["deviation"] == pytest.approx(50**0.5)
    assert average["gap"] == pytest.approx(65 - 91.87)
    assert averages(found("wsam"))["coupled_wsam"] == {"paper": None, "ours": None, "gap": None}


def test_there_is_no_average_without_all_recipes(averaged, made, run, found):
    made(NOISE, "sgd", 0)
    made(averaged["clean"], "sgd", 1)
    assert averages(found("wsam"))["sgd"]["ours"] is None
    lines = [line.split() for line in run().splitlines()]
    assert ["noise", "clean", "avg"] in lines
    assert ["SGD", "paper", "88.06", "95.68", "91.87"] in lines
    assert ["C", "paper", "n/a", "96.42", "n/a"] in lines
    assert ["ours", "50.00", "(1)", "50.00", "(1)", "—"] in lines


@pytest.mark.parametrize(
    ("domains", "printed"),
    [("PACS", ["54.78", "55.69", "57.87"]), ("VLCS", ["50.76", "52.63", "53.47"])],
)
def test_published_averages_are_as_the_paper_prints_them(domains, printed, found):
    """Section 6.2 of the LE-SAM paper; some end in a half."""
    rows = table(found("le_sam"), f"Section 6.2: {domains}")["rows"]
    assert [tables._percent(row["average"]["paper"]) for row in rows] == printed


# What is no cell


def test_a_run_at_other_options_is_told_and_not_counted(made, found):
    for seed, accuracy in enumerate((0.45, 0.47)):
        made(AE, "sam", seed, accuracy, epochs=2)
    made(AE, "sam", 3, 0.4, set=("rho=0.2",), name="rho")
    made(AE, "sam", 4, 0.3, augmentation=(), dtype="bfloat16", name="plain")
    made(AE, "sgd", 5, 0.2, switch_at=160, then="sam", then_set=("rho=0.3",))
    made(AE, "sgd", 6, 0.1, switch_at=9, then="sgd")
    made("cifar100_resnet18_le_sam", "le_sam", 0, 0.1, set=("budget=0.2",))
    held = found()
    assert held["filled"] == 0
    others = {paper["name"]: paper["other_runs"] for paper in held["papers"]}
    assert sorted(others["ae_sam"]) == [
        f"{AE} sam, augmentation crop flip → none, dtype float32 → bfloat16: 30.00 (1)",
        f"{AE} sam, epochs 200 → 2: 46.00 ± 1.41 (2)",
        f"{AE} sam, rho 0.05 → 0.2: 40.00 (1)",
        f"{AE} sgd, then sam (rho 0.3) from epoch 160: 20.00 (1)",
        f"{AE} sgd, then sgd from epoch 9: 10.00 (1)",
    ]
    assert others["le_sam"] == [
        "cifar100_resnet18_le_sam le_sam, budget (schedule budget_annealing, budget 0.35, "
        "anneal_from 80%) → 0.2: 10.00 (1)"
    ]
    assert others["wsam"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_decay": 5e-4}, "weight_decay 0.0001 → 0.0005"),
        ({"domain": "photo"}, "domain none → photo"),
        ({"method_kwargs": {}}, "rho 0.05 → default"),
        ({"method_kwargs": {"rho": 0.05, "other": 1}}, "other default → 1"),
        ({"device_perturbations": 8}, "a perturbation on each of 8 devices"),
        ({"weights": "a digest"}, "weights none → pretrained"),
        ({"gone": 3}, "gone default → 3"),
    ],
)
def test_every_difference_keeps_a_run_out(change, said, made, found):
    changed(made(AE, "sam", 0), **change)
    held = found("ae_sam")
    assert held["filled"] == 0
    assert held["papers"][0]["other_runs"] == [f"{AE} sam, {said}: 50.00 (1)"]


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(RECIPES[AE])])
def test_every_trained_field_is_compared(field, made, found):
    path = made(AE, "sam", 0)
    if field in read(path / "config.json") and field != "method":
        changed(path, **{field: 17})
        assert found("ae_sam")["filled"] == 0
    else:
        assert field in ("settings", "paper", "reports", "method", "epochs_of", "pretrained")


def test_other_runs_are_a_mean_over_different_seeds_from_one_file(made, found, tmp_path):
    for name, accuracy in (("a", 0.40), ("b", 0.50), ("c", 0.60)):
        made(AE, "sam", 0, accuracy, epochs=2, name=name)
    made(AE, "sam", 1, 0.44, epochs=2)
    for i in range(2):
        weights = tmp_path / f"weights{i}"
        weights.write_text(str(i))
        made(AE, "sgd", i, 0.1 * i, weights=weights)
    assert found("ae_sam")["papers"][0]["other_runs"] == [
        f"{AE} sam, epochs 200 → 2: 42.00 ± 2.83 (2)",
        f"{AE} sam, epochs 200 → 2, again: 50.00 (1)",
        f"{AE} sam, epochs 200 → 2, again, again: 60.00 (1)",
        f"{AE} sgd, weights none → pretrained: 0.00 (1)",
        f"{AE} sgd, weights none → pretrained: 10.00 (1)",
    ]


def test_a_method_that_the_tables_do_not_have_is_told(made, found):
    made("imagenet_resnet50_ae_sam", "gsam", 0, 0.77)
    held = found("ae_sam")
    assert held["filled"] == 0
    assert held["papers"][0]["other_runs"] == ["imagenet_resnet50_ae_sam gsam: 77.00 (1)"]


def test_an_unfinished_run_is_told_with_its_epochs(made, found):
    path = made(AE, "sam", 3, ended=False)
    (path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    made(AE, "sgd", 0, ended=False, epochs=2)
    held = found("ae_sam")
    assert held["filled"] == 0
    assert held["papers"][0]["other_runs"] == [
        f"{AE} sam, seed 3: unfinished or diverged, after 2 of 200 epochs",
        f"{AE} sgd, epochs 200 → 2, seed 0: unfinished or diverged, after 0 of 2 epochs",
    ]


def test_runs_of_recipes_that_no_table_has_are_told(made, found):
    made("digits", "sam", 0, 0.9)
    made("digits", "sam", 1, 0.8)
    for seed in (0, 1):  # what they have in common is not known
        changed(made(AE, "sam", seed), recipe="gone")
    made(AE, "asam", 0, 0.7)  # of a recipe in a table: not among these
    assert found()["runs_of_no_table"] == [
        *["gone sam, no recipe of this name: 50.00 (1)"] * 2,
        "digits sam: 85.00 ± 7.07 (2)",
    ]
    assert found("wsam")["runs_of_no_table"] == found()["runs_of_no_table"]


# What cannot be read


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("summary.json", "{", "summary.json is damaged (Expecting property name"),
        ("summary.json", "[]", "summary.json is damaged (it holds no JSON object but [])"),
        ("summary.json", '{"test_accuracy": 0.5}', "test_accuracy_best"),
        ("summary.json", '{"test_accuracy": NaN, "test_accuracy_best": 1}', "test_accuracy is nan"),
        ("config.json", "", "config.json is damaged (Expecting value"),
        ("config.json", "[]", "config.json is damaged (it holds no JSON object but [])"),
        ("config.json", "{}", "KeyError: 'recipe'"),
        ("config.json", b"\xff", "config.json is damaged ('utf-8' codec"),
        ("config.json", None, "FileNotFoundError"),
    ],
)
def test_a_damaged_run_is_named_on_one_line_and_passed_over(file, text, said, made, run, found):
    path = made(AE, "sam", 0)
    made(AE, "sgd", 0)
    (path / file).unlink()
    if text is not None:
        (path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    held = found("ae_sam")
    assert held["filled"] == 1
    (line,) = held["damaged"]
    assert line.startswith(f"{path} (")
    assert said in line
    assert "\n" not in line
    assert "Damaged, and passed over:" in run()


def test_a_config_that_lacks_a_field_without_default_is_damaged(made, found):
    path = made(AE, "sam", 0)
    changed(path, learning_rate=...)
    held = found("ae_sam")
    assert held["damaged"] == [f"{path} (KeyError: 'learning_rate')"]
    assert held["papers"][0]["other_runs"] == []


def test_a_folder_that_cannot_be_entered_is_named(made, found, monkeypatch):
    path = made(AE, "sam", 0)

    def scandir(folder, own=os.scandir):
        if Path(folder) == path:
            raise PermissionError(13, "Permission denied", str(folder))
        return own(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    (line,) = found("ae_sam")["damaged"]
    assert line.startswith(f"{path} (PermissionError")


def test_results_of_other_commands_are_told_and_runs_are_found_at_any_depth(made, found, tmp_path):
    path = made(AE, "sam", 0)
    other = tmp_path / "runs/comparison"
    other.mkdir()
    (other / "config.json").write_text('{"recipe": "digits", "methods": {}}')
    path.rename(other / "inner")
    held = found("ae_sam")
    assert held["filled"] == 1
    assert held["others"] == [str(other)]


def test_checkpoints_are_not_searched(made, found):
    path = made(AE, "sam", 0)
    for name in (folders.CHECKPOINTS, folders.TENSORBOARD, folders.REPLACED):
        (path / name).mkdir()
        (path / name / "config.json").write_text("{}")
    held = found("ae_sam")
    assert (held["filled"], held["others"], held["damaged"]) == (1, [], [])


# The command


def test_without_runs_every_table_is_shown_with_its_gaps(run):
    out = run()
    for _, declared in every():
        assert f"\n{declared.title} (" in out
    assert re.search(r"filled 0 of \d+ cells", out)
    out, told = out.split("there is no folder")
    assert told.endswith("--runs names that of all results.\n")
    rows = [line.split() for line in out.splitlines() if line.split()[:1] == ["ours"]]
    assert {cell for row in rows for cell in row[1:]} == {"—"}
    assert max(map(len, out.splitlines())) <= 100


def test_filled_tables_are_within_100_columns(made, run):
    """Two seeds in every cell, whose deviation has one digit before the point."""
    cells = {(r, m) for _, one in every() for r in one.columns.values() for m in one.rows}
    for recipe, method in cells:
        for seed, accuracy in ((0, 0.44), (1, 0.56)):
            made(recipe, method, seed, accuracy)
    lines = run().splitlines()
    assert max(map(len, lines)) <= 100
    count = sum(len(one.columns) * len(one.rows) for _, one in every())
    averages = sum(len(one.rows) for _, one in every() if one.average)
    assert len(re.findall(r"50\.00 ± 8\.49 \(2\)", "\n".join(lines))) == count + averages
    assert lines[-1] == f"filled {count} of {count} cells"


def test_papers_are_chosen_by_name(run):
    out = run("--paper", "samar", "r_sam")
    assert PAPERS["samar"].title in out
    assert PAPERS["r_sam"].title in out
    assert PAPERS["wsam"].title not in out
    assert "filled 0 of 55 cells" in out


def test_mistakes_are_one_line(refused, made, tmp_path):
    assert refused("--paper", "wsan") == "error: unknown paper 'wsan': did you mean wsam?\n"
    path = made(AE, "sam", 0)
    assert "is neither empty nor a folder that" in refused("--out", path)
    file = tmp_path / "file"
    file.write_text("")
    assert "is no folder" in refused("--runs", file)
    assert "Not a directory" in refused("--out", file / "inner")


def test_the_tables_are_written_with_all_numbers(made, run, found, tmp_path):
    for seed, accuracy in enumerate((0.9651, 0.9673)):
        made(AE, "ae_sam", seed, accuracy)
    made(AE, "sam", 0, 0.45, epochs=2)
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    out = tmp_path / "new" / "docs"
    assert f"written to {out}/" in run("--paper", "ae_sam", "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [
        *(".sam_optax.json", "config.json", "tables.json", "tables.md")
    ]
    held = read(out / "tables.json")
    assert held["runs"][0] == {
        "path": str(tmp_path / "runs" / f"{AE}-ae_sam-0"),
        "recipe": AE,
        "method": "ae_sam",
        "seed": 0,
        "differences": [],
        "finished": True,
        "counted": True,
        "test_accuracy": 0.9651,
        "test_accuracy_best": 0.9651,
        "papers_protocol": None,
        "weights": None,
        "device": None,
        "versions": None,
        "commit": "abc",
    }
    assert [run["counted"] for run in held["runs"]] == [True, True, False]
    assert {"versions", "commit", "device"} <= held.keys()
    one = cell(held, "Table 1: CIFAR-10", "ae_sam", "ResNet-18")
    assert one["ours"]["by_seed"] == {"0": pytest.approx(96.51), "1": pytest.approx(96.73)}
    text = (out / "tables.md").read_text()
    assert "\n|  |  | ResNet-18 | WRN-28-10 | PyramidNet-110 | ViT-S16 |\n|---|--:|" in text
    assert "\n| AE-SAM | paper | 96.63 | 97.30 | 97.90 | 87.77 |\n" in text
    assert "\n|  | ours | 96.62 ± 0.16 (2) | — | — | — |\n|  | gap | -0.01 |  |  |  |\n" in text
    assert f"\n- {AE} sam, epochs 200 → 2: 45.00 (1)\n" in text
    assert "\nFilled 1 of " in text
    after = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert after == before


def test_a_run_that_train_wrote_is_read(monkeypatch, run, tmp_path, data_dir):
    short = ("--epochs", 1, "--width", 8, "--batch-size", 512, "--method", "sgd")
    where = ("--data-dir", data_dir, "--out", tmp_path / "runs")
    command(monkeypatch, train, "digits", *short, *where)
    accuracy = read(tmp_path / "runs/digits-sgd-0/summary.json")["test_accuracy"]
    assert (
        "  digits sgd, epochs 100 → 1, batch_size 64 → 512, width none → 8: "
        f"{100 * accuracy:.2f} (1)\n"
    ) in run()
