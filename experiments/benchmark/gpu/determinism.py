"""Whether processes with the same seed end at the same parameters, and what that costs.

Every kernel that XLA tries is timed, and the quickest taken; which one that is may differ from
process to process, and with it the rounding. Four settings are compared: XLA's defaults,
deterministic operations, the choices of one process loaded by others, and the compiled program of
one process kept for others.
"""

from collections.abc import Iterator
import os
from pathlib import Path
import tempfile

from experiments.benchmark.gpu import child
from experiments.benchmark.gpu.loop import Asked
from experiments.benchmark.gpu.setup import Row, Setup
from experiments.benchmark.gpu.turns import in_turns
from experiments.system import compiler
from experiments.training.optimizers import SGD

METHOD, STEPS = "sam", 100
DEFAULT, DETERMINISTIC = "default flags", "deterministic ops"
CHOICES, PROGRAM = "autotuner's choices loaded", "compiled program kept"
OPTION = compiler.FLAG.removeprefix("--")


def measure(setup: Setup) -> Iterator[Row]:
    """A row a process with the digest of its parameters, a row a setting, and the cost."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for wave in _waves(Path(folder)):
            said = child.at_once(setup, METHOD, STEPS, [variables for _, variables in wave])
            for (setting, _), row in zip(wave, said, strict=True):
                number = len(found.setdefault(setting, [])) + 1
                found[setting].append(row.get("digest", f"none {number}"))
                yield {"name": f"{setting}, process {number}", **row}
    for setting, digests in found.items():
        yield {"name": setting, "processes": len(digests), "different": len(set(digests))}
    asked = {
        SGD: Asked(SGD),
        METHOD: Asked(METHOD),
        f"{SGD}, {DETERMINISTIC}": Asked(SGD, compiler={OPTION: True}),
        f"{METHOD}, {DETERMINISTIC}": Asked(METHOD, compiler={OPTION: True}),
    }
    yield from in_turns(setup, asked, {})


def _waves(folder):
    """What runs at once: in the second wave those that need what one of the first has left."""
    choices, programs = folder / "choices.pbtxt", folder / "programs"
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    deterministic = _flags(f"--{OPTION}=true")
    load = _flags(f"--xla_gpu_load_autotune_results_from={choices}")
    return [
        [
            *[(DEFAULT, _flags())] * 2,
            *[(DETERMINISTIC, deterministic)] * 2,
            (CHOICES, _flags(f"--xla_gpu_dump_autotune_results_to={choices}")),
            (PROGRAM, kept | _flags()),
        ],
        [*[(CHOICES, load)] * 2, *[(PROGRAM, kept | _flags())] * 2],
    ]


def _flags(*more):
    """The environment's own flags of XLA, but for the option, and these."""
    own = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if OPTION not in flag]
    return {"XLA_FLAGS": " ".join([*own, *more])}
