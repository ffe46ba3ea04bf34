"""Draws the picture of the first page from the results of digits.

python docs/first_picture.py
"""

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent
RESULTS = DOCS / "results" / "digits.json"
PICTURE = DOCS / "_static" / "first.png"
SHOWN = {
    "sgd": "SGD",
    "msam": "MSAM",
    "ae_looksam": "AE-LookSAM",
    "ae_sam": "AE-SAM",
    "sam": "SAM",
    "gsam": "GSAM",
    "le_sam": "LE-SAM",
    "wsam": "WSAM",
}


def bars() -> dict[str, tuple[float, float, float]]:
    """Of each method: gradients a step, test accuracy in % and its standard deviation."""
    table = json.loads(RESULTS.read_text())["tables"]["equal epochs"]
    keys = ("gradients_per_step", "test_accuracy_mean", "test_accuracy_std")
    rows = {row["method"]: tuple(row[key] for key in keys) for row in table}
    return {name: rows[name] for name in SHOWN}


def main() -> None:
    """Writes the picture."""
    shown = bars()
    plt.rcParams["font.size"] = 14
    figure, axis = plt.subplots(figsize=(10, 3.4), layout="constrained")
    for place, (_, mean, deviation) in enumerate(shown.values()):
        color = "#0072B2" if place else "0.5"
        axis.bar(place, mean, yerr=deviation, color=color, capsize=4, width=0.8)
        axis.text(place, 40, f"{mean:.1f}", ha="center", color="white", weight="bold")
    labels = [f"{SHOWN[name]}\n{gradients:.2g}" for name, (gradients, *_) in shown.items()]
    axis.set_xticks(range(len(shown)), labels)
    axis.set(ylim=(0, 100), ylabel="test accuracy (%)", xlabel="gradients a step")
    axis.set_title("Some of the methods on digits, 40 % of the training labels wrong (10 seeds)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
