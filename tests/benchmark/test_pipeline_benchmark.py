"""What the pipeline makes a second: the command, on a few images."""

import json
import os
from pathlib import Path
import signal

import made
import numpy as np
import pytest

from experiments.benchmark import pipeline, throughput
from experiments.benchmark.photographs import photograph
from experiments.cli import limits
from experiments.data.pipeline.records import FolderRecords
from experiments.results import provenance
from experiments.system.errors import UserError


def options(path, **changes):
    few = {"images": 8, "size": 16, "batch_size": 4, "workers": (1,), "rounds": 1}
    return pipeline.Options(out=path, **{**few, "memory_images": 80, **changes})


@pytest.mark.slow
def test_the_command_measures_all_and_writes_it(tmp_path):
    pipeline.main(options(tmp_path))
    found = json.loads((tmp_path / "pipeline" / "pipeline.json").read_text())
    (row,), (memory,) = found["rows"], found["memory"]
    assert 60_000 < found["bytes"] < 160_000
    assert min(row["decode"], row["bare"], row["bare_cpu"]) > 0
    assert row["stream"] > 0
    assert row["ratio"] == pytest.approx(row["stream"] / row["bare"])
    assert memory["images"] == 80
    assert memory["workers_peak"] >= memory["workers_first"] > 10
    assert "| 1 |" in (tmp_path / "pipeline" / "pipeline.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "--images must be at least 1, got 0"),
        ({"workers": (0,)}, "--workers must be at least 1 each"),
        ({"workers": (9,)}, "--images must be at least one a worker, got 8"),
        ({"batch_size": 9}, "--images 8 or --batch-size 9 exceeds the 8 records"),
        ({"dataset": "nothing"}, "unknown data set 'nothing'"),
    ],
)
def test_what_cannot_be_measured(tmp_path, changes, message):
    asked = options(tmp_path, **changes)

    def run():
        limits.check(asked)
        pipeline.main(asked)

    with pytest.raises(UserError, match=message):
        run()


def test_a_process_has_memory_and_has_taken_time():
    assert throughput.resident(os.getpid()) > 10
    assert throughput.spent([os.getpid()]) > 0.1
    assert throughput.resident(2**22 + 1) == 0 or Path(f"/proc/{2**22 + 1}").exists()


@pytest.mark.parametrize(("ticks", "ratio"), [((2, 4), 0.5), ((2, 0), None), ((0, 0), None)])
def test_what_is_too_short_to_be_counted_has_no_ratio(tmp_path, ticks, ratio):
    """The system counts the processors' time in ticks."""
    bare, stream = ([ticks[0] / 100], [ticks[1] / 100])
    turns = {"decode": [9.0], "bare": [8.0], "stream": [6.0], "first": [0.1], "parent_cpu": [0.0]}
    row = pipeline.row_of(1, {**turns, "bare_cpu": bare, "stream_cpu": stream})
    assert (row["ratio"], row["cpu_ratio"]) == (0.75, ratio)
    found = {"config": vars(options(tmp_path)), "bytes": 1e5, "cores": 2, **provenance.provenance()}
    page = pipeline.markdown({**found, "rows": [row], "memory": []})
    assert f"| {f'{ratio:.3f}' if ratio else '–'} |\n" in page


def test_made_images_are_of_imagenets_size():
    sizes = [len(photograph(i)) for i in range(8)]
    assert 90_000 < sum(sizes) / 8 < 130_000


class Told:
    """A connection to a bare process: what it is told, and what it answers."""

    def __init__(self, *told):
        self._told, self.answers = [*told, None], []

    def recv(self):
        return self._told.pop(0)

    def send(self, answer):
        self.answers.append(answer)


def test_a_bare_process_names_an_image_that_cannot_be_decoded(tmp_path):
    folder = tmp_path / "train" / "class"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(made.jpeg(0))
    (folder / "b.jpg").write_bytes(b"no image")
    told = Told(("decode", [0]), ("bare", [0, 1]), ("bare", [0]))
    throughput.loop(FolderRecords(tmp_path, "train"), 8, told)
    before, wrong, after = told.answers
    assert (before, after) == (None, None)
    assert wrong.startswith(f"train/class/b.jpg in {tmp_path} cannot be decoded (Unidentified")


def test_what_a_bare_process_cannot_decode_is_one_line():
    loops = object.__new__(throughput.Loops)
    loops._processes, loops._ends = [], [Told(), Told()]
    loops._ends[1]._told = ["b.jpg cannot be decoded"]
    with pytest.raises(UserError, match=r"^b\.jpg cannot be decoded: replace that image"):
        loops.run("bare", np.arange(2))


def test_a_bare_process_does_not_see_ctrl_c():
    (process,) = throughput.Loops([], 1, 1)._processes
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.kill()
    process.join()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert blocked == 1 << (signal.SIGINT - 1)
