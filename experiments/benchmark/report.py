"""The table and the bars as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.benchmark.bars import Row, Verdict, judge

COLUMNS = {
    "ms": ("milliseconds", ".2f"),
    "FLOPs": ("flops_ratio", ".3f"),
    "time": ("time_ratio", ".3f"),
    "± ½ IQR": ("half_spread", ".3f"),
    "ζ": ("ascents_per_step", ".2f"),
    "time / (1 + ζ)": ("ideal_ratio", ".3f"),
    "time / hand-written": ("over_hand_written", ".3f"),
    "temporaries": ("temp_bytes_ratio", ".2f"),
    "temporaries / hand-written": ("temp_over_hand_written", ".2f"),
    "state (bytes)": ("state_bytes", ",.0f"),
    "compilation": ("compile_ratio", ".1f"),
}


def markdown(found: Mapping[str, Any]) -> str:
    """The whole report."""
    versions = found["versions"]
    lines = [
        "# The cost of a step",
        "",
        *bars(judge(found["rows"])),
    ]
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        lines += ["", *_table(model, [row for row in found["rows"] if row["model"] == model])]
    lines += [
        "",
        "Over SGD's step, but where another is named; medians over paired turns, with half the "
        "interquartile range of the pairs here and the standard error of the median above. ζ is "
        "the share of steps with a second gradient. Temporaries are the most that the step holds "
        "beside its arguments and results; state is what the method adds to the base's.",
        "",
        f"{found['device']}, {found['cores']} cores. "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + ".",
        "",
    ]
    return "\n".join(lines)


def _who(row):
    where = "" if row["dispatch"] == "device" else f" ({row['dispatch']})"
    return f"{row['method']} on {row['model']}{where}"


def bars(verdicts: Sequence[Verdict], who: Callable[[Row], str] = _who) -> list[str]:
    """The bars as a table, in which a function says whose a row is."""
    lines = ["| promised | at most | farthest | by | kept |", "|---|--:|--:|---|---|"]
    for bar, farthest, failing in verdicts:
        if farthest is None:
            figures, kept = " | ", "not measured"
        else:
            figures, kept = f"{_figure(farthest, bar)} | {who(farthest)}", "yes"
        if failing:
            kept = "NO: " + ", ".join(f"{who(row)} {_figure(row, bar)}" for row in failing)
        lines.append(f"| {bar.text} | {bar.limit:g} | {figures} | {kept} |")
    return lines


def _figure(row, bar):
    error = row.get(f"{bar.figure}_error")
    return f"{row[bar.figure]:.5g}" + (f" ± {error:.3f}" if error else "")


def _table(model, rows):
    first = rows[0]
    size = f"{first['parameters']:,} parameters in {first['leaves']} leaves"
    lines = [
        f"## {model}: {size}, batch {first['batch_size']}",
        "",
        f"| method | where | {' | '.join(COLUMNS)} |",
        f"|---|---|{'--:|' * len(COLUMNS)}",
    ]
    for row in rows:
        if "spread" in row:
            row = {**row, "half_spread": row["spread"] / 2}
        figures = [(row.get(key), form) for key, form in COLUMNS.values()]
        cells = ["" if figure is None else format(figure, form) for figure, form in figures]
        lines.append(f"| {row['method']} | {row['dispatch']} | {' | '.join(cells)} |")
    return lines
