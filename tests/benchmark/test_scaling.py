"""What devices send each other is what the formula says, and a mesh trains as one device does."""

import dataclasses
import json
import re
import shutil

from inprocess import command, read
import jax
import numpy as np
import pytest
from reference import few

from experiments import scaling, train
from experiments.benchmark import collectives
from experiments.cli.settings import METHODS
from experiments.data.feeds import arrays
from experiments.recipes import RECIPES
from experiments.results import files
from experiments.scaling import Sent
from experiments.system import mesh
from experiments.system.mesh import DATA, MODEL, Layout
from experiments.training.step import Step
from experiments.training.trainer import Trainer

eight_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
SMALL = dataclasses.replace(RECIPES["digits"], width=8, batch_size=32)


# Counting.

HLO = """
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: f32[4]) -> f32[4] {
  ROOT %gathered = f32[4]{0} all-gather(%p), dimensions={0}
}

%taken (p: f32[4]) -> (f32[4]) {
  %again = bf16[8,2]{1,0} all-reduce(%q), to_apply=%add
  %called = f32[4]{0} call(%p), to_apply=%inner
}

%skipped (p: f32[4]) -> (f32[4]) {
  ROOT %nothing = (f32[4]) tuple(%p)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %both = (f32[64,10]{1,0}, pred[3]{0}) all-reduce(%a, %b), to_apply=%add
  %started = (f32[], s64[2]) all-reduce-start(%c), to_apply=%add
  %done = f32[] all-reduce-done(%started)
  %parts = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), dimensions={0}
  %moved = (f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(%p)
  %shard = ((f32[64]{0}, f32[8]{0}), (f32[8]{0}, f32[1]{0}), s32[]) reduce-scatter-start(%a, %b)
  %spread = s4[14]{0} collective-broadcast(%q)
  %ragged = f32[6,<=2]{1,0} ragged-all-to-all(%p, %q)
  ROOT %c = (f32[4]) conditional(%d, %e, %e), branch_computations={%taken, %skipped}
}
"""


def test_collectives_are_found_with_their_bytes_and_where_they_stand():
    assert sorted(collectives.found(HLO)) == [
        ("all-gather", 16, True),
        ("all-gather", 128, False),
        ("all-reduce", 20, False),
        ("all-reduce", 32, True),
        ("all-reduce", 4 * 640 + 3, False),
        ("collective-broadcast", 7, False),
        ("collective-permute", 20, False),
        ("ragged-all-to-all", 48, False),
        ("reduce-scatter", 36, False),
    ]
    assert scaling.sent(HLO, "all-reduce") == (2563 + 20, 32)


@eight_devices
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("method", few("sgd", "samar", "ae_looksam", "msam", names=METHODS))
def test_the_bytes_of_a_step_are_those_of_the_formula(method, apart, digits):
    hlo = scaling.compiled_step(SMALL, method, digits, Layout({DATA: 8}), apart=apart)
    shapes = [(64, 8), (8,), (8, 8), (8,), (8, 10), (10,)]
    parameters = 4 * sum(map(np.prod, shapes))
    expected = scaling.formula(
        method,
        parameters=parameters,
        later=4 * (8 * 8 + 8 * 10),
        kept=16 * 4 * 64,  # half of 32 images of 8 × 8
        apart=apart,
    )
    assert scaling.sent(hlo, "all-reduce") == expected
    others = scaling.sent(hlo, *(kind for kind in collectives.KINDS if kind != "all-reduce"))
    chooses = method == "esam" and not apart  # by the losses of all devices
    assert 0 < sum(others) < 1000 if chooses else others == Sent(0, 0)


def test_the_model_of_the_cost_by_hand():
    given = {"gradients": 2, "reductions": 2, "gradient": 0.1, "payload": 1e6}
    given |= {"speed": 1e8, "latency": 1e-3}
    assert scaling.seconds(**given, devices=1) == pytest.approx(0.2)
    expected = 0.2 + 2 * (2 * 7 / 8 * 0.01 + 2 * 3 * 1e-3)
    assert scaling.seconds(**given, devices=8) == pytest.approx(expected)


@eight_devices
def test_the_command_writes_its_table_and_picture(monkeypatch, tmp_path, data_dir):
    arguments = ("--methods", "sgd", "ae_sam", "--model", "mlp", "--batch-size", 2)
    command(monkeypatch, scaling, *arguments, "--data-dir", data_dir, "--out", tmp_path)
    written = (tmp_path / "scaling" / "scaling.md").read_text()
    assert re.search(r"\| sgd \| 1\.000 \| 1\.000 \| [\d.]+ \|", written)
    assert re.search(r"\| ae_sam \| 1\.000 \+ 1\.000 \| 1\.000 \| [\d.]+ \+ [\d.]+ \|", written)
    assert "| 10 Gb/s | SAM, one perturbation a device |" in written
    assert json.loads((tmp_path / "scaling" / "scaling.json").read_text())["gradient_seconds"] > 0
    assert (tmp_path / "scaling" / "scaling.png").read_bytes().startswith(b"\x89PNG")


# Training on a mesh.


def training(monkeypatch, out, data_dir):
    """Trains two epochs of digits, and returns the summary and the rows of metrics."""

    def run(name, *more):
        arguments = ("digits", "--epochs", 2, "--name", name, *more)
        command(monkeypatch, train, *arguments, "--data-dir", data_dir, "--out", out)
        rows = files.read_lines(out / name / "metrics.jsonl").values()
        return read(out / name / "summary.json"), list(rows)

    return run


@pytest.fixture
def trained(monkeypatch, tmp_path, data_dir):
    return training(monkeypatch, tmp_path, data_dir)


@pytest.fixture(scope="module")
def alone_and_meshed(tmp_path_factory, data_dir):
    """A run on one device and one on a mesh, and their folder; all checkpoints are left there."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("--method", "ae_looksam", "--checkpoint-minutes", 0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run = training(monkeypatch, folder, data_dir)
        alone, meshed = run("alone", *options), run("meshed", *options, "--mesh", "data=4,model=2")
    return alone, meshed, folder


def assert_alike(one, two):
    """The same metrics up to the rounding of sums in another order."""
    for row, other in zip(one[1], two[1], strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert value == pytest.approx(other[name], rel=1e-2, abs=6e-3), name
    assert one[0]["ascents"] == two[0]["ascents"]


@eight_devices
def test_a_mesh_trains_as_one_device(alone_and_meshed):
    alone, meshed, _ = alone_and_meshed
    assert_alike(alone, meshed)
    assert meshed[0]["mesh"] == {"data": 4, "model": 2}
    assert alone[0]["mesh"] is None


@eight_devices
@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("data=2",), ("data=4,model=2",), ("data=2", "--decide", "host")]
)
def test_other_meshes_train_as_one_device(options, trained):
    arguments = ("--method", "ae_sam")
    alone = trained("alone", *arguments, *options[1:])
    meshed = trained("meshed", *arguments, "--mesh", *options)
    assert_alike(alone, meshed)
    assert meshed[0]["mesh"] == {"data": 1, "model": 1} | mesh.parse(options[0])
    assert alone[0]["mesh"] is None


@eight_devices
def test_equal_parts_perturb_alike_and_others_do_not(trained, monkeypatch):
    """Each device perturbs for itself; where all have the same examples that is the same."""
    options = ("--method", "gsam", "--mesh", "data=2")
    whole, apart = (
        trained("whole", *options),
        trained("apart", *options, "--perturbation", "device"),
    )
    assert whole[1][-1]["train_loss"] != pytest.approx(apart[1][-1]["train_loss"], rel=1e-3)

    order = Step.order

    def twice(self, seed, epoch):
        half = order(self, seed, epoch)
        half = half[:, : half.shape[1] // 2]
        return jax.numpy.concatenate([half, half], axis=1)

    monkeypatch.setattr(Step, "order", twice)
    whole, apart = trained("same", *options), trained("parts", *options, "--perturbation", "device")
    assert_alike(whole, apart)


@eight_devices
@pytest.mark.parametrize("method", few("ae_looksam", names=["le_sam", "ae_looksam", "esam"]))
def test_each_device_keeps_a_state_of_its_own(method, trained):
    summary, rows = trained(
        method, "--method", method, "--mesh", "data=4", "--perturbation", "device"
    )
    assert summary["mesh"] == {"data": 4, "model": 1}
    assert rows[-1]["steps"] == 44
    assert rows[-1]["ascents"] == summary["ascents"] > 0
    for quantity in {"le_sam": ["rho"], "ae_looksam": ["mean", "variance"]}.get(method, []):
        assert rows[-1][quantity] > 0


@eight_devices
@pytest.mark.parametrize("apart", [False, True])
def test_arrays_stay_where_they_lie(apart, digits):
    layout = Layout({DATA: 8} if apart else {DATA: 4, MODEL: 2})
    arguments = {"data": digits, "on_host": False, "layout": layout, "apart": apart}
    trainer = Trainer(SMALL, "looksam", {}, **arguments)
    state = trainer.init(digits.train.shape, 0)
    expected = trainer.shardings(state)
    specs = {sharding.spec for sharding in jax.tree.leaves(expected)}
    assert len(specs) > 1
    kernel = state.params["Dense_0"]["kernel"]
    assert kernel.sharding.is_fully_replicated == apart
    for _, after in trainer.dispatches(state, arrays(digits, layout), most=20):
        for leaf, sharding in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@eight_devices
def test_a_run_goes_on_on_another_mesh(alone_and_meshed, trained, tmp_path):
    """Of the global perturbation; one a device depends on how many there are."""
    alone, _, folder = alone_and_meshed
    shutil.copytree(folder / "meshed", tmp_path / "meshed")
    (tmp_path / "meshed" / "summary.json").unlink()
    steps = sorted(int(path.name) for path in (tmp_path / "meshed" / "checkpoints").iterdir())
    shutil.rmtree(tmp_path / "meshed" / "checkpoints" / str(steps[-1]))
    moved = trained("meshed", "--method", "ae_looksam", "--mesh", "data=2", "--resume")
    assert moved[0]["mesh"] == {"data": 2, "model": 1}
    assert_alike(alone, moved)


@pytest.mark.parametrize(
    "text", ["", "8", "data", "data=0", "data=-1", "data=x", "modl=2", "data=1,data=2"]
)
def test_a_mesh_that_is_none_is_told(text):
    with pytest.raises(ValueError, match="must read data=4"):
        mesh.parse(text)


@eight_devices
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mesh", "data=3"), "--batch-size 64 cannot be divided over 3 devices"),
        (("--mesh", "data=16"), "a mesh of 16 devices, and there are 8"),
        (("--mesh", "8"), "--mesh 8: a mesh must read data=4"),
        (("--mesh", "data=2,model=2", "--perturbation", "device"), "leave model away"),
        (("--mesh", "data=2", "--perturbation", "device", "--decide", "host"), "leave --decide"),
        (("--mesh", "data=2", "--vmap-seeds", "--seeds", 0, 1), "leave it or --mesh away"),
        (("--mesh", "data=2", "--process-id", 0), "go together"),
        (("--perturbation", "device"), "needs --mesh"),
        (("--num-processes", 2), "several processes need --mesh"),
    ],
)
def test_a_mistake_is_told(arguments, message, monkeypatch, tmp_path, data_dir, capsys):
    options = ("--data-dir", data_dir, "--out", tmp_path)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, "digits", *arguments, *options)
    assert stop.value.code == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


@eight_devices
@pytest.mark.parametrize("option", ["--methods", "--gigabits"])
def test_a_list_without_values_is_told(option, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, scaling, option, "--out", tmp_path)
    assert stop.value.code == 2
    assert f"{option} needs a value or more" in capsys.readouterr().err
