#!/usr/bin/env bash
# jaxopt.OptaxSolver.run_iterator trains on all batches of an iterator but the first, and on none where there is one.
#
# Versions: jaxopt 0.8.5, jax 0.10.2, optax 0.2.8, Python 3.11.
# A good guess: run_iterator(params, iterator) takes a step on each batch that the iterator gives.
# Seen: the first batch is taken for init_state, which by the solver's signature may depend on the data but in OptaxSolver does
# not train on them; the loop goes on with the second. n batches give n - 1 steps, and one gives none: the parameters come
# back as they went in, with no word. So an epoch of a finite iterator lacks a batch, the same one where it is not shuffled,
# and a loop that calls run_iterator once an epoch loses one each time. With step(params, state, batch), the solver's update,
# nothing is lost.
#
# Output seen:
#   1 batch: 0 steps, 0.0
#   3 batches 1, 2, 3: 2 steps, 2.0 (all three: 2.125)
#   update on each of them: 3 steps, 2.125
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet jaxopt==0.8.5 jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
cd "$work"
cat > batches.py <<'PY'
import warnings

warnings.simplefilter("ignore", DeprecationWarning)
import jax.numpy as jnp
import jaxopt
import optax

# A step of 0.5 on half a square goes half of the way to the batch.
solver = jaxopt.OptaxSolver(lambda w, data: (w - data) ** 2 / 2, optax.sgd(0.5), tol=0)


def along(*batches):
    w, state = solver.run_iterator(jnp.array(0.0), iter([jnp.array(x) for x in batches]))
    return int(state.iter_num), float(w)


one, three = along(1.0), along(1.0, 2.0, 3.0)
print("1 batch: {} steps, {}".format(*one))
assert one == (0, 0.0)
expected = 0.0
for batch in (1.0, 2.0, 3.0):
    expected += (batch - expected) / 2
print("3 batches 1, 2, 3: {} steps, {} (all three: {})".format(*three, expected))
half = 0.5 * 2.0
assert three == (2, half + (3.0 - half) / 2) and three[1] != expected

w = jnp.array(0.0)
state = solver.init_state(w, jnp.array(1.0))
for batch in (1.0, 2.0, 3.0):
    w, state = solver.update(w, state, jnp.array(batch))
print(f"update on each of them: {int(state.iter_num)} steps, {float(w)}")
assert (int(state.iter_num), float(w)) == (3, expected)
PY
"$work/venv/bin/python" batches.py
