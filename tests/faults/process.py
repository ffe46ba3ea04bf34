"""Commands in processes of their own: forks of this one, which has imported all that is heavy.

A fork begins where the imports of `python -m` have ended, so that a command takes a second and not
four. JAX starts its backend in the fork: here it never runs.
"""

import atexit
import base64
from collections.abc import Callable, Sequence
import faulthandler
import gc
import importlib
import io
import os
from pathlib import Path
import pickle
import resource
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

from experiments.data import reading

OUT = "../../out"  # of every case from where it starts, so that results can be copied
# Small programs that run once: what takes long is to compile them.
FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
LIMIT = 120.0  # seconds
BEGUN = "begun"  # there once the package heeds signals, before which Python itself ends
PYTHON = 1.0  # seconds of a process anew until then, at most
MEMORY = 16 * 2**30  # bytes of addresses: what is larger is a mistake, and told as one
MODULES = {
    "train": "experiments.train",
    "compare": "experiments.compare",
    "sweep": "experiments.sweep",
    "analyze": "experiments.analyze",
    "robustness": "experiments.robustness",
    "evaluate": "experiments.evaluate",
    "tables": "experiments.tables",
    "toy": "experiments.toy",
    "benchmark": "experiments.benchmark.__main__",
    "growth": "experiments.benchmark.growth",
    "scaling": "experiments.scaling",
    "gpu_check": "experiments.gpu_check",
    "recipes": "experiments.recipes.__main__",
    "pipeline": "experiments.benchmark.pipeline",
}


class Place(NamedTuple):
    """The folders of one case.

    Attributes:
      root: holds all of them.
      shared: what all cases read: data, trained runs, compiled programs, the code.
    """

    root: Path
    shared: Path

    @property
    def world(self) -> Path:
        """What a command could write to by mistake: its parents and neighbours."""
        return self.root / "world"

    @property
    def cwd(self) -> Path:
        """Where the command starts."""
        return self.world / "cwd"

    @property
    def home(self) -> Path:
        """The home of its user."""
        return self.world / "home"

    @property
    def out(self) -> Path:
        """Where its results go."""
        return self.root / "out"

    def make(self) -> "Place":
        """Makes all folders anew, empty."""
        shutil.rmtree(self.root, ignore_errors=True)
        for folder in (self.cwd, self.home, self.out, self.root / "tmp"):
            folder.mkdir(parents=True)
        return self

    def environment(self) -> dict[str, str]:
        """The variables of a command."""
        return {
            "HOME": str(self.home),
            "TMPDIR": str(self.root / "tmp"),
            "MPLCONFIGDIR": str(self.shared / "matplotlib"),
            "MPLBACKEND": "agg",
            "COLUMNS": "200",
            "XLA_FLAGS": FLAGS,
            "NPROC": "16",
            "JAX_COMPILATION_CACHE_DIR": str(self.shared / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
            "PYTHONPATH": str(self.shared / "code"),
        }


class Command(NamedTuple):
    """A command and its words; `python -m MODULE WORD …`."""

    name: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        module = MODULES[self.name].removesuffix(".__main__")
        return f"python -m {module} {' '.join(map(quoted, self.words))}"


class Ended(NamedTuple):
    """What became of a command.

    Attributes:
      code: its exit status, negative for the signal that ended it; None where it took too long.
      out: what it said on standard output.
      err: what it said on standard error.
      seconds: how long it took.
      left: whether a process that it started was there still, long after its end.
      stack: where a command that took too long was.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    left: bool = False
    stack: str = ""


def quoted(word: str) -> str:
    """A word as a shell takes it, whatever it is made of."""
    if word and all(c.isascii() and (c.isalnum() or c in "_-./=,+:@") for c in word):
        return word
    encoded = word.encode("utf-8", "surrogateescape")
    if word.isprintable():
        return "'" + word.replace("'", "'\\''") + "'"
    return (
        "$'"
        + "".join(chr(b) if 32 < b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in encoded)
        + "'"
    )


def preload(shared: Path) -> None:
    """Imports all that the commands import, of the code that lies among what is shared."""
    place = Place(shared, shared)
    for name, value in place.environment().items():
        if name not in ("HOME", "TMPDIR"):
            os.environ[name] = value
    sys.path.insert(0, str(shared / "code"))
    import jax
    import matplotlib.pyplot  # noqa: F401 - the commands import it as they draw

    for module in MODULES.values():
        importlib.import_module(module)
    assert not jax._src.xla_bridge._backends, "a backend does not survive a fork"
    gc.collect()
    gc.freeze()


def run(
    command: Command,
    place: Place,
    *,
    signals: Sequence[tuple[float, int]] = (),
    stdout: str = "file",
    real: bool = False,
    before: Callable[[], Any] | None = None,
    limit: float = LIMIT,
) -> Ended:
    """Runs a command to its end.

    Args:
      command: what to run.
      place: where.
      signals: seconds from its start and the number of each signal it gets.
      stdout: what its standard output is: a "file", a "full" disk or a "closed" pipe.
      real: whether to start Python anew, imports and all.
      before: called in the fork before the command starts.
      limit: seconds that it may take.
    """
    start = time.monotonic()
    outputs = _outputs(place, stdout)
    try:
        if real:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    MODULES[command.name].removesuffix(".__main__"),
                    *command.words,
                ],
                cwd=place.cwd,
                env={**os.environ, **place.environment()},
                stdin=subprocess.DEVNULL,
                stdout=outputs[0],
                stderr=outputs[1],
                start_new_session=True,
                preexec_fn=_default_signals,
            )
            pid = process.pid
        else:
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if not pid:
                _child(command, place, outputs, before)
    finally:
        for output in outputs:
            os.close(output)
    code, stack = _wait(pid, start, signals, limit, place)
    if real:
        process.returncode = code
    seconds = time.monotonic() - start
    said = (place.root / name for name in ("stdout", "stderr"))
    out, err = (p.read_text(errors="backslashreplace") if p.exists() else "" for p in said)
    return Ended(code, out, err, seconds, _left(pid), stack)


def _outputs(place, stdout):
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    err = os.open(place.root / "stderr", flags)
    if stdout == "full":
        return os.open("/dev/full", os.O_WRONLY), err
    if stdout == "closed":
        read, write = os.pipe()
        os.close(read)
        return write, err
    return os.open(place.root / "stdout", flags), err


def _default_signals():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _child(command, place, outputs, before):
    """The fork: the command, and the end of the interpreter as it would be; never returns."""
    code = 1
    try:
        os.setsid()
        _default_signals()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, output in enumerate(outputs, 1):
            os.dup2(output, number)
        # As at the start of Python, with nothing in the buffers.
        old = sys.stdout, sys.stderr  # noqa: F841 - their end would close the files
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = io.TextIOWrapper(
            open(2, "wb", buffering=0, closefd=False),  # noqa: SIM115
            encoding="utf-8",
            errors="backslashreplace",
            write_through=True,
        )
        os.chdir(place.cwd)
        os.environ.update(place.environment())
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        stack = open(place.root / "stack", "w")  # noqa: SIM115
        faulthandler.register(signal.SIGUSR1, stack)
        _draw_nothing()
        if before is not None:
            before()
        # What the package does for `python -m`, which calls a module so while it imports it.
        sys.argv = ["-m", *command.words]
        importlib.reload(sys.modules["experiments"])
        (place.root / BEGUN).touch()
        module = MODULES[command.name]
        sys.argv = [module, *command.words]
        sys.modules.pop(module, None)  # it is run, and was imported only for what it imports
        code = _ends(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))
        ended = _ends(threading._shutdown) or _ends(atexit._run_exitfuncs)
        code = code or ended
        try:
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            print(
                "Exception ignored in: <_io.TextIOWrapper name='<stdout>' mode='w' "
                f"encoding='utf-8'>\n{type(error).__name__}: {error}",
                file=sys.stderr,
            )
            code = 120
    finally:
        os._exit(code)


def _draw_nothing():
    """Pictures are a dot: to draw them takes longer than all else."""
    from matplotlib.figure import Figure

    dot = (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5E"
        "rkJggg=="
    )
    Figure.savefig = lambda self, path, **how: Path(path).write_bytes(base64.b64decode(dot))


def remember(data_dir: Path) -> None:
    """Reads digits once for all forks; in one of them, since readers leave threads behind."""
    from experiments.data import sets

    held = data_dir.with_name("digits.pickle")
    pid = os.fork()
    if not pid:
        try:
            sets.load("digits", data_dir=data_dir)
            held.write_bytes(pickle.dumps(reading._last))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    reading._last.update(pickle.loads(held.read_bytes()))


def _ends(function):
    """The exit status that a call ends with, as at the top of a program."""
    try:
        function()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _wait(pid, start, signals, limit, place):
    """The exit status, and the stack of what took too long."""
    waiting, stack = sorted(signals), ""
    descriptor = os.pidfd_open(pid)
    try:
        while True:
            now = time.monotonic() - start
            while waiting and waiting[0][0] <= now:
                _send(pid, waiting.pop(0)[1])
            until = waiting[0][0] if waiting else limit
            ready, _, _ = select.select([descriptor], [], [], max(0.0, until - now))
            if ready:
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stack
            if not waiting and time.monotonic() - start >= limit:
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.5)
                held = place.root / "stack"
                stack = held.read_text() if held.exists() else ""
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None, stack
    finally:
        os.close(descriptor)


def _send(pid, number):
    """A signal as it comes: Ctrl-C to all processes of the terminal, others to the one."""
    try:
        if number == signal.SIGINT:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        pass


def _left(pid):
    """Whether processes of an ended command are there still after five seconds; ends them."""
    for _ in range(100):
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    return True
