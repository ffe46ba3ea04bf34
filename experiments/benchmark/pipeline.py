"""Images a second of the streamed input pipeline, against bare loops in as many processes.

    python -m experiments.benchmark.pipeline [options]

Makes images of ImageNet's size, or reads a prepared set, and in turns measures processes that only
read and decode, processes that also crop and flip, and the stream with as many workers. Then one
long run of the stream, for its memory. Writes <out>/<name>/: pipeline.json, pipeline.md.
"""

import collections
from collections.abc import Mapping
import contextlib
import dataclasses
import io
import os
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.benchmark.photographs import HEIGHT, WIDTH, Made
from experiments.benchmark.throughput import Loops, resident, run_stream, workers_now
from experiments.cli import command
from experiments.data import disk
from experiments.data.pipeline.maker import PIECE
from experiments.data.pipeline.records import TfdsRecords
from experiments.data.pipeline.stream import Stream
from experiments.results import files, folders, provenance
from experiments.system import memory
from experiments.system.errors import UserError

TARGET = 0.9


@dataclasses.dataclass(frozen=True)
class Options:
    """Images a second of the streamed input pipeline, against bare loops."""

    dataset: str | None = None
    """A prepared set of TFDS; left out, images of ImageNet's size are made."""
    split: str = "train"
    """Of that set."""
    data_dir: Path = disk.DATA_DIR
    """The TFDS directory."""
    images: int = 512
    """Images of a turn."""
    size: int = 224
    """Side of what they are cropped to."""
    batch_size: int = 128
    """Images a batch."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of processes."""
    rounds: int = 5
    """Turns of each; a ratio is the median over them."""
    memory_images: int = 4096
    """Images of the run whose memory is measured."""
    name: str = "pipeline"
    """The folder inside --out."""
    out: Path = Path("runs")
    """The folder of all results."""
    overwrite: bool = False
    """Replace a result of other options."""


def measure(records: TfdsRecords, options: Options, workers: int) -> dict[str, Any]:
    """A row: each way in turns."""
    stream = Stream(records, size=options.size, classes=records.classes, workers=workers)
    rng = np.random.default_rng(0)
    turns = collections.defaultdict(list)
    with contextlib.closing(Loops(records, options.size, workers)) as loops:
        loops.run("bare", np.arange(workers))  # each opens its files
        for _ in range(options.rounds):
            indices = rng.permutation(len(records))[: options.images]
            turns["decode"].append(loops.run("decode", indices)[0])
            before = loops.run("bare", indices)
            for key, value in run_stream(stream, options.batch_size, options.images).items():
                turns[key].append(value)
            # before and after, as what else the machine does changes in the seconds between
            rate, cpu = np.mean([before, loops.run("bare", indices)], axis=0)
            turns["bare"].append(float(rate))
            turns["bare_cpu"].append(float(cpu))
    return row_of(workers, turns)


def row_of(workers: int, turns: Mapping[str, list[float]]) -> dict[str, Any]:
    """What each way made in turns, and the medians of the ratios.

    That of the processors' time is None where it was too short to be counted.
    """
    ratios = np.divide(turns["stream"], turns["bare"])
    # A few images can take less than the tick in which the system counts.
    counted = min(turns["bare_cpu"] + turns["stream_cpu"]) > 0
    cpu_ratios = np.divide(turns["bare_cpu"], turns["stream_cpu"]) if counted else None
    return {
        "workers": workers,
        "turns": turns,
        **{key: float(np.median(values)) for key, values in turns.items()},
        "ratio": float(np.median(ratios)),
        "cpu_ratio": float(np.median(cpu_ratios)) if counted else None,
        "ratio_quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
    }


def memory_of(records: TfdsRecords, options: Options, workers: int) -> dict[str, Any]:
    """Megabytes of this process and of all workers over one long run, shared pages in each.

    Of the first tenth, in which all is allocated, and of the whole.
    """
    stream = Stream(records, size=options.size, classes=records.classes, workers=workers)
    before = workers_now()
    steps = max(20, options.memory_images // options.batch_size)
    parents, others = [], []
    start = resident(os.getpid())
    batches = stream.batches(seed=0, batch_size=options.batch_size)
    try:
        for step in range(steps):
            next(batches)
            if step % -(-steps // 100):
                continue
            parents.append(resident(os.getpid()))
            others.append(sum(map(resident, workers_now() - before)))
    finally:
        batches.close()
    tenth = max(1, len(parents) // 10)
    batch = options.batch_size * options.size**2 * 3
    return {
        "workers": workers,
        "images": steps * options.batch_size,
        "batch": batch / 1e6,
        "bound": (batch / options.batch_size)
        * (3 * options.batch_size + 128 * workers + PIECE)
        / 1e6,
        "parent_before": start,
        "parent_first": max(parents[:tenth]),
        "parent_peak": max(parents),
        "workers_first": max(others[:tenth]),
        "workers_peak": max(others),
    }


def prepared(options: Options, folder: str) -> TfdsRecords:
    """The records of the set that is asked for, or of images made in a folder."""
    try:
        if options.dataset is not None:
            return TfdsRecords(options.dataset, options.split, data_dir=options.data_dir)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            Made(options.images, data_dir=folder, file_format="array_record").download_and_prepare()
        return TfdsRecords("made", "train", data_dir=Path(folder))
    except (ValueError, disk.NotPreparedError) as error:
        raise UserError(str(error)) from error


def main(options: Options) -> None:
    """Runs the command."""
    if min(options.workers, default=0) < 1:
        raise UserError(f"--workers must be at least 1 each, got {options.workers}.")
    held = 3 * options.batch_size + 128 * max(options.workers) + PIECE  # images, as a stream tells
    memory.check(
        held * 3 * options.size**2,
        f"a stream of --batch-size {options.batch_size} images of --size {options.size}",
    )
    config = folders.config_of(options)
    path = folders.path_of(options.out, options.name)
    with folders.anew(path, "benchmark.pipeline", config, overwrite=options.overwrite) as folder:
        with tempfile.TemporaryDirectory() as made:
            records = prepared(options, made)
            if len(records) < max(options.batch_size, options.images):
                raise UserError(
                    f"--images {options.images} or --batch-size {options.batch_size} exceeds the "
                    f"{len(records)} records: pass less."
                )
            if options.images < max(options.workers):
                raise UserError(f"--images must be at least one a worker, got {options.images}.")
            sample = [records[i].image for i in range(min(200, len(records)))]
            found = {
                "config": config,
                "bytes": float(np.mean([len(image) for image in sample])),
                "rows": [measure(records, options, workers) for workers in options.workers],
                "memory": [memory_of(records, options, workers) for workers in options.workers],
                "cores": os.cpu_count(),
                **provenance.provenance(),
            }
        files.write_json(folder.file("pipeline.json"), found)
        files.write_text(folder.file("pipeline.md"), markdown(found))
    print(f"written to {path}/")


def markdown(found: Mapping[str, Any]) -> str:
    """The table of rates and that of memory."""
    config = found["config"]
    what = config["dataset"] or f"made images of {WIDTH} x {HEIGHT}"
    lines = [
        "# Images a second of the input pipeline",
        "",
        f"{what}, {found['bytes'] / 1000:.0f} kB each, cropped to {config['size']} and flipped, in "
        f"batches of {config['batch_size']}; {found['cores']} cores. Medians of {config['rounds']} "
        f"turns of {config['images']} images, taken alternately. The bare loop reads, decodes, "
        "crops and flips in as many processes and hands nothing over; its rate is the mean of that "
        "before and that after the stream. What else runs on the machine moves rates more than the "
        "processors' time that an image takes, of which the last columns tell (– where it was too "
        "short to be counted).",
        "",
        "| workers | decode alone | bare loop | stream | stream over bare (quartiles) | "
        f"at least {TARGET:g} | first batch, s | ms an image: bare loop | stream's workers | this "
        "process | bare over workers |",
        f"|{'--:|' * 11}",
    ]
    for row in found["rows"]:
        cpu_ratio = "–" if row["cpu_ratio"] is None else f"{row['cpu_ratio']:.3f}"
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['workers']} | {row['decode']:.0f} | {row['bare']:.0f} | {row['stream']:.0f} | "
            f"{row['ratio']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{'yes' if row['ratio'] >= TARGET else 'no'} | {row['first']:.1f} | "
            f"{1000 * row['bare_cpu']:.2f} | {1000 * row['stream_cpu']:.2f} | "
            f"{1000 * row['parent_cpu']:.2f} | {cpu_ratio} |"
        )
    lines += [
        "",
        "## Memory",
        "",
        "Megabytes of this process and of all workers together, largest of the first tenth of a "
        "long run and of the whole; memory that they share counts in each that has touched it.",
        "",
        "| workers | images | a batch | most images held | this process: before | first tenth "
        "| peak | workers: first tenth | peak |",
        f"|{'--:|' * 9}",
    ]
    for row in found["memory"]:
        figures = (
            *("batch", "bound", "parent_before", "parent_first", "parent_peak"),
            *("workers_first", "workers_peak"),
        )
        cells = " | ".join(f"{row[figure]:.0f}" for figure in figures)
        lines.append(f"| {row['workers']} | {row['images']:,} | {cells} |")
    return "\n".join([*lines, "", f"{provenance.versions(found)}.", ""])


if __name__ == "__main__":
    command.run(main, Options)
