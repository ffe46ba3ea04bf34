"""With which device, versions and code a result came about."""

from importlib import metadata
from pathlib import Path
import platform
import subprocess
from typing import Any

import jax

PACKAGES = ("sam_optax", "jax", "jaxlib", "optax", "flax", "tensorflow-datasets", "numpy")


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
