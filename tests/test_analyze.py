"""The page about trained runs: read from their folders, measured, drawn, and kept."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_experiments import command, data_dir, digits, read  # noqa: F401

from experiments import analyze, cli, train
from experiments.analysis import pictures
from experiments.analysis.parts import Look, Measures, spread
from experiments.analysis.replay import replay
from experiments.analysis.trained import Trained
from experiments.checkpoints import Checkpoints

SHORT = ("digits", "--epochs", 3, "--keep-epochs", 1, "--width", 4, "--batch-size", 256)
LITTLE = ("--examples", 300, "--grid", 3, "--steps", 5, "--probes", 1, "--samples", 2)
LITTLE += ("--ascent-steps", 2, "--draws", 1, "--k", 2, "--radii", 0.1, 0.5, "--m", 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir):  # noqa: F811
    """Two seeds of SGD, one of AE-SAM and one of SAMAR; a convolutional network; another width."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        more = ("--data-dir", data_dir, "--out", out)
        command(patch, train, *SHORT, "--method", "sgd", "--seeds", 0, 1, "--name", "sgd", *more)
        for method in ("ae_sam", "samar"):
            command(patch, train, *SHORT, "--method", method, "--name", method, *more)
        small = (*SHORT, "--epochs", 1, "--method", "sam")
        command(patch, train, *small, "--width", 3, "--name", "other", *more)
        command(patch, train, *small, "--model", "cnn", "--name", "cnn", *more)
    return out


@pytest.fixture
def look(folder, data_dir):  # noqa: F811
    """A run of the folder, and how it is looked at."""

    def look(name, **measures):
        trained = Trained(folder / name, data_dir)
        return trained, Look(trained, Measures(**measures), lambda: None)

    return look


@pytest.fixture
def run(monkeypatch, tmp_path, data_dir):  # noqa: F811
    """Runs the command."""

    def run(*arguments):
        more = ("--data-dir", data_dir, "--out", tmp_path)
        command(monkeypatch, analyze, *arguments, *more)
        return tmp_path / "analysis"

    return run


def test_the_loss_of_a_run_is_that_of_its_summary(look):
    """In evaluation mode, of the last checkpoint; batches of another size change nothing."""
    for name in ("ae_sam", "cnn"):
        trained, seen = look(name)
        objective = trained.objective(seen.model_state, training=False, size=400)
        assert objective.loss(seen.params) == pytest.approx(trained.summary["train_loss"], rel=1e-5)
    assert seen.modes == ["evaluation", "training"]
    other = trained.objective(seen.model_state, training=True, size=400).loss(seen.params)
    assert other != pytest.approx(trained.summary["train_loss"], rel=1e-3)


def test_fewer_examples_are_drawn_from_the_set_with_their_labels(look):
    trained, _ = look("ae_sam")
    ((images, labels),) = trained.objective({}, training=False, size=50, examples=50).batches
    assert len(labels) == 50
    data = trained.data.train
    places = [int(np.flatnonzero((data.images == image).all((1, 2, 3)))[0]) for image in images]
    np.testing.assert_array_equal(labels, data.labels[places])
    assert places != sorted(places)


def test_float64_is_float64_throughout(look):
    with jax.enable_x64(True):
        for name in ("ae_sam", "cnn"):
            trained, seen = look(name, dtype="float64")
            assert {leaf.dtype for leaf in jax.tree.leaves(seen.params)} == {jnp.dtype("float64")}
            objective = trained.objective(
                seen.model_state, training=False, size=400, dtype=jnp.float64
            )
            # A step of the size that only float64 resolves.
            moved = optax.tree.add_scale(seen.params, 1e-7, objective.gradient(seen.params))
            rise = objective.loss(moved) - objective.loss(seen.params)
            square = optax.tree.norm(objective.gradient(seen.params), squared=True)
            assert rise == pytest.approx(1e-7 * float(square), rel=1e-3)


def test_a_checkpoint_of_every_epoch_is_kept(look):
    trained, _ = look("ae_sam")
    per_epoch = 1437 // 256
    assert trained.steps == [per_epoch, 2 * per_epoch, 3 * per_epoch]
    assert list(trained.epochs.values()) == [1, 2, 3]
    early, _ = trained.weights(per_epoch)
    late, _ = trained.weights()
    assert optax.tree.norm(optax.tree.sub(early, late)) > 0.1


@pytest.mark.parametrize("name", ["ae_sam", "samar"])
def test_a_replayed_epoch_is_that_of_the_run(name, look):
    """Step by step it sums to the row that the run wrote, and its decisions are AE-SAM's own."""
    trained, _ = look(name)
    rows = replay(trained, trained.steps[1])
    assert [row["step"] for row in rows] == list(range(11, 16))
    written = trained.rows[-1]
    for of_step, of_epoch in (("loss", "train_loss"), ("gradient_norm", "gradient_norm")):
        mean = np.mean([row[of_step] for row in rows])
        assert mean == pytest.approx(written[of_epoch], rel=1e-4)
    ratios = [a["gradient_norm"] / b["gradient_norm"] for a, b in zip(rows[1:], rows, strict=False)]
    assert [row["ratio"] for row in rows[1:]] == pytest.approx(ratios)
    if name == "samar":
        assert rows[-1]["lambda_k"] == pytest.approx(written["lambda_k"])
        grows = [row["ratio"] >= 1.0 for row in rows[1:]]  # χ of the recipe
        moved = [a["lambda_k"] >= b["lambda_k"] for a, b in zip(rows[1:], rows, strict=False)]
        assert grows == moved
    else:
        fires = [row["gradient_norm"] ** 2 >= row["threshold"] for row in rows]
        assert fires == [row["sam_fraction"] > 0.5 for row in rows]


def test_the_page_holds_every_picture_and_the_table(folder, run):
    names = ("sgd-0", "sgd-1", "ae_sam", "samar")
    path = run(*(folder / name for name in names), *LITTLE, "--examples", 600)
    page = (path / "report.html").read_text()
    shown = re.findall(r'<img src="([^"]+)"', page)
    assert shown == [f"{name}.png" for name in pictures.PICTURES]
    assert all((path / name).stat().st_size > 10_000 for name in shown)
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    found = read(path / "analysis.json")
    rows = analyze.summarize(found)
    assert [(row["method"].split()[0], row["seeds"]) for row in rows] == [
        ("sgd", 2),
        ("ae_sam", 1),
        ("samar", 1),
    ]
    largest = [run["parts"]["hessian"]["evaluation"]["eigenvalues"][0] for run in found["runs"][:2]]
    mean, deviation, _ = rows[0]["columns"]["λ_max"]
    assert mean == pytest.approx(np.mean(largest))
    assert deviation == pytest.approx(np.std(largest, ddof=1))
    for text in ((path / "analysis.md").read_text(), page):
        assert f"{mean:.3g} ± {deviation:.2g}" in text
    # Pictures show the first seed; of the others the table alone is measured.
    assert set(found["runs"][1]["parts"]) == {"hessian", "sharpness"}
    assert [(line["from"], line["to"]) for line in found["lines"]] == [
        ("sgd-0", "ae_sam"),
        ("sgd-0", "samar"),
    ]


def test_a_stopped_analysis_goes_on(folder, run, monkeypatch):
    """What was measured is kept, also where parts or runs are added."""
    asked = []
    for part in ("hessian", "sharpness"):
        measure = getattr(Look, part)

        def watched(self, part=part, measure=measure):
            asked.append((self.trained.path.name, part))
            if asked == [("sgd-0", "hessian"), ("sgd-0", "sharpness")]:
                raise KeyboardInterrupt
            return measure(self)

        monkeypatch.setattr(Look, part, watched)
    monkeypatch.setattr(cli.os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    arguments = (folder / "sgd-0", *LITTLE)
    with pytest.raises(SystemExit) as stop:
        run(*arguments, "--parts", "hessian", "sharpness")
    assert stop.value.code == 130
    path = run(*arguments, "--parts", "hessian", "sharpness")
    assert asked[2:] == [("sgd-0", "sharpness")]
    run(folder / "sgd-0", folder / "ae_sam", *LITTLE, "--parts", "hessian")
    assert asked[3:] == [("ae_sam", "hessian")]
    assert [list(run["parts"]) for run in read(path / "analysis.json")["runs"]] == [["hessian"]] * 2


BAD = {
    "sgd-0 holds no checkpoint: train it": lambda path: shutil.rmtree(path / "sgd-0/checkpoints"),
    "sgd-0 is no folder of a run .FileNotFoundError": lambda path: (
        path / "sgd-0/config.json"
    ).unlink(),
    "sgd-0 is no folder of a run .JSONDecodeError": lambda path: (
        path / "sgd-0/config.json"
    ).write_text("{"),
    "sgd-0 is no folder of a run .KeyError": lambda path: (path / "sgd-0/config.json").write_text(
        "{}"
    ),
    "cannot read the checkpoint of step 15": lambda path: damage(path / "sgd-0/checkpoints/15"),
}


def damage(path):
    """Cuts the file of the numbers short."""
    largest = max(path.rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[:-300])


@pytest.mark.parametrize("message", BAD)
def test_a_folder_that_is_no_run_is_told(message, folder, run, tmp_path, capsys):
    shutil.copytree(folder / "sgd-0", tmp_path / "sgd-0")
    BAD[message](tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "sgd-0", *LITTLE, "--parts", "hessian")
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        ((), (), "pass the folders of one run or more"),
        (("sgd-0", "sgd-0"), (), "must have different names"),
        (("sgd-0", "other"), ("--parts", "landscape"), r"(?s)different models.*Leave landscape"),
        (("sgd-0",), ("--parts", "hessian", "--k", 100_000), r"k must lie between 1 and the \d+"),
        (("sgd-0",), ("--parts", "gradients", "--examples", 300), "two batches of 256"),
        (("sgd-0",), ("--radii", 0.5, 0.1), "--radii must be positive and ascending"),
        (("sgd-0",), ("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("sgd-0",), ("--dtype", "float16"), "float16"),
        (("sgd-0",), ("--grid", 2), "--grid must be at least 3"),
        (("sgd-0",), ("--gammas-squared", -1), "--gammas-squared must not be negative"),
    ],
)
def test_wrong_arguments_are_told(names, arguments, message, folder, run, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*(folder / name for name in names), *arguments)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_checkpoint_whose_numbers_were_changed_is_refused(folder, tmp_path, look):
    """The part that is read alone is checked against the digest of the whole."""
    shutil.copytree(folder / "sgd-0", tmp_path / "sgd-0")
    file = next((tmp_path / "sgd-0/checkpoints/15/progress").rglob("metadata"))
    held = json.loads(file.read_text())
    held["digest"] = [[0, 0] for _ in held["digest"]]
    file.write_text(json.dumps(held))
    trained, _ = look("sgd-0")
    trained.checkpoints = Checkpoints(tmp_path / "sgd-0/checkpoints")
    with pytest.raises(cli.UserError, match="not those that were saved"):
        trained.weights()


def test_some_are_spread_over_all():
    assert spread([1, 2], 3) == [1, 2]
    assert spread(list(range(10)), 3) == [0, 4, 9]
