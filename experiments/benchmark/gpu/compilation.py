"""How long a program is compiled, and how long a second process waits for it where it is kept."""

from collections.abc import Iterator
import contextlib
import tempfile

from experiments.benchmark.gpu import child
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.training.optimizers import SGD

METHODS = (SGD, "sam")
STEPS = 10


def measure(setup: Setup) -> Iterator[Row]:
    """A row a method twice: of a process that compiles, and of the next one."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for prefix in ("", "again_"):
            with contextlib.ExitStack() as stack:
                processes = {
                    method: stack.enter_context(child.started(setup, method, STEPS, kept))
                    for method in METHODS
                }
                for method, process in processes.items():
                    yield {"name": method, **_row(prefix, child.told(process))}


def _row(prefix, said):
    if "said" in said:
        return said
    return {f"{prefix}{name}": said[name] for name in ("compile_seconds", "start_seconds")}
