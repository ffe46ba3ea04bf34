"""Each method's step beside SGD's, and `sam` beside SAM by hand."""

from collections.abc import Iterator

from experiments.benchmark.gpu.loop import BY_HAND, Asked
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.benchmark.gpu.turns import HAND_WRITTEN, in_turns
from experiments.training.optimizers import SGD

SAM = "sam"


def measure(setup: Setup) -> Iterator[Row]:
    """A row a method: time and memory over SGD's."""
    # What the others are compared with comes first, where there is no time for all.
    asked = {SGD: Asked(SGD), SAM: Asked(SAM), HAND_WRITTEN: BY_HAND}
    asked |= {name: Asked(name) for name in setup.methods}
    return in_turns(setup, asked, {SAM: [HAND_WRITTEN]})
