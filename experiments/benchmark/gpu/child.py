"""A process of its own on the same card: what differs from process to process, or stays.

    python -m experiments.benchmark.gpu.child '{"setup": {…}, "method": "sam", "steps": 100}'

XLA's flags and JAX's cache are those of its environment. It prints one line of JSON.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from experiments.benchmark.gpu.loop import Asked, Loop
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.results import files, numerics


def digest(params: Any) -> str:
    """Of the parameters, bit for bit."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:12]


@contextlib.contextmanager
def started(
    setup: Setup, method: str, steps: int, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen]:
    """A child that trains so many steps; it ends with the block at the latest.

    Args:
      setup: of the parent.
      method: that it trains.
      steps: how many.
      environment: variables that are others in the child.
    """
    asked = {"setup": files.plain(dataclasses.asdict(setup)), "method": method, "steps": steps}
    # Each takes the memory that it needs, as the card is the parent's and the others' too.
    own = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **environment}
    if "JAX_COMPILATION_CACHE_DIR" not in environment:  # a program that is kept is no other one
        own.pop("JAX_COMPILATION_CACHE_DIR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.benchmark.gpu.child", json.dumps(asked)],
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def told(process: subprocess.Popen) -> Row:
    """What a child printed at its end, or why there is nothing."""
    output, errors = process.communicate()
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        last = (errors.strip().splitlines() or ["no word"])[-1]
        return {"said": f"its process ended with status {process.returncode} ({last:.200})"}


def at_once(
    setup: Setup, method: str, steps: int, environments: Sequence[Mapping[str, str]]
) -> list[Row]:
    """What children say that run side by side, one of each environment."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(started(setup, method, steps, environment))
            for environment in environments
        ]
        return [told(process) for process in processes]


def main(text: str) -> None:
    """Trains, and prints what came of it."""
    began = time.perf_counter()
    numerics.pin()
    asked = json.loads(text)
    fields = {**asked["setup"], "data_dir": Path(asked["setup"]["data_dir"])}
    setup = Setup(**fields)
    loop = Loop(setup, Asked(asked["method"]))
    turn = loop.run(asked["steps"])
    found = {
        "digest": digest(loop.state.params),
        "milliseconds": 1000 * turn.seconds,
        "compile_seconds": loop.compile_seconds,
        "start_seconds": time.perf_counter() - began,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
