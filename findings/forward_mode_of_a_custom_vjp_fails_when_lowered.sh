#!/usr/bin/env bash
# A Jacobian-vector product through jax.custom_vjp traces without an error; it fails when it is run or lowered, and
# only where its result is used.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, Python 3.11.
# A good guess: jax.eval_shape or jax.make_jaxpr of jax.jvp(f) tells whether f can be differentiated in forward
# mode, as it tells every other misuse of a transformation.
# Seen: both succeed. The product holds a placeholder, which raises "can't apply forward-mode autodiff (jvp) to a
# custom_vjp function" at lowering or in eager evaluation. And a product of jax.grad(f), a Hessian-vector product, works for
# many an f with a custom_vjp, whose backward rule is plain: the placeholder is dead there. So the check of a
# user's function for forward mode is jax.jit(product).lower(...), neither eval_shape nor a search of the jaxpr.
#
# Output seen:
#   jvp of double: eval_shape ok, make_jaxpr ok, lower TypeError, run TypeError
#   Hessian product, plain backward rule: eval_shape ok, make_jaxpr ok, lower ok, run ok
#   Hessian product, backward rule with a custom_vjp: eval_shape ok, make_jaxpr ok, lower TypeError, run TypeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$work"
cat > forward.py <<'PY'
import jax
import jax.numpy as jnp


@jax.custom_vjp
def double(w):
    return 2 * w


double.defvjp(lambda w: (2 * w, None), lambda _, t: (2 * t,))


@jax.custom_vjp
def plain(w):
    return jnp.sum(w**2)


plain.defvjp(lambda w: (jnp.sum(w**2), w), lambda w, t: (2 * t * w,))


@jax.custom_vjp
def nested(w):
    return jnp.sum(w**2)


nested.defvjp(lambda w: (jnp.sum(w**2), w), lambda w, t: (t * double(w),))

w = jnp.array([3.0, 4.0])


def outcomes(f):
    def product(v):
        return jax.jvp(f, (w,), (v,))[1]

    ways = {
        "eval_shape": lambda: jax.eval_shape(product, w),
        "make_jaxpr": lambda: jax.make_jaxpr(product)(w),
        "lower": lambda: jax.jit(product).lower(w),
        "run": lambda: product(w),
    }
    found = {}
    for name, way in ways.items():
        try:
            way()
            found[name] = "ok"
        except TypeError as error:
            assert "custom_vjp" in str(error)
            found[name] = "TypeError"
    return found


late = {"eval_shape": "ok", "make_jaxpr": "ok", "lower": "TypeError", "run": "TypeError"}
cases = {
    "jvp of double": (double, late),
    "Hessian product, plain backward rule": (jax.grad(plain), dict.fromkeys(late, "ok")),
    "Hessian product, backward rule with a custom_vjp": (jax.grad(nested), late),
}
for name, (f, expected) in cases.items():
    found = outcomes(f)
    print(f"{name}: " + ", ".join(f"{way} {result}" for way, result in found.items()))
    assert found == expected, name
PY
"$work/venv/bin/python" forward.py
