"""Files that commands read back, damaged in every way, and what the commands make of them."""

import os
from pathlib import Path
import random
import shutil
from typing import NamedTuple

from . import figures, promise
from .cases import Outcome
from .damage import damage
from .process import Command, Ended, Place, run
from .promise import Broken
from .scenarios import RUNS, Reference, Scenario, World


class Reader(NamedTuple):
    """A command that reads what lies there.

    Attributes:
      name: of the command.
      held: what its own folder holds: results that are "finished", "cut" short, or "nothing".
      more: its further words.
      what: whose files are damaged: its "own", those of the "runs" it is given, the "data" or
        the "weights".
      share: how often it is drawn.
    """

    name: str
    held: str
    more: tuple[str, ...] = ()
    what: str = "own"
    share: int = 1


LOOKING = {"analyze", "evaluate", "robustness"}  # at trained runs
READERS = (
    Reader("train", "cut", ("--resume",), share=14),
    Reader("train", "finished", ("--resume",), share=6),
    Reader("train", "finished", share=8),
    Reader("train", "cut", share=2),
    Reader("train", "cut", ("--overwrite",), share=3),
    Reader("train", "finished", ("--overwrite",), share=3),
    Reader("train", "nothing", what="data", share=4),
    Reader("train", "nothing", what="weights", share=4),
    Reader("compare", "finished", share=6),
    Reader("compare", "finished", ("--overwrite",), share=1),
    Reader("sweep", "finished", share=6),
    Reader("sweep", "cut", share=8),
    Reader("sweep", "cut", ("--overwrite",), share=1),
    Reader("analyze", "finished", share=5),
    Reader("analyze", "nothing", what="runs", share=4),
    Reader("analyze", "finished", what="runs", share=3),
    Reader("robustness", "finished", share=6),
    Reader("robustness", "nothing", what="runs", share=4),
    Reader("robustness", "finished", what="runs", share=2),
    Reader("robustness", "nothing", what="data", share=1),
    Reader("evaluate", "finished", share=6),
    Reader("evaluate", "nothing", what="runs", share=4),
    Reader("evaluate", "finished", what="runs", share=2),
    Reader("evaluate", "nothing", what="data", share=2),
    Reader("tables", "nothing", what="runs", share=10),
    Reader("tables", "finished", share=2),
    Reader("toy", "finished", share=2),
    Reader("benchmark", "finished", share=1),
    Reader("growth", "finished", share=1),
    Reader("scaling", "finished", share=1),
)


def case(number: int, seed: int, place: Place, world: World) -> Outcome:
    """One case."""
    rng = random.Random(f"files {seed} {number}")
    readers = [one for one in READERS if one.name in world.chosen]
    (reader,) = rng.choices(readers, [one.share for one in readers])
    scenario, reference = world.scenarios[reader.name], world.reference(reader.name)
    place.make()
    (place.out / "foreign.txt").write_text("mine")
    own = place.out / scenario.folder
    _hold(reader, scenario, reference, place, world)
    scenario, folder = _given(reader, scenario, place, world)
    path = _chosen(folder, rng)
    how = damage(path, rng, _other(path, folder, world))
    changed = promise.snapshot(place.out, folder)
    more = ("--weights", str(path)) if reader.what == "weights" else reader.more
    asked = scenario.command(*more)
    ended = run(asked, place, limit=world.limit)
    broken = promise.of_end(ended, allowed=())
    after = promise.snapshot(place.out, folder)
    strange = {n: d for n, d in changed.items() if not n.startswith(str(own) + os.sep)}
    strange |= {n: d for n, d in changed.items() if n.endswith("mine.txt")}
    broken += promise.of_files(strange, after)
    broken += promise.of_halves(place.out)
    if ended.code == 0 and reader.what == "weights":
        broken.append(Broken("weights that fit no model are taken", ""))
        ending = "done"
    elif ended.code == 0:
        broken += _right(scenario, reference, place, path)
        ending = "right figures"
    elif ended.code == 2:
        broken += _kept(scenario, own, path, changed, after)
        ending = "refused"
        if reader.what == "own" and scenario.replaces and reader.more != scenario.replaces:
            again: Command = scenario.command(*scenario.replaces)
            second: Ended = run(again, place, limit=world.limit)
            more = promise.of_end(second, allowed=())
            if second.code == 0:
                more += _right(scenario, reference, place, path)
                ending = "refused, then replaced"
            else:
                ending = "refused, also with --overwrite"
            broken += [Broken(f"with --overwrite: {kind}", seen) for kind, seen in more]
    else:
        ending = f"exit {ended.code}"
    line = f"{asked}  # {reader.held}, {path.relative_to(place.root)}: {how}"
    return Outcome(scenario.name, ending, line, broken)


def _hold(reader, scenario, reference, place, world):
    """Puts into the command's folder what it is to hold, and a file that is not its own."""
    if reader.held == "nothing":
        return
    source = reference.path if reader.held == "finished" else world.cut(reader.name)
    shutil.copytree(source / scenario.folder, place.out / scenario.folder, symlinks=True)
    (place.out / scenario.folder / "mine.txt").write_text("mine")


def _given(reader, scenario: Scenario, place: Place, world: World) -> tuple[Scenario, Path]:
    """The command with a copy of what it reads, and the folder in which a file is damaged."""
    if reader.what == "own":
        return scenario, place.out / scenario.folder
    folder = place.root / reader.what
    shutil.copytree(world.shared / reader.what, folder, symlinks=True)
    if reader.what == "data":
        return scenario._replace(options={**scenario.options, "--data-dir": (str(folder),)}), folder
    if reader.what == "weights":
        model = {"--model": ("imagenet_resnet18",)}
        return scenario._replace(options={**scenario.options, **model}), folder
    if reader.name == "tables":
        return scenario._replace(options={"--runs": (str(folder),)}), folder
    runs = tuple(str(folder / name) for name in RUNS)
    return scenario._replace(options={**scenario.options, "": runs}), folder


def _chosen(folder, rng):
    """A file, those that are read back by name more often than pictures and pages."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "mine.txt")
    weights = []
    for path in paths:
        inside = "checkpoints" in path.relative_to(folder).parts
        json_alike = path.suffix in (".json", ".jsonl") or path.name.startswith(".")
        weights.append(2 if inside else 12 if json_alike else 1)
    return rng.choices(paths, weights)[0]


def _other(path: Path, folder: Path, world: World) -> Path | None:
    """The same file of another run."""
    within = path.relative_to(folder)
    runs = world.shared / "runs"
    if within.parts[0] in RUNS:
        (name,) = set(RUNS) - {within.parts[0]}
        return runs / name / Path(*within.parts[1:])
    return runs / RUNS[0] / within


def _right(scenario, reference: Reference, place, path) -> list[Broken]:
    """The figures of the undisturbed run; of tables that of a damaged run may be missing."""
    found = figures.of(place.out, exact=scenario.exact)
    own = {n: v for n, v in found.items() if n.startswith(scenario.folder + os.sep)}
    broken = promise.of_figures(own, reference.figures)
    if path.name == "summary.json" and not path.is_file() and scenario.name in LOOKING:
        return []  # a run without its summary is an unfinished one, and is told as such
    if broken and scenario.name == "tables":
        listed = figures.read(place.out / scenario.folder / "tables.json")
        passed = [*listed.get("damaged", ()), *listed.get("others", ())]
        name = next((one for one in RUNS if one in path.parts), None)
        if name and any(f"{os.sep}{name}" in one for one in passed):
            return []
    return broken


def _kept(scenario, own, path, changed, after) -> list[Broken]:
    """Results that a refused command leaves as they were, but for the damaged one."""
    results = {
        name: digest
        for name, digest in changed.items()
        if name.startswith(str(own) + os.sep) and name.endswith((".json", ".jsonl"))
    }
    results.pop(str(path), None)
    results = {n: d for n, d in results.items() if "checkpoints" not in Path(n).parts}
    hidden = {n: d for n, d in results.items() if not Path(n).name.startswith(".")}
    digests = set(after.values())
    gone = [name for name, digest in hidden.items() if digest not in digests]
    return [Broken("finished results gone", " ".join(gone))] if gone else []
