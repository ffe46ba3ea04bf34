"""WRN-28-10, three times as many parameters as ResNet-18 and ten times the arithmetic."""

from collections.abc import Iterator

from experiments.benchmark.gpu.loop import Asked
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.benchmark.gpu.turns import in_turns
from experiments.training.optimizers import SGD

MODEL = "wrn28_10"


def measure(setup: Setup) -> Iterator[Row]:
    """The steps of SGD and of SAM."""
    return in_turns(
        setup, {name: Asked(name, recipe={"model": MODEL}) for name in (SGD, "sam")}, {}
    )
