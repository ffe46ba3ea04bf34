"""A run: a seed of a plan, with its folder, its metrics and its checkpoints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

from experiments.data.sets import Data, changes
from experiments.recipes.base import UNTRAINED, Recipe
from experiments.results import files, folders, numerics
from experiments.system import processes
from experiments.system.errors import UserError
from experiments.system.mesh import Layout
from experiments.training.checkpoints import Checkpoints
from experiments.training.state import TrainState


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


# What a folder can hold of a run; the first process tells the others its place here.
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
            raise UserError(
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
                    raise UserError(
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
        """Looks whether the folder's data are these, and lets its config mark the checkpoints.

        Raises:
          UserError: the data are not those that the run began with.
        """
        held = files.read_json(self.path / folders.CONFIG)
        if "data" in held and (changed := changes(held["data"], files.plain(data.read))):
            raise UserError(
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
        """Takes in and writes the figures of one more epoch."""
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
