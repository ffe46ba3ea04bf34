"""Several processes that train one model: finding each other, agreeing, and ending together."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import json
import os
from pathlib import Path
import secrets
import signal
import socket
import sys
import time
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from experiments.system.errors import UserError

# Seconds: for the processes to find each other, after which one that is gone has been missed, and
# for a file of one to be seen by the others, since network file systems look again late.
CONNECTING, HEARTBEAT, SEEING = 120, 20, 30


class NoConnectionError(Exception):
    """The processes cannot work together; the message says what to pass."""


class LostProcessError(Exception):
    """Another process is gone, and with it what was to be computed together."""


def connect(
    coordinator: str | None, process_id: int | None, num_processes: int | None, *, devices: int
) -> None:
    """Joins the other processes, before JAX computes anything.

    Args:
      coordinator: the address of process 0, host:port; "auto" where JAX finds it in the environment
        (Slurm, Open MPI, Kubernetes, a cloud TPU); None for one process alone.
      process_id: of this process, from 0.
      num_processes: how many there are.
      devices: of all processes. On CPU each makes its share of them.

    Raises:
      NoConnectionError: an argument is missing or wrong, or process 0 is not to be reached. Where
        others do not come to process 0, JAX ends it.
    """
    named = coordinator not in (None, "auto")
    if named != (process_id is not None) or named != (num_processes is not None):
        raise NoConnectionError(
            "--coordinator HOST:PORT, --process-id and --num-processes go together; --coordinator "
            "auto stands alone, and JAX finds the others in the environment."
        )
    if named and num_processes < 1:
        raise NoConnectionError(f"--num-processes must be at least 1, got {num_processes}.")
    if named and not 0 <= process_id < num_processes:
        raise NoConnectionError(
            f"--process-id must lie in [0, {num_processes}), got {process_id}: number the "
            "processes from 0."
        )
    # Many queued collectives on few cores need a larger thread pool.
    os.environ.setdefault("NPROC", "16")
    if coordinator is None:
        _make_devices(devices)
        return
    if named:
        host, port = _address(coordinator)
        if process_id:
            _reach(host, port)
        else:
            _check_free(port)
        if process_id == 0 < num_processes - 1:
            others = "1 other process" if num_processes == 2 else f"{num_processes - 1} others"
            print(f"waiting for {others} at {coordinator}", file=sys.stderr, flush=True)
    # Else JAX itself catches SIGTERM, and nothing comes of it.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX waits in code that Python's handler of Ctrl-C does not reach.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        jax.distributed.initialize(
            coordinator if named else None,
            num_processes,
            process_id,
            initialization_timeout=CONNECTING,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        if not named:
            raise NoConnectionError(
                "JAX finds no Slurm, cloud TPU or other cluster in the environment: pass "
                "--coordinator HOST:PORT, --process-id and --num-processes."
            ) from error
        raise NoConnectionError(
            f"the processes did not find each other at {coordinator} "
            f"({str(error).strip().partition(chr(10))[0]:.200}): start every process with the same "
            "--coordinator and --num-processes."
        ) from error
    finally:
        signal.signal(signal.SIGINT, handler)
    if count := num_processes or _count_in_environment():
        _make_devices(devices // count)


def _count_in_environment():
    """How many processes JAX has found there, where they may be on CPU; else 0.

    JAX itself tells it only with its devices, of which it then has made its own number.
    """
    for sign, count in (
        ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
    ):
        if sign in os.environ:
            return int(os.environ.get(count, 0))
    return 0


def _make_devices(count):
    """So many on CPU, unless the environment says how many."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # where JAX has made its devices already
            jax.config.update("jax_num_cpu_devices", max(1, count))


def _address(coordinator):
    """Host and port; JAX would wait for a wrong one in vain, and abort."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise NoConnectionError(
            "--coordinator must read HOST:PORT, such as 10.0.0.1:7000, with a port below 65536, or "
            f"auto, got {coordinator!r}."
        )
    host = host.strip("[]")
    try:
        socket.getaddrinfo(host, int(port))
    except OSError as error:
        raise NoConnectionError(
            f"--coordinator {coordinator} names no host that this machine knows ({error}): pass "
            "the address of process 0."
        ) from error
    return host, int(port)


def _check_free(port):
    """Raises where another program listens; JAX would crash."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise NoConnectionError(
            f"process 0 cannot listen at port {port} ({error}): pass another in --coordinator."
        ) from error


def _reach(host, port):
    """Waits until process 0 listens; where JAX itself waits in vain it aborts."""
    deadline = time.monotonic() + CONNECTING
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise NoConnectionError(
                    f"process 0 does not listen at {host}:{port} ({error}): start it with the same "
                    "--coordinator, an address of its machine that the others can reach."
                ) from error
        time.sleep(0.2)


def union(words: Iterable[str]) -> list[str]:
    """The words of all processes, each once and in order; they may be any, such as file names."""
    # JSON tells where one ends, and surrogatepass takes what no text in UTF-8 holds.
    how = ("utf-8", "surrogatepass")
    own = json.dumps(list(words), ensure_ascii=False).encode(*how)
    (longest,) = agree((len(own),))
    padded = np.frombuffer(own.ljust(longest), np.uint8)
    several = multihost_utils.process_allgather(padded) if jax.process_count() > 1 else [padded]
    return sorted({word for row in several for word in json.loads(row.tobytes().decode(*how))})


def check_alike(options: str) -> None:
    """Compares what the processes were asked for, before they wait for each other in vain.

    Raises:
      NoConnectionError: it is not the same.
    """
    number = zlib.crc32(options.encode("utf-8", "backslashreplace")) >> 1
    high, low = agree((number, -number))
    if high != -low:
        raise NoConnectionError(
            "the processes were started with different options: give all of them the same, but for "
            "--process-id and the paths."
        )


def check_shared(folder: Path) -> None:
    """Looks for a file that process 0 writes into the folder, before all write there together.

    Raises:
      NoConnectionError: another process does not see it.
      OSError: process 0 cannot write there.
    """
    if jax.process_count() == 1:
        return
    (number,) = agree((secrets.randbelow(2**31 - 1) if is_first() else 0,))
    file = folder / f".sam_optax.{number}"
    try:
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            file.touch(exist_ok=False)
        deadline = time.monotonic() + SEEING
        while not (seen := file.exists()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        (missed,) = agree((not seen,))
    finally:
        if is_first():
            file.unlink(missing_ok=True)
    if missed:
        raise NoConnectionError(
            f"not all processes see what process 0 writes into {folder}: pass all of them an --out "
            "that they share, such as one on a network file system."
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within, an error that comes from the end of another process is a `LostProcessError`."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1 and _is_lost(error):
            raise LostProcessError(f"{str(error).partition(chr(10))[0]:.200}") from error
        raise


def _is_lost(error):
    """Whether a collective failed, or the error comes from that; Orbax says it in its own words."""
    if error is None:
        return False
    failed = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    if failed and "RESOURCE_EXHAUSTED" not in str(error):
        return True
    return _is_lost(error.__cause__) or _is_lost(error.__context__)


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def of_first(find: Callable[[], int]) -> int:
    """The number, not negative, that the first process finds.

    Raises:
      UserError: it finds none; in the other processes too, which would wait for it.
    """
    number, failed = 0, None
    if is_first():
        try:
            number = find()
        except UserError as error:
            failed = error
    (found,) = agree((number if is_first() and failed is None else -1,))
    if found < 0:
        raise failed or UserError("process 0 cannot go on, and says why.")
    return found


def agree(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The largest of each number over all processes."""
    if jax.process_count() == 1:
        return numbers
    found = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
    return tuple(map(int, found.max(axis=0)))
