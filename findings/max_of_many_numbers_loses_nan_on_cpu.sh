#!/usr/bin/env bash
# On CPU jnp.max and jnp.min of an array with a NaN in it are NaN where it is small, and the largest and smallest of the
# other numbers where it has a few thousand entries.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, Python 3.11.
# A good guess: jnp.max propagates NaN, as np.max does and as XLA's semantics of maximum say; so jnp.max(jnp.abs(g)) < inf
# tells that a gradient is finite, in one quick pass.
# Seen: true of 1,000 entries, and of bfloat16. Of 10,000 entries in float32 or float64 the NaN is gone, whether the call is
# compiled or not, along an axis too, while jnp.argmax finds it, and sums and norms are NaN. A check that a
# gradient is finite has to add, or to ask jnp.isfinite.
#
# Output seen:
#   1,000 entries: numpy nan, max nan, compiled nan, min nan, sum nan
#   10,000 entries: numpy nan, max 1.0, compiled 1.0, min 1.0, sum nan
#   10,000 entries, float64: max 1.0; bfloat16: max nan
#   100 x 100, the row of the NaN: max 1.0; jnp.argmax is its place: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$work"
cat > largest.py <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")


def with_nan(n, dtype="float32"):
    return jnp.ones(n, dtype).at[n // 2].set(jnp.nan)


def shown(x):
    return str(float(x))


found = {}
for n in (1_000, 10_000):
    x = with_nan(n)
    found[n] = {
        "numpy": shown(np.max(np.asarray(x))),
        "max": shown(jnp.max(x)),
        "compiled": shown(jax.jit(jnp.max)(x)),
        "min": shown(jnp.min(x)),
        "sum": shown(jnp.sum(x)),
    }
    print(f"{n:,} entries: " + ", ".join(f"{name} {value}" for name, value in found[n].items()))
assert set(found[1_000].values()) == {"nan"}
assert found[10_000] == {"numpy": "nan", "max": "1.0", "compiled": "1.0", "min": "1.0", "sum": "nan"}

wide, narrow = (shown(jnp.max(with_nan(10_000, dtype))) for dtype in ("float64", "bfloat16"))
print(f"10,000 entries, float64: max {wide}; bfloat16: max {narrow}")
assert (wide, narrow) == ("1.0", "nan")

x = with_nan(10_000).reshape(100, 100)
row, place = shown(jnp.max(x, axis=1)[50]), int(jnp.argmax(x)) == 5_000
print(f"100 x 100, the row of the NaN: max {row}; jnp.argmax is its place: {place}")
assert (row, place) == ("1.0", True)
PY
"$work/venv/bin/python" largest.py
