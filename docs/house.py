"""Draws the house of CONTRIBUTING: the rooms of experiments, floor on floor.

python docs/house.py
"""

import html
from pathlib import Path

PICTURE = Path(__file__).parent / "_static" / "house.svg"
COMMANDS = (
    "train · compare · sweep · analyze · robustness · evaluate · tables · toy · scaling · gpu_check"
)
# From the top: the rooms of a floor, and what is in each.
FLOORS = (
    {"commands": COMMANDS},
    {"analysis": "trained runs measured, pictures", "benchmark": "what a step costs"},
    {"cli": "options, settings, how a command ends"},
    {"training": "optimizers · objectives · step · trainer · fit · group · checkpoints"},
    {"models": "networks, pretrained weights"},
    {
        "data": "sets · augment · feeds · pipeline",
        "results": "folders · files · watch · plots",
    },
    {"recipes": "a row of a paper's table each"},
    {"system": "errors · words · memory · mesh · processes · signals"},
)
BATCH, GRADIENT = "#009E73", "#D55E00"
WIDTH, HEIGHT, LEFT, TOP, GAP = 620, 66, 20, 10, 10
STYLE = """<style>text{fill:#1b1f24} .what{font-size:12.5px;fill:#4b5563} \
.name{font-size:16px;font-weight:bold} .room{fill:#eef4fb;stroke:#0072B2;stroke-width:1.5} \
.sam{fill:#fff4e5;stroke:#D55E00;stroke-width:2} .b{stroke:#009E73;fill:none;stroke-width:3} \
.g{stroke:#D55E00;fill:none;stroke-width:3} .n{font-size:13px;font-weight:bold;fill:#fff}</style>"""


def floor(i: int) -> int:
    """The upper edge of a floor."""
    return TOP + i * HEIGHT


def box(kind: str, x: float, y: float, width: float, height: float) -> str:
    """A room."""
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>'


def words(kind: str, x: float, y: float, text: str) -> str:
    """A line of text."""
    return f'<text class="{kind}" x="{x}" y="{y}">{html.escape(text)}</text>'


def head(name: str, color: str) -> str:
    """The head of an arrow."""
    return (
        f'<defs><marker id="{name}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="6" '
        f'markerHeight="6" orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="{color}"/>'
        "</marker></defs>"
    )


def arrow(number: int, kind: str, color: str, path: str, x: float, y: float) -> list[str]:
    """An arrow with its number on it."""
    return [
        f'<path class="{kind}" marker-end="url(#a{kind})" d="{path}"/>',
        f'<circle cx="{x}" cy="{y}" r="11" fill="{color}"/>',
        f'<text class="n" x="{x}" y="{y + 5}" text-anchor="middle">{number}</text>',
    ]


def drawn() -> str:
    """The picture."""
    end = floor(len(FLOORS))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {end + 35}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif">',
        "<title>The house: rooms of experiments, floor on floor, and sam_optax beside</title>",
        STYLE,
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        head("ab", BATCH),
        head("ag", GRADIENT),
    ]
    for i, rooms in enumerate(FLOORS):
        width = (WIDTH - (len(rooms) - 1) * GAP) / len(rooms)
        for j, (name, what) in enumerate(rooms.items()):
            x = LEFT + j * (width + GAP)
            lines += [
                box("room", x, floor(i), width, HEIGHT - GAP),
                words("name", x + 12, floor(i) + 23, name),
                words("what", x + 12, floor(i) + 43, what),
            ]
    lines += [
        box("sam", 700, floor(2), 180, 3 * HEIGHT - GAP),
        words("name", 714, floor(2) + 26, "sam_optax"),
    ]
    for k, slot in enumerate(("start", "perturb", "when", "combine", "", "needs JAX and Optax")):
        lines.append(words("what", 714, floor(2) + 52 + k * 22, slot))
    middle, train = floor(4) + HEIGHT / 2 - 4, floor(3)
    lines += arrow(1, "b", BATCH, f"M 300 {floor(5)} V {train + HEIGHT - 8}", 300, middle)
    lines += arrow(2, "g", GRADIENT, f"M 640 {train + 18} H 698", 668, train + 18)
    lines += arrow(3, "g", GRADIENT, f"M 700 {train + 42} H 643", 672, train + 42)
    lines += arrow(4, "b", BATCH, f"M 580 {train + HEIGHT - 10} V {floor(5) - 3}", 580, middle)
    told = (
        "A room may import what stands below it, and nothing above.",
        "1 a batch  ·  2 two gradients, the parameters, the state  ·  3 the direction  ·  "
        "4 metrics and checkpoints",
    )
    lines += [words("what", LEFT, end + 10 + 20 * i, line) for i, line in enumerate(told)]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawn())
