"""The table: a row for each method and peer on a problem."""

from collections.abc import Collection, Mapping, Sequence
import statistics
from typing import Any
import warnings

import jax
from rich.progress import track

from experiments.benchmark import bars, contestants
from experiments.benchmark.measure import Program, Turn, over, over_ideal, take_turns
from experiments.benchmark.problems import Problem
from experiments.training.optimizers import SGD

# A contestant is known by its method and by where it decides, or by whose it is.
Key = tuple[str, str]
UNIT, SAM = (SGD, "device"), ("sam", "device")
HAND_WRITTEN, FALLING_BACK = ("sam", "hand-written"), ("sam, falling back", "hand-written")
OPAQUE, TRANSPARENT = ("sam", "optax opaque"), ("sam", "optax transparent")
ROLLFAST = ("sam", "rollfast")
TORCH = "torch"


def measure(
    problem: Problem,
    methods: Sequence[str],
    *,
    torch: bool = False,
    rollfast: bool = False,
    turns: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """The rows of a problem.

    Args:
      problem: what to train.
      methods: of `sam_optax`; those that skip gradients decide on the device and on the host, and
        ahead where they can. Beside sam stands one in windows.
      torch: whether those of pytorch_optimizer take part, where it has them and the model.
      rollfast: whether the SAM of rollfast takes part.
      turns: turns, two at least; 0 for no times.
      seconds: of a contestant in a turn.

    Returns:
      Rows with the figures of `costs` and `times`.
    """
    programs = compiled(problem, methods, host=turns > 0, rollfast=rollfast)
    if torch:
        from experiments.benchmark import torch_peers  # needs an extra

        if problem.name in torch_peers.MODELS:
            for name in torch_peers.PEERS:
                programs[name, TORCH] = torch_peers.TorchProgram(problem, name)
    rivals = {key: compared(key, programs) for key in programs}
    rows = [costs(problem, programs, key) for key in programs]
    if turns:
        taken = take_turns(programs, rivals, turns=turns, seconds=seconds)
        rows = [row | times(taken[key], key) for key, row in zip(programs, rows, strict=True)]
        over_torch(rows)
    return rows


def compiled(
    problem: Problem, methods: Sequence[str], *, host: bool = True, rollfast: bool = False
) -> dict[Key, Program]:
    """SGD, the hand-written steps, those of Optax (and of rollfast) and the methods, compiled.

    Those that decide on the host or ahead, if they are asked for, take two steps.
    """
    makers = {UNIT: contestants.on_device(problem, SGD)}
    makers[HAND_WRITTEN] = contestants.hand_written(problem)
    makers[FALLING_BACK] = contestants.hand_written(problem, falls_back=True)
    makers[OPAQUE] = contestants.optax_opaque(problem)
    makers[TRANSPARENT] = contestants.optax_transparent(problem)
    if rollfast:
        makers[ROLLFAST] = contestants.rollfast_sam(problem)
    for method in methods:
        makers[method, "device"] = contestants.on_device(problem, method)
        if host and method in bars.SKIPPING:
            makers[method, "host"] = contestants.on_host(problem, method)
        if host and method in bars.FORESEEING:
            makers[method, "ahead"] = contestants.ahead(problem, method)
    if host and "sam" in methods:
        makers[bars.WINDOWS, "device"] = contestants.on_device(problem, bars.WINDOWS)
        makers[bars.WINDOWS, "ahead"] = contestants.ahead(problem, bars.WINDOWS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A convolution's gradient inside a conditional")
        return {
            key: Program(problem, maker)
            for key, maker in track(makers.items(), f"{problem.name}: compiling", transient=True)
        }


def costs(problem: Problem, programs: Mapping[Key, Any], key: Key) -> dict[str, Any]:
    """What the compiler tells of a contestant, over SGD and over two hand-written steps.

    One is SAM, the other falls back on the first gradient, which it has to hold. FLOPs, bytes and
    compilation are None of what is several programs, or in PyTorch.
    """
    program, unit = programs[key], programs[UNIT]
    leaves = jax.tree.leaves(problem.params)
    parameter_bytes = sum(leaf.nbytes for leaf in leaves)

    def quotient(name, other):
        own = getattr(program, name)
        return None if own is None else own / getattr(other, name)

    own = program.state_bytes
    state_bytes = None if own is None else own - unit.state_bytes
    return {
        "model": problem.name,
        "method": key[0],
        "dispatch": key[1],
        "parameters": sum(leaf.size for leaf in leaves),
        "leaves": len(leaves),
        "batch_size": len(jax.tree.leaves(problem.batches[0])[0]),
        "selects": problem.convolutional and jax.default_backend() == "cpu",
        "flops_ratio": quotient("flops", unit),
        "temp_bytes_ratio": quotient("temp_bytes", unit),
        "temp_over_hand_written": quotient("temp_bytes", programs[HAND_WRITTEN]),
        "temp_over_falling_back": quotient("temp_bytes", programs[FALLING_BACK]),
        "state_bytes": state_bytes,
        "state_beyond_a_copy": None if own is None else state_bytes - parameter_bytes,
        "compile_ratio": quotient("compile_seconds", unit),
    }


def compared(key: Key, programs: Collection[Key]) -> list[Key]:
    """With whom a contestant is compared."""
    if key[1] == TORCH:
        others = [(SGD, TORCH)]
    else:
        others = [UNIT, HAND_WRITTEN]
        others += {SAM: [OPAQUE], ("le_sam", "device"): [SAM]}.get(key, [])
    return [other for other in others if other in programs and other != key]


def times(turns: Sequence[Mapping[Key, Turn]], key: Key) -> dict[str, Any]:
    """The time of a contestant over those of others in its turns; None where they are not."""
    unit = (SGD, TORCH) if key[1] == TORCH else UNIT
    time, ideal = over(turns, key, unit), over_ideal(turns, key, unit)
    row = {
        "milliseconds": 1000 * statistics.median(turn[key].seconds for turn in turns),
        "time_ratio": time.median,
        "spread": time.spread,
        "ascents_per_step": statistics.fmean(turn[key].ascents for turn in turns),
        "ideal_ratio": ideal.median,
        "ideal_ratio_error": ideal.error,
    }
    for name, other in (("hand_written", HAND_WRITTEN), ("opaque", OPAQUE), ("sam", SAM)):
        found = over(turns, key, other) if other in turns[0] else None
        row[f"over_{name}"] = found and found.median
        row[f"over_{name}_error"] = found and found.error
    return row


def over_torch(rows: Sequence[dict[str, Any]]) -> None:
    """Adds a method's time over SGD, over the same ratio in PyTorch, where both have it."""
    theirs = {row["method"]: row for row in rows if row["dispatch"] == TORCH}
    for row in rows:
        if row["method"] in theirs and row["method"] != SGD and row["dispatch"] != TORCH:
            row["over_torch"] = row["time_ratio"] / theirs[row["method"]]["time_ratio"]
