"""What is promised of a step, and whether a table keeps it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

ONE_GRADIENT = ("lpf_sgd", "msam", "s2_sam", "ivon")
SKIPPING = ("ss_sam", "looksam", "ae_sam", "ae_looksam")
WINDOWS = "sam in windows"
# They know their decisions ahead.
FORESEEING = ("ss_sam", "looksam", WINDOWS)
# Beside gradients they take what no bar is for: a choice of examples, products with the Hessian,
# the arithmetic of a posterior.
OTHER = ("esam", "eigen_sam", "bsam", "ivon")
FEW_BYTES = ("sam", "asam", "gsam", "le_sam", "wsam", "ssam", "samar", "ae_sam")
ONE_COPY = ("looksam", "vasso", "friendly_sam", "msam", "s2_sam", "ae_looksam")


class Bar(NamedTuple):
    """A promise: a figure of some rows is at most a limit.

    Attributes:
      text: what is promised.
      figure: the name of the figure in a row; a row that has none, or None, is not judged.
      limit: the most that it may be.
      applies: whether it is promised of a row.
      error: the name of the figure's standard error, of which two are allowed beyond the limit;
        none of a row that has none.
    """

    text: str
    figure: str
    limit: float
    applies: Callable[[Row], bool]
    error: str | None = None

    def allows(self, row: Row) -> bool:
        """Whether a row keeps the promise."""
        noise = 2 * row.get(self.error, 0.0) if self.error else 0.0
        return row[self.figure] <= self.limit + noise


class Verdict(NamedTuple):
    """A bar, the row that is farthest out, if any is judged, and all rows that do not keep it."""

    bar: Bar
    farthest: Row | None
    failing: list[Row]


def _of(*methods):
    """In one compiled step."""
    return lambda row: row["method"] in methods and row["dispatch"] == "device"


def _takes_two(row):
    others = (*ONE_GRADIENT, *SKIPPING, *FORESEEING, *OTHER, "sgd")
    return row["method"] not in others and row["dispatch"] == "device"


def _skips(row):
    """Where it skips for real: ahead, on the host with convolutions on CPU, else on the device."""
    dispatch = "host" if row["selects"] else "device"
    return row["dispatch"] == "ahead" or (row["method"] in SKIPPING and row["dispatch"] == dispatch)


BARS = (
    Bar("FLOPs over SGD: two-gradient methods", "flops_ratio", 2.01, _takes_two),
    Bar(
        "FLOPs over SGD: one-gradient methods",
        "flops_ratio",
        1.01,
        _of(*(method for method in ONE_GRADIENT if method not in OTHER)),
    ),
    Bar(
        "time over a hand-written SAM: two-gradient methods, up to 1e7 parameters",
        "over_hand_written",
        1.03,
        lambda row: _takes_two(row) and row["parameters"] <= 1e7,
    ),
    Bar(
        "time over optax.contrib.sam (opaque), within its noise: sam",
        "over_opaque",
        1.00,
        _of("sam"),
        "over_opaque_error",
    ),
    Bar("time over (1 + ζ) times SGD: methods that skip gradients", "ideal_ratio", 1.05, _skips),
    Bar("time over sam: le_sam", "over_sam", 1.01, _of("le_sam")),
    Bar(
        "temporary bytes over a hand-written SAM that falls back: two-gradient methods",
        "temp_over_falling_back",
        1.02,
        lambda row: _takes_two(row) or _of("ss_sam", "ae_sam")(row),
    ),
    Bar(f"state bytes: {', '.join(FEW_BYTES)}", "state_bytes", 100, _of(*FEW_BYTES)),
    Bar(
        f"state beyond a copy of the parameters, bytes: {', '.join(ONE_COPY)}",
        "state_beyond_a_copy",
        100,
        _of(*ONE_COPY),
    ),
    Bar(
        "time over SGD, over the same ratio in PyTorch",
        "over_torch",
        1.00,
        lambda row: _skips(row) if row["method"] in SKIPPING else row["dispatch"] == "device",
    ),
)


def judge(rows: Sequence[Row], bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """The verdict on every bar."""
    verdicts = []
    for bar in bars:
        judged = [row for row in rows if row.get(bar.figure) is not None and bar.applies(row)]
        failing = [row for row in judged if not bar.allows(row)]
        farthest = max(failing or judged, key=lambda row: row[bar.figure], default=None)
        verdicts.append(Verdict(bar, farthest, failing))
    return verdicts
