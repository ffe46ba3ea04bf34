"""Whole epochs, and what of the loop is suspected of taking time, each beside the loop of today."""

from collections.abc import Iterator, Mapping
import statistics
from typing import Any

import jax

from experiments.benchmark.gpu.loop import Asked, compiled
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.benchmark.measure import ratio
from experiments.training.optimizers import SGD

METHODS = (SGD, "sam", "le_sam", "ae_sam", "ae_looksam")
SUSPECTED = (SGD, "sam")
COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,COLLECTIVES,DYNAMIC_SLICE_FUSION"
BUFFERS = "xla_gpu_enable_command_buffer"
LENGTH = 100  # steps at most of a suspect's turn


def measure(setup: Setup) -> Iterator[Row]:
    """Rows of epochs, and of the suspects: their time over that of today's loop."""
    length = min(LENGTH, setup.steps)
    asked = {name: Asked(name) for name in METHODS}
    for name, one in suspects(length).items():
        if said := refused(one.compiler):
            yield {"name": name, "said": said}
        else:
            asked[name] = one
    loops = dict(compiled(setup, asked))
    yield from _whole(setup, {name: loops[name] for name in METHODS})
    for name in [name for name in asked if name not in METHODS]:
        yield {"name": name, **_over_today(setup, loops[name], loops[asked[name].method], length)}


def suspects(length: int) -> dict[str, Asked]:
    """What is measured beside the loop of today, a method each."""
    changes = {
        "trip count known": {"count": length},
        "no command buffers": {"compiler": {BUFFERS: ""}},
        "command buffers of whole loops": {
            "compiler": {BUFFERS: f"{COMMANDS},WHILE,CONDITIONAL"},
        },
        "batch norm by running statistics": {"still": True},
        "no augmentation": {"recipe": {"augmentation": ()}},
    }
    return {
        f"{method}, {name}": Asked(method, **change)
        for method in SUSPECTED
        for name, change in changes.items()
    }


def _whole(setup, loops):
    """Whole epochs in turns: a row a method after each turn, with the median so far."""
    timed = {name: [] for name in loops}
    for turn in range(setup.epochs + 1):
        for name, loop in loops.items():
            timed[name].append(loop.run(setup.steps))
        if not turn:  # of the first one everything is cold
            continue
        unit = statistics.median(one.seconds for one in timed[SGD][1:])
        for name in METHODS:
            seconds = statistics.median(one.seconds for one in timed[name][1:])
            share = statistics.fmean(one.ascents for one in timed[name][1:])
            yield {
                "name": name,
                "seconds": seconds * setup.steps,
                "images_per_second": setup.batch_size / seconds,
                "time_ratio": seconds / unit,
                "sam_fraction": share,
                "ideal_ratio": seconds / unit / (1 + share),
            }


def refused(compiler: Mapping[str, Any]) -> str:
    """What XLA says of options that it does not have; nothing of others."""
    try:
        jax.jit(lambda x: x + 1).lower(0.0).compile(compiler_options=dict(compiler))
    except jax.errors.JaxRuntimeError as error:
        return f"XLA refuses it ({str(error).splitlines()[0]:.100})"
    return ""


def _over_today(setup, loop, today, length):
    """One beside today's loop, so many steps each in every turn, after a first that is cold."""
    pairs = []
    for turn in range(setup.turns + 1):
        order = (loop, today) if turn % 2 else (today, loop)
        taken = {one: one.run(length).seconds for one in order}
        pairs.append((taken[loop], taken[today]))
    found = ratio(*zip(*pairs[1:], strict=True))
    return {
        "over_today": found.median,
        "over_today_error": found.error,
        "compile_seconds": loop.compile_seconds,
    }
