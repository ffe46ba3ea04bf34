"""What XLA is told before it starts, and where compiled programs are kept."""

import importlib.util
import os
from pathlib import Path
import subprocess
import sys

from inprocess import command, read
import jax
import jaxlib
import pytest

from experiments import train
from experiments.results import numerics
from experiments.system import compiler

SHORT = ("digits", "--epochs", 1, "--train-examples", 128, "--batch-size", 64, "--width", 4)
CACHE = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def plugin(monkeypatch):
    """A machine where JAX's plugin for GPUs is installed, and no platform is asked for."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: found("json" if name == "jax_plugins" else name, *more),
    )
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", before)


@pytest.fixture
def cache():
    """JAX without a folder for programs."""
    before = {name: jax.config.values[name] for name in CACHE}
    jax.config.update(CACHE[0], None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def accelerator(monkeypatch, cache, tmp_path):
    """What JAX says where its devices are no CPUs; the home is a folder of the test."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


# Deterministic operations


@pytest.mark.parametrize(
    ("flags", "after"),
    [
        ("", "--xla_gpu_deterministic_ops=true"),
        ("--mine=1", "--mine=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
        (
            "--xla_gpu_exclude_nondeterministic_ops=true",
            "--xla_gpu_exclude_nondeterministic_ops=true",
        ),
    ],
)
def test_what_the_users_flags_do_not_say_is_added(plugin, monkeypatch, flags, after):
    monkeypatch.setenv("XLA_FLAGS", flags)
    compiler.make_deterministic()
    assert os.environ["XLA_FLAGS"] == after


def test_without_a_gpu_the_flags_stay(plugin, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--mine=1")
    jax.config.update("jax_platforms", "cpu")
    compiler.make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--mine=1"
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    compiler.make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--mine=1"


BEFORE = """
import os
import sys
import jax
from experiments import train
from experiments.cli import command
from experiments.system import compiler

def told():
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=3"

def main(options):
    print(jax.device_count())

compiler.make_deterministic = told
main.__module__ = train.__name__
sys.argv = ["train", *sys.argv[1:]]
command.run(main, train.Options)
"""


@pytest.mark.parametrize(("arguments", "devices"), [((), 3), (("--no-deterministic",), 1)])
def test_the_flags_are_set_before_jax_reads_them(arguments, devices):
    """Shown by a flag that can be seen on a CPU; an option leaves them."""
    found = subprocess.run(
        [sys.executable, "-c", BEFORE, *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) == devices


@pytest.fixture
def run(monkeypatch, tmp_path, data_dir):
    """Trains a run of a name, and gives the exit status."""
    monkeypatch.setattr("os._exit", sys.exit)

    def run(*arguments):
        where = ("--name", "run", "--data-dir", data_dir, "--out", tmp_path)
        try:
            command(monkeypatch, train, *SHORT, *where, *arguments)
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def test_on_a_cpu_the_setting_makes_no_other_run(run, plugin, monkeypatch, tmp_path, capsys):
    """A run from before there was one goes on, and so does one of another setting."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    assert run("--no-deterministic") == 0
    before = read(tmp_path / "run" / "config.json")
    assert run() == 0
    assert compiler.FLAG in os.environ["XLA_FLAGS"]
    assert "already finished" in capsys.readouterr().out
    assert run("--overwrite") == 0
    assert read(tmp_path / "run" / "config.json") == before
    assert "deterministic" not in str(before)


def test_on_a_gpu_another_setting_is_another_run(run, plugin, monkeypatch, tmp_path, capsys):
    flags = os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert run() == 0
    config = read(tmp_path / "run" / "config.json")
    assert f"{compiler.FLAG}=true" in config["jax"]["XLA_FLAGS"].split()
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert run("--no-deterministic", "--resume") == 2
    said = capsys.readouterr().err
    assert "with other --deterministic or --no-deterministic (--xla_gpu_determ" in said
    assert run("--resume") == 0


def test_other_flags_are_told_by_their_name():
    held = {"jax": {"XLA_FLAGS": ""}}
    for flags in ("--other=1", "--other=1 --xla_gpu_deterministic_ops=true"):
        assert numerics.differing(held, {"jax": {"XLA_FLAGS": flags}}) == ["XLA_FLAGS"]


# Compiled programs


def test_programs_are_kept_on_an_accelerator(accelerator, tmp_path):
    compiler.keep_programs()
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.is_dir()
    assert folder.parent == tmp_path / ".cache" / "sam_optax" / "jax"
    assert folder.name == f"cpu-jax_{jax.__version__}-jaxlib_{jaxlib.__version__}"
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_the_folder_of_caches_is_the_users(accelerator, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    compiler.keep_programs()
    assert jax.config.jax_compilation_cache_dir.startswith(f"{tmp_path}/mine/sam_optax/jax/")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before


def test_a_folder_that_the_user_names_stays(accelerator, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "mine")
    compiler.keep_programs()
    assert jax.config.jax_compilation_cache_dir == "mine"
    assert not list(tmp_path.iterdir())


def test_none_is_kept_on_a_cpu(cache):
    compiler.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_written_is_told(accelerator, tmp_path, capsys):
    (tmp_path / ".cache").write_text("no folder")
    compiler.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    said = capsys.readouterr().err
    assert said.startswith("warning: compiled programs are not kept")
    assert "JAX_COMPILATION_CACHE_DIR" in said


def test_every_trainer_of_a_command_keeps_programs(run, monkeypatch):
    called = []
    monkeypatch.setattr(compiler, "keep_programs", lambda: called.append(True))
    assert run() == 0
    assert called
