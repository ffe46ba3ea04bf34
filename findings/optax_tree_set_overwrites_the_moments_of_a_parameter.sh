#!/usr/bin/env bash
# optax.tree.set(state, count=...) also overwrites Adam's moments of a parameter that is called "count".
#
# Versions: jax 0.10.2, jaxlib 0.10.2, optax 0.2.8, Python 3.11.
# A good guess: the names of optax.tree.get and optax.tree.set are those of the fields of a state, such as count, mu
# and learning_rate. They are also the keys of the parameters' own dictionaries inside mu, nu and trace, at any depth.
# Seen: with a parameter "count" of shape [2, 2], tree.get(state, "count") is a KeyError that prints both, but
# tree.set(state, count=0), as one writes to begin bias correction anew, silently puts the scalar 0 into
# mu["count"] and nu["count"] too. The next updates broadcast it, so nothing fails, and that parameter moves by another
# step than the same parameter under another name. A filter on the key path (the name of the NamedTuple) is needed.
#
# Output seen:
#   tree.get: KeyError
#   shape of mu["count"] before: (2, 2), after tree.set: ()
#   next step of the parameter named count: -0.1000, named kernel: -0.1142
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
cd "$work"
cat > set.py <<'PY'
import jax.numpy as jnp
import optax

tx = optax.adam(0.1)


def step_after_set(name):
    params = {name: jnp.ones((2, 2))}
    state = tx.init(params)
    for scale in (1.0, 3.0):
        _, state = tx.update({name: scale * params[name]}, state, params)
    before = state[0].mu[name].shape
    state = optax.tree.set(state, count=0)
    after = jnp.shape(state[0].mu[name])
    updates, state = tx.update({name: 0.1 * params[name]}, state, params)
    return before, after, float(updates[name][0, 0])


state = tx.init({"count": jnp.ones((2, 2))})
try:
    optax.tree.get(state, "count")
    got = "a value"
except KeyError:
    got = "KeyError"
print(f"tree.get: {got}")
before, after, count = step_after_set("count")
_, kept, kernel = step_after_set("kernel")
print(f'shape of mu["count"] before: {before}, after tree.set: {after}')
print(f"next step of the parameter named count: {count:.4f}, named kernel: {kernel:.4f}")
assert got == "KeyError" and before == (2, 2) and after == () and kept == (2, 2)
assert abs(count - kernel) > 0.01
PY
"$work/venv/bin/python" set.py
