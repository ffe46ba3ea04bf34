"""Commands cut short at a random moment: by signals, full disks and a lost standard output."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
from typing import NamedTuple

from . import figures, promise
from .cases import Outcome
from .process import BEGUN, PYTHON, Command, Ended, Place, run
from .promise import Broken
from .scenarios import Scenario, World

# A command, and how often it is drawn; the slow ones seldom.
SHARES = {
    **{"train": 30, "compare": 14, "sweep": 16, "robustness": 8, "evaluate": 8, "analyze": 4},
    **{"tables": 6, "toy": 6, "recipes": 1},
    **{"benchmark": 0.5, "growth": 0.5, "scaling": 0.5, "gpu_check": 0.5, "pipeline": 0.5},
}
FAULTS = {
    **{"SIGINT": 22, "SIGTERM": 20, "SIGKILL": 20, "SIGINT twice": 12, "full disk": 20},
    **{"full output": 3, "closed output": 3},
}
REAL = 0.03  # of the signals: Python anew, since its imports can be cut short too
PAGE = 4096  # bytes that a file takes at least
NEIGHBOURS = 6 * PAGE  # what lies beside the command's folder
STARTS = ("nothing", "nothing", "finished", "replaced")


class Fault(NamedTuple):
    """What befalls a command.

    Attributes:
      name: of FAULTS.
      signals: seconds and numbers of the signals.
      room: bytes of the disk; None for enough.
      real: whether Python is started anew.
    """

    name: str
    signals: tuple[tuple[float, int], ...] = ()
    room: int | None = None
    real: bool = False

    def __str__(self) -> str:
        if self.room is not None:
            return f"{self.name} of {self.room // 1024} KiB"
        when = " ".join(f"{signal.Signals(n).name} at {at:.3f} s" for at, n in self.signals)
        return f"{when or self.name}{', with its imports' if self.real else ''}"


def draw(number: int, seed: int, world: World) -> tuple[Scenario, str, Fault]:
    """The command of a case, what its folder holds before, and its fault."""
    rng = random.Random(f"moments {seed} {number}")
    shares = {name: share for name, share in SHARES.items() if name in world.chosen}
    (name,) = rng.choices(list(shares), list(shares.values()))
    (kind,) = rng.choices(list(FAULTS), list(FAULTS.values()))
    scenario = world.scenarios[name]
    held = rng.choice(STARTS) if name != "recipes" else "nothing"
    if held == "replaced" and not scenario.replaces:
        held = "finished"
    if kind.startswith("SIG"):
        real = rng.random() < REAL
        seconds = world.reference(name).seconds + (world.imports if real else 0)
        at = rng.uniform(0.15 if real else 0, seconds)
        numbers = [signal.Signals[kind.split()[0]]]
        signals = [(at, numbers[0])]
        if kind == "SIGINT twice":
            signals.append((at + rng.choice([0, 0.001, 0.05, 0.3]), signal.SIGINT))
        return scenario, held, Fault(kind, tuple((s, int(n)) for s, n in signals), real=real)
    if kind == "full disk":
        used = _size(world.reference(name).path)
        there = NEIGHBOURS + (used if held != "nothing" else 0)
        return scenario, held, Fault(kind, room=there + PAGE * rng.randrange(used // PAGE + 2))
    return scenario, held, Fault(kind)


def _size(path):
    """Bytes on a disk that gives each file whole pages."""
    sizes = [one.stat().st_size for one in path.rglob("*") if one.is_file()]
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def case(number: int, seed: int, place: Place, world: World) -> Outcome:
    """One case."""
    scenario, held, fault = draw(number, seed, world)
    reference = world.reference(scenario.name)
    place.make()
    asked = scenario.command(*(scenario.replaces if held == "replaced" else ()))
    with _disk(place, fault.room) as grow:
        neighbours = _neighbours(place, world)
        if held != "nothing":
            _hold(scenario, held, place, reference)
        whole = promise.snapshot(place.out / scenario.folder)
        stdout = {"full output": "full", "closed output": "closed"}.get(fault.name, "file")
        ended = run(
            asked, place, signals=fault.signals, real=fault.real, stdout=stdout, limit=world.limit
        )
        broken = _after_fault(scenario, fault, held, ended, reference, place, whole)
        broken += promise.of_files(neighbours, promise.snapshot(*map(Path, neighbours)))
        grow()
        mine = place.out / scenario.folder / "mine.txt"
        broken += _again(scenario, ended, reference, place, world, neighbours, mine)
    ending = {0: "done", 2: "refused", None: "hang", -9: "killed"}.get(
        ended.code, "interrupted" if ended.code in (130, 143) else f"exit {ended.code}"
    )
    line = f"{asked}  # {fault}; the folder holds {held}"
    return Outcome(scenario.name, f"{fault.name}: {ending}", line, broken)


@contextlib.contextmanager
def _disk(place: Place, room: int | None) -> Iterator:
    """A small disk for the results, where so many bytes are given; yields what makes it large."""
    if room is None:
        yield lambda: None
        return

    def mount(*options):
        subprocess.run(["mount", *options, str(place.out)], check=True)

    mount("-t", "tmpfs", "-o", f"size={room}", "tmpfs")
    try:
        yield lambda: mount("-o", "remount,size=64m")
    finally:
        subprocess.run(["umount", "--lazy", str(place.out)], check=True)


def _neighbours(place, world):
    """What is not the command's: a file beside its folder, and another run."""
    (place.out / "foreign.txt").write_text("mine")
    other = place.out / "other-run"
    other.mkdir()
    for name in ("config.json", "summary.json"):
        shutil.copy(world.shared / "runs" / "digits-sgd-0" / name, other / name)
    return promise.snapshot(place.out)


def _hold(scenario, held, place, reference):
    """The finished results of the same command, or of another one that --overwrite replaces."""
    shutil.copytree(
        reference.path / scenario.folder, place.out / scenario.folder, dirs_exist_ok=True
    )


def _after_fault(scenario, fault, held, ended, reference, place, whole) -> list[Broken]:
    """What is promised at the moment of the fault."""
    numbers = {number for _, number in fault.signals}
    allowed = {-9} if signal.SIGKILL in numbers else {128 + number for number in numbers}
    begun = (place.root / BEGUN).exists()
    if not begun and not (fault.real and min(at for at, _ in fault.signals) > PYTHON):
        allowed |= {1, *(-number for number in numbers)}  # of this process's own handlers too
    broken = promise.of_end(ended, allowed=allowed)
    found = figures.of(place.out)
    own = {n: v for n, v in found.items() if n.startswith(scenario.folder)}
    if not scenario.exact:
        own = {n: figures.plain(v, exact=False) for n, v in own.items()}
    complete = ended.code == 0 and fault.name not in ("full output", "closed output")
    if complete:
        broken += promise.of_figures(own, reference.figures)
    elif ended.code is not None and not (held == "replaced" or not scenario.exact):
        broken += promise.of_figures(own, reference.figures, whole=False)
    if signal.SIGKILL not in numbers:
        broken += promise.of_halves(place.out)
    if held != "nothing":
        broken += _kept_results(scenario, place, whole, own, reference)
    return broken


def _kept_results(scenario, place, whole, own, reference):
    """Finished results are there, where they were or set aside, unless the new ones are."""
    digests = set(promise.snapshot(place.out / scenario.folder).values())
    broken = []
    for path, digest in whole.items():
        name = str(Path(path).relative_to(place.out))
        if name not in reference.figures or name.endswith(("config.json", ".jsonl")):
            continue
        if digest not in digests and name not in own:
            broken.append(Broken("finished results gone", name))
    return broken


def _again(scenario, ended, reference, place, world, neighbours, mine) -> list[Broken]:
    """The same command ends as if nothing had been."""
    if ended.code is None:
        return []
    again: Command = scenario.command(*scenario.again)
    second: Ended = run(again, place, limit=world.limit)
    if second.code != 0:
        return [Broken("did not recover", f"{second.code}: {second.err.strip()[-300:]}")]
    found = figures.of(place.out, exact=scenario.exact)
    own = {n: v for n, v in found.items() if n.startswith(scenario.folder + os.sep)}
    broken = promise.of_end(second, allowed=())
    broken += promise.of_figures(own, reference.figures)
    broken += promise.of_halves(place.out)
    broken += promise.of_files(neighbours, promise.snapshot(*map(Path, neighbours)))
    return [Broken(f"the run after it: {kind}", seen) for kind, seen in broken]
