"""The rows of all parts as Markdown, the bars first."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmark.gpu import promised
from experiments.benchmark.gpu.setup import Row
from experiments.benchmark.report import bars

# What a figure is called, and how it is written; a part shows those that its rows have.
COLUMNS = {
    "seconds": ("seconds an epoch", ".2f"),
    "images_per_second": ("images/s", ",.0f"),
    "milliseconds": ("ms a step", ".2f"),
    "time_ratio": ("time / SGD", ".3f"),
    "sam_fraction": ("ζ", ".3f"),
    "ideal_ratio": ("over (1 + ζ)", ".3f"),
    "over_hand_written": ("over hand-written", ".3f"),
    "over_today": ("over today's loop", ".3f"),
    "over_torch": ("over PyTorch", ".3f"),
    "over_cuda_graphs": ("over its CUDA graphs", ".3f"),
    "temp_bytes": ("temporaries (MB)", "MB"),
    "temp_bytes_ratio": ("over SGD's", ".2f"),
    "state_bytes": ("state (MB)", "MB"),
    "compile_seconds": ("compiled or read in (s)", ".1f"),
    "start_seconds": ("first step after (s)", ".1f"),
    "again_compile_seconds": ("next process: read in (s)", ".1f"),
    "again_start_seconds": ("first step after (s)", ".1f"),
    "digest": ("parameters", ""),
    "processes": ("processes", "d"),
    "different": ("different ends", "d"),
    "epochs": ("epochs", "d"),
    "test_accuracy": ("test accuracy", ".1%"),
    "said": ("", ""),
}
TITLES = {
    "steps": "A step of every method",
    "epochs": "An epoch, and what may take its time",
    "decisions": "What a decision costs",
    "determinism": "Two processes with one seed",
    "precision": "Which radius survives which precision",
    "compile": "Compiling, and the second start",
    "wrn": "WRN-28-10",
    "peers": "PyTorch",
    "real": "CIFAR-10 with wrong labels",
}
# Of a radius, in which precision, and what of it.
RADIUS = {
    "cos of g′ − g: bfloat16": ("bfloat16", "cos"),
    "JAX's default": ("default", "cos"),
    "size: bfloat16": ("bfloat16", "size"),
    "size: JAX's default": ("default", "size"),
    "‖g′ − g‖ / ‖g‖": ("highest", "over_g"),
    "bfloat16 weights that move": ("weights", "bf16_params_changed"),
    "of ε's length": ("weights", "bf16_params_step_kept"),
}
SHARES = ("bf16_params_changed",)
TOTALS = {"real": {"seconds": ("seconds in all", ".1f")}}


def markdown(found: Mapping[str, Any]) -> str:
    """The whole report."""
    versions, options = found["versions"], found["options"]
    parts = {part: found[part] for part in TITLES if part in found}
    about = {"device": found["device"], "options": options}
    width = "" if options["width"] is None else f" of width {options['width']}"
    lines = [
        f"# {options['model']}{width} on {found['device']}",
        "",
        f"{found['images']}, {options['dtype']}, batch {options['batch_size']}; jax "
        f"{versions['jax']}, flax {versions['flax']}, optax {versions['optax']}. Times are medians "
        "over turns beside SGD; ζ is the share of steps with a second gradient.",
        "",
        *bars(promised.verdicts(parts, about), promised.who),
    ]
    for part, rows in parts.items():
        lines += ["", f"## {TITLES[part]}", "", *table(part, rows)]
    return "\n".join([*lines, ""])


def table(part: str, rows: Sequence[Row]) -> list[str]:
    """The table of a part: a line a row, or of precision a line a radius."""
    if part == "precision":
        return _radii(rows)
    return _table(rows, COLUMNS | TOTALS.get(part, {}))


def _radii(rows):
    lines = [f"| | ρ | {' | '.join(RADIUS)} |", f"|---|--:|{'--:|' * len(RADIUS)}"]
    found = {(row["when"], row.get("rho"), row.get("precision", "weights")): row for row in rows}
    for when, radius in dict.fromkeys(key[:2] for key in found if key[1] is not None):
        held = [
            (found.get((when, radius, name), {}).get(figure), ".1%" if figure in SHARES else ".3f")
            for name, figure in RADIUS.values()
        ]
        lines.append(f"| {when} | {radius:g} | {' | '.join(_cell(*one) for one in held)} |")
    return lines


def _table(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> list[str]:
    shown = {name: one for name, one in columns.items() if any(name in row for row in rows)}
    lines = [
        f"| | {' | '.join(title for title, _ in shown.values())} |",
        f"|---|{'--:|' * len(shown)}",
    ]
    for row in rows:
        cells = [_cell(row.get(name), form) for name, (_, form) in shown.items()]
        mark = "" if row.get("finite", True) else " (NOT FINITE)"
        lines.append(f"| {row['name']}{mark} | {' | '.join(cells)} |")
    return lines


def _cell(value, form):
    if value is None:
        return ""
    return f"{value / 1e6:.0f}" if form == "MB" else format(value, form)
