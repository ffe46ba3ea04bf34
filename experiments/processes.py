"""Several processes that train one model: finding each other, agreeing, and ending together."""

import contextlib
import os
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

# Seconds after which a process that is gone has been missed.
HEARTBEAT = 20


class NoConnectionError(Exception):
    """The processes cannot work together; the message says what to pass."""


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
      NoConnectionError: an argument is missing, or the others did not come.
    """
    named = coordinator not in (None, "auto")
    if named != (process_id is not None) or named != (num_processes is not None):
        raise NoConnectionError(
            "--coordinator HOST:PORT, --process-id and --num-processes go together; --coordinator "
            "auto stands alone, and JAX finds the others in the environment."
        )
    if named and not 0 <= process_id < num_processes:
        raise NoConnectionError(
            f"--process-id must lie in [0, {num_processes}), got {process_id}: number the "
            "processes from 0."
        )
    # Many queued collectives on few cores need a larger thread pool.
    os.environ.setdefault("NPROC", "16")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # where JAX has made its devices already
            jax.config.update("jax_num_cpu_devices", max(1, devices // (num_processes or 1)))
    if coordinator is None:
        return
    try:
        jax.distributed.initialize(
            coordinator if named else None,
            num_processes,
            process_id,
            initialization_timeout=120,
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


def check_alike(options: str) -> None:
    """Compares what the processes were asked for, before they wait for each other in vain.

    Raises:
      NoConnectionError: it is not the same.
    """
    number = zlib.crc32(options.encode()) >> 1
    high, low = agree((number, -number))
    if high != -low:
        raise NoConnectionError(
            "the processes were started with different options: give all of them the same, but for "
            "--process-id, --out and --data-dir."
        )


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The largest of each number over all processes."""
    if jax.process_count() == 1:
        return numbers
    found = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
    return tuple(map(int, found.max(axis=0)))
