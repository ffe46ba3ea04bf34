"""What is to be reached on an accelerator, as bars on the rows of all parts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.benchmark.bars import ONE_GRADIENT, OTHER, SKIPPING, Bar, Row, Verdict, judge
from experiments.benchmark.gpu import determinism
from experiments.benchmark.gpu.steps import SAM
from experiments.training.optimizers import SGD

_NOT_TWO = {SGD, *ONE_GRADIENT, *SKIPPING, *OTHER} - {"esam"}  # whose choice is quick here
# The card and the training of which an epoch's seconds are promised.
REFERENCE = {
    "model": "resnet18",
    "width": None,
    "dtype": "bfloat16",
    "batch_size": 128,
    "examples": 50_000,
}


def _in(part: str, *names: str) -> Callable[[Row], bool]:
    """Of these rows of a part, or all of it."""
    return lambda row: row["part"] == part and (not names or row["name"] in names)


def _is_reference(row):
    return "H100" in row["device"] and row["options"] == REFERENCE


def _takes_two(row):
    return _in("steps")(row) and row["name"].partition(",")[0] not in _NOT_TWO


BARS = (
    Bar(
        "seconds of an epoch of ResNet-18 in bfloat16 on an H100: sam",
        "seconds",
        1.5,
        lambda row: _in("epochs", SAM)(row) and _is_reference(row),
    ),
    Bar(
        "time over a hand-written SAM in the same loop, within its noise: sam",
        "over_hand_written",
        1.00,
        _in("steps", SAM),
        "over_hand_written_error",
    ),
    Bar("time over twice SGD's: two-gradient methods", "ideal_ratio", 1.01, _takes_two),
    Bar(
        "time over SGD: a decision that never fires",
        "time_ratio",
        1.03,
        _in("decisions", "ae_sam, never", "ae_looksam, never"),
    ),
    Bar(
        "time over (1 + ζ) times SGD: policies that fire",
        "ideal_ratio",
        1.03,
        _in(
            "decisions",
            *("ae_sam, always", "ae_looksam, always", "ss_sam, half"),
            *("looksam, every 5", "looksam, every 2"),
        ),
    ),
    Bar(
        "time over SGD: one-gradient methods",
        "time_ratio",
        1.03,
        _in("decisions", "msam", "s2_sam"),
    ),
    Bar("temporaries over SGD's: eigen_sam", "temp_bytes_ratio", 1.1, _in("steps", "eigen_sam")),
    Bar("time over SGD: eigen_sam", "time_ratio", 2.1, _in("steps", "eigen_sam")),
    Bar(
        "different ends of processes with one seed: deterministic ops",
        "different",
        1,
        _in("determinism", determinism.DETERMINISTIC),
    ),
    Bar("seconds to read a program that is kept", "again_compile_seconds", 3.0, _in("compile")),
    Bar("time over PyTorch's quickest without CUDA graphs", "over_torch", 0.28, _in("peers")),
    Bar("time over PyTorch's with CUDA graphs", "over_cuda_graphs", 1.00, _in("peers")),
)


def verdicts(parts: Mapping[str, Sequence[Row]], about: Mapping[str, Any]) -> list[Verdict]:
    """The verdict on every bar.

    Args:
      parts: the rows of each part.
      about: the device, and the options that all rows are of.
    """
    return judge([{**row, "part": part, **about} for part in parts for row in parts[part]], BARS)


def who(row: Row) -> str:
    """Whose a row is."""
    return f"{row['name']} ({row['part']})"
