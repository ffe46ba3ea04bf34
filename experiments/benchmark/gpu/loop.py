"""A method in the trainer's loop, compiled, and what of the loop can be another."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.benchmark.gpu.setup import Row, Setup
from experiments.benchmark.measure import Turn
from experiments.training import ahead, objectives
from experiments.training.optimizers import SGD
from experiments.training.state import TrainState, ascents
from experiments.training.step import Step
from experiments.training.trainer import Trainer

RHO = 0.05
Taken = Callable[[TrainState, Any], TrainState]


class Asked(NamedTuple):
    """What a loop trains, and what of it is not as `experiments.train` has it.

    Attributes:
      method: "sgd" or a method of `sam_optax`.
      settings: of it, beside those of the recipe.
      recipe: fields of the recipe that are others.
      by_hand: whether SAM written in its fewest lines is in the place of the method.
      still: whether batch norm takes its running statistics in place of the batch's.
      count: how many steps it takes, known when it is compiled; None for a number told each time.
      told: whether a method is told the decisions that are known ahead, as the trainer does.
      compiler: options of XLA.
    """

    method: str
    settings: Mapping[str, Any] = {}
    recipe: Mapping[str, Any] = {}
    by_hand: bool = False
    still: bool = False
    count: int | None = None
    told: bool = True
    compiler: Mapping[str, Any] = {}


BY_HAND = Asked(SGD, by_hand=True)


class Loop:
    """A loop, ready to run.

    Attributes:
      cycle: the fewest steps that hold each kind of step about as often as many do.
      state: after the last step.
      programs: as XLA compiled it, by the decision that it is told.
      temp_bytes: the most that one holds beside its arguments and results.
      state_bytes: of parameters, statistics and the optimizer's state.
      compile_seconds: of tracing and compiling, or of reading what was kept.
    """

    def __init__(self, setup: Setup, asked: Asked):
        """Compiles it."""
        recipe = dataclasses.replace(setup.recipe, **asked.recipe)
        settings = {**recipe.settings.get(asked.method, {}), **asked.settings}
        trainer = Trainer(recipe, asked.method, settings, data=setup.data, on_host=False)
        self.cycle = asked.count or 10
        self._uncounted = float(asked.by_hand)
        self.state = trainer.init(setup.data.train.shape, seed=0)
        self._train, self._order = setup.train, trainer.jit_order(self.state.seed, 0)
        self._link, program, self._told = trainer.optimizer.method, trainer.jit_steps, asked.told
        if asked.by_hand or asked.still or asked.count:
            program = jax.jit(_steps(_step(trainer, recipe, asked), asked), donate_argnums=0)
            self._told = False
        start = time.perf_counter()
        self.programs = {}
        for fire in dict.fromkeys(self._fires(1000)):
            told = {} if fire is None else {"fire": fire}
            lowered = program.lower(self.state, self._train, self._order, 0, 1, **told)
            self.programs[fire] = lowered.compile(compiler_options=dict(asked.compiler) or None)
        self.compile_seconds = time.perf_counter() - start
        self.temp_bytes = max(
            program.memory_analysis().temp_size_in_bytes for program in self.programs.values()
        )
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

    def run(self, steps: int) -> Turn:
        """Takes so many steps."""
        before = self._ascents()
        start = time.perf_counter()
        for first, last, fire in ahead.stretches(self._fires(steps), 0):
            run = self.programs[fire]
            self.state = run(self.state, self._train, self._order, first, last)
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - start
        share = (self._ascents() - before) / steps
        return Turn(seconds / steps, share + self._uncounted)

    def _fires(self, steps):
        """The decisions of so many steps, where they are told."""
        if not self._told:
            return [None] * steps
        return ahead.decisions(self._link, self.state.method_state, steps)

    def _ascents(self):
        return int(ascents(self.state.method_state))

    @property
    def finite(self) -> bool:
        """Whether the loss is."""
        return bool(np.isfinite(float(self.state.metrics["loss"])))

    def costs(self) -> Row:
        """What is known before it has run."""
        return {
            "temp_bytes": self.temp_bytes,
            "state_bytes": self.state_bytes,
            "compile_seconds": self.compile_seconds,
        }


def compiled(setup: Setup, asked: Mapping[str, Asked]) -> Iterator[tuple[str, Loop]]:
    """Loops by name, in order, each as it is compiled, several at a time."""
    _ = setup.train  # read and put on the device once, before the threads ask for it
    pool = ThreadPoolExecutor(setup.workers)
    try:
        made = {name: pool.submit(Loop, setup, one) for name, one in asked.items()}
        for name, future in made.items():
            yield name, future.result()
    except GeneratorExit:  # whose time is over; what runs on would disturb the next part
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # who is interrupted does not wait


def by_hand(step: Step) -> Taken:
    """SAM in its fewest lines, on the pieces of the trainer's own step."""

    def taken(state, batch):
        first, model_state, _, metrics = step.first(state, batch)
        scale = RHO / optax.tree.norm(first)
        point = jax.tree.map(lambda w, g: w + scale * g, state.params, first)
        _, second = step.second(state.model_state, batch, point)
        metrics |= {"sam_fraction": 1.0, "rise": 0.0}
        return step.applied(state._replace(model_state=model_state), second, metrics)

    return taken


class _Still:
    """An objective whose batch norm takes no statistics of the batch, and so reduces nothing."""

    def __init__(self, objective):
        self._objective = objective

    def __getattr__(self, name):
        return getattr(self._objective, name)

    def losses(self, model, variables, batch):
        logits = model.apply(variables, batch.images, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        state = {name: value for name, value in variables.items() if name != "params"}
        return losses, logits.argmax(-1) == batch.labels, state


def _step(trainer, recipe, asked):
    """The trainer's step, or one with an objective that is another."""
    if not asked.still:
        return trainer.step
    objective = _Still(objectives.make(recipe, classes=trainer.step.model.classes))
    return Step(recipe, trainer.optimizer, objective, examples=trainer.examples)


def _steps(step, asked):
    """The trainer's loop around another step, or of a length that the compiler knows."""
    take = by_hand(step) if asked.by_hand else step

    def steps(state, train, order, first, last):
        if asked.count:
            first, last = 0, asked.count

        def body(i, state):
            return take(state, step.batch(state, train, order, i))

        return jax.lax.fori_loop(first, last, body, state)

    return steps
