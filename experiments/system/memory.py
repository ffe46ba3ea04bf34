"""How much memory there is."""

import os

import jax

from experiments.system.errors import UserError


def check(needed: float, what: str) -> None:
    """Raises where something takes more than all memory that there is.

    Args:
      needed: bytes.
      what: takes them, with the option to change.

    Raises:
      UserError: it does.
    """
    there = available()
    if needed > there:
        raise UserError(
            f"{what} takes at least {needed / 1e9:,.1f} GB, and there are {there / 1e9:,.1f} GB of "
            "memory: pass less."
        )


def available() -> int:
    """Bytes of memory of this machine and of its accelerators."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    devices = sum(
        (device.memory_stats() or {}).get("bytes_limit", 0)
        for device in jax.local_devices()
        if device.platform != "cpu"
    )
    return machine + devices
