"""What a run shows and writes while it trains: a progress bar, metrics, TensorBoard."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
from pathlib import Path
from typing import Any

import rich
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from experiments.results.collected import evaluated
from experiments.system.errors import UserError


class ImagesPerSecond(ProgressColumn):
    """Training images per second, over the last half minute."""

    def render(self, task: Any) -> Text:
        """The figure, or nothing before there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed * task.fields['images']:,.0f} im/s" if speed else "", no_wrap=True)


class Bar:
    """The progress of a run in steps."""

    def __init__(self, progress: Progress, task: int):
        self._progress, self._task = progress, task

    def reach(self, step: int) -> None:
        """So many steps are done."""
        self._progress.update(self._task, completed=step)

    def say(self, row: Mapping[str, float]) -> None:
        """Shows the figures of an epoch."""
        split = "held-out" if "validation_accuracy" in row else "test"
        said = f"loss {row['train_loss']:.3f}, {split} {100 * evaluated(row):.1f} %"
        self._progress.update(self._task, said=said)


@contextlib.contextmanager
def bar(title: str, *, total: int, done: int, images: int, shown: bool = True) -> Iterator[Bar]:
    """A progress bar over a run's steps, each of so many images."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        ImagesPerSecond(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(*columns, disable=not shown) as progress:
        yield Bar(
            progress,
            progress.add_task(title, total=total, completed=done, images=images, said=""),
        )


@contextlib.contextmanager
def tally(title: str, *, total: int, done: int) -> Iterator[Callable[[str], None]]:
    """A progress bar over runs.

    Yields:
      A function that counts one more, and shows a text about it.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    # A run may take hours: the time that remains is estimated from those of the last day.
    with Progress(*columns, speed_estimate_period=86_400) as progress:
        task = progress.add_task(title, total=total, completed=done, said="")
        yield lambda said: progress.update(task, advance=1, said=said)


@contextlib.contextmanager
def tensorboard(path: Path, *, done: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A function that writes the figures of an epoch for TensorBoard.

    Args:
      path: the folder.
      done: the epochs done; what the folder holds of later ones is hidden.

    Raises:
      UserError: the package tensorboardX is not installed.
    """
    try:
        import tensorboardX
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboardX: python -m pip install "
            "'sam_optax[tensorboard]'."
        ) from error

    def write(row):
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    with tensorboardX.SummaryWriter(str(path), purge_step=done + 1) as writer:
        yield write


def table(title: str, rows: Mapping[str, str]) -> None:
    """Prints names and figures."""
    shown = Table(title=title, show_header=False)
    shown.add_column()
    shown.add_column(justify="right")
    for name, figure in rows.items():
        shown.add_row(name, figure)
    rich.print(shown)
