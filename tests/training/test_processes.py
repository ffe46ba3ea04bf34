"""Two processes on one machine train as one does, and an end of one is no end of the run."""

from concurrent import futures
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from inprocess import command, end, read
import jax
import made
import numpy as np
import pytest
from reference import METHODS
from test_devices import on_the_whole_batch
from worker import SHARED

from experiments import train
from experiments.system import processes

ROOT = Path(__file__).parents[2]
MESHED = ("digits", "--method", "ae_sam", "--epochs", 3, "--steps-per-dispatch", 5)
MESHED += ("--checkpoint-minutes", 0, "--mesh", "data=2")


def environment(**more):
    """That of a process whose one device is a CPU, and which compiles as this one does."""
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)} | more


def address():
    """One that no other process listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def ended(started):
    """What each of the processes said, once all have ended well."""
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), said
    return said


@pytest.mark.usefixtures("x64")
def test_two_processes_take_the_steps_and_the_decisions_of_one(tmp_path):
    where = address()
    started = [
        subprocess.Popen(
            [sys.executable, ROOT / "tests/worker.py", where, "2", str(i), tmp_path / f"{i}.npz"],
            env=environment(JAX_ENABLE_X64="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    ended(started)
    one, two = (np.load(tmp_path / f"{i}.npz") for i in range(2))
    for name in SHARED:
        np.testing.assert_allclose(one[name], on_the_whole_batch(name), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(one[name], two[name])
        assert one[f"{name} ascents"] == two[f"{name} ascents"]
    for name in ("ae_sam", "ss_sam"):  # both outcomes were seen
        assert 0 < one[f"{name} ascents"] < len(one[name]), METHODS[name].settings


def in_slurm(number, count, where):
    """What Slurm tells a process."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "SLURM_STEP_NODELIST": "localhost",
        "JAX_COORDINATOR_PORT": where.partition(":")[2],
    }


@pytest.fixture
def train_in(tmp_path, data_dir):
    """Starts the training command in so many processes."""

    def start(name, count, *more, own=((), ()), out=lambda i: tmp_path, slurm=False):
        where, started = address(), []
        for i in range(count):
            several = ("--coordinator", where, "--num-processes", count, "--process-id", i)
            several = ("--coordinator", "auto") if slurm else several
            arguments = (*MESHED, "--name", name, *more, *own[i])
            arguments += ("--out", out(i), "--data-dir", data_dir)
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments.train", *map(str, (*arguments, *several))],
                cwd=ROOT,
                env=environment(**(in_slurm(i, count, where) if slurm else {})),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            started.append(process)
        return started

    started = []

    def kept(*arguments, **options):
        begun = start(*arguments, **options)
        started.extend(begun)
        return begun

    yield kept
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def parameters(path):
    step, leaves = end(path)
    return step, [leaf for leaf in leaves if np.ndim(leaf)]


def assert_same_end(path, other):
    """Up to the rounding of sums in another order."""
    (step, leaves), (other_step, other_leaves) = parameters(path), parameters(other)
    assert step == other_step == 66
    for one, two in zip(leaves, other_leaves, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)
    one, two = read(path / "summary.json"), read(other / "summary.json")
    assert one["test_accuracy"] == pytest.approx(two["test_accuracy"], abs=0.005)
    assert one["ascents"] == two["ascents"]


def waited_for(path, started, step=10):
    """Until a run of these processes has saved this step or a later one."""
    deadline = time.monotonic() + 240
    while not [p for p in path.glob("*") if p.name.isdecimal() and int(p.name) >= step]:
        assert time.monotonic() < deadline
        assert started[0].poll() is None, started[0].stdout.read()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_of_two_processes_survives_the_end_of_one(
    victim,
    train_in,
    monkeypatch,
    tmp_path,
    data_dir,
):
    """The other ends within a minute; one process, or two, go on to the end of a whole run."""
    started = train_in("cut", 2)
    waited_for(tmp_path / "cut" / "checkpoints", started)
    started[victim].send_signal(signal.SIGKILL)
    said, _ = started[1 - victim].communicate(timeout=60)
    assert started[1 - victim].returncode != 0, said
    # Our line where a collective breaks off, JAX's own where its service misses the other first.
    assert "start all of them again with --resume" in said or "task died" in said
    assert not (tmp_path / "cut" / "summary.json").exists()
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")

    ended(train_in("cut", 2, "--resume"))
    # In this process, on one device, then on two.
    for name, more in {"whole": (), "alone": ("--resume",)}.items():
        arguments = (*MESHED, "--name", name, *more, "--out", tmp_path, "--data-dir", data_dir)
        if name == "whole":
            arguments = [a for a in arguments if a not in ("--mesh", "data=2")]
        command(monkeypatch, train, *arguments)
    assert_same_end(tmp_path / "cut", tmp_path / "whole")
    assert_same_end(tmp_path / "alone", tmp_path / "whole")
    assert read(tmp_path / "cut" / "summary.json")["processes"] == 2
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3


WAYS = {
    "device perturbations, then another method": (
        *("--perturbation", "device"),
        *("--then", "looksam", "--switch-at", 1),
    ),
    "divided parameters": ("--mesh", "data=1,model=2"),
    "decisions on the host": ("--decide", "host"),
    "slurm": (),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_end_where_one_ends(way, train_in, monkeypatch, tmp_path, data_dir):
    """Also where the first is told to stop, and both go on."""
    more, slurm = WAYS[way], way == "slurm"
    started = train_in("two", 2, *more, slurm=slurm)
    if way == "decisions on the host":
        waited_for(tmp_path / "two" / "checkpoints", started)
        started[1].send_signal(signal.SIGTERM)
        for process in started:
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 128 + signal.SIGTERM, said
            assert "go on with --resume" in said
        started = train_in("two", 2, *more, "--resume", slurm=slurm)
    ended(started)
    arguments = (*MESHED, "--name", "one", *more, "--out", tmp_path, "--data-dir", data_dir)
    command(monkeypatch, train, *arguments)
    assert_same_end(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "apart", "message"),
    [
        ((), True, "pass all of them an --out that they share"),
        ((("--seed", 0), ("--seed", 1)), False, "different options"),
    ],
)
def test_processes_that_do_not_fit_together_end(more, apart, message, train_in, tmp_path):
    own = more or ((), ())
    started = train_in(*("two", 2), own=own, out=lambda i: tmp_path / str(i) if apart else tmp_path)
    for process in started:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 2, said
        assert message in said


def test_a_folder_that_is_not_shared_is_told(monkeypatch, tmp_path):
    processes.check_shared(tmp_path)  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "agree", lambda numbers: numbers)
    monkeypatch.setattr(processes, "SEEING", 0)
    processes.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with pytest.raises(processes.NoConnectionError, match="an --out that they share"):
        processes.check_shared(tmp_path)


def test_what_a_lost_process_leads_to_is_told_apart(monkeypatch):
    def fail(error):
        with processes.together():
            try:
                raise error
            except Exception as cause:
                raise OSError("cannot write") from cause

    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: connection reset by peer")
    with pytest.raises(OSError, match="cannot write"):
        fail(lost)  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for error in (lost, ValueError("Gloo all-reduce failed")):
        with pytest.raises(processes.LostProcessError, match="cannot write"):
            fail(error)
    for error in (ValueError("full"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory")):
        with pytest.raises(OSError, match="cannot write"):
            fail(error)


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(processes.NoConnectionError, match="cannot listen at port"):
            processes.connect(where, 0, 2, devices=2)


def unions(words, monkeypatch):
    """What `union` gives in each of several processes, which are threads here."""
    this, given, met = threading.local(), {}, threading.Barrier(len(words))

    def gathered(own):
        given[this.number] = own
        met.wait(10)
        found = np.stack([given[i] for i in range(len(words))])
        met.wait(10)
        return found

    def run(number):
        this.number = number
        return processes.union(words[number])

    monkeypatch.setattr(jax, "process_count", lambda: len(words))
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gathered)
    with futures.ThreadPoolExecutor(len(words)) as pool:
        return list(pool.map(run, range(len(words))))


# A file's name may hold any bytes but two; the last is two words of a pair that is one letter.
ODD = ["bad\udcff\n.jpg", "line\nbreak", "\n", "", "tab\t\x00", '"\\', "é", "\ud83d\ude00", "😀"]


@pytest.mark.parametrize(
    ("words", "all_of_them"),
    [
        ([ODD], ODD),
        ([ODD, []], ODD),
        ([ODD[:4], ODD[2:]], ODD),
        ([["b", "a"], ["b"], ["c" * 1000]], ["a", "b", "c" * 1000]),
        ([[], []], []),
    ],
)
def test_any_words_of_all_processes_are_each_told_once_and_in_order(
    words, all_of_them, monkeypatch
):
    assert unions(words, monkeypatch) == [sorted(all_of_them)] * len(words)
    assert unions([iter(own) for own in words], monkeypatch)[0] == sorted(all_of_them)


def test_processes_with_other_options_are_told(monkeypatch):
    seen = []
    processes.check_alike("one")  # alone
    monkeypatch.setattr(processes, "agree", lambda numbers: seen.append(numbers) or numbers)
    processes.check_alike("one")
    processes.check_alike("two")
    both = tuple(map(max, *seen))
    monkeypatch.setattr(processes, "agree", lambda numbers: both)
    with pytest.raises(processes.NoConnectionError, match="different options"):
        processes.check_alike("one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, 2), "go together"),
        (("host:1", 2, 2), r"must lie in \[0, 2\), got 2"),
        (("host:1", 0, 0), "--num-processes must be at least 1, got 0"),
        (("host", 0, 2), "must read HOST:PORT.*got 'host'"),
        (("host:99999", 0, 2), "below 65536"),
        (("no.such.host.invalid:7000", 0, 2), "names no host that this machine knows"),
        (("host:port", 0, 2), "must read HOST:PORT"),
        ((address(), 1, 2), "process 0 does not listen"),
        ((None, 0, None), "go together"),
        (("auto", 0, 2), "stands alone"),
    ],
)
def test_processes_that_cannot_find_each_other_are_told(arguments, message, monkeypatch):
    monkeypatch.setattr(processes, "CONNECTING", 0)
    with pytest.raises(processes.NoConnectionError, match=message):
        processes.connect(*arguments, devices=2)


@pytest.mark.slow
def test_two_processes_train_on_the_parts_of_one_stream(tmp_path, monkeypatch):
    """Each decodes its part of a batch; both name what is corrupt in the other's part too."""
    sets, where, bad = tmp_path / "sets", address(), b"no JPEG"
    images = [bad if i in (2, 5) else made.jpeg(i) for i in range(16)]
    made.imagenet(sets, train=images, validation=6)
    arguments = ("imagenet_vit_s16_r_sam", "--width", 16, "--image-size", 32, "--batch-size", 8)
    arguments += ("--epochs", 2, "--warmup-epochs", 0, "--workers", 1, "--skip-corrupt")
    arguments += ("--mesh", "data=2", "--data-dir", sets, "--out", tmp_path)
    several = ("--name", "two", "--coordinator", where, "--num-processes", 2, "--process-id")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.train", *map(str, (*arguments, *several, i))],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    ended(started)
    command(monkeypatch, train, *arguments, "--name", "one")
    (step, one), (other_step, two) = (parameters(tmp_path / name) for name in ("one", "two"))
    assert step == other_step == 4
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    one, two = (read(tmp_path / name / "summary.json") for name in ("one", "two"))
    assert two["processes"] == 2
    assert len(one["corrupt"]) == 2
    assert two["corrupt"] == one["corrupt"]
    for figure in ("train_loss", "test_loss"):
        assert two[figure] == pytest.approx(one[figure], rel=1e-3)
