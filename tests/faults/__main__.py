"""Runs cases and tells what came of them; see `python -m tests.faults --help`."""

import argparse
import json
from pathlib import Path
import shutil
import signal
import sys
import tempfile
import time

from . import cases, files, moments, options, process, report
from .scenarios import World

ROOT = Path(__file__).resolve().parents[2]
ALL = list(process.MODULES)
GENERATORS = {"options": options, "files": files, "moments": moments}


def main() -> int:
    """Runs the command; gives 1 where a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("generators", nargs="+", metavar="GENERATOR", choices=[*GENERATORS])
    parser.add_argument("--cases", type=int, default=2000, help="of each generator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="these cases alone")
    parser.add_argument("--commands", nargs="+", default=ALL)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--limit", type=float, default=process.LIMIT, help="seconds of a command")
    parser.add_argument("--out", type=Path, help="the counts as JSON")
    parser.add_argument("--page", type=Path, help="the counts as Markdown")
    parser.add_argument("--code", type=Path, default=ROOT, help="where experiments lies")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the last cases")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".pytest_cache/d/jax", help="of compiled programs"
    )
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shared = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        found = _run(asked, shared)
    finally:
        if asked.keep:
            print(f"kept: {shared}")
        else:
            shutil.rmtree(shared, ignore_errors=True)
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    if asked.page is not None:
        asked.page.write_text(report.markdown(found))
    return int(any(one["failed"] for one in found))


def _run(asked, shared):
    """What each generator found."""
    _snapshot(asked.code, shared / "code")
    asked.cache.mkdir(parents=True, exist_ok=True)
    (shared / "jax").symlink_to(asked.cache.resolve())
    start = time.monotonic()
    process.preload(shared)
    world = World(shared, asked.commands, asked.limit, imports=time.monotonic() - start)
    world.prepare()
    process.remember(shared / "data")
    found = []
    for name in asked.generators:
        records = []
        numbers = asked.only or range(asked.cases)

        def case(number, job, module=GENERATORS[name]):
            place = process.Place(shared / f"case-{job}", shared)
            return module.case(number, asked.seed, place, world)

        for record in cases.outcomes(numbers, min(asked.jobs, len(numbers)), case):
            records.append(record)
            _tell(f"{name} {len(records)}/{len(numbers)}", record)
        among = "" if asked.commands == ALL else f" --commands {' '.join(asked.commands)}"
        found.append(report.counted(name, asked.seed, records, among))
        print(report.said(found[-1]), flush=True)
    return found


def _tell(where, record):
    told = [record[name] for name in ("case", "command", "ending", "seconds")]
    print(f"{where}:", *told, flush=True)
    for broken in record["broken"]:
        print(f"  FAILED: {broken['kind']}: {broken['seen'][:300]}", flush=True)


def _snapshot(root, to):
    """Copies the code: it may change meanwhile."""
    for package in ("experiments", "sam_optax"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / package, to / package, ignore=ignored)


if __name__ == "__main__":
    sys.exit(main())
