#!/usr/bin/env bash
# Keras on JAX with float64 enabled: a BatchNormalization layer of dtype float64 takes its statistics in float32, and hands
# on float64 numbers whose last eight digits are made up.
#
# Versions: keras 3.15.1 (backend jax), jax 0.10.2, jaxlib 0.10.2, Python 3.11.
# A good guess: with JAX_ENABLE_X64=1 and keras.config.set_floatx("float64") all of a layer is float64; its weights, inputs and
# outputs say so.
# Seen: the layer asks keras.backend.result_type(input, "float32") for the dtype of its arithmetic, which is to be float32 at
# least, and there float64 and float32 give float32: Keras looks at its own table, where float64 is demoted unless
# one of JAX's weak types says otherwise. jax.numpy says float64. A variance around a large mean is lost. So a check of a
# training step against float64 formulas holds to 1e-6 alone where such a layer is in the model; a Dense layer keeps float64.
#
# Output seen:
#   result_type("float64", "float32"): keras float32, jax float64
#   dtypes of batch norm: weights float64, output float64
#   eight numbers from 1e8 on, normalised: [0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0]
#   that should be:                        [-1.53, -1.09, -0.65, -0.22, 0.22, 0.65, 1.09, 1.53]
#   of normal numbers, right to 1e-9: batch norm False, dense True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2
cd "$work"
cat > normal.py <<'PY'
import jax.numpy as jnp
import keras
import numpy as np

keras.config.set_floatx("float64")
found = keras.backend.result_type("float64", "float32"), str(jnp.result_type("float64", "float32"))
print('result_type("float64", "float32"): keras {}, jax {}'.format(*found))
assert found == ("float32", "float64")

layer = keras.layers.BatchNormalization()
x = 1e8 + np.arange(8.0)[:, None]
y = layer(x, training=True)
dtypes = {str(np.dtype(w.dtype)) for w in layer.weights}, str(y.dtype)
print(f"dtypes of batch norm: weights {', '.join(dtypes[0])}, output {dtypes[1]}")
assert dtypes == ({"float64"}, "float64")

right = (x - x.mean()) / np.sqrt(x.var() + 1e-3)
shown = [float(v) + 0.0 for v in np.round(np.asarray(y)[:, 0], 2)]
print("eight numbers from 1e8 on, normalised:", shown)
print("that should be:                       ", [float(v) for v in np.round(right[:, 0], 2)])
assert np.abs(np.asarray(y) - right).max() > 1

layer = keras.layers.BatchNormalization()
x = np.random.default_rng(0).normal(size=(64, 5))
expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
dense = keras.layers.Dense(3)
small = [
    bool(np.abs(np.asarray(layer(x, training=True)) - expected).max() < 1e-9),
    bool(np.abs(np.asarray(dense(x)) - x @ np.asarray(dense.kernel)).max() < 1e-12),
]
print("of normal numbers, right to 1e-9: batch norm {}, dense {}".format(*small))
assert small == [False, True]
PY
KERAS_HOME="$work/keras" KERAS_BACKEND=jax JAX_ENABLE_X64=1 "$work/venv/bin/python" normal.py
