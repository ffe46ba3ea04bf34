"""Loops side by side: what each costs over SGD, in turns."""

from collections.abc import Iterator, Mapping, Sequence
import statistics

from experiments.benchmark.gpu.loop import Asked, Loop, compiled
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.benchmark.measure import over, over_ideal, take_turns
from experiments.training.optimizers import SGD

HAND_WRITTEN = "sam, hand-written"


def in_turns(
    setup: Setup, asked: Mapping[str, Asked], rivals: Mapping[str, Sequence[str]]
) -> Iterator[Row]:
    """A row a loop twice: what is known as it is compiled, and its times once all are.

    Compiling tries kernels on the device, so that nothing is timed before its end.

    Args:
      setup: of the turns.
      asked: the loops by name, SGD among them.
      rivals: with whom one runs in its turns beside SGD.
    """
    loops: dict[str, Loop] = {}
    for name, loop in compiled(setup, asked):
        loops[name] = loop
        yield {"name": name, **loop.costs()}
    for name in asked:
        beside = [SGD, *rivals.get(name, ())] if name != SGD else []
        yield {"name": name, **_times(setup, loops, name, beside)}


def _times(setup, loops, name, beside):
    programs = {other: loops[other] for other in (name, *beside)}
    taken = take_turns(programs, {name: beside}, turns=setup.turns, seconds=setup.seconds)[name]
    time, ideal = over(taken, name, SGD), over_ideal(taken, name, SGD)
    loop = loops[name]
    row = {
        "milliseconds": 1000 * statistics.median(turn[name].seconds for turn in taken),
        "time_ratio": time.median,
        "time_ratio_error": time.error,
        "ideal_ratio": ideal.median,
        "ideal_ratio_error": ideal.error,
        "sam_fraction": statistics.fmean(turn[name].ascents for turn in taken),
        "temp_bytes_ratio": loop.temp_bytes / loops[SGD].temp_bytes,
        "finite": loop.finite,
    }
    if HAND_WRITTEN in beside:
        found = over(taken, name, HAND_WRITTEN)
        row |= {"over_hand_written": found.median, "over_hand_written_error": found.error}
    return row
