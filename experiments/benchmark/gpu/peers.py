"""The same model's step in PyTorch: eager, compiled, and with CUDA graphs.

Ours is the whole training loop, which takes each batch from the set and augments it; PyTorch's
steps are on one batch that lies on the card.
"""

from collections.abc import Iterator
import importlib.util
import statistics

from experiments.benchmark.gpu.loop import Asked, compiled
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.benchmark.measure import Turn, over, take_turns
from experiments.training.optimizers import SGD

OURS = (SGD, "sam")
MODEL = "resnet18"
GRAPHS = "CUDA graphs"


def measure(setup: Setup) -> Iterator[Row]:
    """Rows of SGD and of SAM by hand in PyTorch in each mode, and ours over the quickest."""
    if importlib.util.find_spec("torch") is None:
        yield {"name": "PyTorch", "said": "PyTorch is not installed here: pip install torch"}
        return
    if setup.model != MODEL:
        yield {
            "name": "PyTorch",
            "said": f"PyTorch has {MODEL} alone here, and not {setup.model}: pass --model {MODEL}",
        }
        return
    from experiments.benchmark.gpu import torch_resnet  # needs torch

    ours = dict(compiled(setup, {method: Asked(method) for method in OURS}))
    for method, loop in ours.items():
        programs = {f"{method}, ours": loop}
        for mode in torch_resnet.MODES:
            name = f"{method}, PyTorch {mode}"
            try:
                programs[name] = torch_resnet.Program(setup, method, mode)
                programs[name].run(programs[name].cycle)
            except Exception as error:  # of compilers, drivers and of memory
                programs.pop(name, None)
                yield {"name": name, "said": f"{type(error).__name__}: {error!s:.150}"}
        first, *others = programs
        turns = take_turns(programs, {first: others}, turns=setup.turns, seconds=setup.seconds)[
            first
        ]
        yield from rows(turns, first)


def rows(turns: list[dict[str, Turn]], ours: str) -> Iterator[Row]:
    """A row of each in the turns; in ours the time over the quickest, with graphs and without."""
    medians = {name: statistics.median(turn[name].seconds for turn in turns) for name in turns[0]}
    for name, seconds in medians.items():
        if name != ours:
            yield {"name": name, "milliseconds": 1000 * seconds}
    row = {"name": ours, "milliseconds": 1000 * medians[ours]}
    graphs = [name for name in medians if GRAPHS in name]
    plain = [name for name in medians if name not in (ours, *graphs)]
    for figure, others in (("over_torch", plain), ("over_cuda_graphs", graphs)):
        if others:
            found = over(turns, ours, min(others, key=medians.__getitem__))
            row |= {figure: found.median, f"{figure}_error": found.error}
    yield row
