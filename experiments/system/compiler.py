"""What XLA is told before it starts, and where what it compiled is kept."""

import importlib.util
import os
from pathlib import Path

import jax
import jaxlib

from experiments.system import output, words

FLAG = "--xla_gpu_deterministic_ops"
# The user's own word on it, under its present name or its other one.
_SAID = (FLAG, "--xla_gpu_exclude_nondeterministic_ops")
_FOLDER, _SHORTEST = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def make_deterministic() -> None:
    """Has XLA take operations that give the same bits in every process, where there may be a GPU.

    It is to be called before JAX's backend starts, which reads the flags once. What the user's
    `XLA_FLAGS` say of it stays as it is.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _may_be_gpu() and not any(flag.startswith(_SAID) for flag in flags.split()):
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=true".strip()


def _may_be_gpu():
    """Whether JAX could find a GPU: its plugin is installed, and no other platform is asked for."""
    asked = (jax.config.jax_platforms or "gpu").split(",")
    return bool({"gpu", "cuda", "rocm"} & set(asked)) and bool(
        importlib.util.find_spec("jax_plugins")
    )


def keep_programs() -> None:
    """Keeps compiled programs, and the kernels that were found best, for later processes.

    In a folder for each kind of accelerator and version, ~/.cache/sam_optax/jax/…, or wherever
    `JAX_COMPILATION_CACHE_DIR` says. Not on CPU, as JAX does not tell CPUs apart that share a home
    directory, and a program of one may end on another. A folder that cannot be written is told, and
    nothing is kept. It asks for JAX's devices, so that other processes have to be found before.
    """
    if jax.default_backend() == "cpu" or jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = default_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "no permission to write there", str(folder))
    except (OSError, RuntimeError) as error:  # of a home that there is not
        output.tell(
            f"warning: compiled programs are not kept, as their folder cannot be written "
            f"({words.said(error)}): pass another in {_FOLDER}, or HOME."
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _SHORTEST not in os.environ:  # JAX keeps none that takes less than a second
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def default_folder() -> Path:
    """Where programs for this kind of device and these versions are kept.

    Raises:
      RuntimeError: there is no home directory.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = "".join(c if c.isalnum() else "_" for c in jax.devices()[0].device_kind)
    versions = f"jax_{jax.__version__}-jaxlib_{jaxlib.__version__}"
    return Path(cache) / "sam_optax" / "jax" / f"{kind}-{versions}"
