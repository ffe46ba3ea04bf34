"""The folders that commands write, and whose they are.

In each lies a manifest, which tells the command and every file and folder that it wrote there, from
before the file is there. A folder that is neither empty nor the command's own stays as it is. What
is to be replaced is set aside until what replaces it is complete.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import os
from pathlib import Path
import shutil
from typing import Any

from experiments.results import files, numerics
from experiments.results.files import MANIFEST, DamagedError, WriteError
from experiments.system import words
from experiments.system.errors import UserError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
RUNS = "runs.jsonl"  # what a command has finished so far, a line each
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
LOCK = ".sam_optax.lock"
REPLACED = ".sam_optax.replaced"
_SETTING_ASIDE = REPLACED + ".part"
_OWN = {MANIFEST, files.part_of(Path(MANIFEST)).name, LOCK, REPLACED, _SETTING_ASIDE}


def config_of(options: Any) -> dict[str, Any]:
    """The options that a result depends on: all but those of where things lie."""
    where = ("out", "name", "data_dir", "overwrite")
    return {k: value for k, value in dataclasses.asdict(options).items() if k not in where}


def path_of(out: Path, name: str) -> Path:
    """The path out/name.

    Raises:
      UserError: the name is none of a folder in out.
    """
    if not _is_plain(name):
        raise UserError(f"--name must be a plain name, got {name!r}: pass folders by --out.")
    return out / name


def _is_plain(name):
    """Whether a name is that of something in a folder."""
    return Path(name).name == name and name not in ("", ".", "..") and "\0" not in name


def check(path: Path, command: str) -> dict[str, Any]:
    """What the manifest of a command's folder tells; nothing of one that is empty or not there.

    Raises:
      UserError: the folder is another's, or cannot be read.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the path {str(path)!r} is no UTF-8, as checkpoints need it: pass another --out or "
            "--name."
        ) from error
    try:
        if not path.exists():
            return {}
        held = set(os.listdir(path))
    except NotADirectoryError as error:
        raise UserError(f"{path} is no folder: pass another --out or --name.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be used ({words.said(error)}): pass another --out or --name."
        ) from error
    if not held - _OWN and MANIFEST not in held:
        return {}
    if MANIFEST not in held:
        earlier = (
            f" Results of an earlier version, or copied without their {MANIFEST}, are read and not "
            "written into."
            if CONFIG in held
            else ""
        )
        raise UserError(
            f"{path} is neither empty nor a folder that experiments.{command} wrote (it holds "
            f"{words.names(sorted(held - _OWN))}): pass another --out or --name.{earlier}"
        )
    try:
        manifest = files.read_json(path / MANIFEST)
        listed, owner = manifest["files"], manifest["command"]
        if not all(isinstance(name, str) and _is_plain(name) for name in listed):
            raise KeyError("files")
    except (DamagedError, FileNotFoundError, KeyError, TypeError) as error:
        raise UserError(
            f"{path / MANIFEST} is damaged, and nothing else tells which files experiments."
            f"{command} may replace: pass another --out or --name."
        ) from error
    if owner != command:
        raise UserError(
            f"{path} holds what experiments.{owner} wrote: pass another --out or --name."
        )
    return manifest


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Compares the options of the results in a folder with others.

    Raises:
      UserError: they differ, or those of the results cannot be read.
    """
    instead = "pass --name for a new folder, or --overwrite."
    try:
        held = files.read_json(path / CONFIG)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} holds results without the {CONFIG} that tells their options: {instead}"
        ) from error
    except DamagedError as error:
        raise UserError(f"{error}, and nothing else tells the options: {instead}") from error
    if differs := numerics.differing(held, config):
        raise UserError(f"{path} holds a run with other {', '.join(differs)}: {instead}")


def belongs(summary: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a summary is that of the run of a config; one of an earlier version does not tell."""
    return summary.get("config", files.checksum(config)) == files.checksum(config)


def on_other_data(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether of two runs it is known that they were trained on other data."""
    one, two = config.get("data"), other.get("data")
    return one is not None and two is not None and one != two


def has_checkpoints(path: Path) -> bool:
    """Whether there is a checkpoint in the folder of a run; Orbax names whole ones by the step."""
    try:
        return any(name.isdecimal() for name in os.listdir(path / CHECKPOINTS))
    except OSError:
        return False


class Folder:
    """A folder while one process of a command holds it."""

    def __init__(self, path: Path, command: str, manifest: Mapping[str, Any]):
        """Of a locked folder, as `held` makes it."""
        self.path, self._command = path, command
        self._listed = set(manifest.get("files", ()))
        self._used = self._listed & {CONFIG, METRICS, RUNS, CHECKPOINTS, TENSORBOARD}

    def file(self, name: str) -> Path:
        """The path of a file or folder inside that is to be written, and is noted as the command's.

        Raises:
          UserError: there is one of this name that the command did not write.
          WriteError: the manifest cannot be written.
        """
        if name not in self._listed:
            if os.path.lexists(self.path / name):
                raise UserError(
                    f"{self.path / name} is there already, and experiments.{self._command} did not "
                    "write it: move it away, or pass another --out or --name."
                )
            self._listed.add(name)
            self._note()
        self._used.add(name)
        return self.path / name

    def open(self, config: Mapping[str, Any], *, overwrite: bool) -> None:
        """Goes on with results of the same config, or else begins anew.

        Raises:
          UserError: the results are of another config.
          WriteError: there is no room.
        """
        if overwrite or not self.holds_results():
            self.begin(config)
        else:
            check_config(self.path, config)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Sets aside all that the command wrote, and writes a config.

        Raises:
          WriteError: there is no room.
        """
        there = [name for name in self._listed if os.path.lexists(self.path / name)]
        if there:
            aside = self.path / _SETTING_ASIDE
            kept = self.path / REPLACED
            try:
                aside.mkdir()
                for name in there:
                    os.rename(self.path / name, aside / name)
                kept.mkdir(exist_ok=True)
                os.rename(aside, kept / str(1 + max(_numbers(kept), default=0)))
            except OSError as error:
                raise WriteError(f"cannot write in {self.path}: {words.said(error)}") from error
        files.write_json(self.file(CONFIG), config)

    def done(self) -> None:
        """The results are complete: what they replace is removed."""
        for name in self._listed - self._used:
            _remove(self.path / name)
        self._listed = set(self._used)
        self._note()
        for number in _numbers(self.path / REPLACED):
            _remove(self.path / REPLACED / str(number))
        with contextlib.suppress(OSError):
            (self.path / REPLACED).rmdir()

    def holds_results(self) -> bool:
        """Whether anything was saved that is worth keeping."""
        return any(
            _is_worth(self.path / name) for name in self._listed - {CONFIG, METRICS, TENSORBOARD}
        )

    def tidy(self) -> None:
        """Undoes what a process that ended in the middle has left half done."""
        for name in self._listed:
            _remove(files.part_of(self.path / name))
        _remove(files.part_of(self.path / MANIFEST))
        if (self.path / _SETTING_ASIDE).exists():
            self._put_back()
        kept = self.path / REPLACED
        latest = max(_numbers(kept), default=None)
        if latest is not None and not self.holds_results():
            for name in self._listed:
                _remove(self.path / name)
            os.rename(kept / str(latest), self.path / _SETTING_ASIDE)
            self._put_back()
            with contextlib.suppress(OSError):
                kept.rmdir()

    def _put_back(self):
        aside = self.path / _SETTING_ASIDE
        for name in os.listdir(aside):
            os.replace(aside / name, self.path / name)
        aside.rmdir()

    def _note(self):
        files.write_json(
            self.path / MANIFEST, {"command": self._command, "files": sorted(self._listed)}
        )


@contextlib.contextmanager
def held(path: Path, command: str, *, again: str = "the same command goes on") -> Iterator[Folder]:
    """A folder of a command, for this process alone; a killed process holds it no longer.

    A folder in which nothing was written is not there afterwards, if it was not before.

    Args:
      path: of the folder.
      command: the name of the module in `experiments`.
      again: what to do where the disk is full and was made room on.

    Raises:
      UserError: the folder is another's, another process holds it, or it cannot be written.
    """
    check(path, command)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
    except OSError as error:
        _remove_empty(made)
        raise UserError(
            f"cannot write to {path}: {words.said(error)}. Pass another --out or --name."
        ) from error
    try:
        with lock, _unlocking(path / LOCK):
            folder = Folder(path, command, check(path, command))
            folder.tidy()
            try:
                yield folder
            finally:
                with contextlib.suppress(OSError):
                    folder.tidy()
    except WriteError as error:
        raise WriteError(
            f"{error}. What was written before is kept: make room, and {again}."
        ) from error
    finally:
        _remove_empty(made)


@contextlib.contextmanager
def _unlocking(lock):
    """Removes the file of a lock at the end, while it is still held."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()


def settle(path: Path, command: str) -> None:
    """Undoes what a process that was killed has left half done in a folder, if there is any.

    Raises:
      UserError: as `held`.
    """
    if check(path, command) and any((path / name).exists() for name in (REPLACED, _SETTING_ASIDE)):
        with held(path, command):
            pass


@contextlib.contextmanager
def anew(
    path: Path, command: str, config: Mapping[str, Any], *, overwrite: bool = True
) -> Iterator[Folder]:
    """A held folder whose results are made anew by each start of the command.

    Args:
      path: of the folder.
      command: the name of the module in `experiments`.
      config: its options.
      overwrite: whether they may replace those of other options.

    Raises:
      UserError: as `held`, or there are results of other options.
    """
    with held(path, command, again="start the command again") as folder:
        if folder.holds_results() and not overwrite:
            check_config(path, config)
        folder.begin(config)
        yield folder
        folder.done()


def _locked(path):
    """The open file of the lock."""
    while True:
        lock = (path / LOCK).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed it since it was opened.
            if os.path.exists(path / LOCK) and os.path.samestat(
                os.fstat(lock.fileno()), os.stat(path / LOCK)
            ):
                return lock
        except BlockingIOError as error:
            lock.close()
            raise UserError(
                f"another process works in {path}: wait for it, or pass another --name."
            ) from error
        except FileNotFoundError:
            pass
        except OSError:
            lock.close()
            raise
        lock.close()


def _is_worth(path):
    """Whether a result is there: a file that is not empty, or a checkpoint that is whole."""
    if path.name == CHECKPOINTS:
        return has_checkpoints(path.parent)
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _numbers(kept):
    """The numbers of what was set aside; what else lies there is another's."""
    try:
        return [int(name) for name in os.listdir(kept) if name.isdecimal()]
    except FileNotFoundError:
        return []


def _remove(path):
    """Removes a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(made):
    """Removes folders that are empty, innermost first."""
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()
