"""What a compiled program sends between devices, read from its HLO."""

import math
import re
from typing import NamedTuple

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)

# "  %name = type kind(" and the type's arrays, such as f32[64,10]{1,0}
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,<=]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.-]+))"
)
_CALLED = re.compile(r"(?:to_apply|calls|body|condition)=%?([\w.-]+)")


class Collective(NamedTuple):
    """One instruction.

    Attributes:
      kind: one of KINDS.
      bytes: of its result on one device.
      conditional: whether it stands behind a conditional.
    """

    kind: str
    bytes: int
    conditional: bool


def found(hlo: str) -> list[Collective]:
    """The collectives of a compiled program, `compiled.as_text()`; those in a loop once."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
            lines[name] = []
        elif name:
            lines[name].append(line)
    certain, conditional = set(), set()

    def visit(name, seen, behind):
        if name in seen or name not in lines:
            return
        seen.add(name)
        for line in lines[name]:
            for branches in _BRANCHES.findall(line):
                for branch in re.findall(r"[\w.-]+", " ".join(branches)):
                    visit(branch, conditional, True)
            for called in _CALLED.findall(line):
                visit(called, conditional if behind else certain, behind)

    visit(entry, certain, False)
    return [
        Collective(match[2], _bytes(*match.groups()), name not in certain)
        for name in [*certain, *(conditional - certain)]
        for line in lines[name]
        if (match := _COLLECTIVE.match(line))
    ]


def _bytes(result, kind, start):
    """Of all arrays of a result, a tuple's together."""
    if start and kind != "all-reduce" and result.startswith("("):
        result = _elements(result)[1]  # behind what goes in; words of context follow
    arrays = [
        (int(bits or 8), map(int, re.findall(r"\d+", shape)))
        for _, bits, shape in _ARRAY.findall(result)
    ]
    return sum(math.ceil(math.prod(shape) * bits / 8) for bits, shape in arrays)


def _elements(text):
    """Of a tuple's type, as texts."""
    depth, elements = 0, [""]
    for letter in text[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += letter
    return elements
