"""What only an accelerator can tell, in parts of a few minutes each.

    python -m experiments.gpu_check [--parts steps epochs ...] [--out runs] [options]

Trains ResNet-18 in bfloat16 on CIFAR-10, or on made images of its shapes where it is not prepared.
What is compared runs in one process and in turns, after a warm-up; ratios are medians over the
turns. Every row is written as it comes, and the rows of several calls make one report:
<out>/<name>/ holds runs.jsonl, gpu_check.json and gpu_check.md, what is promised first.

steps: each method's step beside SGD's, and sam beside SAM by hand. epochs: whole ones, and what is
suspected of their time. decisions: policies that fire never, always, sometimes. determinism: the
ends of several processes. precision: g′ − g in bfloat16, TF32 and float32. compile: a program, and
the same in the next process. wrn: WRN-28-10. peers: PyTorch, where it is installed. real: a few
epochs of CIFAR-10, where it is prepared.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
from pathlib import Path
import time
from typing import Any, Literal

import rich

from experiments.benchmark.gpu import (
    compilation,
    decisions,
    determinism,
    epochs,
    peers,
    precision,
    real,
    steps,
    wide,
)
from experiments.benchmark.gpu.kept import Kept
from experiments.benchmark.gpu.report import markdown
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.cli import command
from experiments.results import files, folders, provenance
from experiments.system import compiler, output
from experiments.system.errors import UserError
from experiments.system.words import positive

Part = Literal[
    "steps", "epochs", "decisions", "determinism", "precision", "compile", "wrn", "peers", "real"
]
PARTS: dict[Part, Callable[[Setup], Iterator[Row]]] = {
    "steps": steps.measure,
    "epochs": epochs.measure,
    "decisions": decisions.measure,
    "determinism": determinism.measure,
    "precision": precision.measure,
    "compile": compilation.measure,
    "wrn": wide.measure,
    "peers": peers.measure,
    "real": real.measure,
}
# What all rows of a folder are of; how long something is measured may differ from call to call.
SHARED = ("model", "width", "dtype", "batch_size", "examples")


@dataclasses.dataclass(frozen=True)
class Options(Setup):
    """What only an accelerator can tell."""

    parts: tuple[Part, ...] = tuple(PARTS)
    """What to measure, one after the other; what was measured before stays in the report."""
    minutes: float = 3.5
    """Of a part, after which it begins no further row, and waits for what is being compiled."""
    name: str = "gpu_check"
    """The folder inside --out."""
    out: Path = Path("runs")
    """The folder of all results."""
    overwrite: bool = False
    """Replace what was measured with other options, on another device or with other versions."""


def main(options: Options) -> None:
    """Runs the command."""
    if not options.parts or len(set(options.parts)) < len(options.parts):
        raise UserError(f"--parts must be different ones, got {options.parts}.")
    positive("minutes", options.minutes)
    options.check()
    compiler.keep_programs()
    path = folders.path_of(options.out, options.name)
    folders.check(path, "gpu_check")
    about = {"images": options.images, **provenance.provenance()}
    shared = {name: getattr(options, name) for name in SHARED}
    config = {**shared, "images": about["images"], **_machine(about)}
    with folders.held(path, "gpu_check") as folder:
        if folder.holds_results() and not options.overwrite:
            _check_machine(path, about)
        folder.open(config, overwrite=options.overwrite)
        kept = Kept(folder.file(folders.RUNS), about["commit"])

        def report():
            found = {**kept.parts(), "options": shared, **about}
            files.write_json(folder.file("gpu_check.json"), found)
            files.write_text(folder.file("gpu_check.md"), markdown(found))
            return found

        for part in options.parts:
            for row in _rows(part, options):
                kept.add(part, row)
                report()
        found = report()
        folder.done()
    rich.print(markdown(found))
    print(f"written to {path}/")


def _rows(part, options):
    """The rows of a part until its time is over."""
    start = time.perf_counter()
    with contextlib.closing(PARTS[part](options)) as rows:
        for row in rows:
            yield row
            if time.perf_counter() - start > 60 * options.minutes:
                output.tell(
                    f"warning: {part} is not complete after {options.minutes:g} minutes: pass "
                    f"--parts {part} again, or more --minutes."
                )
                return


def _machine(about: dict[str, Any]) -> dict[str, Any]:
    """What figures cannot be compared across."""
    names = ("jax", "jaxlib", "flax", "optax")
    return {"device": about["device"], "versions": {n: about["versions"][n] for n in names}}


def _check_machine(path, about):
    """Raises where a folder holds what another device or other versions measured.

    Raises:
      UserError: as said.
    """
    with contextlib.suppress(FileNotFoundError, files.DamagedError):  # which is told later
        held, now = files.read_json(path / folders.CONFIG), files.plain(_machine(about))
        was = {name: held.get(name) for name in now}
        if was != now:
            raise UserError(
                f"{path} holds what {_said(was)} measured, and this is {_said(now)}: pass --name "
                "for a folder of its own, or --overwrite."
            )


def _said(machine):
    versions = machine["versions"] or {}
    return f"{machine['device']} with {' '.join(f'{n} {v}' for n, v in versions.items())}"


if __name__ == "__main__":
    command.run(main, Options)
