"""The folder of one run: what was asked, what came of it, and with which code."""

from collections.abc import Iterator
import contextlib
import fcntl
from importlib import metadata
import json
import os
from pathlib import Path
import platform
import shutil
import subprocess
from typing import Any

import jax

from experiments.cli import UserError

# What the commands write: each its result last, and beside it.
RESULTS = (
    *("summary.json", "table.json", "sweep.json"),
    *("benchmark.json", "growth.json", "gpu_check.json", "scaling.json", "analysis.json"),
    *("pipeline.json", "robustness.json", "evaluation.json"),
)
BESIDE = (
    *("metrics.jsonl", "curves.png", "table.md", "comparison.png"),
    *("benchmark.md", "growth.png", "gpu_check.md", "scaling.md", "scaling.png"),
    *("sweep.md", "sweep.png", "analysis.md", "report.html", "pipeline.md"),
    *("robustness.md", "robustness.png", "evaluation.md"),
)
RUNS = "runs.jsonl"  # the finished runs of a sweep or parts of an analysis, a line each
CHECKPOINTS, TENSORBOARD = FOLDERS = ("checkpoints", "tensorboard")
PACKAGES = ("sam_optax", "jax", "jaxlib", "optax", "flax", "tensorflow-datasets", "numpy")


def folder(out: Path, name: str, config: dict[str, Any], *, overwrite: bool) -> Path:
    """The folder out/name with its config.json, ready to be written.

    A folder with the same config, or without a result, is written anew; of the same config,
    what a sweep or an analysis has finished stays unless they are to be overwritten.

    Raises:
      UserError: the folder cannot be written, or holds the result of another config.
    """
    path = path_of(out, name)
    config = json.loads(_dump(config))
    try:
        if not overwrite:
            _check_config(path, config)
        path.mkdir(parents=True, exist_ok=True)
        for written in (*RESULTS, *BESIDE, *((RUNS,) if overwrite else ())):
            (path / written).unlink(missing_ok=True)
        for written in FOLDERS:
            shutil.rmtree(path / written, ignore_errors=True)
        write_json(path / "config.json", config)
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"cannot write to {path}: {error}. Pass another --out or --name."
        ) from error
    return path


def renewed(out: Path, name: str, config: dict[str, Any], result: str) -> Path:
    """The folder as `folder` makes it; an older result of the same file name is replaced.

    Raises:
      UserError: as `folder`, for the result of another command.
    """
    return folder(out, name, config, overwrite=(path_of(out, name) / result).exists())


def state_of(out: Path, name: str, config: dict[str, Any]) -> str:
    """What the folder out/name holds: a "finished" run, an "unfinished" one, or "nothing".

    Raises:
      UserError: it holds a run of another config, or cannot be read.
    """
    path = path_of(out, name)
    try:
        _check_config(path, json.loads(_dump(config)))
        if (path / "summary.json").exists():
            return "finished"
        saved = (path / CHECKPOINTS).is_dir() and any((path / CHECKPOINTS).iterdir())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}. Pass another --out or --name.") from error
    return "unfinished" if saved else "nothing"


def path_of(out: Path, name: str) -> Path:
    """The path out/name.

    Raises:
      UserError: the name is none of a folder in out.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"--name must be a plain name, got {name!r}: pass folders by --out.")
    return out / name


def _check_config(path, config):
    """Raises where the folder holds results, runs or checkpoints of another config."""
    if (path / RUNS).exists() and not (path / "config.json").exists():
        raise UserError(
            f"{path} holds {RUNS} without the config.json that tells its options: pass --name for "
            "a new folder, or --overwrite."
        )
    worth = any((path / kept).exists() for kept in (*RESULTS, RUNS, CHECKPOINTS))
    if not worth or not (path / "config.json").exists():
        return
    held = json.loads((path / "config.json").read_text())
    differs = [k for k in {**held, **config} if held.get(k) != config.get(k)]
    if differs:
        raise UserError(
            f"{path} holds a run with other {', '.join(differs)}: pass --name for a new folder, or "
            "--overwrite."
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the folder for this process; a killed process holds it no longer.

    Raises:
      UserError: another process holds it, or it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"cannot write to {path}: {error}. Pass another --out or --name."
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process trains in {path}: wait for it, or pass another --name."
            ) from error
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, _dump(value) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def append_json(path: Path, value: Any) -> None:
    """Appends one line of JSON."""
    with path.open("a") as file:
        file.write(line(value))


def line(value: Any) -> str:
    """A line of JSON."""
    return json.dumps(value, default=str) + "\n"


def read_lines(path: Path) -> list[Any]:
    """The values of the lines of JSON in a file; none where there is no file.

    A last line that a killed process left incomplete is removed from the file.

    Raises:
      UserError: another line cannot be read.
    """
    if not path.exists():
        return []
    values, lines = [], path.read_bytes().splitlines()
    for number, text in enumerate(lines, 1):
        try:
            values.append(json.loads(text.decode()))
        except ValueError as error:
            if number < len(lines):
                raise UserError(
                    f"line {number} of {path} is damaged: remove that line, or pass --overwrite."
                ) from error
    write_text(path, "".join(map(line, values)))
    return values


def provenance() -> dict[str, Any]:
    """Device, versions and commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"device": jax.devices()[0].device_kind, "versions": versions, "commit": _commit()}


def versions(found: dict[str, Any]) -> str:
    """The versions of `provenance` as text."""
    return ", ".join(f"{name} {v}" for name, v in found["versions"].items() if v)


def short(commit: str | None) -> str:
    """A commit of `provenance` in twelve letters, and still marked where files differed from it."""
    if commit is None:
        return "unknown"
    hexadecimal, _, mark = commit.partition("-")
    return f"{hexadecimal[:12]}-{mark}" if mark else hexadecimal[:12]


def _commit():
    """The checked-out commit, marked where files differ from it; None outside a repository."""
    root = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _dump(value):
    return json.dumps(value, indent=2, default=str)
