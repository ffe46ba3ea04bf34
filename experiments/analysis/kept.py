"""The runs that a command looks at, and what it has measured of them, kept as each part ends."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
from pathlib import Path
import time
from typing import Annotated, Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
import tyro

from experiments.analysis.objective import AnalysisError
from experiments.analysis.trained import Trained
from experiments.data import disk
from experiments.results import folders, provenance
from experiments.results.lines import Lines
from experiments.system import compiler
from experiments.system.errors import UserError

# What tells a run and its last checkpoint from others.
_MARKS = ("name", "group", "seed", "fingerprint")


@dataclasses.dataclass(frozen=True)
class Options:
    """What commands about trained runs have in common."""

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN", help="Folders that experiments.train wrote."),
    ]
    _: dataclasses.KW_ONLY
    workers: int | None = None
    """Processes that decode a streamed set; 0 for threads of this one, a core each by default."""
    skip_corrupt: bool = False
    """Pass over streamed images that cannot be decoded, and tell how many there were."""
    data_dir: Path = disk.DATA_DIR
    """The TFDS directory."""
    out: Path = Path("runs")
    """The folder of all results."""
    overwrite: bool = False
    """Replace a result of the same name, whatever its options."""


def opened(options: Options) -> list[Trained]:
    """The runs that a command is given; on an accelerator its programs are kept.

    Raises:
      UserError: there is none, two have the same name, or one is no folder of a run.
    """
    if not options.runs:
        raise UserError("pass the folders of one run or more, such as runs/digits-sam-0.")
    names = [path.resolve().name for path in options.runs]
    if len(set(names)) < len(names):
        raise UserError(f"the folders must have different names, got {' '.join(names)}.")
    compiler.keep_programs()
    how = {"workers": options.workers, "skip_corrupt": options.skip_corrupt}
    trained = [Trained(path, options.data_dir, **how) for path in options.runs]
    for i, run in enumerate(trained):
        for other in (one for one in trained[:i] if one.group == run.group):
            if other.seed == run.seed:
                raise UserError(
                    f"{other.path} and {run.path} are of the same seed, {run.seed}, and no two "
                    "seeds: pass one of them."
                )
            if folders.on_other_data(other.config, run.config):
                raise UserError(
                    f"{other.path} and {run.path} were trained on other data: look at them apart."
                )
    return trained


def about(run: Trained) -> dict[str, Any]:
    """What the table and the pictures tell of a run."""
    figures = ("test_accuracy", "validation_accuracy", "train_loss", "gradients_per_step")
    return {
        "name": run.path.name,
        "method": run.method,
        "label": run.label,
        "recipe": run.config["recipe"],
        "group": run.group,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "commit": provenance.short(run.summary.get("commit")),
        "figures": {name: run.summary[name] for name in figures if name in run.summary},
    }


def marks(said: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a run and its last checkpoint from others, of what `about` says."""
    return tuple(said[key] for key in _MARKS)


class Kept:
    """What was measured, a line of a file each, so that a stopped command goes on.

    Attributes:
      failed: what could not be measured, a sentence each.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]):
        """Reads what is there.

        Args:
          path: the file.
          tell: shows what is measured next.

        Raises:
          UserError: the file is damaged.
        """
        self._tell = tell
        self._lines = Lines(path, lambda line: tuple(line["key"]))
        self.failed: list[str] = []

    def once(
        self, key: tuple[Any, ...], said: str, measure: Callable[[], Any]
    ) -> dict[str, Any] | None:
        """The line of a key, measured where it is not there; None where that fails.

        Args:
          key: of JSON's plain values.
          said: what is measured, in words.
          measure: gives it, of JSON's values.
        """
        if key not in self._lines:
            self._tell(said)
            start = time.perf_counter()
            try:
                measured = measure()
            except (AnalysisError, UserError) as error:
                self.failed.append(f"{said}: {error}")
                return None
            seconds = time.perf_counter() - start
            self._lines.add({"key": key, "measured": measured, "seconds": seconds})
        return self._lines[key]


@contextlib.contextmanager
def progress(unit: str) -> Iterator[Callable[..., None]]:
    """A line with what is measured, and how many passes over the examples, or the like, it took.

    Yields:
      A function that counts one more, or begins to count anew for a text.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, transient=True) as line:
        task = line.add_task("", total=None)
        state = {"said": "", "done": 0}

        def tell(said=None):
            state.update({"said": said, "done": 0} if said else {"done": state["done"] + 1})
            line.update(task, description=f"{state['said']}, {state['done']} {unit}")

        yield tell
