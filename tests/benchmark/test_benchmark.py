"""The benchmark measures what it says, and the promises that need no clock are kept."""

import functools
import json
import re

from inprocess import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import KINDS

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import bars, contestants, growth, measure, problems, report, table
from experiments.benchmark.contestants import Carry
from experiments.benchmark.measure import Turn
from experiments.cli.settings import METHODS

METHODS = METHODS[1:]
NOISY = ("r_sam", "r_gsam", "lpf_sgd")
# Drawing noise costs more than 1 % where gradients cost little.
OTHERS = [m for m in METHODS if m not in (*NOISY, *bars.SKIPPING, *bars.OTHER)]

# What the bars do not allow, and how far it goes on the mlp: half a copy of the parameters.
KNOWN = {("temp_over_falling_back", "wsam"): 1.03}


# The promises.


@functools.cache
def rows(model, methods, batch_size=None, width=None):
    """What the compiler tells of these methods."""
    problem = problems.of_model(model, batch_size=batch_size, width=width)
    programs = table.compiled(problem, methods)
    return [table.costs(problem, programs, key) for key in programs]


def failing(found):
    """Bar and method of what is not kept."""
    return {
        (verdict.bar.figure, row["method"])
        for verdict in bars.judge(found)
        for row in verdict.failing
    }


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(tuple(m for m in KINDS if m not in bars.OTHER), id="kinds"),
        pytest.param(tuple(METHODS), id="all", marks=pytest.mark.slow),
    ],
)
def test_the_promises_about_flops_and_bytes_are_kept_on_the_mlp(methods):
    found = rows("mlp", methods)
    assert failing(found) <= {*KNOWN}
    judged = {verdict.bar.figure for verdict in bars.judge(found) if verdict.farthest}
    assert judged == {
        "flops_ratio",
        "temp_over_falling_back",
        "state_bytes",
        "state_beyond_a_copy",
    }
    for verdict in bars.judge(found):
        for row in verdict.failing:
            figure = verdict.bar.figure
            assert row[figure] < KNOWN[figure, row["method"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "methods", "batch_size", "width"),
    [("small_cnn", tuple(OTHERS), 32, 8), ("vit_small", ("sam", "asam", "msam"), 4, 48)],
)
def test_the_promises_are_kept_on_other_models(model, methods, batch_size, width):
    assert failing(rows(model, methods, batch_size, width)) == set()


def test_both_gradients_are_traced_once():
    """A third trace would be compiled too; on CPU a second gradient is looked into for a scan."""
    problem, traced = problems.of_model("mlp", batch_size=4, width=4), []

    def begun(contestant):
        return Carry(problem.params, {}, contestant.init(problem.params))

    def losses(*args):
        traced.append(args)
        return problem.losses(*args)

    counted = problem._replace(losses=losses)
    for method in [m for m in ("sgd", *METHODS) if m not in bars.OTHER]:
        contestant = contestants.on_device(counted, method)
        carry = jax.eval_shape(functools.partial(begun, contestant))
        traced.clear()
        jax.jit(contestant.step).trace(carry, problem.batches[0])
        looks = jax.default_backend() == "cpu" and method not in bars.SKIPPING
        expected = 1 if method in ("sgd", *bars.ONE_GRADIENT) else 2 + looks
        assert (method, len(traced)) == (method, expected)


@pytest.mark.parametrize(
    ("method", "least"),
    [
        ("gsam", 10),
        ("looksam", 10),
        ("eigen_sam", 5),
        pytest.param("eigen_sam", 10, marks=pytest.mark.slow),
    ],
)
def test_the_program_grows_with_the_leaves_and_not_with_their_square(method, least):
    """As it does where XLA repeats a sum over all leaves in each of them."""

    def size(leaves):
        problem = growth.layers(4 * leaves, leaves, 2)
        contestant = contestants.on_device(problem, method)
        carry = jax.eval_shape(lambda p: Carry(p, {}, contestant.init(p)), problem.params)
        lowered = jax.jit(contestant.step).lower(carry, problem.batches[0])
        return len(lowered.compile().as_text())

    few, more, most = map(size, (least, 2 * least, 4 * least))
    assert most - more < 2.3 * (more - few)


# The steps.


def trained(contestant, problem, steps=4):
    carry = Carry(problem.params, problem.model_state, contestant.init(problem.params))
    carry = jax.tree.map(jnp.copy, carry)  # a step may take its argument's place
    for batch in problem.batches[:steps]:
        carry = contestant.step(carry, batch)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(carry.params)])


@pytest.mark.slow
def test_every_sam_is_the_same_sam(monkeypatch):
    monkeypatch.setattr(contestants, "LEARNING_RATE", 0.1)
    problem = problems.of_model("small_cnn", batch_size=8, width=4)
    expected = trained(contestants.hand_written(problem), problem)
    for other in (
        contestants.on_device(problem, "sam"),
        contestants.on_host(problem, "sam"),
        contestants.optax_opaque(problem),
        contestants.optax_transparent(problem),
    ):
        np.testing.assert_allclose(trained(other, problem), expected, rtol=1e-4, atol=1e-6)
    plain = trained(contestants.on_device(problem, "sgd"), problem)
    assert np.abs(plain - expected).max() > 1e-3
    falling_back = trained(contestants.hand_written(problem, falls_back=True), problem)
    np.testing.assert_array_equal(falling_back, expected)
    monkeypatch.setattr(contestants, "RHO", np.inf)  # so that no second gradient is finite
    falling_back = trained(contestants.hand_written(problem, falls_back=True), problem)
    np.testing.assert_allclose(falling_back, plain, rtol=1e-4, atol=1e-6)


def test_the_layers_have_the_sizes_asked_for():
    problem = growth.layers(1000, 10, 7)
    leaves = jax.tree.leaves(problem.params)
    assert [leaf.shape for leaf in leaves] == [(10, 10)] * 10
    assert problem.batches[0].shape == (7, 10)
    losses, _ = problem.losses(problem.params, {}, problem.batches[0])
    x = np.asarray(problem.batches[0], np.float64)
    expected = np.mean([(np.tanh(x @ np.float64(w)) ** 2).sum(axis=1) for w in leaves], axis=0)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.peers
def test_the_sam_of_rollfast_is_the_same_sam(monkeypatch):
    pytest.importorskip("rollfast", reason="rollfast comes with the extra peers")
    monkeypatch.setattr(contestants, "LEARNING_RATE", 0.1)
    problem = problems.of_model("mlp", batch_size=8, width=4)
    expected = trained(contestants.hand_written(problem), problem)
    found = trained(contestants.rollfast_sam(problem), problem)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    programs = table.compiled(problem, [], rollfast=True)
    assert programs[table.ROLLFAST].run(3).ascents == 1


@pytest.mark.peers
@pytest.mark.parametrize("model", ["mlp", "small_cnn"])
def test_the_peers_in_torch_have_the_same_models_and_take_both_gradients(model):
    pytest.importorskip("torch", reason="PyTorch comes with the extra peers")
    from experiments.benchmark import torch_peers

    problem = problems.of_model(model, batch_size=8)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
    for name in torch_peers.PEERS:
        program = torch_peers.TorchProgram(problem, name)
        assert sum(p.numel() for p in program._model.parameters()) == sizes
        assert program.run(10).ascents == (name != "sgd")


# The clock.


class Fake:
    """A program that tells of its runs."""

    def __init__(self, seconds, told, cycle=1):
        self.seconds, self.told, self.cycle = seconds, told, cycle

    def run(self, steps):
        self.told.append((self, steps))
        return Turn(self.seconds, 0.0)


def test_all_take_turns_of_about_the_same_time():
    told = []
    programs = {"slow": Fake(0.5, told), "quick": Fake(0.01, told)}
    rivals = {"slow": ["quick"], "quick": []}
    taken = measure.take_turns(programs, rivals, turns=20, seconds=0.1)
    assert {name: len(turns) for name, turns in taken.items()} == {"slow": 20, "quick": 20}
    assert all(set(turn) == {"slow", "quick"} for turn in taken["slow"])
    assert all(turn == {"quick": Turn(0.01, 0.0)} for turn in taken["quick"])
    turns = [(program.seconds, steps) for program, steps in told[-60:]]
    assert set(turns) == {(0.5, 1), (0.01, 10)}
    # The slow one has its rival beside it, before or after, in an order drawn anew.
    before = [turns[i - 1] for i, turn in enumerate(turns) if turn[0] == 0.5 and i]
    after = [turns[i + 1] for i, turn in enumerate(turns[:-1]) if turn[0] == 0.5]
    assert (0.01, 10) in before
    assert (0.01, 10) in after
    firsts = [turn for turn in taken["slow"] if next(iter(turn)) == "quick"]
    assert 0 < len(firsts) < 20


def test_a_rival_without_turns_of_its_own_runs_beside_others_alone():
    told = []
    programs = {"slow": Fake(0.5, told), "quick": Fake(0.01, told)}
    taken = measure.take_turns(programs, {"slow": ["quick"]}, turns=3, seconds=0.1)
    assert taken.keys() == {"slow"}
    assert len(told) == 2 * 2 + 3 * 2  # two runs of each to warm up and to count its steps


def test_a_turn_holds_every_kind_of_step():
    """The median of single steps would not see those with a second gradient, if they are rare."""
    told = []
    measure.take_turns({"looksam": Fake(0.5, told, 10)}, {"looksam": []}, turns=3, seconds=0.1)
    assert [steps for _, steps in told[-3:]] == [10, 10, 10]
    programs = table.compiled(problems.of_model("mlp", batch_size=4, width=4), ["sam", "looksam"])
    cycles = {key: program.cycle for key, program in programs.items()}
    assert cycles["looksam", "device"] == cycles["looksam", "host"] == 5
    assert cycles["sam", "device"] == cycles[table.UNIT] == 1
    assert cycles["looksam", "ahead"] == 5
    assert cycles["sam in windows", "ahead"] == cycles["sam in windows", "device"] == 10
    ahead = programs["looksam", "ahead"]
    taken = [ahead.run(1).ascents for _ in range(10)]  # from where compiling it has left it
    assert taken[:5] == taken[5:]
    assert sum(taken) == 2


def test_a_ratio_is_that_of_pairs():
    """What slows both in a turn changes nothing."""
    slow = np.array([1.0, 10.0, 3.0, 7.0, 5.0])
    found = measure.ratio(2 * slow, slow)
    assert found == (2.0, 0.0, 0.0)
    found = measure.ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (found.median, found.spread) == (3.0, 2.0)
    assert found.error == pytest.approx(1.2533 * 2.0 / 1.349 / 5**0.5, rel=1e-3)


def test_each_is_compared_with_whom_a_bar_names():
    methods = [("ae_sam", "device"), ("ae_sam", "host"), ("le_sam", "device")]
    programs = [table.UNIT, table.HAND_WRITTEN, table.OPAQUE, table.SAM, *methods]
    both = [table.UNIT, table.HAND_WRITTEN]
    assert table.compared(table.UNIT, programs) == [table.HAND_WRITTEN]
    assert table.compared(table.SAM, programs) == [*both, table.OPAQUE]
    assert table.compared(("ae_sam", "host"), programs) == both
    assert table.compared(("le_sam", "device"), programs) == [*both, table.SAM]
    theirs = [("sam", "torch"), ("sgd", "torch")]
    assert table.compared(("sam", "torch"), [*programs, *theirs]) == [("sgd", "torch")]


def test_times_are_over_those_of_the_same_turn():
    def turn(machine, **others):
        """A sam on a machine that is so much slower in this turn."""
        seconds = {table.UNIT: 1.0, table.HAND_WRITTEN: 1.6, table.SAM: 2.0} | others
        seconds |= {("sam", "torch"): 50.0, ("sgd", "torch"): 20.0}
        return {key: Turn(machine * own, 1.0) for key, own in seconds.items()}

    sam = table.times([turn(1.0), turn(2.0)], table.SAM)
    assert (sam["time_ratio"], sam["spread"]) == (2.0, 0.0)
    assert (sam["over_hand_written"], sam["over_hand_written_error"]) == (1.25, 0.0)
    assert (sam["over_opaque"], sam["over_sam"]) == (None, 1.0)
    assert (sam["ascents_per_step"], sam["ideal_ratio"]) == (1.0, 1.0)
    key = ("ae_sam", "host")
    skipping = [
        {table.UNIT: Turn(1.0, 0.0), key: Turn(1.5, 0.5)},
        {table.UNIT: Turn(2.0, 0.0), key: Turn(6.0, 1.0)},
    ]
    found = table.times(skipping, key)
    assert (found["time_ratio"], found["ascents_per_step"]) == (2.25, 0.75)
    assert found["ideal_ratio"] == 1.25  # the median of 1.5 / (1.5 · 1) and 6 / (2 · 2)
    theirs = table.times([turn(1.0), turn(1.0)], ("sam", "torch"))
    assert theirs["time_ratio"] == 2.5


def test_a_ratio_is_over_that_in_torch():
    ratios = {
        ("sgd", "device"): 1.0,
        ("sam", "device"): 2.0,
        ("sam", "hand-written"): 2.0,
        ("gsam", "device"): 2.0,
        ("sgd", "torch"): 1.0,
        ("sam", "torch"): 2.5,
    }
    rows = [{"method": m, "dispatch": d, "time_ratio": time} for (m, d), time in ratios.items()]
    table.over_torch(rows)
    found = [row.get("over_torch") for row in rows]
    assert found == [None, 0.8, 0.8, None, None, None]


# The verdicts.


def row(method, dispatch="device", **figures):
    facts = {"model": "mlp", "parameters": 10, "selects": False}
    return {"method": method, "dispatch": dispatch, **facts, **figures}


@pytest.mark.parametrize(
    ("given", "fails"),
    [
        (row("gsam", flops_ratio=2.02), True),
        (row("gsam", flops_ratio=2.0), False),
        (row("msam", flops_ratio=1.5), True),
        (row("esam", flops_ratio=3.0), False),
        (row("le_sam", over_sam=1.02), True),
        (row("le_sam", over_hand_written=1.04), True),
        (row("le_sam", over_hand_written=1.04) | {"parameters": 2e7}, False),
        (row("sam", over_opaque=1.02, over_opaque_error=0.02), False),
        (row("sam", over_opaque=1.05, over_opaque_error=0.02), True),
        (row("ae_sam", ideal_ratio=1.06), True),
        (row("ae_sam", "host", ideal_ratio=1.06), False),
        (row("ae_sam", "host", ideal_ratio=1.06) | {"selects": True}, True),
        (row("ae_sam", ideal_ratio=1.06) | {"selects": True}, False),
        (row("looksam", "ahead", ideal_ratio=1.06), True),
        (row("sam in windows", "ahead", ideal_ratio=1.06) | {"selects": True}, True),
        (row("sam in windows", ideal_ratio=1.06), False),
        (row("sam in windows", flops_ratio=2.1), False),
        (row("sam", temp_over_falling_back=1.03), True),
        (row("ae_sam", temp_over_falling_back=1.03), True),
        (row("looksam", temp_over_falling_back=1.03), False),
        (row("samar", state_bytes=101), True),
        (row("vasso", state_bytes=1000, state_beyond_a_copy=8), False),
        (row("vasso", state_beyond_a_copy=101), True),
        (row("wsam", over_torch=1.01), True),
        (row("sam", flops_ratio=None), False),
    ],
)
def test_a_bar_is_kept_or_not(given, fails):
    verdicts = bars.judge([given])
    assert any(verdict.failing for verdict in verdicts) == fails
    lines = "\n".join(report.bars(verdicts))
    assert ("NO: " in lines) == fails
    if fails:
        (verdict,) = [verdict for verdict in verdicts if verdict.failing]
        where = "" if given["dispatch"] == "device" else f" ({given['dispatch']})"
        assert f"{given['method']} on mlp{where} {given[verdict.bar.figure]:.5g}" in lines


def test_what_is_not_measured_is_told():
    lines = report.bars(bars.judge([row("sam", flops_ratio=2.0)]))
    assert sum("not measured" in line for line in lines) == len(bars.BARS) - 1


# The commands.


@pytest.fixture(autouse=True)
def cached():
    """The commands compile without the cache of the other tests."""
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


TINY = ("--batch-size", 4, "--width", 4, "--turns", 2, "--seconds", 1e-4)


def test_the_command_writes_its_table(monkeypatch, tmp_path, capsys):
    arguments = ("--models", "mlp", "--methods", "sam", "ae_sam", *TINY, "--out", tmp_path)
    command(monkeypatch, benchmark, *arguments)
    found = json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())
    assert [(row["method"], row["dispatch"]) for row in found["rows"]] == [
        ("sgd", "device"),
        ("sam", "hand-written"),
        ("sam, falling back", "hand-written"),
        ("sam", "optax opaque"),
        ("sam", "optax transparent"),
        ("sam", "device"),
        ("ae_sam", "device"),
        ("ae_sam", "host"),
        ("sam in windows", "device"),
        ("sam in windows", "ahead"),
    ]
    assert all(row["time_ratio"] > 0 for row in found["rows"])
    written = (tmp_path / "benchmark" / "benchmark.md").read_text()
    assert "## mlp: 3,210 parameters in 6 leaves, batch 4" in written
    said = capsys.readouterr().out
    assert "FLOPs over SGD: two-gradient methods" in written
    assert "FLOPs over SGD: two-gradient methods" in said
    other = (*arguments[:-2], "--turns", 0, "--out", tmp_path)
    with pytest.raises(SystemExit):
        command(monkeypatch, benchmark, *other)
    assert "holds a run with other turns" in capsys.readouterr().err
    command(monkeypatch, benchmark, *other, "--overwrite")


def test_without_turns_only_what_the_compiler_counts_is_written(monkeypatch, tmp_path):
    arguments = ("--models", "mlp", "--methods", "sam", "ae_sam", *TINY, "--turns", 0)
    command(monkeypatch, benchmark, *arguments, "--out", tmp_path)
    rows = json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())["rows"]
    assert [row["dispatch"] for row in rows[-2:]] == ["device", "device"]
    assert all(row["flops_ratio"] >= 1 and "time_ratio" not in row for row in rows)
    written = (tmp_path / "benchmark" / "benchmark.md").read_text()
    assert re.search(r"two-gradient methods \| 2.01 \| [\d.]+ \| sam on mlp", written)
    assert re.search(r"skip gradients \| 1.05 \|  \|  \| not measured", written)


def test_no_other_result_is_overwritten(monkeypatch, tmp_path, capsys):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "config.json").write_text("{}")
    (tmp_path / "digits" / "summary.json").write_text("{}")
    for module in (benchmark, growth):
        with pytest.raises(SystemExit):
            command(monkeypatch, module, "--name", "digits", "--out", tmp_path)
        assert "--name" in capsys.readouterr().err
    assert (tmp_path / "digits" / "summary.json").exists()


def test_growth_writes_its_picture(monkeypatch, tmp_path):
    sizes = {"parameters": [(40, 1, 3), (400, 1, 3)], "leaves": [(40, 1, 3), (40, 3, 3)]}
    monkeypatch.setattr(growth, "AXES", sizes)
    monkeypatch.setattr(growth, "MOST_LEAVES_ON_HOST", 2)
    kept = ("sam", "sam on the host", "looksam on the host")
    assert all(make(growth.layers(40, 1, 3)) for make in growth.CONTESTANTS.values())
    made = {name: growth.CONTESTANTS[name] for name in kept}
    monkeypatch.setattr(growth, "CONTESTANTS", made)
    command(monkeypatch, growth, "--turns", 2, "--seconds", 1e-4, "--out", tmp_path)
    rows = json.loads((tmp_path / "growth" / "growth.json").read_text())["rows"]
    assert len(rows) == 4 * len(growth.CONTESTANTS) - 2  # two on the host have too many leaves
    assert all(row["ideal_ratio"] > 0 for row in rows)
    assert {row["axis"] for row in rows} == {"parameters", "leaves"}
    assert (tmp_path / "growth" / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_growth_without_a_problem_is_a_mistake(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, growth, "--most", 10, "--out", tmp_path)
    assert stop.value.code == 2
    assert "--most must be at least 100000, got 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "mpl"), "unknown model 'mpl': did you mean mlp"),
        (("--models",), "--models must name one: mlp, small_cnn"),
        (("--methods", "sgd"), "unknown method 'sgd'"),
        (("--turns", 1), "--turns must be at least 2 for a spread, or 0 for no times, got 1"),
        (("--seconds", 0), "--seconds must be positive and finite, got 0"),
        (("--seconds", "inf"), "--seconds must be a finite number, got inf"),
        (("--width", 0), "--width must be at least 1, got 0"),
        (("--peers", "torch"), "--peers torch needs PyTorch"),
        (("--peers", "torch", "--turns", 0), "--peers torch is for times"),
        (("--peers", "rollfast"), "--peers rollfast needs rollfast, and Python 3.12"),
    ],
)
def test_a_mistake_is_told(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, benchmark, *arguments, "--out", tmp_path)
    assert stop.value.code == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert not (tmp_path / "benchmark").exists()
