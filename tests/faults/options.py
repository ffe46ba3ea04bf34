"""Odd values for each option of each command, alone, in pairs and several at a time."""

import dataclasses
import functools
import importlib
import json
import math
import os
import random
import shutil
import typing
from typing import Any

from . import figures, promise
from .cases import Outcome
from .process import MODULES, Command, Place, run
from .promise import Broken
from .scenarios import Options, Scenario, World

VALUES = (
    *("", " ", "0", "-1", "1e400", "nan", "inf", "-inf", "-0.0", "1e-320", "0.5", "1", "3"),
    *("True", "None", "[]", "{}", "'", '"', "a=b", "=", "../x", "/dev/null", "/proc/x"),
    *("~", "~/x", "~nobody/x", ".", "..", "a/b", "ünïcode", "\udcff", "x" * 300, "a\nb"),
    *("-", "--", "%s", "*", "[red]", "1_000", "٣", "0x10", "sgd", "sam", "digits"),
)
LARGE = (str(2**31), str(2**32), str(2**63), str(2**70), "10" * 50, "-" + "9" * 30)
SETTINGS = (
    *("rho=", "=1", "rho=nan", "rho=True", "rho=1e400", "rho=-1", "rho=0", "rho='1'", "rho=[1]"),
    *("rho=None", "rho=0.1", "rho=" + "9" * 40, "axis_name=x", "weights=kernel", "rho=1e-320"),
    *("period=" + "9" * 30, "period=0", "rho={}", "rho=0.1=2", "updates_at=x", "rho={'schedule'}"),
    *("rho=" + "(" * 200, "rho=0.1,0.1", "rho=,", "learning_rate=nan", "key=1", "base=x"),
)
MESHES = ("data=2", "data=0", "model=2", "x=1", "data=1,data=1", "data=-1", "data=" + "9" * 30)
# What makes a command long or large; only values are drawn that no machine could mean.
SIZES = {
    *("width", "epochs", "batch_size", "train_examples", "image_size", "examples", "images"),
    *("size", "rounds", "memory_images", "workers", "turns", "most", "probes", "samples"),
    *("draws", "grid", "k", "steps", "m", "parts_of_m", "basis", "ascent_steps", "restarts"),
    *("num_processes", "process_id", "seconds", "checkpoint_minutes", "warmup_epochs"),
    *("randaugment", "switch_at", "keep_epochs", "steps_per_dispatch"),
}
INTEGERS = ("0", "-1", "1", "2", "3", "7")
FLOATS = (*INTEGERS, "0.5", "-0.0", "1e-320", "1e400", "nan", "inf", "-inf", "1e-8", "1e30")
SECONDS = ("", "0", "-1", "1e-320", "1e400", "nan", "inf", "-inf", "1e-8", "None", "1_0", "x")
COUNTS_OF_SEEDS = {("compare", "seeds"), ("sweep", "seeds")}
PATHS = {"out", "data_dir", "runs", "weights"}


class Option(typing.NamedTuple):
    """An option of a command.

    Attributes:
      command: its name.
      name: of the field; "" for what has no option in front.
      kind: its type.
      lists: whether it takes several values.
    """

    command: str
    name: str
    kind: Any
    lists: bool

    @property
    def flag(self) -> str:
        """As it is written."""
        return "--" + self.name.replace("_", "-")


@functools.cache
def all_of() -> list[Option]:
    """Every option of every command, as the commands' dataclasses tell them."""
    found = []
    for command, module in MODULES.items():
        options = getattr(importlib.import_module(module), "Options", None)
        if options is None:
            found += [Option(command, "", str, True), Option(command, "markdown", bool, False)]
        else:
            found += _of(command, options)
    return found


def _of(command, options):
    kinds = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _of(command, kind)
            continue
        lists = "tuple" in str(kind)
        positional = field.name == "recipe" or (field.name == "runs" and lists)
        yield Option(command, "" if positional else field.name, kind, lists)


def value(option: Option, rng: random.Random) -> str:
    """An odd value, or now and then a good one."""
    choices = _choices(option.kind)
    if choices and rng.random() < 0.2:
        return rng.choice(choices)
    if option.name in ("set", "then_set", "over") and rng.random() < 0.7:
        return rng.choice(SETTINGS)
    if option.name == "mesh" and rng.random() < 0.5:
        return rng.choice(MESHES)
    if option.name == "seconds":  # a large one is waited for
        return rng.choice(SECONDS)
    large = LARGE
    if option.name in SIZES or (option.command, option.name) in COUNTS_OF_SEEDS:
        large = (str(2**70), "10" * 50, "-" + "9" * 30)
    if rng.random() < 0.5:  # what passes the parser
        if "float" in str(option.kind):
            return rng.choice((*FLOATS, *large))
        if "int" in str(option.kind):
            return rng.choice((*INTEGERS, *large))
    return rng.choice((*VALUES, *large))


def _choices(kind):
    """The strings that a type allows."""
    if typing.get_origin(kind) is typing.Literal:
        return [one for one in typing.get_args(kind) if isinstance(one, str)]
    return [one for inner in typing.get_args(kind) for one in _choices(inner)]


def draw(number: int, seed: int, world: World) -> tuple[Scenario, list[tuple[Option, Options]]]:
    """The command of a case, and its odd options with their words."""
    rng = random.Random(f"options {seed} {number}")
    order = [one for one in all_of() if one.command in world.chosen]
    # Each option in turn, whatever the number of cases.
    random.Random(f"options {seed} {number // len(order)}").shuffle(order)
    first = order[number % len(order)]
    chosen = [first]
    if rng.random() < 0.4:
        chosen.append(rng.choice([one for one in order if one.command == first.command]))
    return world.scenarios[first.command], [(one, _words(one, rng)) for one in chosen]


def _words(option, rng):
    """An option with values: one, or none, several, or the same option twice."""
    if option.kind is bool:
        no = "--no-" + option.flag.removeprefix("--")
        flag, values = rng.choice([option.flag, no]), ()
        if rng.random() < 0.3:
            values = (value(option, rng),)
        return {flag: values}
    count = 1
    if rng.random() < 0.15 or (option.lists and rng.random() < 0.3):
        count = rng.choice([0, 2, 3])
    values = tuple(value(option, rng) for _ in range(count))
    if count == 2 and rng.random() < 0.5:
        values = (values[0], values[0])
    flag = option.flag if option.name else ""
    if flag and values and rng.random() < 0.1:
        values = (*values, flag, value(option, rng))  # twice
    return {flag: values}


def command(scenario: Scenario, odd: list[tuple[Option, Options]]) -> Command:
    """The command with its odd options in place of its own."""
    options = dict(scenario.options)
    for option, words in odd:
        for name in (option.flag, "--no-" + option.flag.removeprefix("--")):
            options.pop(name, None)
        options |= words
    return scenario._replace(options=options).command()


def case(number: int, seed: int, place: Place, world: World) -> Outcome:
    """One case."""
    scenario, odd = draw(number, seed, world)
    place.make()
    (place.out / "foreign.txt").write_text("mine")
    asked = command(scenario, odd)
    before = promise.snapshot(place.out, world.shared / "runs", world.shared / "data")
    ended = run(asked, place, limit=world.limit)
    after = promise.snapshot(place.out, world.shared / "runs", world.shared / "data")
    broken = promise.of_end(ended, allowed=())
    broken += promise.of_files(before, after)
    broken += promise.of_halves(place.root)
    outs = [v for option, words in odd if option.name == "out" for v in words.get("--out", ())]
    broken += _strays(place, odd)
    if ended.code == 0:
        where = _folder(place, outs[-1]) if outs else place.out
        broken += _honoured(odd, where)
        broken += _finite(where)
        if not broken and scenario.exact and number % 8 == 0:
            broken += _same_again(scenario, odd, asked, where, place, world)
    said = "parser" if ended.code == 2 and ended.err.startswith(("╭", "usage: ")) else None
    return Outcome(scenario.name, said or _ending(ended), str(asked), broken)


def _ending(ended):
    return {0: "done", 2: "refused", None: "hang"}.get(ended.code, f"exit {ended.code}")


def _folder(place, given):
    """The folder that a path means to a user in a shell that leaves ~ to the command."""
    if given == "~" or given.startswith("~/"):
        return place.home / given[2:]
    return place.cwd / given


def _strays(place, odd):
    """What lies where no option said."""
    allowed = []
    for option, words in odd:
        if option.name in PATHS:
            given = [v for values in words.values() for v in values]
            allowed += [os.path.normpath(_folder(place, v)) for v in given if "\0" not in v]
    kept = {str(place.world), str(place.cwd), str(place.home)}
    strays = []
    for root, folders, files in os.walk(place.world):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            inside = any(
                path == one or path.startswith(one + os.sep) or one.startswith(path + os.sep)
                for one in allowed
            )
            # The sets that prepare themselves lie in a home where no option says otherwise.
            if path in kept or inside:
                continue
            strays.append(os.path.relpath(path, place.world))
    return [Broken("stray file", " ".join(map(repr, strays[:3])))] if strays else []


def _honoured(odd, where):
    """Whether the config that was written holds the values that were given."""
    configs = [figures.read(path) for path in where.rglob("config.json") if path.is_file()]
    broken = []
    last = {option.flag: (option, words) for option, words in odd}  # of one that is given twice
    for option, words in last.values():
        given = [v for values in words.values() for v in values]
        # "None" leaves an option out.
        if option.lists or len(given) != 1 or option.name in PATHS or given == ["None"]:
            continue
        for held in _values(configs, option.name):
            if not _is(held, given[0]):
                broken.append(Broken("value not honoured", f"{option.flag} {given[0]!r}: {held!r}"))
    return broken


def _values(value, name):
    """All values of a name inside others."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == name and not isinstance(item, dict | list):
                yield item
            yield from _values(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _values(item, name)


def _is(held, given):
    """Whether a value of JSON is what a word says."""
    if isinstance(held, bool) or held is None:
        return str(held) == given
    if isinstance(held, int | float):
        try:
            number = float(given)
        except ValueError:
            return False
        return number == held or (math.isnan(number) and math.isnan(held))
    return held == given or str(held) in ("NaN", "Infinity", "-Infinity")


def _finite(where):
    """Results that are numbers."""
    broken = []
    for path in where.rglob("summary.json"):
        for name, figure in figures.read(path).items():
            bad = isinstance(figure, float) and not math.isfinite(figure)
            if name.startswith(("test_", "train_")) and (bad or isinstance(figure, str)):
                broken.append(Broken("figure that is no number", f"{name} {figure}"))
    return broken


def _same_again(scenario, odd, asked, where, place, world):
    """The figures of the same command, run once more in another folder."""
    if any(option.name == "out" for option, _ in odd):
        return []
    first = figures.of(where)
    kept = place.root / "first"
    os.rename(place.out, kept)
    place.out.mkdir()
    ended = run(asked, place, limit=world.limit)
    broken = promise.of_end(ended, allowed=()) or promise.of_figures(figures.of(place.out), first)
    shutil.rmtree(kept)
    return [Broken(f"run again: {kind}", seen) for kind, seen in broken]


def coverage(cases: int, seed: int, world: World) -> str:
    """How many options the cases draw, of all."""
    drawn = {(o.command, o.name) for n in range(cases) for o, _ in draw(n, seed, world)[1]}
    return json.dumps({"options": len(all_of()), "drawn": len(drawn)})
