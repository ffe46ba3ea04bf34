"""Writes what was measured on GPUs: docs/results/gpu.md and its picture, from docs/results/gpu/.

python docs/gpu_results.py

A folder there holds the gpu_check.json of a card. The first one's is of the command before it had
parts, with a probe beside it; its rows are put into the same parts here.
"""

from collections.abc import Iterator
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from experiments.benchmark.gpu import determinism, promised, report
from experiments.benchmark.gpu.peers import GRAPHS
from experiments.benchmark.report import bars
from experiments.results import provenance

PAGE = Path(__file__).parent / "results" / "gpu.md"
PICTURE = PAGE.with_suffix(".png")
RESULTS = PAGE.with_suffix("")
FIRST = RESULTS / "h100"
# Of the first card's steps, those that stand in the part decisions.
DECISIONS = {
    "sgd": "sgd",
    "ae_sam, never": "ae_sam, never",
    "ae_looksam": "ae_looksam, never",  # it never fired there
    "ae_sam, always": "ae_sam, always",
    "looksam": "looksam, every 5",
    "ss_sam": "ss_sam, half",
    "msam": "msam",
    "s2_sam": "s2_sam",
}
TRAINED = "after 6 epochs of 10,000"
TOLD = """# On a GPU

What an accelerator shows and a CPU cannot. One command measures it, in parts of a few minutes each,
and says which promise is kept:

    python -m experiments.gpu_check [--parts steps epochs decisions determinism precision]

![g′ − g against the radius in bfloat16 and TF32; milliseconds a step here and in PyTorch](gpu.png)

Left, how much of SAM's direction rounding leaves: the cosine between g′ − g as it is computed and
as it is in float32, of ResNet-18 on 512 images of CIFAR-10. TF32 is what JAX takes by default for
float32 on such a card. Right, a step of the same network at batch 128.
[What follows for the radius](../choosing.md#which-precision).

- **Two processes with one seed** end at different parameters with XLA's default flags, after a
  hundred steps, and at the same ones with deterministic operations, which
  [the commands that train ask for](../promises.md#the-same-bits-again). The four processes shared
  the card, so that their times say little of the cost; the part `determinism` measures it.
- **Not measured yet**: what is suspected of an epoch's time, the second start from kept programs,
  WRN-28-10, PyTorch with CUDA graphs, and the autotuner's choices loaded by another process. The
  parts run on a CPU in the tests; what stands below was measured before the command had them.
"""


def first() -> dict[str, Any]:
    """What the first card's files tell, by part."""
    found = json.loads((FIRST / "gpu_check.json").read_text())
    probe: dict[str, list[dict[str, Any]]] = {}
    for line in (FIRST / "probe.jsonl").read_text().splitlines():
        row = json.loads(line)
        probe.setdefault(row.pop("section"), []).append(row)
    rows = {row["method"]: {"name": row["method"], **row} for row in found["steps"]}
    by_hand, ours = (row["ms"] for row in probe["variants"])
    steps = [row for name, row in rows.items() if "," not in name]
    rows["sam"]["over_hand_written"] = ours / by_hand
    return {
        "steps": steps,
        "epochs": [{"name": row["method"], **row} for row in found["epochs"]],
        "decisions": [{**rows[name], "name": called} for name, called in DECISIONS.items()],
        "determinism": list(_determinism(probe["determinism"])),
        "precision": [row for row in probe["precision"] if "rho" in row],
        "peers": list(_peers(probe["torch"], rows)),
        "real": list(_real(probe["real"])),
        "images": found["images"],
        "device": found["device"],
        "versions": found["versions"],
        "commit": found["commit"],
        "options": promised.REFERENCE,
    }


def _determinism(rows) -> Iterator[dict[str, Any]]:
    for setting, flagged in ((determinism.DEFAULT, False), (determinism.DETERMINISTIC, True)):
        chosen = [row for row in rows if bool(row["flags"]) == flagged]
        for number, row in enumerate(chosen, 1):
            yield {
                "name": f"{setting}, process {number}",
                "milliseconds": row["ms"],
                "compile_seconds": row["compile"],
                "digest": row["digest"],
            }
        different = len({row["digest"] for row in chosen})
        yield {"name": setting, "processes": len(chosen), "different": different}


def _peers(rows, steps) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {"name": row["name"], "milliseconds": row["ms"]}
    for method, word in (("sgd", "SGD"), ("sam", "SAM")):
        quickest = min(row["ms"] for row in rows if word in row["name"])
        ours = steps[method]["milliseconds"]
        yield {"name": f"{method}, ours", "milliseconds": ours, "over_torch": ours / quickest}


def _real(rows) -> Iterator[dict[str, Any]]:
    for row in rows:
        if "skipped" not in row:
            kept = ("epochs", "seconds", "sam_fraction", "test_accuracy")
            yield {"name": row["name"], **{name: row[name] for name in kept}}


def later() -> list[dict[str, Any]]:
    """What the command tells of other cards and later builds, folder by folder."""
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir() and path != FIRST)
    return [json.loads((folder / "gpu_check.json").read_text()) for folder in folders]


def section(found: dict[str, Any]) -> list[str]:
    """The bars and the tables of one card."""
    parts = {part: found[part] for part in report.TITLES if part in found}
    about = {"device": found["device"], "options": found["options"]}
    options = found["options"]
    lines = [
        f"## {found['device']}, jax {found['versions']['jax']}",
        "",
        f"{options['model']}, {options['dtype']}, batch {options['batch_size']}; images "
        f"{found['images']}. {provenance.versions(found)}.",
        "",
        *bars(promised.verdicts(parts, about), promised.who),
    ]
    for part, rows in parts.items():
        lines += ["", f"### {report.TITLES[part]}", "", *report.table(part, rows)]
    return lines


def precision() -> list[str]:
    """The table of docs/choosing.md: what of a radius is left, at first and trained."""
    found = {
        (row["when"], row["rho"], row.get("precision", "weights")): row
        for row in first()["precision"]
    }
    lines = [
        "| ρ | cosine in TF32 | in bfloat16 | bfloat16 weights that ε moves | of its length |",
        "|--:|--:|--:|--:|--:|",
    ]

    def both(radius, kind, figure, form):
        held = (found.get((when, radius, kind)) for when in ("init", TRAINED))
        return " / ".join(format(row[figure], form) for row in held if row)

    for radius in dict.fromkeys(radius for _, radius, _ in found):
        cells = (
            both(radius, "default", "cos", ".3f"),
            both(radius, "bfloat16", "cos", ".3f"),
            both(radius, "weights", "bf16_params_changed", ".1%"),
            both(radius, "weights", "bf16_params_step_kept", ".2f"),
        )
        lines.append(f"| {radius:g} | {' | '.join(cells)} |")
    return lines


def page() -> str:
    """The page."""
    lines = [TOLD]
    for found in (*later(), first()):
        lines += [*section(found), ""]
    lines.append(
        "The first card's rows are of one process but for those of determinism, and those beside "
        "PyTorch of different ones, PyTorch's on one batch without augmentation. Real images: one "
        "seed, too short for the papers' claims; seconds hold the compilation. All figures: "
        "[gpu_check.json](gpu/h100/gpu_check.json), [probe.jsonl](gpu/h100/probe.jsonl)."
    )
    return "\n".join(lines) + "\n"


def draw() -> None:
    """Draws the picture of the first card."""
    found = first()
    plt.rcParams["font.size"] = 11
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    colors = {"bfloat16": "#D55E00", "default": "#0072B2"}
    for (precision, color), word in zip(colors.items(), ("bfloat16", "TF32"), strict=True):
        for when, style, said in (("init", "o--", "at first"), (TRAINED, "o-", "trained")):
            rows = [
                row
                for row in found["precision"]
                if (row.get("precision"), row["when"]) == (precision, when)
            ]
            radii, cosines = zip(*((row["rho"], row["cos"]) for row in rows), strict=True)
            left.plot(radii, cosines, style, color=color, label=f"{word}, {said}")
    ticks = sorted({row["rho"] for row in found["precision"]})
    left.set(xscale="log", xlabel="ρ", title="Cosine of g′ − g with that in float32")
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    left.minorticks_off()
    left.legend(frameon=False)
    rows = [row for row in found["peers"] if GRAPHS not in row["name"]][::-1]
    rows.sort(key=lambda row: -row["milliseconds"])
    ours = ["#009E73" if "ours" in row["name"] else "#999999" for row in rows]
    shown = right.barh(
        [row["name"] for row in rows], [row["milliseconds"] for row in rows], color=ours
    )
    right.bar_label(shown, fmt="%.1f", padding=3)
    right.set(title="Milliseconds a step", xlim=(0, 29))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    PAGE.write_text(page())
    draw()
