"""What a decision costs: methods that could take a second gradient, and those with one.

A method that knows its decisions ahead is told them, as in training, and stands beside itself in a
conditional. An infinite threshold makes an adaptive policy fire never or always, so that what is
left over SGD, or over twice SGD, is the decision itself.
"""

from collections.abc import Iterator

from experiments.benchmark.gpu.loop import Asked
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.benchmark.gpu.turns import in_turns
from experiments.training.optimizers import SGD

INFINITY = float("inf")
NEVER = {"lambda_1": INFINITY, "lambda_2": INFINITY}
ALWAYS = {"lambda_1": -INFINITY, "lambda_2": -INFINITY}
ASKED = {
    SGD: Asked(SGD),
    "ae_sam, never": Asked("ae_sam", NEVER),
    "ae_sam, always": Asked("ae_sam", ALWAYS),
    "ae_looksam, never": Asked("ae_looksam", NEVER),
    "ae_looksam, always": Asked("ae_looksam", ALWAYS),
    "looksam, every 5": Asked("looksam", {"period": 5}),
    "looksam, every 2": Asked("looksam", {"period": 2}),
    "looksam, every 5, in a conditional": Asked("looksam", {"period": 5}, told=False),
    "ss_sam, half": Asked("ss_sam", {"probability": 0.5}),
    "ss_sam, half, in a conditional": Asked("ss_sam", {"probability": 0.5}, told=False),
    "msam": Asked("msam"),
    "s2_sam": Asked("s2_sam"),
}


def measure(setup: Setup) -> Iterator[Row]:
    """A row a policy: its time over SGD and over (1 + ζ) times SGD."""
    return in_turns(setup, ASKED, {})
