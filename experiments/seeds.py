"""Seeds in training: their folders, checkpoints and metrics, and what is left at the end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import cli, files, fit, folders, interrupt, numerics, plots, processes, runs, watch
from experiments.checkpoints import CheckpointError, Checkpoints
from experiments.collected import differences
from experiments.data import Data, changes
from experiments.feeds import Feed, feed
from experiments.mesh import Layout
from experiments.pipeline.stream import Stream
from experiments.recipes.base import UNTRAINED, Recipe
from experiments.training import TrainState


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
      recipe: all that the methods share.
      methods: the epoch from which on each trains, its name, and its keyword arguments.
      layout: the mesh that they train on; None for the default device.
      apart: whether each device perturbs for itself.
    """

    recipe: Recipe
    methods: Sequence[tuple[int, str, Mapping[str, Any]]]
    layout: Layout | None = None
    apart: bool = False

    @property
    def method(self) -> str:
        """The methods by name."""
        return "-then-".join(name for _, name, _ in self.methods)


_STATES = ("nothing", "unfinished", "finished")


class Run:
    """One seed of a plan: its folder, and its metrics so far.

    Of several processes all hold the metrics and write checkpoints; the first writes all else.
    """

    def __init__(self, options: Any, plan: Plan, seed: int):
        """Looks at the folder, and changes nothing.

        Raises:
          UserError: it holds another run, or an unfinished one that is not to be resumed.
        """
        self.seed, self._plan, self._options = seed, plan, options
        if options.name is None:
            self.name = f"{options.recipe}-{plan.method}-{seed}"
        else:
            self.name = f"{options.name}-{seed}" if len(options.seeds) > 1 else options.name
        self.path = folders.path_of(options.out, self.name)
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.writers: list[Callable[[dict[str, Any]], None]] = []
        self.folder: folders.Folder | None = None  # while this process holds it
        self.checkpoints = Checkpoints(self.path / folders.CHECKPOINTS)
        self._held = _STATES[processes.of_first(self._settled)]
        if self._held == "unfinished" and not options.resume:
            raise cli.UserError(
                f"{self.path} holds an unfinished run, or one with a damaged file: pass --resume "
                "to go on with it, or --overwrite to begin again."
            )

    @property
    def finished(self) -> bool:
        """Whether the folder held the results of the run when the command began."""
        return self._held == "finished"

    def _settled(self):
        """The number of the state of the folder, once what a kill left half done is undone."""
        folders.settle(self.path, "train")
        return _STATES.index(self._look())

    def _look(self):
        """What the folder holds of this run: "finished", "unfinished" or "nothing".

        Raises:
          UserError: it is no folder of a run, or of one with other options.
        """
        manifest = folders.check(self.path, "train")
        saved = folders.has_checkpoints(self.path)
        summary = self.path / folders.SUMMARY
        if self._options.overwrite or not manifest or not (saved or summary.exists()):
            return "nothing"
        folders.check_config(self.path, self.config())
        try:
            found = files.read_json(summary)
            metrics = self.path / folders.METRICS
            rows = list(files.read_lines(metrics).values())
            whole = (
                folders.belongs(found, files.read_json(self.path / folders.CONFIG))
                and found.get("metrics") == files.checksum(rows)
                and metrics.read_bytes() == "".join(map(files.line, rows)).encode()
            )
        except (FileNotFoundError, files.DamagedError):
            whole = False
        return "finished" if whole else "unfinished" if saved else "nothing"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder; of several processes the first one does.

        Raises:
          UserError: another command holds it, or has trained in it since this one began.
        """
        with contextlib.ExitStack() as stack:

            def hold():
                held = folders.held(self.path, "train", again="go on with --resume")
                self.folder = stack.enter_context(held)
                if self._look() != self._held:
                    raise cli.UserError(
                        f"another process has trained in {self.path} since this one began: start "
                        "the same command again."
                    )
                return 0

            processes.of_first(hold)
            yield

    def begin(self, data: Data) -> None:
        """Makes the folder anew."""
        if self.folder is not None:
            self.folder.begin({**self.config(), "data": data.read})
            self._claim()
        processes.wait(f"{self.path} is there")
        self.check(data)

    def check(self, data: Data) -> None:
        """Looks whether a checkpoint can be gone on from.

        Raises:
          UserError: the data are not those that the run began with.
        """
        held = files.read_json(self.path / folders.CONFIG)
        if "data" in held and (changed := changes(held["data"], files.plain(data.read))):
            raise cli.UserError(
                f"the data are not those that {self.path} began with ({changed}): bring them back, "
                "or train under another --name."
            )
        self.checkpoints.of = files.checksum(held)

    def go_on(self) -> None:
        """Prepares to write on."""
        if self.folder is not None:
            self._claim()

    def _claim(self):
        for name in (folders.CHECKPOINTS, "curves.png", folders.SUMMARY):
            self.folder.file(name)  # which may be another's, as is better known now
        metrics = self.folder.file(folders.METRICS)
        files.write_text(metrics, "".join(map(files.line, self.rows)))
        self.writers.append(functools.partial(files.append_json, metrics))

    def saved_steps(self) -> list[int]:
        """The steps of the checkpoints to go on from."""
        return [] if self._held == "nothing" else self.checkpoints.steps()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a checkpoint; metrics and time go back to it too."""
        held = self.checkpoints.restore(step, like)
        self.rows, self.seconds = held.rows, held.seconds
        if self._options.keep_epochs is None:  # what was kept to look at later stays
            self.checkpoints.keep(held.every)
        return held.state

    def add(self, row: dict[str, Any]) -> None:
        """The figures of one more epoch."""
        self.rows.append(row)
        for write in self.writers:
            write(row)

    def config(self) -> dict[str, Any]:
        """All that the run depends on."""
        options, recipe = self._options, dataclasses.asdict(self._plan.recipe)
        for other in UNTRAINED:
            del recipe[other]
        (_, method, settings), *then = self._plan.methods
        return {
            "recipe": options.recipe,
            **recipe,
            "method": method,
            "method_kwargs": settings,
            "then": then,
            "seed": self.seed,
            "together": options.seeds if options.vmap_seeds else None,
            "decide": options.decide,
            "weights": options.digest,
            # The global perturbation is the same on any mesh.
            "device_perturbations": self._plan.layout.size if self._plan.apart else None,
            "jax": numerics.recorded(),
        }


class DivergedRunError(cli.UserError):
    """A run whose loss or parameters are no longer finite."""


def _streams(data):
    """The streams among the splits of a set."""
    tests = data.test.values() if isinstance(data.test, dict) else [data.test]
    return [split for split in (data.train, data.validation, *tests) if isinstance(split, Stream)]


class Group:
    """The training of one run, or of several at once on one device."""

    def __init__(self, options: Any, plan: Plan, group: Sequence[Run], stopped: Callable[[], int]):
        """Loads the data and builds the trainers.

        Args:
          options: those of the command.
          plan: what is trained.
          group: the seeds that are trained at once.
          stopped: tells the signal that has come, or 0.

        Raises:
          UserError: the options do not fit together.
        """
        self.options, self.plan, self.runs, self._stopped = options, plan, group, stopped
        self.together = len(group) > 1
        if self.together and options.on_host(plan.recipe):
            raise cli.UserError(
                "--vmap-seeds trains on the device, and this recipe's methods decide on the host: "
                "leave --vmap-seeds away, or pass --decide device."
            )
        self.data = [options.load(plan.recipe, run.seed) for run in group]
        size = plan.recipe.batch_size
        self.arrays = [feed(data, size, plan.layout) for data in self.data]
        if self.together and any(isinstance(train, Feed) for train in self.arrays):
            raise cli.UserError(
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
        for run in group:
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
            raise cli.UserError(str(error)) from error
        except OSError as error:
            raise cli.UserError(
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
            self._finish(run, data, on_train)

    def _fresh(self):
        """The states before the first step."""
        trainer = self.phases[0].trainer
        pairs = zip(self.runs, self.data, strict=True)
        try:
            states = [trainer.init(data.train.shape, run.seed) for run, data in pairs]
        except ValueError as error:  # such as images that the model cannot take
            raise cli.UserError(f"{self.plan.recipe.model}: {error}") from error
        if self.together and any(
            phase.trainer.skips_gradients(self._adopted(phase, states[0]), self.arrays[0])
            for phase in self.phases
        ):
            raise cli.UserError(
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
            raise cli.UserError(
                "the seeds have no checkpoint of a common step: train them again with --overwrite, "
                "or under another --name."
            )
        if common:
            step = latest
            if step > self.total:
                raise CheckpointError(
                    f"{self.runs[0].path} holds a checkpoint of step {step}, beyond the "
                    f"{self.total} of this run: remove it, or start again with --overwrite."
                )
            for run, data in zip(self.runs, self.data, strict=True):
                run.check(data)
            phase = next(p for p in self.phases if step <= p.last * self.per_epoch)
            like = [self._adopted(phase, state) for state in states]
            states = [run.restore(step, one) for run, one in zip(self.runs, like, strict=True)]
            for run in self.runs:
                run.go_on()
                run.checkpoints.forget_after(step)
        else:
            step = 0
            for run, data in zip(self.runs, self.data, strict=True):
                run.begin(data)
        self._saved = time.perf_counter()
        self._begun = [self._saved - run.seconds for run in self.runs]
        return step, states

    def _adopted(self, phase, state):
        """A state as it is in a later phase."""
        if phase.first == 0:
            return state
        return phase.trainer.adopt_one(state)

    def _on_epoch(self, phase, epoch, state):
        for run, data, train, state_ in zip(
            self.runs, self.data, self.arrays, self._split(state), strict=True
        ):
            found = self._means(run, state_)
            on_batches = {f"train_{name}": found.pop(name) for name in ("loss", "accuracy")}
            rate = phase.trainer.optimizer.learning_rate(epoch * self.per_epoch - 1)
            row = {
                "epoch": epoch,
                **on_batches,
                **fit.evaluation(phase.trainer, state_, train, data),
                "learning_rate": float(rate),
                **found,
                **fit.quantities(state_.method_state, apart=self.plan.apart),
            }
            run.add(row)
            self._bar.say(row)

    def _on_dispatch(self, phase, step, state):
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
        for run, begun, state_ in zip(self.runs, self._begun, self._split(state), strict=True):
            self._means(run, state_)
            run.seconds = now - begun
            run.checkpoints.save(step, state_, run.rows, run.seconds)
        self._saved = time.perf_counter()

    def _finish(self, run, data, on_train):
        """Summary and picture of a run whose last epoch is over."""
        corrupt = processes.union({name for split in _streams(data) for name in split.corrupt})
        if not processes.is_first():
            return
        recipe, last = self.plan.recipe, run.rows[-1]
        accuracies = [row["test_accuracy"] for row in run.rows]
        fractions = [row["sam_fraction"] for row in run.rows]
        (_, method, settings), *then = self.plan.methods
        samples = [
            phase.trainer.samples for phase in self.phases for _ in range(phase.first, phase.last)
        ]
        plots.curves(
            run.folder.file("curves.png"),
            run.rows,
            title=f"{self.options.recipe}, {self.plan.method}",
        )
        summary = {
            "recipe": self.options.recipe,
            "method": self.plan.method,
            "method_kwargs": settings,
            "then": then,
            "seed": run.seed,
            **fit.costs(fractions, self.per_epoch, samples),
            **{f"train_{name}": value for name, value in on_train.items()},
            **{name: last[name] for name in last if name.startswith(("test_", "validation_"))},
            "test_accuracy_best": max(accuracies),
            "test_accuracy_last_ten": statistics.fmean(accuracies[-10:]),
            "paper": None if then else recipe.paper.get(method),
            "paper_reports": recipe.reports,
            "papers_protocol": not any(differences(run.config())),
            "seconds": run.seconds,
            "label_noise": recipe.label_noise,
            "flipped": data.flipped,
            "corrupt": corrupt,
            "validation": recipe.validation,
            "weights": self._weights(),
            "decided_on": "host" if self.phases[0].trainer.on_host else "device",
            "mesh": None if self.plan.layout is None else dict(self.plan.layout.mesh.shape),
            "processes": jax.process_count(),
            "config": run.checkpoints.of,
            "metrics": files.checksum(run.rows),
            **runs.provenance(),
        }
        files.write_json(run.folder.file(folders.SUMMARY), summary)
        run.folder.done()

    def _weights(self):
        """What is known of the weights that the runs began with."""
        source = self.phases[0].trainer.source
        if source is None:
            return None
        return {"file": self.options.weights.name, **source._asdict()}

    def _join(self, trees):
        """One tree with a leading axis of seeds, where they are trained at once."""
        return jax.tree.map(lambda *a: jnp.stack(a), *trees) if self.together else trees[0]

    def _split(self, tree):
        """The tree of each seed."""
        if not self.together:
            return [tree]
        return [jax.tree.map(lambda a, i=i: a[i], tree) for i in range(len(self.runs))]
