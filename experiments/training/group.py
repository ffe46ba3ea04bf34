"""Runs in training: one, or several seeds at once, from where they are to the end."""

from collections.abc import Callable, Sequence
import contextlib
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments.data.feeds import Feed, feed
from experiments.results import folders, watch
from experiments.system import interrupt, processes
from experiments.system.errors import UserError
from experiments.training import fit, summary
from experiments.training.checkpoints import CheckpointError
from experiments.training.runs import Plan, Run


class DivergedRunError(UserError):
    """A run whose loss or parameters are no longer finite."""


class Group:
    """The training of one run, or of several at once on one device."""

    def __init__(self, options: Any, plan: Plan, runs: Sequence[Run], stopped: Callable[[], int]):
        """Loads the data and builds the trainers.

        Args:
          options: those of the command.
          plan: what is trained.
          runs: those that are trained at once, a seed each.
          stopped: tells the signal that has come, or 0.

        Raises:
          UserError: the options do not fit together.
        """
        self.options, self.plan, self.runs, self._stopped = options, plan, runs, stopped
        self.together = len(runs) > 1
        if self.together and options.on_host(plan.recipe):
            raise UserError(
                "--vmap-seeds trains on the device, and this recipe's methods decide on the host: "
                "leave --vmap-seeds away, or pass --decide device."
            )
        self.data = [options.load(plan.recipe, run.seed) for run in runs]
        size = plan.recipe.batch_size
        self.arrays = [feed(data, size, plan.layout) for data in self.data]
        if self.together and any(isinstance(train, Feed) for train in self.arrays):
            raise UserError(
                f"--vmap-seeds needs a set in memory, and {plan.recipe.dataset} is streamed: leave "
                "--vmap-seeds away."
            )
        starts = [start for start, _, _ in plan.methods]
        ends = [*starts[1:], plan.recipe.epochs]
        self.phases = [
            fit.Phase(start, end, self._trainer(method, settings, (start, end)))
            for (start, method, settings), end in zip(plan.methods, ends, strict=True)
        ]
        self.per_epoch = self.phases[0].trainer.steps_per_epoch
        self.total = plan.recipe.epochs * self.per_epoch
        self._kept = (options.keep_epochs or plan.recipe.epochs) * self.per_epoch
        for run in runs:
            run.checkpoints.keep(self._kept)

    def _trainer(self, method, settings, epochs):
        return self.options.trainer(
            self.plan.recipe,
            method,
            settings,
            self.data[0],
            epochs=epochs,
            together=self.together,
            layout=self.plan.layout,
            apart=self.plan.apart,
        )

    def train(self) -> None:
        """Trains to the end, and writes the results.

        Raises:
          DivergedRunError: a loss or a parameter is no longer finite.
          UserError: a folder cannot be written, or another process trains in it.
          InterruptedRunError: a signal came, and all was saved.
        """
        where = ", ".join(str(run.path) for run in self.runs)
        try:
            states = self._fresh()
            with contextlib.ExitStack() as stack:
                for run in self.runs:
                    stack.enter_context(run.held())
                self._train(states)
        except fit.DivergedError as error:
            raise DivergedRunError(f"{where}: {error}") from error
        except (CheckpointError, processes.NoConnectionError) as error:
            raise UserError(str(error)) from error
        except OSError as error:
            raise UserError(
                f"cannot write to {where}: {error}. What was saved before is kept: make room, and "
                "go on with --resume."
            ) from error

    def _train(self, states):
        (number,) = processes.agree((self._stopped(),))
        if number:
            where = ", ".join(run.name for run in self.runs)
            raise interrupt.InterruptedRunError(f"{where} was not begun.", number)
        step, states = self._resumed(states)
        images = self.plan.recipe.batch_size * len(self.runs)
        with (
            watch.bar(
                self.plan.method,
                total=self.total,
                done=step,
                images=images,
                shown=processes.is_first(),
            ) as bar,
            contextlib.ExitStack() as stack,
        ):
            self._bar = bar
            for train in self.arrays:
                if isinstance(train, Feed):
                    stack.callback(train.close)
            if self.options.tensorboard and processes.is_first():
                for run in self.runs:
                    path, done = run.folder.file(folders.TENSORBOARD), step // self.per_epoch
                    run.writers.append(stack.enter_context(watch.tensorboard(path, done=done)))
            state = fit.fit(
                self.phases,
                self._join(states),
                self._join(self.arrays),
                most=self.options.steps_per_dispatch,
                on_epoch=self._on_epoch,
                on_dispatch=self._on_dispatch,
            )
            self._save(self.total, state)
        ends = self._split(state)
        for run, data, train, end in zip(self.runs, self.data, self.arrays, ends, strict=True):
            on_train = self.phases[-1].trainer.evaluate(end, data.train, train)
            summary.write(self.options, self.plan, self.phases, run, data, on_train)

    def _fresh(self):
        """The states before the first step."""
        trainer = self.phases[0].trainer
        pairs = zip(self.runs, self.data, strict=True)
        try:
            states = [trainer.init(data.train.shape, run.seed) for run, data in pairs]
        except ValueError as error:  # such as images that the model cannot take
            raise UserError(f"{self.plan.recipe.model}: {error}") from error
        if self.together and any(
            phase.trainer.skips_gradients(
                [self._adopted(phase, state) for state in states], self.arrays[0]
            )
            for phase in self.phases
        ):
            raise UserError(
                f"{self.plan.method} takes a decision at each step, and seeds that are trained at "
                "once would all pay for both outcomes: leave --vmap-seeds away, and the seeds are "
                "trained one after the other."
            )
        return states

    def _resumed(self, states):
        """The step and the states to go on from: those given, or the last checkpoints'."""
        saved = [set(run.saved_steps()) for run in self.runs]
        common = set.intersection(*saved)
        latest = max(common, default=-1)
        most, least = processes.agree((latest, -latest))
        if most != -least:
            raise processes.NoConnectionError(
                f"the processes see checkpoints of other steps under {self.runs[0].path}: start "
                "all of them again with --resume, once they see the same."
            )
        # One beside none is a first checkpoint that was cut short: nothing was saved before it.
        if not common and max(map(len, saved)) > 1:
            raise UserError(
                "the seeds have no checkpoint of a common step: train them again with --overwrite, "
                "or under another --name."
            )
        if common:
            states = self._restored(latest, states)
        else:
            for run, data in zip(self.runs, self.data, strict=True):
                run.begin(data)
        self._saved = time.perf_counter()
        self._begun = [self._saved - run.seconds for run in self.runs]
        return max(latest, 0), states

    def _restored(self, step, fresh):
        """The states of the checkpoints of a step; fresh are those before the first one."""
        if step > self.total:
            raise CheckpointError(
                f"{self.runs[0].path} holds a checkpoint of step {step}, beyond the "
                f"{self.total} of this run: remove it, or start again with --overwrite."
            )
        for run, data in zip(self.runs, self.data, strict=True):
            run.check(data)
        phase = next(p for p in self.phases if step <= p.last * self.per_epoch)
        like = [self._adopted(phase, state) for state in fresh]
        states = [run.restore(step, one) for run, one in zip(self.runs, like, strict=True)]
        for run in self.runs:
            run.go_on()
            run.checkpoints.forget_after(step)
        return states

    def _adopted(self, phase, state):
        """A state as it is in a later phase."""
        if phase.first == 0:
            return state
        return phase.trainer.adopt_one(state)

    def _on_epoch(self, phase, epoch, state):
        """Evaluates each run and writes its figures of the epoch."""
        for run, data, train, own in zip(
            self.runs, self.data, self.arrays, self._split(state), strict=True
        ):
            found = self._means(run, own)
            on_batches = {f"train_{name}": found.pop(name) for name in ("loss", "accuracy")}
            rate = phase.trainer.optimizer.learning_rate(epoch * self.per_epoch - 1)
            row = {
                "epoch": epoch,
                **on_batches,
                **fit.evaluation(phase.trainer, own, train, data),
                "learning_rate": float(rate),
                **found,
                **fit.quantities(own.method_state, apart=self.plan.apart),
            }
            run.add(row)
            self._bar.say(row)

    def _on_dispatch(self, phase, step, state):
        """Saves where it is time, or where a signal asks the training to end."""
        del phase
        self._bar.reach(step)
        due = time.perf_counter() - self._saved >= 60 * self.options.checkpoint_minutes
        due = due or step % self._kept == 0
        number, due = processes.agree((self._stopped(), due))
        if step < self.total and (due or number):
            self._save(step, state)
        if step < self.total and number:
            raise interrupt.InterruptedRunError(
                f"saved at step {step} of {self.total}; go on with --resume.", number
            )

    def _means(self, run, state):
        """The metrics of the epoch so far, unless the run has diverged; its seed is named."""
        try:
            return fit.means(state, self.per_epoch)
        except fit.DivergedError as error:
            raise fit.DivergedError(f"seed {run.seed}: {error}") from error

    def _save(self, step, state):
        """A checkpoint of each run, unless one has diverged."""
        now = time.perf_counter()
        for run, begun, own in zip(self.runs, self._begun, self._split(state), strict=True):
            self._means(run, own)
            run.seconds = now - begun
            run.checkpoints.save(step, own, run.rows, run.seconds)
        self._saved = time.perf_counter()

    def _join(self, trees):
        """One tree with a leading axis of seeds, where they are trained at once."""
        return jax.tree.map(lambda *a: jnp.stack(a), *trees) if self.together else trees[0]

    def _split(self, tree):
        """The tree of each seed."""
        if not self.together:
            return [tree]
        return [jax.tree.map(lambda a, i=i: a[i], tree) for i in range(len(self.runs))]
