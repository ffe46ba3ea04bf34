"""Steps, compiled, and timed in turns."""

from collections.abc import Hashable, Mapping, Sequence
import itertools
import random
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.progress import track

from experiments.benchmark.contestants import Carry, Contestant
from experiments.benchmark.problems import Problem

Key = Hashable


class Turn(NamedTuple):
    """Seconds a step, and the share of the steps with a second gradient."""

    seconds: float
    ascents: float


class Program:
    """A contestant on a problem, ready to run, and what the compiler says of it.

    Attributes:
      flops: of a step; None where it is several programs.
      temp_bytes: the most that a step holds beside its arguments and results; None likewise.
      state_bytes: of the optimizer's state.
      compile_seconds: of tracing and compiling; of the first two steps where it is several.
      cycle: as the contestant's.
    """

    def __init__(self, problem: Problem, contestant: Contestant):
        """Compiles the step."""
        self._batches = itertools.cycle(problem.batches)
        carry = Carry(problem.params, problem.model_state, contestant.init(problem.params))
        self._carry = jax.tree.map(jnp.copy, carry)  # the step takes its argument's place
        self._step, self._uncounted = contestant.step, contestant.uncounted
        self.cycle = contestant.cycle
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._carry.opt_state))
        self.flops = self.temp_bytes = None
        start = time.perf_counter()
        if contestant.whole:
            lowered = jax.jit(contestant.step, donate_argnums=0).lower(
                self._carry, problem.batches[0]
            )
            self._step = lowered.compile()
            self.flops = self._step.cost_analysis()["flops"]
            self.temp_bytes = self._step.memory_analysis().temp_size_in_bytes
        else:
            self.run(2)
        self.compile_seconds = time.perf_counter() - start

    def run(self, steps: int) -> Turn:
        """Takes so many steps."""
        before = self._ascents()
        start = time.perf_counter()
        for batch in itertools.islice(self._batches, steps):
            self._carry = self._step(self._carry, batch)
        jax.block_until_ready(self._carry)
        seconds = time.perf_counter() - start
        ascents = (self._ascents() - before) / steps
        return Turn(seconds / steps, ascents + self._uncounted)

    def _ascents(self):
        return int(optax.tree.get(self._carry.opt_state, "ascents", 0))


class Ratio(NamedTuple):
    """A median over the turns, the interquartile range, and the standard error of the median."""

    median: float
    spread: float
    error: float


def take_turns(
    programs: Mapping[Key, Program],
    rivals: Mapping[Key, Sequence[Key]],
    *,
    turns: int,
    seconds: float,
) -> dict[Key, list[dict[Key, Turn]]]:
    """Runs programs in every turn, for about so many seconds, each beside its rivals.

    A machine's speed drifts. What is run within a fraction of a second can be compared, and a
    random order keeps what a program leaves behind (warm caches, a hot chip) from helping always
    the same.

    Args:
      programs: by name.
      rivals: for each program that has turns of its own, those with whom it is compared: they run
        again beside it in each of them.
      turns: turns.
      seconds: of a program at a time; a cycle at least.

    Returns:
      For each of these programs what was run in its turns: itself and its rivals, by name.
    """
    drawn, steps = random.Random(0), {}
    for key, program in programs.items():
        program.run(2 * program.cycle)
        steps[key] = max(program.cycle, round(seconds / program.run(program.cycle).seconds))
    taken = {key: [] for key in rivals}
    for _ in track(range(turns), "measuring", transient=True):
        for key in drawn.sample(list(rivals), len(rivals)):
            group = [key, *rivals[key]]
            order = drawn.sample(group, len(group))
            taken[key].append({other: programs[other].run(steps[other]) for other in order})
    return taken


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Of paired figures, one of each a turn; of two turns at least."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    # of a normal distribution: σ is the range / 1.349, and a median's error 1.253 σ / √n
    error = 1.253 / 1.349 * (high - low) / len(ratios) ** 0.5
    return Ratio(median, high - low, error)


def over(turns: Sequence[Mapping[Key, Turn]], key: Key, other: Key) -> Ratio:
    """A program's time over that of another in the same turns."""
    return ratio([t[key].seconds for t in turns], [t[other].seconds for t in turns])


def over_ideal(turns: Sequence[Mapping[Key, Turn]], key: Key, unit: Key) -> Ratio:
    """The time over (1 + ζ) times that of the unit, the least that its gradients can take."""
    ideal = [(1 + turn[key].ascents) * turn[unit].seconds for turn in turns]
    return ratio([turn[key].seconds for turn in turns], ideal)
