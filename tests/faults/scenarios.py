"""The commands at their smallest, and the folders that they read."""

from collections.abc import Callable, Mapping, Sequence
import fcntl
import os
from pathlib import Path
import shutil
import signal
from typing import Any, NamedTuple

from . import figures
from .cases import UndisturbedError
from .process import OUT, Command, Ended, Place, run

Options = Mapping[str, tuple[str, ...]]
RUNS = ("digits-sgd-0", "digits-sam-0")


class Scenario(NamedTuple):
    """A command that takes about a second.

    Attributes:
      name: of the command.
      options: its options and their values; "" for what has no option in front.
      folder: of its results inside --out.
      exact: whether its figures are the same each time, and no times.
      again: what goes on where it was cut short.
      replaces: what begins anew.
    """

    name: str
    options: Options
    folder: str = "results"
    exact: bool = True
    again: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()

    def command(self, *more: str) -> Command:
        """The command with the folder of its results, as each place has it."""
        return Command(self.name, (*words(self.options), *self.to(), *more))

    def to(self) -> tuple[str, ...]:
        """The option that names the folder of its results."""
        if self.name == "recipes" or "--out" in self.options:
            return ()
        # These write into --out itself, and beside them lies what is not theirs.
        return ("--out", f"{OUT}/{self.folder}" if self.name in ("tables", "toy") else OUT)


def words(options: Options) -> tuple[str, ...]:
    """Options as words, what has no option first."""
    first = options.get("", ())
    rest = [word for name, values in options.items() if name for word in (name, *values)]
    return (*first, *rest)


def scenarios(shared: Path) -> dict[str, Scenario]:
    """All commands by name."""
    data = {"--data-dir": (str(shared / "data"),)}
    small = {
        "": ("digits",),
        "--model": ("mlp",),
        "--width": ("4",),
        "--train-examples": ("64",),
        "--batch-size": ("16",),
        **data,
    }
    trained = {"": tuple(str(shared / "runs" / name) for name in RUNS), **data}
    few = {"--examples": ("32",), "--batch-size": ("32",)}
    times = {"--turns": ("2",), "--seconds": ("0.001",)}
    every = ("--checkpoint-minutes", "0", "--steps-per-dispatch", "4")
    found = [
        Scenario(
            "train",
            {**small, "--epochs": ("3",), every[0]: every[1:2], every[2]: every[3:]},
            "digits-sam-0",
            again=("--resume",),
            replaces=("--overwrite",),
        ),
        Scenario(
            "compare",
            {**small, "--epochs": ("1",), "--methods": ("sgd", "sam"), "--seeds": ("2",)},
            "digits-comparison",
            replaces=("--overwrite",),
        ),
        Scenario(
            "sweep",
            {**small, "--epochs": ("1",), "--over": ("rho=0.1,0.2",), "--seeds": ("2",)},
            "digits-sam-sweep",
            replaces=("--overwrite",),
        ),
        Scenario(
            "analyze",
            {
                **trained,
                **few,
                "--parts": ("sharpness",),
                "--modes": ("evaluation",),
                "--radii": ("0.1",),
                "--adaptive-radii": ("0.1",),
                "--sigmas": ("0.1",),
                "--ascent-steps": ("1",),
                "--draws": ("1",),
                "--m": ("8",),
                "--parts-of-m": ("2",),
            },
            "analysis",
            replaces=("--overwrite",),
        ),
        Scenario(
            "robustness",
            {**trained, **few, "--linf": ("2",), "--l2": ("0.5",), "--steps": ("2",)},
            "robustness",
            replaces=("--overwrite",),
        ),
        Scenario(
            "evaluate",
            {**trained, **few, "--on": ("digits",)},
            "evaluation",
            replaces=("--overwrite",),
        ),
        Scenario("tables", {"--runs": (str(shared / "runs"),)}),
        Scenario("toy", {}),
        Scenario(
            "benchmark",
            {
                "--models": ("mlp",),
                "--methods": ("sam",),
                "--batch-size": ("8",),
                "--width": ("4",),
                **times,
            },
            "benchmark",
            exact=False,
        ),
        Scenario("growth", {"--most": ("100000",), **times}, "growth", exact=False),
        Scenario(
            "scaling",
            {"--methods": ("sgd", "sam"), "--model": ("mlp",), "--batch-size": ("8",), **data},
            "scaling",
            exact=False,
        ),
        Scenario(
            "gpu_check",
            {
                "--parts": ("steps",),
                "--methods": ("sam",),
                "--model": ("mlp",),
                "--width": ("4",),
                "--dtype": ("float32",),
                "--batch-size": ("16",),
                "--examples": ("32",),
                "--epochs": ("1",),
                "--workers": ("2",),
                **times,
                **data,
            },
            "gpu_check",
            exact=False,
        ),
        Scenario("recipes", {"": ("digits",)}),
        Scenario(
            "pipeline",
            {
                "--images": ("8",),
                "--size": ("16",),
                "--batch-size": ("4",),
                "--workers": ("1",),
                "--rounds": ("1",),
                "--memory-images": ("8",),
                **data,
            },
            "pipeline",
            exact=False,
        ),
    ]
    return {scenario.name: scenario for scenario in found}


class World:
    """What all cases read, made as it is first asked for: references and folders to damage."""

    def __init__(self, shared: Path, chosen: Sequence[str], limit: float, *, imports: float):
        """Of a folder in which code and compiled programs lie.

        Args:
          shared: the folder.
          chosen: the commands to draw from.
          limit: seconds that a command may take.
          imports: seconds that the imports of a command take, about.
        """
        self.shared, self.chosen = shared, chosen
        self.limit, self.imports = limit, imports
        self.scenarios = scenarios(shared)

    def prepare(self) -> None:
        """Trains the runs that other commands look at, and makes files of weights."""
        for name in RUNS:
            self._once(self.shared / "runs" / name, lambda to, name=name: self._train(name, to))
        self._once(self.shared / "weights", _weights)

    def _train(self, name, to):
        method = name.split("-")[1]
        scenario = self.scenarios["train"]
        place = Place(to.parent / f"{name}-place", self.shared).make()
        done(scenario.command("--method", method), place)
        os.rename(place.out / name, to)
        shutil.rmtree(place.root)

    def reference(self, name: str) -> "Reference":
        """An undisturbed run of a command, the programs compiled."""

        def make(to):
            place = Place(to.with_suffix(".place"), self.shared).make()
            command = self.scenarios[name].command()
            first = done(command, place)
            if first.seconds > 1:  # it may have compiled
                first = done(command, place.make())
            (place.out / ".seconds").write_text(str(first.seconds))
            os.rename(place.out, to)
            shutil.rmtree(place.root)

        path = self.shared / "references" / name
        self._once(path, make)
        seconds = float((path / ".seconds").read_text())
        return Reference(path, figures.of(path, exact=self.scenarios[name].exact), seconds)

    def cut(self, name: str) -> Path:
        """The results of a command that was stopped when about half was done."""

        def make(to):
            place = Place(to.with_suffix(".place"), self.shared).make()
            ended = run(self.scenarios[name].command(), place, before=_stops_halfway)
            if ended.code != 128 + signal.SIGTERM:
                raise UndisturbedError(name, f"not stopped halfway: {ended.code} {ended.err}")
            os.rename(place.out, to)
            shutil.rmtree(place.root)

        path = self.shared / "cut" / name
        self._once(path, make)
        return path

    def _once(self, path: Path, make: Callable[[Path], Any]) -> None:
        """Makes a folder, unless this process or another one has."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with (self.shared / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(path)


class Reference(NamedTuple):
    """An undisturbed run.

    Attributes:
      path: its --out.
      figures: what it found.
      seconds: how long it took.
    """

    path: Path
    figures: dict[str, Any]
    seconds: float


def done(command: Command, place: Place) -> Ended:
    """What an undisturbed command ended with.

    Raises:
      UndisturbedError: it failed.
    """
    ended = run(command, place)
    if ended.code != 0:
        raise UndisturbedError(command.name, f"{ended.code}: {ended.err.strip()[-300:]}")
    return ended


def _weights(to: Path) -> None:
    """Files of weights that fit no model: what is read of them is told, and nothing trained."""
    import numpy as np
    from safetensors.numpy import save_file

    to.mkdir()
    arrays = {"conv1.weight": np.ones((4, 3, 7, 7), np.float32), "bn1.bias": np.zeros(4)}
    save_file(arrays, to / "small.safetensors")
    np.savez(to / "small.npz", **arrays)


def _stops_halfway():
    """In a fork: a signal comes at the eighth step, or behind the second of the runs."""
    from experiments.results import watch
    from experiments.training import fit

    reach, train, count = watch.Bar.reach, fit.train, []

    def reach_and_stop(self, step):
        reach(self, step)
        if step == 8:
            signal.raise_signal(signal.SIGTERM)

    def train_and_stop(*args, **kwargs):
        count.append(1)
        if len(count) == 3:
            signal.raise_signal(signal.SIGTERM)
        return train(*args, **kwargs)

    watch.Bar.reach = reach_and_stop
    fit.train = train_and_stop
