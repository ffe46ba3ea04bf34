"""What of JAX's configuration changes results: pinned, or recorded and compared."""

from collections.abc import Mapping
import os
from typing import Any

import jax

from experiments.results import files
from experiments.system import compiler

# The generator of all random numbers, as its environment variables would draw others; and what
# refuses programs that are right.
PINNED = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
}

RECORDED = (
    *PINNED,
    *("eager_constant_folding", "jax_accurate_erf_inv", "jax_allow_f16_reductions"),
    *("jax_bcoo_cusparse_lowering", "jax_compiler_enable_remat_pass", "jax_custom_jvp3"),
    *("jax_custom_vjp3", "jax_default_matmul_precision", "jax_disable_jit"),
    *("jax_disable_most_optimizations", "jax_enable_pgle", "jax_enable_x64"),
    *("jax_exec_time_optimization_effort", "jax_explicit_x64_dtypes"),
    *("jax_high_dynamic_range_gumbel", "jax_memory_fitting_effort", "jax_memory_fitting_level"),
    *("jax_optimization_level", "jax_pallas_use_mosaic_gpu"),
    *("jax_ragged_dot_use_gpu_pallas_triton_lowering",),
    *("jax_ragged_dot_use_ragged_dot_instruction", "jax_random_seed_offset"),
    *("jax_remat3", "jax_remat_barrier_no_cotangents", "jax_scan3", "jax_softmax_custom_jvp"),
    *("jax_threefry_gpu_kernel_lowering", "jax_use_direct_linearize"),
    *("jax_use_emit_pipeline_primitive", "jax_use_hlo_logistic_lowering", "jax_use_magma"),
    *("jax_use_rgv3", "jax_use_shardy_partitioner", "jax_use_simplified_jaxpr_constants"),
)
# Of XLA's flags these change no result: how many virtual devices there are, and what is printed.
_UNRECORDED = ("--xla_force_host_platform_device_count", "--xla_dump", "--xla_hlo_profile")


def pin() -> None:
    """Configures JAX as the experiments need it, whatever the environment says."""
    for name, value in PINNED.items():
        jax.config.update(name, value)


def recorded() -> dict[str, Any]:
    """The values, as JSON's plain ones, of what this JAX has of the list, and XLA's flags."""
    known = {name: jax.config.values[name] for name in RECORDED if name in jax.config.values}
    others = _UNRECORDED
    if jax.default_backend() == "cpu":  # where the flag of a command that trains says nothing
        others += (compiler.FLAG,)
    flags = [
        flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(others)
    ]
    return files.plain(known | {"XLA_FLAGS": " ".join(sorted(flags))})


def differing(held: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The options, and the names of JAX's configuration, that differ between two configs.

    What one of two versions of JAX does not have is no difference, and data that were not read yet
    are not compared.
    """
    held, asked = files.plain(held), files.plain(asked)
    names = [name for name in {**held, **asked} if name not in ("jax", "data")]
    differs = [name for name in names if held.get(name) != asked.get(name)]
    before, now = held.get("jax") or {}, asked.get("jax") or {}
    differs += [
        _called(name, before[name], now[name])
        for name in before
        if name in now and before[name] != now[name]
    ]
    if {"data"} <= held.keys() & asked.keys() and held["data"] != asked["data"]:
        differs.append("data")
    return differs


def _called(name, before, now):
    """The name of JAX's configuration, or the option that chooses what alone differs of it."""
    flags = set(f"{before}".split()) ^ set(f"{now}".split())
    if name == "XLA_FLAGS" and all(flag.startswith(compiler.FLAG) for flag in flags):
        return f"--deterministic or --no-deterministic ({compiler.FLAG})"
    return name
