"""What the commands promise beside their figures: nothing lost, nothing claimed wrongly."""

import contextlib
import dataclasses
import errno
import inspect
import json
import logging
import os
from pathlib import Path
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

from inprocess import command, read, undrawn
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import analyze, compare, gpu_check, robustness, sweep, toy, train
from experiments.analysis.trained import Trained
from experiments.cli import limits
from experiments.cli.command import run as run_command
from experiments.cli.options import TrainingOptions
from experiments.data import loading, sets
from experiments.recipes.base import of_config
from experiments.results import files, folders, markdown, numerics
from experiments.system import interrupt, memory
from experiments.system.errors import UserError
from experiments.system.output import Output
from experiments.training import fit
from experiments.training.checkpoints import CheckpointError, Checkpoints
from experiments.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
SHORT = ("digits", "--epochs", 2, "--train-examples", 128, "--batch-size", 64)


@pytest.fixture(autouse=True)
def interruptible():
    """In the background of a script SIGINT is ignored, as if it were not sent."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(monkeypatch, tmp_path, data_dir):
    """Runs a command, with its results below the test's folder, and gives its exit status."""
    monkeypatch.setattr("os._exit", sys.exit)
    undrawn(monkeypatch)

    def run(module, *arguments):
        fields = {field.name for field in dataclasses.fields(module.Options)}
        out = ["--out", tmp_path / ("toy" if module is toy else "")]
        where = ["--data-dir", data_dir] if "data_dir" in fields else []
        try:
            command(monkeypatch, module, *arguments, *where, *out)
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def interrupt_at(monkeypatch, epoch):
    """Sends SIGTERM behind an epoch."""
    means, sent = fit.means, []

    def watched(state, steps):
        if int(np.max(state.step)) == epoch * steps and not sent:
            sent.append(epoch)
            signal.raise_signal(signal.SIGTERM)
        return means(state, steps)

    monkeypatch.setattr(fit, "means", watched)


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_dir):
    """The finished runs "0" and "1" of these seeds, and "cut", an unfinished one."""
    out = tmp_path_factory.mktemp("made")
    more = ("--data-dir", data_dir, "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        for seed in (0, 1):
            command(patch, train, *SHORT, "--seed", seed, "--name", seed, *more)
        patch.setattr("os._exit", sys.exit)
        interrupt_at(patch, 1)
        with pytest.raises(SystemExit) as stop:
            command(patch, train, *SHORT, "--name", "cut", *more)
    assert stop.value.code == 143
    return out


@pytest.fixture
def finished(made, tmp_path):
    """A copy of a finished run, of the name "run"."""
    return shutil.copytree(made / "0", tmp_path / "run")


@pytest.fixture
def resume(made, tmp_path):
    """The words that go on with a copy of the unfinished run."""
    shutil.copytree(made / "cut", tmp_path / "cut")
    return ("--name", "cut", "--resume")


# Comparisons


def test_a_comparison_behaves_as_a_training(run, tmp_path, monkeypatch, capsys):
    """Finished is said, unfinished goes on, each run is kept, and so is the table."""
    trained, path = [], tmp_path / "digits-comparison"
    runs_of_trainer = fit.train

    def watched(trainer, loaded, *, seed, on_dispatch):
        trained.append((type(trainer.optimizer.method.init(np.ones(2))).__name__, seed))
        return runs_of_trainer(trainer, loaded, seed=seed, on_dispatch=on_dispatch)

    monkeypatch.setattr(compare, "train", watched)
    one = (*SHORT, "--methods", "sgd", "--seeds", 2)
    assert run(compare, *one) == 0
    whole = {name: (path / name).read_bytes() for name in ("table.json", "table.md")}
    assert (len(trained), "written to" in capsys.readouterr().out) == (2, True)
    assert run(compare, *one) == 0
    assert (len(trained), "already finished" in capsys.readouterr().out) == (2, True)
    assert {name: (path / name).read_bytes() for name in whole} == whole
    more = (*SHORT, "--methods", "sgd", "sam", "--seeds", 3)
    with monkeypatch.context() as patch:
        stop = compare._Comparison._check

        def stopped(self, *args):
            if len(trained) == 4:
                signal.raise_signal(signal.SIGINT)
            stop(self, *args)

        patch.setattr(compare._Comparison, "_check", stopped)
        assert run(compare, *more) == 130
    said = capsys.readouterr().err
    assert "3 runs are kept in" in said
    assert "the same command goes on" in said
    assert len(trained) == 4  # the third seed of sgd, and one of sam, which was given up
    assert {name: (path / name).read_bytes() for name in whole} == whole
    assert run(compare, *more) == 0
    assert len(trained) == 7
    assert [row["method"] for row in read(path / "table.json")["tables"]["equal epochs"]] == [
        "sgd",
        "sam",
    ]
    assert run(compare, *SHORT, "--methods", "sgd", "--seeds", 2, "--label-noise", 0.1) == 2
    assert "holds a run with other label_noise" in capsys.readouterr().err


def test_a_measurement_of_other_options_is_not_replaced(run, tmp_path, monkeypatch, capsys):
    made = []

    def measured(setup):
        made.append(setup.examples)
        yield {"name": "sgd", "milliseconds": 1.0}

    monkeypatch.setitem(gpu_check.PARTS, "steps", measured)
    check = (gpu_check, "--parts", "steps", "--examples")
    path = tmp_path / "gpu_check" / "gpu_check.json"
    assert run(*check, 256) == 0
    assert run(*check, 128) == 2
    assert "holds a run with other examples" in capsys.readouterr().err
    assert read(path)["options"]["examples"] == 256
    assert run(*check, 256) == 0
    assert run(*check, 128, "--overwrite") == 0
    assert read(path)["options"]["examples"] == 128
    assert made == [256, 256, 128]


# What a run goes on with


def changed_data(monkeypatch):
    """One image of the training split is another."""
    load = sets.load

    def other(*args, **kwargs):
        found = load(*args, **kwargs)
        entry = {**found.read["train"], "examples": found.read["train"]["examples"] - 1}
        return found._replace(read={**found.read, "train": entry})

    monkeypatch.setattr(sets, "load", other)


def test_a_run_does_not_go_on_with_other_data(run, resume, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        changed_data(patch)
        assert run(train, *SHORT, *resume) == 2
    assert "(train: 1,437 images then, 1,436 now)" in capsys.readouterr().err
    assert run(train, *SHORT, *resume) == 0


def test_what_was_measured_on_other_data_is_not_gone_on_with(run, monkeypatch, capsys):
    grid = (*SHORT, "--seeds", 1, "--over", "rho=0.1")
    assert run(sweep, *grid) == 0
    changed_data(monkeypatch)
    assert run(sweep, *grid, "--over", "weight_decay=0,1") == 2
    assert "holds a run with other data" in capsys.readouterr().err


def test_a_trained_run_is_not_looked_at_on_other_data(finished, data_dir, monkeypatch):
    trained = Trained(finished, data_dir)
    changed_data(monkeypatch)
    with pytest.raises(UserError, match=r"not those that .* was trained on"):
        _ = trained.data


CONFIGURED = ("JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE")


def test_the_generator_is_pinned(run, finished, tmp_path):
    """Whatever the environment says, which is read when JAX is imported."""
    before = {name: jax.config.values[name] for name in numerics.PINNED}
    jax.config.update("jax_default_prng_impl", "rbg")
    jax.config.update("jax_threefry_partitionable", False)
    try:
        assert run(train, *SHORT, "--name", "two") == 0
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    one, two = (read(tmp_path / name / "summary.json") for name in ("run", "two"))
    assert one["test_loss"] == two["test_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [*zip(CONFIGURED, ("rbg", "0"), strict=True)])
def test_the_environment_does_not_choose_the_generator(name, value, run, tmp_path, data_dir):
    assert run(train, *SHORT, "--name", "one") == 0
    words = [*SHORT, "--name", "two", "--data-dir", data_dir, "--out", tmp_path]
    start([*map(str, words)], env={name: value})
    one, two = (read(tmp_path / name / "summary.json") for name in ("one", "two"))
    assert one["test_loss"] == pytest.approx(two["test_loss"], rel=1e-5)
    assert one["test_accuracy"] == two["test_accuracy"]


def test_a_run_does_not_go_on_in_another_configuration(run, resume, monkeypatch, capsys):
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        assert run(train, *SHORT, *resume) == 2
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert "with other jax_default_matmul_precision" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_cpu_enable_fast_math=true")
        assert run(train, *SHORT, *resume) == 2
    assert "with other XLA_FLAGS" in capsys.readouterr().err
    assert run(train, *SHORT, *resume) == 0


# Of JAX's configuration, what changes no number: messages, checks, caches, devices and how they are
# found, transfers, and how programs are dumped or exported.
HARMLESS = {
    *("check_vma", "jax2tf_associative_scan_reductions", "jax2tf_default_native_serialization"),
    *("jax_array_garbage_collection_guard", "jax_auto_pcast", "jax_backend_target"),
    *("jax_captured_constants_report_frames", "jax_captured_constants_warn_bytes"),
    *("jax_check_proxy_envs", "jax_check_static_indices", "jax_check_tracer_leaks"),
    *("jax_compilation_cache_check_contents", "jax_compilation_cache_dir"),
    *("jax_compilation_cache_expect_pgle", "jax_compilation_cache_include_metadata_in_key"),
    *("jax_compilation_cache_max_size", "jax_compiler_detailed_logging_min_ops"),
    *("jax_cpu_collectives_implementation", "jax_cpu_enable_async_dispatch"),
    *("jax_cpu_get_global_topology_timeout_minutes", "jax_cpu_get_local_topology_timeout_minutes"),
    *("jax_cross_host_transfer_socket_address", "jax_cross_host_transfer_timeout_seconds"),
    *("jax_cross_host_transfer_transfer_size", "jax_cross_host_transport_addresses"),
    *("jax_cuda_visible_devices", "jax_debug_infs", "jax_debug_key_reuse", "jax_debug_nans"),
    *("jax_debug_leaked_clients_on_clear_backends", "jax_debug_log_modules"),
    *("jax_default_device", "jax_disable_bwd_checks", "jax_disable_vmap_shmap_error"),
    *("jax_disallow_mesh_context_manager", "jax_distributed_debug", "jax_dump_ir_modes"),
    *("jax_distributed_verify_secure_credentials", "jax_dump_ir_to"),
    *("jax_embedded_constants_max_bytes", "jax_enable_checks", "jax_enable_compilation_cache"),
    *("jax_enable_custom_prng", "jax_enable_preemption_service", "jax_enable_recoverability"),
    *("jax_error_checking_behavior_divide", "jax_error_checking_behavior_nan"),
    *("jax_error_checking_behavior_oob", "jax_experimental_unsafe_xla_runtime_errors"),
    *("jax_explain_cache_misses", "jax_export_calling_convention_version"),
    *("jax_export_deserialize_expired_versions", "jax_export_ignore_forward_compatibility"),
    *("jax_force_dcn_cross_host_transfers", "jax_hlo_source_file_canonicalization_regex"),
    *("jax_include_debug_info_in_dumps", "jax_include_full_tracebacks_in_locations"),
    *("jax_legacy_prng_key", "jax_log_checkpoint_residuals", "jax_log_compiles"),
    *("jax_logging_level", "jax_mock_gpu_topology", "jax_mosaic_allow_hlo"),
    *("jax_mosaic_unzip_debug_locations", "jax_mtls_ca_file", "jax_mtls_cert_file"),
    *("jax_mtls_key_file", "jax_mtls_peer_uri_prefix", "jax_mutable_array_checks"),
    *(
        "jax_no_execution",
        "jax_no_tracing",
        "jax_num_cpu_devices",
    ),
    *("jax_oneapi_visible_devices", "jax_pallas_auto_assign_collective_ids"),
    *("jax_pallas_auto_assign_collective_ids_limit", "jax_pallas_enable_debug_checks"),
    *("jax_pallas_poison_buffers", "jax_pallas_verbose_errors"),
    *("jax_persistent_cache_enable_xla_caches", "jax_persistent_cache_min_compile_time_secs"),
    *("jax_persistent_cache_min_entry_size_bytes", "jax_pgle_aggregation_percentile"),
    *("jax_pgle_profiling_runs", "jax_pjrt_client_create_options", "jax_platform_name"),
    *("jax_platforms", "jax_pprint_use_color", "jax_raise_on_ppermute_sort_diff"),
    *("jax_raise_persistent_cache_errors", "jax_refs_to_pins"),
    *("jax_remove_custom_partitioning_ptr_from_cache_key",),
    *("jax_remove_size_one_mesh_axis_from_type", "jax_rocm_visible_devices"),
    *("jax_send_traceback_to_runtime", "jax_serialization_version"),
    *("jax_share_binary_between_hosts", "jax_share_binary_between_hosts_timeout_ms"),
    *("jax_sort_devices_by_process_index", "jax_source_url_schema", "jax_thread_guard"),
    *("jax_traceback_filtering", "jax_traceback_in_locations_limit"),
    *("jax_tracer_error_num_traceback_frames",),
    *("jax_transfer_guard_device_to_device", "jax_transfer_guard_device_to_host"),
    *("jax_transfer_guard_host_to_device", "jax_use_cpp_shard_args", "jax_xla_backend"),
    *("jax_xla_profile_version", "mock_num_gpu_processes"),
}


def test_all_of_jaxs_configuration_is_recorded_or_known_to_change_nothing():
    """What a new version of JAX brings is to be put into one of the two lists."""
    assert set(jax.config.values) - set(numerics.RECORDED) - HARMLESS == set()
    assert set(numerics.RECORDED) & HARMLESS == set()


def test_nothing_goes_on_without_its_config(run, resume, tmp_path, capsys):
    (tmp_path / "cut" / "config.json").unlink()
    for other in (("--seed", 5), ("--set", "rho=0.3"), ("--label-noise", 0.2), ()):
        assert run(train, *SHORT, *resume, *other) == 2
        assert "without the config.json that tells their options" in capsys.readouterr().err
    assert folders.has_checkpoints(tmp_path / "cut")


def test_a_checkpoint_goes_on_under_no_other_config(run, resume, made, tmp_path, capsys):
    """Also where somebody has put another config beside it."""
    shutil.copy(made / "1" / "config.json", tmp_path / "cut" / "config.json")
    assert run(train, *SHORT, *resume, "--seed", 1) == 2
    assert "it is of a run with other options" in capsys.readouterr().err


def test_a_summary_of_another_run_counts_for_nothing(
    run,
    finished,
    made,
    data_dir,
    capsys,
):
    own = read(finished / "summary.json")
    shutil.copy(made / "1" / "summary.json", finished / "summary.json")
    with pytest.raises(UserError, match="its summary is that of another run"):
        Trained(finished, data_dir)
    assert run(train, *SHORT, "--name", "run") == 2
    assert "holds an unfinished run" in capsys.readouterr().err
    assert run(train, *SHORT, "--name", "run", "--resume") == 0
    assert read(finished / "summary.json")["test_loss"] == own["test_loss"]


# Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", ""), "unknown method ''"),
        (("--name", ""), "--name must be a plain name, got ''"),
        (("--crop-area", "nan", 1), "--crop-area must be a finite number, got nan"),
        (("--crop-area", 0.5, 0.1), "--crop-area must be two ascending shares in (0, 1]"),
        (("--crop-area", 0, 0.1), "--crop-area must be two ascending shares in (0, 1]"),
        (("--workers", -1), "--workers must be at least 0, got -1"),
        (("--set", "rho=True"), "rho"),
        (("--set", "axis_name=x"), "unknown setting of sam 'axis_name'"),
        (("--method", "asam", "--set", "weights=kernel"), "weights"),
        (("--method", "looksam", "--set", f"period={10**30}"), "period"),
        (("--set", f"rho={10**400}"), "rho"),
        (("--set", "rho=1", "rho=2"), "rho of sam is given twice"),
        (("--seed", 2**70), "--seeds must be at most 4,294,967,295"),
        (("--epochs", 10**30), "--epochs must be at most 1,000,000"),
        (("--checkpoint-minutes", "nan"), "--checkpoint-minutes must be a finite number"),
        (("--data-dir", "\udcff"), "is no UTF-8, as TFDS needs it"),
        (("--out", "~nobody_of_this_name/x"), "there is no such home directory"),
    ],
)
def test_a_mistaken_option_is_told(arguments, message, monkeypatch, data_dir, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, *SHORT, "--data-dir", data_dir, *arguments)
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert message.replace("there is no such home directory", "no such home") in said
    assert list(tmp_path.iterdir()) == []


def test_a_path_begins_at_the_home_directory(monkeypatch, data_dir, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    undrawn(monkeypatch)
    command(monkeypatch, toy, "--out", "~/toy")
    assert sorted(os.listdir(tmp_path)) == ["home"]
    assert (tmp_path / "home" / "toy" / "toy.json").exists()


SIZES = {
    "image_size": ("--image-size", 4096),
    "width": ("--width", 2**14),
    "batch_size": ("--batch-size", 2**20),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_beyond_its_bound_is_refused_before_anything_is_read(
    name, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: pytest.fail("data are read"))
    option, most = SIZES[name]
    assert run(train, *SHORT, option, most + 1) == 2
    assert f"{option} must be at most {most:,}, got {most + 1:,}" in capsys.readouterr().err


def test_what_exceeds_all_memory_is_refused_before_it_is_made(run, monkeypatch, capsys):
    """The bound is brought down to the sizes at hand, in place of sizes that no machine has."""
    monkeypatch.setattr(Trainer, "init", lambda *args, **kwargs: pytest.fail("it is made"))
    for most, said in ((10**4, "a batch of 64 images of 8 x 8"), (10**5, "training mlp of")):
        monkeypatch.setattr(memory, "available", lambda most=most: most)
        assert run(train, *SHORT) == 2
        assert f"{said}" in (told := capsys.readouterr().err)
        assert "of memory: pass less" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", limits.SEEDS + 1), "--seeds must"),
        (("--over", f"rho={','.join(map(str, range(1, 402)))}", "--seeds", 250), "100,250 runs"),
    ],
)
def test_too_many_runs_are_told_before_any_is_made(arguments, message, run, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: pytest.fail("data are read"))
    assert run(sweep, *SHORT, *arguments) == 2
    assert message in capsys.readouterr().err


def test_thousands_of_cells_are_checked_within_seconds(digits_data):
    options = sweep.Options(recipe="digits", validation=0)
    recipe = options.resolve()
    cells = [(recipe, "sam", {"rho": 0.001 * i}) for i in range(1, 2001)]
    made = []
    trainer = TrainingOptions.trainer

    def counted(self, *args, **kwargs):
        made.append(args)
        return trainer(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingOptions, "trainer", counted)
        options.check(cells, digits_data)
        with pytest.raises(UserError, match="rho"):
            options.check([*cells, (recipe, "sam", {"rho": -1})], digits_data)
    assert len(made) == 2


@pytest.fixture(scope="module")
def digits_data(data_dir):
    return sets.load("digits", data_dir=data_dir)


def test_a_sweep_holds_the_data_of_one_seed_at_a_time(run, monkeypatch):
    loaded = []
    load = TrainingOptions.load

    def watched(self, recipe, seed):
        loaded.append(seed)
        return load(self, recipe, seed)

    monkeypatch.setattr(TrainingOptions, "load", watched)
    figures = {"test_accuracy": 0.5, "sam_fraction": 1, "gradients_per_step": 2, "seconds": 1}
    monkeypatch.setattr(sweep, "train", lambda *args, **kwargs: figures)
    assert run(sweep, *SHORT, "--seeds", 3, "--over", "rho=0.1", "--validation", 0) == 0
    assert loaded == [1000, 1000, 1001, 1002]


# Files


DAMAGED = ("", "{", "[]", "5", "null", '"text"', "[" * 10**5, '{"a": 1}', "\x80", "{}")


@pytest.mark.parametrize("name", ["config.json", "summary.json", ".sam_optax.json"])
@pytest.mark.usefixtures("finished")
def test_json_that_is_no_object_or_not_whole_is_told(name, run, tmp_path, capsys):
    before = read(tmp_path / "run" / "summary.json")
    for text in DAMAGED:
        (tmp_path / "run" / name).write_text(text, encoding="latin-1")
        capsys.readouterr()
        assert run(train, *SHORT, "--name", "run") == 2
        if name != files.MANIFEST:
            assert run(robustness, tmp_path / "run", "--name", "attacked") == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (1 if name == files.MANIFEST else 2)
        assert all(line.startswith("error: ") for line in lines)
    code = run(train, *SHORT, "--name", "run", "--resume")
    assert code == (0 if name == "summary.json" else 2)
    if code == 0:
        assert read(tmp_path / "run" / "summary.json")["test_loss"] == before["test_loss"]


WRONG = (None, True, -1, 3.5, "", "text", [], [None], {}, {"a": 1})


def test_every_field_of_a_config_of_the_wrong_kind_is_told(finished, data_dir):
    """Of a run without a manifest, as earlier versions wrote it, whose JSON has no checksum."""
    path = finished
    (path / files.MANIFEST).unlink()
    config = files.read_json(path / "config.json")
    right = of_config(config)
    config.pop("data"), config.pop("jax")
    for name in config:
        for value in WRONG:
            (path / "config.json").write_text(json.dumps({**config, name: value}))
            try:
                found = Trained(path, data_dir)
                assert isinstance(found.label + found.group, str)
            except UserError:
                continue
            assert type(getattr(found.recipe, name, None)) in (
                type(getattr(right, name, None)),
                type(None),
                type(value),
            )


def test_a_disk_that_is_full_is_told_by_every_command(run, finished, tmp_path, monkeypatch, capsys):
    """Nothing half-written is left, and what was there before is."""
    commands = {
        compare: (*SHORT, "--methods", "sgd", "--seeds", 2),
        toy: (),
        analyze: (finished, "--parts", "steps"),
        robustness: (finished, "--linf", 1, "--l2"),
    }
    for module, arguments in commands.items():
        assert run(module, *arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    replace = os.replace

    def no_room(source, target):
        if Path(source) == files.part_of(Path(target)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_room)
        for module, arguments in commands.items():
            capsys.readouterr()
            flags = () if module is toy else ("--overwrite",)
            assert run(module, *arguments, *flags) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert "No space left on device. What was written before is kept: make room" in said
    assert not list(tmp_path.rglob("*.part"))
    held = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    aside = {path.name: text for path, text in held.items() if folders.REPLACED in str(path)}
    for path, text in before.items():
        assert held.get(path) == text or aside.get(path.name) == text


# The process


def start(words, *, flags=(), env=(), stdout=subprocess.PIPE, module="train"):
    """Runs a command as a user does, and gives what ended."""
    python = [sys.executable, *flags, "-m", f"experiments.{module}"]
    return subprocess.run(
        [*python, *words],
        cwd=ROOT,
        env={**os.environ, **dict(env)},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train", "compare", "sweep", "tables", "toy", "recipes"])
def test_commands_need_no_docstrings(module, tmp_path, data_dir):
    words = [] if module in ("tables", "toy", "recipes") else [*map(str, SHORT)]
    words += {"sweep": ["--seeds", "1"], "compare": ["--seeds", "2"]}.get(module, [])
    words += [] if module in ("tables", "toy", "recipes") else ["--data-dir", str(data_dir)]
    words += [] if module in ("tables", "recipes") else ["--out", str(tmp_path)]
    ended = start(words, flags=["-OO"], module=module)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_help_needs_no_docstrings(monkeypatch, capsys):
    monkeypatch.setattr(inspect, "getdoc", lambda module: None)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, toy, "--help")
    assert stop.value.code == 0
    assert "python -m experiments.toy" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("wait", [0.0, 0.1, 0.4, 0.8, 1.6])
def test_ctrl_c_during_the_imports_is_told(wait):
    words = [sys.executable, "-X", "importtime", "-m", "experiments.toy", "--help"]
    # Whoever starts the tests in the background has the signal ignored.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    with subprocess.Popen(
        [sys.executable, "-c", f"{heed} os.execv(sys.executable, {words})"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:  # the package is imported, and the handler is there
            if line.rstrip().endswith(" experiments"):
                break
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        said = [line for line in process.stderr if not line.startswith("import time:")]
        code = process.wait()
    assert code in (130, 0)  # 0 where all was over
    assert "Traceback" not in "".join(said)
    assert code == 0 or next(line for line in said if line.strip()).startswith("interrupted")


class _Full:
    """A standard output without room."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flush = write
    encoding, errors = "utf-8", "strict"

    def fileno(self):
        raise OSError


def test_a_full_output_is_told_and_blamed_on_nothing_else(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", _Full())
    assert run(train, *SHORT, "--name", "run") == 2
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert said == "error: standard output cannot be written (No space left on device).\n"
    assert (tmp_path / "run" / "summary.json").exists()


def test_who_closes_a_pipe_has_seen_enough(capsys):
    class Closed(_Full):
        def write(self, text=""):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

        flush = write

    output = Output(Closed())
    output.write("text")
    assert output.told() == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (train, "--batch-size or --width or --train-examples"),
        (analyze, "--batch-size or --examples or --samples"),
        (toy, None),
    ],
)
def test_too_little_memory_advises_what_the_command_has(module, options, monkeypatch, capsys):
    def full(options):
        raise MemoryError("no room")

    full.__module__ = module.__name__
    words = ("run",) if module is analyze else ()
    monkeypatch.setattr(sys, "argv", ["", *words])
    with pytest.raises(SystemExit) as stop:
        run_command(full, module.Options)
    advice = f": pass a smaller {options}" if options else ""
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (no room)")
    assert advice in said
    assert advice or "pass" not in said


def test_a_checkpoints_error_comes_without_noise(run, resume, tmp_path, capsys):
    for file in (tmp_path / "cut" / "checkpoints").rglob("*"):
        if file.is_file() and "d" in file.parts:
            file.write_bytes(b"")
    capsys.readouterr()
    assert run(train, *SHORT, *resume) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert logging.getLogger("asyncio").level >= logging.CRITICAL


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("*bold* _it_ `code`", r"\*bold\* \_it\_ \`code\`"),
        ("le_sam", "le_sam"),
        ("<img src=x>", r"\<img src=x\>"),
        ("[a](b)", r"\[a\](b)"),
        ("two\nlines", "two lines"),
    ],
)
def test_text_in_markdown_is_shown_as_it_is(text, shown):
    assert markdown.escaped(text) == shown


def swallowing(number):
    """Gets a signal where an exception cannot be raised, as in a collection of garbage."""

    class Collected:
        def __del__(self):
            signal.raise_signal(number)
            time.sleep(0)

    Collected()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_collection_of_garbage_is_not_lost(number, code, monkeypatch, capsys):
    monkeypatch.setattr("os._exit", sys.exit)
    monkeypatch.setattr(sys, "argv", [""])

    def main(options):
        swallowing(number)
        time.sleep(5)
        pytest.fail("it is lost")

    main.__module__ = toy.__name__
    with pytest.raises(SystemExit) as stop:
        run_command(main, toy.Options)
    assert stop.value.code == code
    assert capsys.readouterr().err == "interrupted; what was written before is kept\n"


def test_a_signal_behind_another_does_not_cut_its_end_short(monkeypatch, capsys):
    monkeypatch.setattr("os._exit", sys.exit)
    monkeypatch.setattr(sys, "argv", [""])
    ended = []

    def main(options):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            ended.append(True)

    main.__module__ = toy.__name__
    with pytest.raises(SystemExit) as stop:
        run_command(main, toy.Options)
    assert (stop.value.code, ended) == (130, [True])


def test_a_line_that_does_not_fit_leaves_nothing_of_it(tmp_path):
    """Neither its beginning, nor what a buffer would write once more as the file is closed."""
    path = tmp_path / "lines"
    files.append_json(path, {"n": 1})
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, before[1]))
    try:
        with pytest.raises(files.WriteError, match="File too large"):
            files.append_json(path, {"n": 2, "text": "long" * 10})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole
    files.append_json(path, {"n": 3})
    assert [line["n"] for line in files.read_lines(path).values()] == [1, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_no_half_of_a_checkpoint_stays_behind(error, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def half(manager, step, **kwargs):
        state = tmp_path / "checkpoints" / f"{step}.orbax-checkpoint-tmp" / "state"

        def write():  # as threads of Orbax do that nobody waits for
            for i in range(20):
                with contextlib.suppress(FileNotFoundError):  # removed in between
                    state.mkdir(parents=True, exist_ok=True)
                    (state / str(i)).touch()
                time.sleep(0.01)

        write()
        threading.Thread(target=write).start()
        raise error

    monkeypatch.setattr(ocp.CheckpointManager, "save", half)
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        checkpoints.save(5, {"a": np.ones(2)}, [], 0.0)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(1)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_a_failed_read_leaves_undone_is_not_told(tmp_path, monkeypatch):
    """Orbax makes coroutines for all arrays, and awaits none behind the one that failed."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(5, {"a": np.ones(2)}, [], 0.0)

    async def undone():
        raise AssertionError

    def fail(manager, step, **kwargs):
        undone()
        raise OSError("damaged")

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    with warnings.catch_warnings(record=True) as seen, pytest.raises(CheckpointError):
        checkpoints.restore(5, {"a": np.ones(2)})
    assert seen == []


def test_a_signal_after_the_end_changes_nothing(tmp_path):
    """While Python frees its modules, when its handlers are no more."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, signal\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    atexit.register(os.kill, os.getpid(), number)\n"
    )
    ended = start(["digits"], module="recipes", env={"PYTHONPATH": str(tmp_path)})
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_list_of_recipes_tells_a_full_output_too():
    with open("/dev/full", "w") as full:
        ended = start(["digits"], module="recipes", stdout=full)
    said = "error: standard output cannot be written (No space left on device).\n"
    assert (ended.returncode, ended.stderr) == (2, said)


LOCALES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "no UTF-8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES)
def test_commands_need_no_locale_of_utf_8(locale, tmp_path, data_dir):
    """Neither for what they print, nor for the files that they write and read."""
    words = [*map(str, SHORT), "--data-dir", str(data_dir), "--out", str(tmp_path)]
    name = ["--name", "run"]
    for module, arguments in (
        ("train", [*words, *name]),
        ("train", [*words, *name]),
        ("robustness", [str(tmp_path / "run"), *words[-4:], "--linf", "1", "--l2"]),
        ("tables", ["--runs", str(tmp_path)]),
        ("toy", ["--out", str(tmp_path / "toy")]),
    ):
        ended = start(arguments, module=module, env=LOCALES[locale])
        assert (ended.returncode, ended.stderr) == (0, ""), module
    assert "L∞" in (tmp_path / "robustness" / "robustness.md").read_text("utf-8")


# What a second reading of the promises found


def test_the_baseline_is_trained_first_wherever_it_is_named(run, tmp_path):
    assert run(compare, *SHORT, "--methods", "sam", "sgd", "--seeds", 2) == 0
    rows = read(tmp_path / "digits-comparison" / "table.json")["tables"]["equal epochs"]
    assert [row["method"] for row in rows] == ["sgd", "sam"]


@pytest.mark.parametrize("missing", [False, True])
def test_a_signal_is_noted_where_nobody_reads_what_is_said(missing, monkeypatch):
    def broken(descriptor, text):
        raise BrokenPipeError

    monkeypatch.setattr(interrupt.os, "write", broken)
    if missing:
        monkeypatch.setattr(sys, "stderr", None)
    with interrupt.noted() as stopped:
        signal.raise_signal(signal.SIGTERM)
        assert stopped() == signal.SIGTERM


def test_a_closed_output_ends_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert run(train, *SHORT, "--name", "run") == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_what_was_kept_to_look_at_later_stays(run, tmp_path, monkeypatch):
    kept = ("digits", "--train-examples", 128, "--batch-size", 64, "--epochs", 6, "--name", "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run(train, *kept, "--keep-epochs", 1) == 143
    assert run(train, *kept, "--resume") == 0
    steps = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert steps == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("option", ["--out", "--name"])
def test_a_path_that_is_no_utf_8_is_refused_before_anything_is_trained(
    option,
    monkeypatch,
    tmp_path,
    data_dir,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "init", lambda *args: pytest.fail("it is trained"))
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, train, *SHORT, "--data-dir", data_dir, option, "\udcff")
    assert stop.value.code == 2
    assert "is no UTF-8, as checkpoints need it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_a_run_is_no_other_seed(run, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "copy")
    arguments = (finished, tmp_path / "copy", "--linf", 1, "--l2")
    assert run(robustness, *arguments) == 2
    assert "are of the same seed, 0, and no two seeds" in capsys.readouterr().err


def test_seeds_are_a_group_whatever_jax_they_were_trained_with(made, tmp_path, data_dir):
    for name in ("0", "1"):
        shutil.copytree(made / name, tmp_path / name)
    config = files.read_json(tmp_path / "1" / "config.json")
    for name in (files.MANIFEST, folders.SUMMARY):
        (tmp_path / "1" / name).unlink()
    (tmp_path / "0" / folders.SUMMARY).unlink()
    for change in ({"jax": {}}, {"data": {}}):
        (tmp_path / "1" / "config.json").write_text(json.dumps({**config, **change}))
        one, two = (Trained(tmp_path / name, data_dir) for name in ("0", "1"))
        assert one.group == two.group
        assert folders.on_other_data(one.config, two.config) == ("data" in change)


@pytest.mark.slow
def test_a_backend_that_is_not_there_is_told(tmp_path):
    ended = start(["--out", str(tmp_path)], module="toy", env={"JAX_PLATFORMS": "foo"})
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: Unable to initialize backend 'foo'")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "\\", "\\NaN", "\\\\x", ""])
def test_a_text_that_reads_like_a_number_is_a_text(text, tmp_path):
    value = {"name": text, "names": [text], "number": float("inf")}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value


def test_a_name_that_is_no_utf_8_is_json_to_everybody(tmp_path):
    files.write_json(tmp_path / "a.json", {"name": "b\udcffad"})
    assert files.read_json(tmp_path / "a.json") == {"name": "b\\udcffad"}


def test_a_value_in_another_form_is_the_same_cell(run, monkeypatch):
    figures = {"test_accuracy": 0.5, "sam_fraction": 1, "gradients_per_step": 2, "seconds": 1}
    trained = []
    monkeypatch.setattr(sweep, "train", lambda *args, **kwargs: trained.append(1) or figures)
    for form in ("0.1", "0.10", "1e-1"):
        assert run(sweep, *SHORT, "--seeds", 1, "--over", f"rho={form}", "--validation", 0) == 0
    assert len(trained) == 1


DAMAGES = {
    "a line twice": lambda text: text + text.splitlines(keepends=True)[-1],
    "a line less": lambda text: text.splitlines(keepends=True)[0],
    "another number": lambda text: text.replace('"epoch": 2', '"epoch": 3'),
    "nothing": lambda text: "",
    "no UTF-8 at its end": lambda text: text + "\udcff",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metrics_of_a_finished_run_are_told_and_healed(damage, run, finished, capsys):
    path = finished / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(DAMAGES[damage](whole), errors="surrogateescape")
    assert run(train, *SHORT, "--name", "run") == 2
    assert "or one with a damaged file: pass --resume" in capsys.readouterr().err
    assert run(train, *SHORT, "--name", "run", "--resume") == 0
    assert path.read_text() == whole
