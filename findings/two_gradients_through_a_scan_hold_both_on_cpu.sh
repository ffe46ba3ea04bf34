#!/usr/bin/env bash
# On CPU two gradients through jax.lax.scan, the second at a point made of the first, need the memory of both; unrolled, that of one.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, Python 3.11.
# A good guess: the second backward pass begins when the first has ended, since its weights are made of the first gradient, so that what the
# scan stacks for it (an activation a layer) takes the place of what the first one stacked. Without the scan it does.
# Seen: the temporaries of the compiled program double. A scan stacks into arrays of zeros that wait for nothing, and XLA for CPU, whose
# scheduler prefers what can run at once, makes those of both passes at the start of the program and holds them. An optimization barrier
# around the weights changes nothing; jax.lax.cond on a predicate that is always true, but not to the compiler, makes the second wait, and
# gives the memory of one. XLA's other scheduler (--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED) helps in part. Whoever
# scans over layers to save compilation, and takes two gradients a step (sharpness-aware methods, gradient penalties by differences,
# extragradient), pays twice the activations on CPU. No report of it was found.
#
# Output seen:
#   scan, one: 28.3 MB
#   scan, two: 54.7 MB
#   scan, waiting: 29.6 MB
#   unrolled, one: 9.6 MB
#   unrolled, two: 9.6 MB
#   unrolled, waiting: 9.7 MB
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$work/scan.py" <<'PY'
import functools

import jax
import jax.numpy as jnp

LAYERS, WIDTH, BATCH = 8, 64, 4096
weights = jnp.ones((LAYERS, WIDTH, WIDTH)) / WIDTH
x = jnp.ones((BATCH, WIDTH))


def loss(weights, x):
    return jnp.mean(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0] ** 2)


def unrolled(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


def one(of, weights, x, steps):
    return jax.grad(of)(weights, x)


def two(of, weights, x, steps):
    first = jax.grad(of)(weights, x)
    return jax.grad(of)(weights + 0.1 * first, x)


def waiting(of, weights, x, steps):
    first = jax.grad(of)(weights, x)
    second = lambda: jax.grad(of)(weights + 0.1 * first, x)
    return jax.lax.cond(steps >= 0, second, lambda: jnp.zeros_like(weights))


def megabytes(step, of):
    program = jax.jit(functools.partial(step, of)).lower(weights, x, jnp.int32(0)).compile()
    return program.memory_analysis().temp_size_in_bytes / 1e6


found = {
    (name, step.__name__): megabytes(step, of)
    for name, of in (("scan", loss), ("unrolled", unrolled))
    for step in (one, two, waiting)
}
for (name, step), size in found.items():
    print(f"{name}, {step}: {size:.1f} MB")
assert found["scan", "two"] > 1.8 * found["scan", "one"]
assert found["scan", "waiting"] < 1.2 * found["scan", "one"]
assert found["unrolled", "two"] < 1.2 * found["unrolled", "one"]
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/scan.py"
