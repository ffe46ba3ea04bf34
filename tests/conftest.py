"""Eight virtual devices and quick compilation, before JAX starts; float64 where a test asks."""

import ctypes
import gc
from importlib.metadata import version
import os
from pathlib import Path

FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    # Small programs that run once: what takes long is to compile them.
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
# Later versions may lack them, and XLA ends where it does not know one.
if version("jaxlib").startswith("0.10."):
    # Twice as long for small programs as the emitters before them.
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
    # A small program is not worth 32 modules.
    FLAGS["--xla_cpu_parallel_codegen_split_count"] = "1"

# Many queued collectives on few cores need a larger thread pool.
os.environ.setdefault("NPROC", "16")
for name, value in FLAGS.items():
    if name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {name}={value}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS directory with digits prepared."""
    from experiments.data import sets  # which not every room needs

    path = tmp_path_factory.mktemp("tfds")
    sets.load("digits", data_dir=path)
    return path


@pytest.fixture(scope="session")
def digits(data_dir):
    """The digits."""
    from experiments.data import sets

    return sets.load("digits", data_dir=data_dir)


@pytest.fixture
def x64():
    """Float64 arrays for one test."""
    with jax.enable_x64(True):
        yield


class Programs:
    """Forgets all compiled programs once they take much memory: a worker would grow to 5 GB."""

    MOST = 1200  # megabytes
    FEWEST = 100  # programs, to forget fewer is not worth what is compiled again

    def __init__(self):
        """None so far."""
        self._count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event, duration, **more):
        self._count += event == "/jax/core/compile/backend_compile_duration"

    def pytest_runtest_teardown(self, nextitem):
        if self._count < self.FEWEST or resident() < self.MOST:
            return
        self._count = 0
        jax.clear_caches()
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # of GNU, which keeps it otherwise
            libc.malloc_trim(0)


def resident():
    """Megabytes that this process holds; all that there is where the system is not Linux."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return float("inf")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.fixture
def refused(run, capsys):
    """Runs a module's command by its fixture `run`, which is to fail, and gives what it says."""

    def refused(*arguments):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return refused


def pytest_configure(config):
    """Keeps compiled programs from run to run, in pytest's own cache, and few in memory."""
    config.pluginmanager.register(Programs())
    if hasattr(config, "cache"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
