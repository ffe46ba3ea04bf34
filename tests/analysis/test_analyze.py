"""The page about trained runs: read from their folders, measured, drawn, and kept."""

import json
import re
import shutil

from flax import linen as nn
from inprocess import command, read, undrawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import analyze, models, train
from experiments.analysis import pictures
from experiments.analysis.objective import AnalysisError
from experiments.analysis.parts import Look, Measures, spread
from experiments.analysis.replay import replay
from experiments.analysis.trained import Trained
from experiments.results.files import write_json
from experiments.system.errors import UserError
from experiments.training.checkpoints import Checkpoints

SHORT = ("digits", "--model", "linear", "--width", 4, "--epochs", 3, "--keep-epochs", 1)
SHORT += ("--batch-size", 256)
LITTLE = ("--examples", 300, "--grid", 3, "--steps", 5, "--probes", 1, "--samples", 2)
LITTLE += ("--ascent-steps", 2, "--draws", 1, "--k", 2, "--radii", 0.1, 0.5, "--m", 100)
LITTLE += ("--parts-of-m", 2, "--adaptive-radii", 1, 2, "--sigmas", 0.01, 0.02)


class Linear(nn.Module):
    """Logits linear in the first pixels, 16 times the width: each leaf more would take its time."""

    classes: int
    dtype: type
    width: int
    convolutional = False

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1)[:, : 16 * self.width]
        return nn.Dense(self.classes, dtype=self.dtype)(x)


@pytest.fixture(scope="module", autouse=True)
def linear():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "linear", Linear)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir):
    """Two seeds of SGD, one of AE-SAM and one of SAMAR; a convolutional network; another width."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        more = ("--data-dir", data_dir, "--out", out)
        command(patch, train, *SHORT, "--method", "sgd", "--seeds", 0, 1, "--name", "sgd", *more)
        for method in ("ae_sam", "samar"):
            command(patch, train, *SHORT, "--method", method, "--name", method, *more)
        small = (*SHORT, "--epochs", 1, "--method", "sgd")
        command(patch, train, *small, "--width", 3, "--name", "other", *more)
        command(patch, train, *small, "--model", "cnn", "--name", "cnn", *more)
        switch = ("--method", "sgd", "--switch-at", 2, "--then", "samar", "--name", "switched")
        command(patch, train, *SHORT, *switch, *more)
        smooth = ("--label-smoothing", 0.3, "--label-noise", 0.2, "--seed", 3, "--name", "smooth")
        command(patch, train, *small, *smooth, *more)
    return out


@pytest.fixture
def look(folder, data_dir):
    """A run of the folder, and how it is looked at."""

    def look(name, **measures):
        trained = Trained(folder / name, data_dir)
        return trained, Look(trained, Measures(**measures), lambda: None)

    return look


@pytest.fixture
def run(monkeypatch, tmp_path, data_dir):
    """Runs the command."""

    def run(*arguments):
        more = ("--data-dir", data_dir, "--out", tmp_path)
        command(monkeypatch, analyze, *arguments, *more)
        return tmp_path / "analysis"

    return run


@pytest.mark.slow
def test_a_run_at_another_size_of_images_is_looked_at_in_that_size(
    tmp_path,
    monkeypatch,
    data_dir,
):
    sizes = ("--model", "vit_small", "--width", 8, "--image-size", 12, "--normalization", "half")
    rest = ("--epochs", 1, "--train-examples", 64, "--method", "sgd", "--name", "larger")
    command(monkeypatch, train, *sizes, *rest, "--data-dir", data_dir, "--out", tmp_path)
    trained = Trained(tmp_path / "larger", data_dir)
    params, state = trained.weights()
    assert params["positions"].shape == (1, 1 + (12 // 4) ** 2, 8)
    loss = trained.objective(state, training=False, size=64).loss(params)
    assert loss == pytest.approx(trained.summary["train_loss"], rel=1e-5)


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


@pytest.mark.parametrize("name", [pytest.param("ae_sam", marks=pytest.mark.slow), "cnn"])
@pytest.mark.usefixtures("x64")
def test_float64_is_float64_throughout(name, look):
    trained, seen = look(name, dtype="float64")
    assert {leaf.dtype for leaf in jax.tree.leaves(seen.params)} == {np.dtype("float64")}
    objective = trained.objective(seen.model_state, training=False, size=400, dtype=jnp.float64)
    # A step of the size that only float64 resolves.
    params, gradient = jax.tree.map(np.asarray, (seen.params, objective.gradient(seen.params)))
    moved = jax.tree.map(lambda p, g: p + 1e-7 * g, params, gradient)
    rise = objective.loss(moved) - objective.loss(params)
    square = sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradient))
    assert rise == pytest.approx(1e-7 * square, rel=1e-3)


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
        assert "threshold" not in rows[0]
        assert rows[-1]["lambda_k"] == pytest.approx(written["lambda_k"])
        grows = [row["ratio"] >= 1.0 for row in rows[1:]]  # χ of the recipe
        moved = [a["lambda_k"] >= b["lambda_k"] for a, b in zip(rows[1:], rows, strict=False)]
        assert grows == moved
    else:
        fires = [row["gradient_norm"] ** 2 >= row["threshold"] for row in rows]
        assert fires == [row["sam_fraction"] > 0.5 for row in rows]
        for row in rows:  # c_t from λ2 = 0 to λ1 = −1 over the 15 steps, the first of which is 0
            c = -(row["step"] - 1) / 15
            expected = row["mean"] + c * row["variance"] ** 0.5
            assert row["threshold"] == pytest.approx(expected, rel=1e-5)


def test_an_epoch_under_way_is_replayed_from_its_middle(look, folder, tmp_path):
    """The checkpoint holds the sums of the steps before it."""
    trained, _ = look("ae_sam")
    whole = replay(trained, 10)
    recipe = ("--method", "ae_sam", "--name", "cut", "--checkpoint-minutes", 0)
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        more = ("--steps-per-dispatch", 3, "--data-dir", trained._data_dir, "--out", tmp_path)
        command(patch, train, *SHORT, *recipe, *more)
    cut = Trained(tmp_path / "cut", trained._data_dir)
    middle = next(step for step in cut.steps if step % 5)
    rows = replay(cut, middle)
    assert rows[0]["step"] == middle + 1 > 11
    for row, expected in zip(rows, whole[middle - 10 :], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-5)


def test_the_epoch_after_a_switch_is_replayed_with_the_new_method(look):
    trained, _ = look("switched")
    rows = replay(trained, 10)
    assert "lambda_k" in rows[0]
    mean = np.mean([row["gradient_norm"] for row in rows])
    assert mean == pytest.approx(trained.rows[-1]["gradient_norm"], rel=1e-4)
    assert trained.label.startswith("sgd-then-samar")


def test_planes_and_lines_go_where_they_say(look):
    """Also that a model with batch norm is looked at in training mode."""
    trained, seen = look("cnn", grid=3, span=0.3, examples=300)
    found = seen.landscape()
    objective = trained.objective(seen.model_state, training=True, size=500, examples=300)
    params, g = jax.tree.map(np.asarray, (seen.params, objective.gradient(seen.params)))
    length = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(g)))
    for sign, column in ((-1, 0), (0, 1), (1, 2)):  # the gradient leads along the first axis
        scale = np.float32(sign * 0.3 / length)
        there = objective.loss(jax.tree.map(lambda p, d, s=scale: p + s * d, params, g))
        assert found["steepest"][1][column] == pytest.approx(there, rel=1e-4)
    assert found["mode"] == "training"
    _, first = look("sgd-0", grid=3)
    _, other = look("ae_sam", grid=3)
    line = first.line_to(other)
    ends = {round(t, 9): loss for t, loss in zip(line["at"], line["losses"], strict=True)}
    objective = first.trained.objective({}, training=False, size=500)
    assert ends[0.0] == pytest.approx(objective.loss(first.params), rel=1e-5)
    assert ends[1.0] == pytest.approx(objective.loss(other.params), rel=1e-5)


@pytest.mark.slow
def test_the_modes_of_batch_norm_are_measured_apart(look):
    _, seen = look("cnn", k=1, steps=2, probes=1, samples=2, examples=520, draws=1, radii=(0.1,))
    found = seen.hessian()
    assert list(found) == ["evaluation", "training"]
    evaluation, training = (found[mode]["eigenvalues"][0] for mode in found)
    assert abs(evaluation - training) > 0.01 * abs(evaluation)
    part = seen.gradients()
    assert part["mode"] == "training"
    params, state = seen.trained.weights()
    objective = seen.trained.objective(state, training=True, size=256, examples=520)
    square = optax.tree.norm(next(objective.gradients(params)), squared=True)
    assert part["checkpoints"][-1]["squared_norms"][0] == pytest.approx(float(square), rel=1e-4)


def test_labels_are_smoothed_as_in_training(look):
    trained, seen = look("smooth")
    assert trained.seed == 3
    objective = trained.objective({}, training=False, size=400)
    data = trained.data
    images = (data.train.images.astype(np.float32) - data.mean) / data.std
    model = trained.model()
    logits = model.apply({"params": seen.params}, images, train=False)
    logs = np.asarray(jax.nn.log_softmax(logits))
    of_label = np.take_along_axis(logs, data.train.labels[:, None], 1)[:, 0]
    expected = -(0.7 * of_label + 0.3 * logs.mean(1)).mean()
    assert objective.loss(seen.params) == pytest.approx(float(expected), rel=1e-5)
    flipped = Trained(trained.path.parent / "sgd-0", trained._data_dir).data.train.labels
    assert 0.1 < np.mean(flipped != data.train.labels) < 0.3  # the noise of its seed


def test_runs_of_one_method_are_told_apart():
    def run(name, method, label, group):
        return {"name": name, "method": method, "label": label, "group": group}

    apart = [run("a", "sam", "sam (rho 1)", "1"), run("b", "sam", "sam (rho 2)", "2")]
    assert [r["title"] for r in pictures.titled(apart)] == ["sam (rho 1)", "sam (rho 2)"]
    same = [run("a$", "sam", "sam", "1"), run("b", "sam", "sam", "2"), run("c", "sam", "sam", "1")]
    assert [r["title"] for r in pictures.titled(same)] == [r"a\$", "b", r"a\$"]
    seeds = [run("a", "sgd", "sgd", "1"), run("b", "sam", "sam", "2"), run("c", "sgd", "sgd", "1")]
    assert [r["title"] for r in pictures.titled(seeds)] == ["sgd", "sam", "sgd"]
    assert [r["name"] for r in pictures.first_of_each(seeds)] == ["a", "b"]


@pytest.fixture
def glanced(monkeypatch):
    """The norm of the parameters in place of what is measured of the Hessian, and no sharpness."""

    def hessian(self):
        values = [float(optax.tree.norm(self.params))]
        density = {"values": [values], "weights": [[1.0]]}
        found = {"eigenvalues": values, "density": density, "parameters": 100}
        return {"evaluation": {**found, "trace": 1.0, "trace_error": 0.1}}

    def sharpness(self):
        kinds = ("ascent", "adaptive", "worst", "parts", "parts_error", "average", "average_error")
        return {"evaluation": {"loss": 1.0, **{kind: [0.1, 0.2] for kind in kinds}}}

    monkeypatch.setattr(Look, "hessian", hessian)
    monkeypatch.setattr(Look, "sharpness", sharpness)


@pytest.mark.usefixtures("glanced")
def test_another_run_of_the_same_name_is_measured_anew(folder, run, tmp_path):
    for source, place in (("sgd-0", "x"), ("ae_sam", "y")):
        shutil.copytree(folder / source, tmp_path / place / "same")
    largest = []
    for place in ("x", "y"):
        path = run(tmp_path / place / "same", *LITTLE, "--parts", "hessian")
        part = read(path / "analysis.json")["runs"][0]["parts"]["hessian"]
        largest.append(part["evaluation"]["eigenvalues"][0])
    assert largest[0] != largest[1]


@pytest.mark.usefixtures("glanced")
def test_looking_changes_nothing_in_a_run(folder, run, tmp_path, capsys):
    """Not what another process writes at the moment, nor the run where the page has its name."""
    shutil.copytree(folder / "sgd-0", tmp_path / "live")
    being_written = tmp_path / "live/checkpoints/20.orbax-checkpoint-tmp"
    being_written.mkdir()
    with (tmp_path / "live/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tra')
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "live").rglob("*")}
    run(tmp_path / "live", *LITTLE, "--parts", "hessian")
    with pytest.raises(SystemExit):
        run(tmp_path / "live", *LITTLE, "--name", "live", "--overwrite")
    assert "holds what experiments.train wrote" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "live").rglob("*")} == before


@pytest.mark.slow
def test_what_fails_does_not_take_the_rest_along(folder, run, capsys):
    names = (folder / "sgd-0", folder / "cnn")
    with pytest.raises(SystemExit) as stop:
        run(*names, *LITTLE, "--parts", "hessian", "gradients")
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "sgd-0, gradients: there must be two batches of 256 examples" in said
    path = run(*names, *LITTLE, "--parts", "hessian")
    assert "Not measured" not in (path / "report.html").read_text()
    assert not (path / "norms.png").exists()


def test_the_page_holds_every_picture_and_the_table(folder, run):
    names = ("sgd-0", "sgd-1", "ae_sam")
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
    ]
    largest = [run["parts"]["hessian"]["evaluation"]["eigenvalues"][0] for run in found["runs"][:2]]
    mean, deviation, _ = rows[0]["columns"]["λ_max"]
    assert mean == pytest.approx(np.mean(largest))
    assert deviation == pytest.approx(np.std(largest, ddof=1))
    for text in ((path / "analysis.md").read_text(), page):
        assert f"{mean:.3g} ± {deviation:.2g}" in text
    # Pictures show the first seed; of the others the table alone is measured.
    assert set(found["runs"][1]["parts"]) == {"hessian", "sharpness"}
    assert [(line["from"], line["to"]) for line in found["lines"]] == [("sgd-0", "ae_sam")]


@pytest.mark.usefixtures("glanced")
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
    monkeypatch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
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
    "config.json is damaged .Expecting property name": lambda path: (
        path / "sgd-0/config.json"
    ).write_text("{"),
    "config.json is damaged .its checksum": lambda path: (path / "sgd-0/config.json").write_text(
        "{}"
    ),
    "sgd-0 is no folder of a run .KeyError": lambda path: write_json(
        path / "sgd-0/config.json", {}
    ),
    "cannot read the checkpoint of step 15": lambda path: damage(path / "sgd-0/checkpoints/15"),
}


def damage(path):
    """Cuts the file of the numbers short."""
    largest = max((path / "state" / "d").iterdir(), key=lambda file: file.stat().st_size)
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
        (("sgd-0",), ("--parts", "hessian", "--k", 10_000), r"k must lie between 1 and the \d+"),
        (("sgd-0",), ("--parts", "gradients", "--examples", 300), "two batches of 256"),
        (("sgd-0",), ("--name", "../sgd-0"), "must be a plain name"),
        (("sgd-0",), ("--parts", "hessian", "hessian"), "--parts must be different ones"),
        (("sgd-0",), ("--basis", 0), "--basis must be at least 1"),
        (("sgd-0",), ("--radii", "nan"), "--radii must be a finite number"),
        (("sgd-0",), ("--radii", 0.5, 0.1), "--radii must be positive and ascending"),
        (("sgd-0",), ("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("sgd-0",), ("--dtype", "float16"), "float16"),
        (("sgd-0",), ("--grid", 2), "--grid must be at least 3"),
        (("sgd-0",), ("--workers", -1), "--workers must be at least 0, got -1"),
        (("sgd-0",), ("--gammas-squared", -1), "--gammas-squared must not be negative"),
    ],
)
def test_wrong_arguments_are_told(names, arguments, message, folder, run, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*(folder / name for name in names), *arguments)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_runs_of_different_models_share_no_line(folder, run, monkeypatch, capsys):
    def failing(self):
        raise AnalysisError("no plane is looked at here.")

    monkeypatch.setattr(Look, "landscape", failing)
    with pytest.raises(SystemExit) as stop:
        run(folder / "sgd-0", folder / "other", "--parts", "landscape", *LITTLE)
    assert stop.value.code == 2
    assert re.search("sgd-0 to other: .*different models", capsys.readouterr().err)


def test_a_checkpoint_whose_numbers_were_changed_is_refused(folder, tmp_path, look):
    """The part that is read alone is checked against the digest of the whole."""
    shutil.copytree(folder / "sgd-0", tmp_path / "sgd-0")
    file = next((tmp_path / "sgd-0/checkpoints/15/progress").rglob("metadata"))
    held = json.loads(file.read_text())
    held["digest"] = [[0, 0] for _ in held["digest"]]
    file.write_text(json.dumps(held))
    trained, _ = look("sgd-0")
    trained.checkpoints = Checkpoints(tmp_path / "sgd-0/checkpoints")
    with pytest.raises(UserError, match="not those that were saved"):
        trained.weights()


def test_some_are_spread_over_all():
    assert spread([1, 2], 3) == [1, 2]
    assert spread(list(range(10)), 3) == [0, 4, 9]
