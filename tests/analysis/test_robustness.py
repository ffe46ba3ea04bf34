"""The command that attacks trained runs: what it measures, keeps, tells and refuses."""

import re
import shutil

from inprocess import command, read, undrawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import robustness, train
from experiments.analysis.attacked import Attack, Target, in_batches
from experiments.analysis.attacks import pgd
from experiments.analysis.trained import Trained
from experiments.data import feeds
from experiments.system.errors import UserError

SHORT = ("digits", "--epochs", 3, "--width", 8, "--batch-size", 256)
RADII = ("--linf", 4, 16, "--l2", 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir):
    """Two seeds of SGD, one of SAM, and a convolutional network with batch norm."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        more = ("--data-dir", data_dir, "--out", out)
        command(patch, train, *SHORT, "--method", "sgd", "--seeds", 0, 1, "--name", "sgd", *more)
        command(patch, train, *SHORT, "--method", "sam", "--name", "sam", *more)
        cnn = ("--model", "cnn", "--batch-size", 64, "--method", "sgd", "--name", "cnn")
        command(patch, train, *SHORT, *cnn, *more)
    return out


@pytest.fixture
def run(monkeypatch, tmp_path, data_dir):
    """Runs the command."""

    def run(*arguments):
        more = ("--data-dir", data_dir, "--out", tmp_path)
        command(monkeypatch, robustness, *arguments, *more)
        return tmp_path / "robustness"

    return run


@pytest.fixture
def target(folder, data_dir):
    """A run under attack."""

    def target(name, batch_size=500, **attack):
        trained = Trained(folder / name, data_dir)
        return Target(trained, Attack(**attack), batch_size, lambda: None)

    return target


def by_hand(trained, *, examples=None):
    """Logits of images in [0, 1], and the test split so, without the command's own code."""
    params, state = trained.weights()
    model, found = trained.model(), trained.data

    @jax.jit
    def logits_fn(images):
        seen = (255 * images - found.mean) / found.std
        return model.apply({"params": params, **state}, seen, train=False)

    images, labels = (a[:examples] for a in found.test)
    return logits_fn, images.astype(np.float32) / 255, labels


@jax.jit
def losses(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@pytest.mark.parametrize("name", ["sam", "cnn"])
def test_clean_figures_are_those_of_the_run(name, target, folder):
    """In evaluation mode, on the test split; images at a time change nothing."""
    summary = read(folder / name / "summary.json")
    for batch_size in (500, 77):
        found = target(name, batch_size).measure(None, None)
        assert found["accuracy"] == pytest.approx(summary["test_accuracy"], abs=1e-9)
        assert found["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
        assert (found["examples"], found["left_out"]) == (360, 0)


@pytest.mark.parametrize(
    ("name", "norm", "told", "epsilon"),
    [
        ("sam", "l2", 0.4, 0.4),
        ("cnn", "linf", 8, 8 / 255),
        pytest.param("sam", "linf", 8, 8 / 255, marks=pytest.mark.slow),
        pytest.param("cnn", "l2", 0.4, 0.4, marks=pytest.mark.slow),
    ],
)
def test_attacked_figures_are_those_of_attacks_by_hand(name, norm, told, epsilon, target):
    """Two restarts from starts of their own, of which the worse counts, image by image."""
    attack = {"steps": 3, f"{norm}_step_size": 0.5, "restarts": 2, "seed": 7, "examples": 100}
    under = target(name, **attack)
    logits_fn, images, labels = by_hand(under._trained, examples=100)
    gradient = jax.jit(jax.grad(lambda x, y: losses(logits_fn(x), y).sum()))
    clean = np.asarray(logits_fn(images))
    right, worst = [clean.argmax(1) == labels], [losses(clean, labels)]
    for restart in range(2):
        attacked = pgd(
            gradient,
            images,
            labels,
            epsilon=epsilon,
            norm=norm,
            steps=3,
            step_size=epsilon / 2,
            key=jax.random.fold_in(jax.random.key(7), restart),
        )
        logits = np.asarray(logits_fn(attacked))
        right.append(logits.argmax(1) == labels)
        worst.append(losses(logits, labels))
    found = under.measure(norm, told)
    assert found["accuracy"] == pytest.approx(float(np.all(right, 0).mean()))
    assert found["loss"] == pytest.approx(float(np.max(worst, 0).mean()), rel=1e-4)
    assert found["examples"] == 100
    assert found["accuracy"] < np.mean(right[0]) - 0.02
    smaller = target(name, batch_size=33, **attack).measure(norm, told)
    assert smaller["accuracy"] == found["accuracy"]
    assert smaller["loss"] == pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_a_random_start_an_attack_begins_at_the_image(norm, target):
    under = target("sam", steps=1, random_start=False, linf_step_size=1.0, l2_step_size=1.0)
    logits_fn, images, labels = by_hand(under._trained)
    gradient = jax.jit(jax.grad(lambda x: losses(logits_fn(x), labels).sum()))(images)
    gradient = np.asarray(gradient)
    lengths = np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True))
    step = np.sign(gradient) if norm == "linf" else gradient / np.maximum(lengths, 1e-30)
    clean, attacked = (
        losses(logits_fn(x), labels) for x in (images, np.clip(images + 0.1 * step, 0, 1))
    )
    found = under.measure(norm, 25.5 if norm == "linf" else 0.1)
    assert found["loss"] == pytest.approx(float(np.maximum(clean, attacked).mean()), rel=1e-4)


def test_more_restarts_do_more_harm(target):
    """The first starts are the same, so that no image is won back."""
    few, many = (target("sam", steps=1, restarts=n).measure("linf", 16.0) for n in (1, 4))
    assert many["loss"] > few["loss"]
    assert many["accuracy"] <= few["accuracy"]


def test_images_that_do_not_count_are_left_out(target, monkeypatch):
    """A stream's batches hold rows that stand for no image."""
    under = target("sam")
    test = under._trained.data.test

    def streamed(split, size):
        assert split is test
        for i in (0, 300):
            images, labels = (jnp.asarray(a[i : i + 300]) for a in split)
            yield images, labels, jnp.arange(len(labels)) % 3 > 0

    monkeypatch.setattr(feeds, "evaluated", streamed)
    found = Target(under._trained, Attack(), 300, lambda: None).measure(None, None)
    logits_fn, images, labels = by_hand(under._trained)
    counts = np.arange(360) % 300 % 3 > 0
    right = np.asarray(logits_fn(images)).argmax(1) == labels
    assert found["accuracy"] == pytest.approx(right[counts].mean())
    assert (found["examples"], found["left_out"]) == (counts.sum(), 360 - counts.sum())
    monkeypatch.setattr(feeds, "evaluated", lambda *_: iter(()))
    with pytest.raises(UserError, match="no image of the test split could be decoded"):
        list(in_batches(under._trained, 10, None))


def test_several_test_sets_are_refused(target):
    trained = target("sam")._trained
    trained.__dict__["data"] = trained.data._replace(test={"art": trained.data.test})
    with pytest.raises(UserError, match="has a test set for each domain"):
        list(in_batches(trained, 10, None))


def test_the_tables_have_a_row_for_each_group_of_seeds(folder, run):
    path = run(*(folder / n for n in ("sgd-0", "sgd-1", "sam")), *RADII)
    found = read(path / "robustness.json")
    assert found["config"]["attack"]["steps"] == 10
    assert found["radii"] == {"linf": [4, 16], "l2": [0.5]}
    assert {"device", "versions", "commit"} <= set(found)
    runs = found["runs"]
    assert [[f["epsilon"] for f in r["attacked"]["linf"]] for r in runs] == [[4, 16]] * 3
    text = (path / "robustness.md").read_text()
    linf, l2 = re.findall(r"Under (?:L∞|L2) attacks:\n\n((?:\|.+\n)+)", text)
    heading, _, sgd, sam = (
        [c.strip() for c in row.strip("|").split("|")] for row in linf.splitlines()
    )
    assert heading == [
        *("method", "seeds", "clean (%)", "4/255 (%)", "16/255 (%)", "loss", "loss at 16/255")
    ]
    assert (sgd[0], sgd[1], sam[1]) == ("sgd", "2", "1")
    accuracies = [100 * r["attacked"]["linf"][1]["accuracy"] for r in runs[:2]]
    assert sgd[4] == f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2g}"
    assert sam[2] == f"{100 * runs[2]['clean']['accuracy']:.2f}"
    assert sam[6] == f"{runs[2]['attacked']['linf'][1]['loss']:.3g}"
    assert f"{100 * runs[2]['attacked']['l2'][0]['accuracy']:.2f}" in l2.splitlines()[-1]
    assert "on 360 test images;" in text
    found["runs"][1]["clean"]["left_out"] = 2
    said = "on 360 test images (2 left out that cannot be decoded);"
    assert said in robustness.markdown(found)
    assert "PGD with 10 steps of 0.25 ε (L∞), 0.25 ε (L2), 1 random start" in text
    assert (path / "robustness.png").stat().st_size > 10_000


def test_a_norm_without_radii_is_left_out(folder, run, monkeypatch):
    undrawn(monkeypatch)
    path = run(folder / "sam", "--linf", "--l2", 0.5, 1, "--l2-step-size", 0.125, "--examples", 99)
    text = (path / "robustness.md").read_text()
    assert "L∞" not in text
    assert "steps of 0.125 ε (L2)" in text
    assert "on 99 test images" in text
    assert list(read(path / "robustness.json")["runs"][0]["attacked"]) == ["l2"]


def test_a_stopped_command_goes_on(folder, run, refused, monkeypatch):
    """What was measured is kept, also where runs or radii are added; other options are told."""
    undrawn(monkeypatch)
    asked, measure, some = [], Target.measure, ("--examples", 50)

    def watched(self, norm, epsilon):
        asked.append((self._trained.path.name, norm, epsilon))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return measure(self, norm, epsilon)

    monkeypatch.setattr(Target, "measure", watched)
    monkeypatch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit) as stop:
        run(folder / "sgd-0", *RADII, *some)
    assert stop.value.code == 130
    path = run(folder / "sgd-0", *RADII, *some, "--batch-size", 30)
    assert asked == [
        *(("sgd-0", None, None), ("sgd-0", "linf", 4), ("sgd-0", "linf", 16)),
        *(("sgd-0", "linf", 16), ("sgd-0", "l2", 0.5)),
    ]
    first = read(path / "robustness.json")
    run(folder / "sgd-0", folder / "sam", "--linf", 4, 8, "--l2", *some)
    sam = [("sam", None, None), ("sam", "linf", 4), ("sam", "linf", 8)]
    assert asked[5:] == [("sgd-0", "linf", 8), *sam]
    figures = read(path / "robustness.json")["runs"][0]["attacked"]["linf"]
    assert figures[0] == first["runs"][0]["attacked"]["linf"][0]
    assert "holds a run with other steps" in refused(folder / "sgd-0", *RADII, *some, "--steps", 3)
    (path / "runs.jsonl").unlink()
    assert "holds a run with other steps" in refused(folder / "sgd-0", *RADII, *some, "--steps", 3)
    run(folder / "sgd-0", "--linf", 4, "--l2", *some, "--steps", 3, "--overwrite")
    again = read(path / "robustness.json")["runs"][0]["attacked"]["linf"][0]
    assert again["loss"] < figures[0]["loss"]


def test_another_checkpoint_of_the_same_name_is_attacked_anew(folder, run, tmp_path, monkeypatch):
    undrawn(monkeypatch)
    found = []
    for source, place in (("sgd-0", "x"), ("sgd-1", "y")):
        shutil.copytree(folder / source, tmp_path / place / "same")
        path = run(tmp_path / place / "same", "--linf", 8, "--l2")
        found.append(read(path / "robustness.json")["runs"][0]["attacked"]["linf"][0]["loss"])
    assert found[0] != found[1]


def test_what_fails_does_not_take_the_rest_along(folder, run, refused, monkeypatch, tmp_path):
    """A run that has diverged, and one whose logits are no numbers."""
    undrawn(monkeypatch)
    weights = Trained.weights

    def damaged(self):
        params, state = weights(self)
        factor = {"sgd-0": np.nan, "sgd-1": 1e16}.get(self.path.name, 1)
        return jax.tree.map(lambda leaf: np.asarray(leaf) * factor, params), state

    monkeypatch.setattr(Trained, "weights", damaged)
    said = refused(*(folder / n for n in ("sgd-0", "sgd-1", "sam")), "--linf", 4, "--l2")
    assert "sgd-0, clean: the parameters of" in said
    assert "not finite: the run has diverged" in said
    assert "sgd-1, clean: the loss of an image is not finite" in said
    found = read(tmp_path / "robustness/robustness.json")
    assert ["clean" in run for run in found["runs"]] == [False, False, True]
    assert found["runs"][2]["attacked"]["linf"][0]["accuracy"] <= 1
    assert (tmp_path / "robustness/robustness.png").exists()


def test_an_attack_that_does_less_harm_in_a_larger_ball_is_told():
    def figures(*pairs):
        return [
            {"epsilon": epsilon, "accuracy": accuracy, "loss": loss}
            for epsilon, (accuracy, loss) in enumerate(pairs, 1)
        ]

    attacked = {"linf": figures((0.9, 0.1), (0.9, 0.2), (0.91, 0.3)), "l2": figures((1, 2), (1, 1))}
    fine = {"linf": figures((0.9, 0.1), (0.8, 0.2), (0.8, 0.2))}
    about = [{"name": "a", "attacked": attacked}, {"name": "b", "attacked": fine}]
    assert [said.split(",")[0] for said in robustness.weak(about)] == [
        "a: L∞ 3/255 does less harm than 2/255",
        "a: L2 2 does less harm than 1",
    ]


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        ((), (), "pass the folders of one run or more"),
        (("sam", "sam"), (), "must have different names"),
        (("sam",), ("--linf", 0, 1), r"--linf must be positive and ascending, got \(0.0, 1.0\)"),
        (("sam",), ("--l2", 1, 0.5), "--l2 must be positive and ascending"),
        (("sam",), ("--l2", "nan"), "--l2 must be a finite number"),
        (("sam",), ("--linf", 2, 300), "--linf is in 1/255, and at most 255, got 300"),
        (("sam",), ("--linf", "--l2"), "--linf and --l2 are both empty"),
        (("sam",), ("--steps", 0), "--steps must be at least 1, got 0"),
        (("sam",), ("--restarts", 0), "--restarts must be at least 1, got 0"),
        (("sam",), ("--examples", 0), "--examples must be at least 1, got 0"),
        (("sam",), ("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("sam",), ("--linf-step-size", -1), "--linf-step-size must be positive and finite"),
        (("sam",), ("--l2-step-size", "inf"), "--l2-step-size must be a finite number"),
        (("sam",), ("--seed", -1), "--seed must be at least 0"),
        (("sam",), ("--restarts", 2, "--no-random-start"), "the same attack again and again"),
        (("sam",), ("--name", "a/b"), "must be a plain name"),
        (("none",), (), "is no folder of a run"),
    ],
)
def test_wrong_arguments_are_told(names, arguments, message, folder, refused):
    assert re.search(message, refused(*(folder / name for name in names), *arguments))


def test_the_folder_of_a_run_is_no_place_for_tables(folder, refused, tmp_path):
    (tmp_path / "live").symlink_to(folder / "sam")
    said = refused(folder / "sgd-0", "--name", "live", "--overwrite")
    assert "holds what experiments.train wrote" in said
    assert (folder / "sam/summary.json").exists()
