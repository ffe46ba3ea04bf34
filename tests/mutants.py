"""Mutation testing: which changes of one token of the package do the tests not notice?

`python tests/mutants.py` changes one operator, constant or condition at a time and runs the tests
of that line until one fails, each time in a fork of this process, which has imported JAX but no
sam_optax yet. Which tests run a line is seen at the unchanged package first.
"""

import argparse
import ast
from collections.abc import Iterator
import functools
import importlib.util
import itertools
import json
from multiprocessing import connection, get_context
import os
from pathlib import Path
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

import chex  # noqa: F401 - what the tests import, once for all children
import conftest  # noqa: F401 - sets up the environment before JAX starts
import jax
import optax  # noqa: F401
import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [f"start/_{name}.py" for name in ("kernel_axes", "noise", "moved", "posterior")]
MODULES += [f"perturb/_{n}.py" for n in ("balls", "ellipsoids", "eigen", "directions", "only")]
MODULES += [f"combine/_{n}.py" for n in ("plain", "projected", "mix", "weigh", "newton")]
MODULES += ["when.py", "_engine.py", "_step.py", "_first.py", "_second.py", "_given.py"]
MODULES += ["_decision.py", "_examples.py", "_tree.py", "_average.py", "_aux.py"]
MODULES += ["_functional.py", "_sample.py"]
MODULES += ["_fit.py", "_kernels.py", "_masked.py", "_parts.py", "_point.py"]
# Those of the first room come first, as `killed_by` tells whether it suffices.
ROOMS = ["core", "methods", "loops"]

PAIRS = [("+", "-"), ("*", "/"), ("&", "|"), ("and", "or"), (">", ">="), ("<", "<=")]
PAIRS += [("==", "!="), ("is", "is not"), ("in", "not in"), ("min", "max"), ("minimum", "maximum")]
SWAPS = {"**": "*", **dict(PAIRS), **{b: a for a, b in PAIRS}}
# A condition of one of these is negated by a change of its own.
NEGATED = (ast.Not, ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
SKIPPED_NODES = (ast.Raise, ast.Delete, ast.JoinedStr)
SKIPPED_FIELDS = ("annotation", "returns", "decorator_list")


class Mutant(NamedTuple):
    """A changed module: its lines before and after the change, and its whole new source."""

    module: str
    line: int
    original: str
    mutated: str
    source: bytes


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may be changed."""
    yield node
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            skipped = field in SKIPPED_FIELDS or isinstance(child, SKIPPED_NODES)
            if isinstance(child, ast.AST) and not skipped:
                yield from walk(child)


def operands(node: ast.AST) -> list[ast.expr]:
    """What stands between the operators of an expression."""
    match node:
        case ast.BinOp(left, _, right):
            return [left, right]
        case ast.BoolOp(_, values):
            return values
        case ast.Compare(left, _, others):
            return [left, *others]
    return []


def edits(source: bytes) -> Iterator[tuple[int, int, str]]:
    """The changes of a module: the bytes from start to end, and what takes their place."""
    lines = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]

    def span(node):
        start = lines[node.lineno - 1] + node.col_offset
        return start, lines[node.end_lineno - 1] + node.end_col_offset

    for node in walk(ast.parse(source)):
        for left, right in itertools.pairwise(operands(node)):
            start, end = span(left)[1], span(right)[0]
            code = re.sub(rb"#.*", lambda comment: b" " * len(comment[0]), source[start:end])
            operator = re.search(rb"is not|not in|[^\s()]+", code)
            if swap := SWAPS.get(operator[0].decode()):
                yield start + operator.start(), start + operator.end(), swap
        for test in filter(None, [getattr(node, "test", None), *getattr(node, "ifs", [])]):
            operators = getattr(test, "ops", [getattr(test, "op", None)])
            if len(operators) > 1 or not isinstance(operators[0], NEGATED):
                yield *span(test), f"not ({source[slice(*span(test))].decode()})"
        match node:
            case ast.UnaryOp(op=ast.USub() | ast.Not()):
                start = span(node)[0]
                yield start, start + len("-" if isinstance(node.op, ast.USub) else "not "), ""
            case ast.Constant(bool(value)):
                yield *span(node), repr(not value)
            case ast.Constant(int(value) | float(value)):
                for other in {0: [1], 1: [0, 2]}.get(value, [value + 1]):
                    yield *span(node), repr(type(value)(other))
            case ast.Name(name) | ast.Attribute(attr=name) if name in SWAPS:
                yield span(node)[1] - len(name), span(node)[1], SWAPS[name]


def mutants_of(module: str) -> Iterator[Mutant]:
    """All mutants of a module."""
    source = (ROOT / "sam_optax" / module).read_bytes()
    for start, end, new in sorted(edits(source)):
        mutated = source[:start] + new.encode() + source[end:]
        first, rest = source.rfind(b"\n", 0, start) + 1, len(source) - source.find(b"\n", end)
        before, after = (" ".join(x[first:-rest].decode().split()) for x in (source, mutated))
        yield Mutant(module, source.count(b"\n", 0, start) + 1, before, after, mutated)


def header(source: bytes, line: int) -> tuple[ast.stmt, range]:
    """The innermost statement at a line, and its lines without those of its body."""
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno
    ]
    node = max(found, key=lambda node: node.lineno)
    body = getattr(node, "body", None)
    return node, range(node.lineno, body[0].lineno if body else node.end_lineno + 1)


class Tracer:
    """Notes which lines of the package each test runs; where none does, it is run at the import."""

    def __init__(self, package: Path, out: Path):
        self.package, self.out = f"{package}{os.sep}", out
        self.tests: dict[str, tuple[float, list[str]]] = {}
        self.lines: set[str] = set()

    def _call(self, frame, event, arg):
        name = frame.f_code.co_filename
        if name.startswith(self.package):
            module = name.removeprefix(self.package)
            self.lines.add(f"{module}:{frame.f_lineno}")
            return functools.partial(self._line, module)
        return None

    def _line(self, module, frame, event, arg):
        self.lines.add(f"{module}:{frame.f_lineno}")
        return functools.partial(self._line, module)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.lines, started = set(), time.monotonic()
        sys.settrace(self._call)
        threading.settrace(self._call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.tests[item.nodeid] = time.monotonic() - started, sorted(self.lines)

    def pytest_sessionfinish(self):
        self.out.write_text(json.dumps(self.tests))


class Chosen:
    """Runs some tests alone, and notes the one that fails.

    Compiled programs of mutants are not written to the cache.
    """

    def __init__(self, tests: list[str], failed: Path):
        self.order = {name: place for place, name in enumerate(tests)}
        self.failed = failed

    def pytest_sessionstart(self):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))

    def pytest_collection_modifyitems(self, items):
        kept = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(kept, key=lambda item: self.order[item.nodeid])

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.write_text(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport


def run_tests(folder: Path, files: list[str], plugin: Any):
    """Tests the package in the folder and exits with pytest's code."""
    with (folder / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(folder.parent)
    sys.path[0] = str(folder)  # in place of this script's
    assert importlib.util.find_spec("sam_optax").origin == str(folder / "sam_optax/__init__.py")
    sys.exit(pytest.main(["-x", "-q", "--no-header", "-p", "no:xdist", *files], plugins=[plugin]))


class Child:
    """A process that runs tests of a package in a folder of the workspace."""

    def __init__(self, workspace: Path, files: list[str], mutant: Mutant | None, plugin: Any):
        self.started = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(dir=workspace))
        shutil.copytree(workspace / "sam_optax", self.folder / "sam_optax")
        if mutant:
            (self.folder / "sam_optax" / mutant.module).write_bytes(mutant.source)
        args = (self.folder, files, plugin(self.folder))
        self.process = get_context("fork").Process(target=run_tests, args=args, daemon=True)
        self.process.start()

    def outcome(self, limit: float) -> dict[str, Any] | None:
        """What became of the mutant, or None while its tests run."""
        seconds = time.monotonic() - self.started
        if self.process.is_alive() and seconds < limit:
            return None
        self.process.kill()  # which does nothing where it has ended
        self.process.join()
        code, failed = self.process.exitcode, self.folder / "failed"
        status = "survived" if code == 0 else "killed" if seconds < limit else "timeout"
        killer = failed.read_text() if failed.exists() else f"exit code {code}" if code else None
        shutil.rmtree(self.folder)
        return {"status": status, "killed_by": killer, "seconds": round(seconds, 1)}


class Lines:
    """The tests that run each line of the package, the quickest of each file first."""

    def __init__(self, traced: dict[str, tuple[float, list[str]]], files: list[str], most: float):
        """Of each mutant so many seconds of tests are run at most, all of the first room aside."""
        self.files, self.most, self.first = files, most, files[0].rpartition("/")[0]
        traced = {test: seen for test, seen in traced.items() if test.split("::")[0] in files}
        self.seconds = {test: took for test, (took, _) in traced.items()}
        self.tests: dict[str, list[str]] = {}
        for test, (_, lines) in traced.items():
            for line in lines:
                self.tests.setdefault(line, []).append(test)

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that run the statement that is changed; all where it is run at the import.

        A default is, and the tests of its function tell little of it; those of signatures do.
        """
        source = (ROOT / "sam_optax" / mutant.module).read_bytes()
        statement, lines = header(source, mutant.line)
        found = {test for n in lines for test in self.tests.get(f"{mutant.module}:{n}", [])}
        if isinstance(statement, ast.FunctionDef):
            found |= {test for test in self.seconds if "test_signatures" in test}
        quickest = sorted(found or self.seconds, key=self.seconds.get)
        ends = itertools.accumulate(self.seconds[test] for test in quickest)
        kept = [
            test
            for test, end in zip(quickest, ends, strict=True)
            if end < self.most or test.startswith(self.first)
        ]
        return sorted(kept, key=lambda test: self.files.index(test.split("::")[0]))


def traced(workspace: Path, files: list[str], jobs: int) -> dict[str, tuple[float, list[str]]]:
    """Runs the tests of the package as it is, a share of the files in each process."""
    shares = [files[job::jobs] for job in range(jobs)]
    children = [Child(workspace, share, None, _tracer) for share in shares if share]
    found = {}
    for child in children:
        child.process.join()
        if child.process.exitcode:
            sys.exit("The unchanged package fails:\n" + (child.folder / "log").read_text())
        found |= json.loads((child.folder / "traced.json").read_text())
    return found


def _tracer(folder: Path) -> Tracer:
    return Tracer(folder / "sam_optax", folder / "traced.json")


def outcomes(workspace, lines: Lines, mutants, jobs) -> Iterator[tuple[Mutant, dict[str, Any]]]:
    """Each mutant with what became of it."""
    waiting, running = mutants[::-1], {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            tests = lines.of(mutant)
            files = list(dict.fromkeys(test.split("::")[0] for test in tests))
            limit = 60 + 3 * jobs * sum(lines.seconds[test] for test in tests)
            choose = functools.partial(_chosen, tests)
            running[mutant] = Child(workspace, files, mutant, choose), limit
        sentinels = [child.process.sentinel for child, _ in running.values()]
        connection.wait(sentinels, timeout=1)
        for mutant, (child, limit) in list(running.items()):
            if result := child.outcome(limit):
                del running[mutant]
                yield mutant, result


def _chosen(tests: list[str], folder: Path) -> Chosen:
    return Chosen(tests, folder / "failed")


def snapshot(workspace: Path):
    """Copies what the children read: the repository may change meanwhile."""
    for name in ("sam_optax", "tests", "docs", ".pytest_cache/d/jax"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, workspace / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, workspace)


def report(records: list[dict[str, Any]]):
    """Prints how many mutants of each module are killed, and those that are not."""
    print(f"\n{'module':24}{'mutants':>8}{'killed':>8}{'percent':>9}")
    for module in [*dict.fromkeys(r["module"] for r in records), "all"]:
        own = [r for r in records if module in (r["module"], "all")]
        killed = sum(r["status"] != "survived" for r in own)
        print(f"{module:24}{len(own):8}{killed:8}{100 * killed / max(len(own), 1):9.1f}")
    for r in sorted(records, key=lambda r: r["status"], reverse=True):
        if r["status"] != "killed":
            print(f"{r['status']} {r['module']}:{r['line']} {r['original']} → {r['mutated']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", nargs="+", default=MODULES)
    parser.add_argument("--rooms", nargs="+", default=ROOMS, help="whose tests to run, in order")
    parser.add_argument("--most", type=float, default=60, help="seconds of tests for a mutant")
    parser.add_argument("--traced", type=Path, help="keeps which tests run which lines, or has it")
    parser.add_argument("--sample", type=int, default=sys.maxsize, help="test so many, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="FILE:LINE", help="test these, keep the rest")
    parser.add_argument("--resume", action="store_true", help="test what is not yet in the file")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "mutants.json")
    args = parser.parse_args()
    mutants = [mutant for module in MODULES for mutant in mutants_of(module)]
    names = {*(args.only or args.modules)}
    chosen = [m for m in mutants if names & {m.module, f"{m.module}:{m.line}"}]
    chosen = random.Random(args.seed).sample(chosen, min(args.sample, len(chosen)))
    results = {}
    if (args.resume or args.only) and args.out.exists():
        results = {tuple(r.values())[:4]: r for r in json.loads(args.out.read_text())}
    chosen = [m for m in chosen if args.only or m[:4] not in results]
    with tempfile.TemporaryDirectory() as workspace:
        snapshot(Path(workspace))
        files = [
            f"tests/{r}/{f.name}"
            for r in args.rooms
            for f in sorted((ROOT / "tests" / r).glob("test_*.py"))
        ]
        if args.traced and args.traced.exists():
            runs = json.loads(args.traced.read_text())
        else:
            runs = traced(Path(workspace), files, args.jobs)
            if args.traced:
                args.traced.write_text(json.dumps(runs))
        lines = Lines(runs, files, args.most)
        tested = outcomes(Path(workspace), lines, chosen, args.jobs)
        for number, (mutant, result) in enumerate(tested, 1):
            results[mutant[:4]] = dict(zip(mutant._fields, mutant[:4], strict=False)) | result
            records = [results[m[:4]] for m in mutants if m[:4] in results]
            draft = args.out.with_suffix(".part")
            draft.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
            draft.replace(args.out)
            print(f"{number}/{len(chosen)}", *mutant[:2], *result.values(), flush=True)
    report([results[m[:4]] for m in mutants if m[:4] in results])


if __name__ == "__main__":
    main()
