#!/usr/bin/env bash
# pytest.approx(jax_array, rel=1e-5) raises since pytest 9.2.0, while rel=2**-17 and no tolerance at all work.
#
# Versions: pytest 9.2.0 beside 9.1.1, jax 0.10.2, jaxlib 0.10.2, Python 3.11.
# A good guess: approx takes a JAX array as what is expected, as it has done for years by its __array__; a tolerance is a number, and which
# number it is decides whether a comparison passes, not whether it can be made.
# Seen: pytest 9.2.0 looks whether a tolerance that is no exact binary fraction meets a Decimal (pytest-dev/pytest#15006), and for that goes
# over expected.flat, before the array becomes NumPy's. JAX arrays define flat as a property that raises NotImplementedError, so that
# getattr's default does not help. rel=1e-5 or abs=1e-5 are such tolerances, rel=0.5 and rel=2**-17 are none, and without rel and abs nothing
# is looked at. A test suite that compares with JAX's results fails with the upgrade in some lines and not in others; NumPy's result, or
# float() of a number, as the expected one works everywhere. With the JAX array on the left and a number in approx nothing changes.
#
# Output seen:
#   pytest 9.1.1: default True, rel=2**-17 True, rel=1e-05 True
#   pytest 9.2.0: default True, rel=2**-17 True, rel=1e-05 NotImplementedError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2 pytest==9.1.1
cd "$work"
cat > approx.py <<'PY'
import sys

import jax.numpy as jnp
import pytest

expected = jnp.array([1.0, 2.0])


def compared(**tolerance):
    try:
        return str(bool([1.0, 2.0] == pytest.approx(expected, **tolerance)))
    except NotImplementedError as error:
        assert "flat" in str(error)
        return type(error).__name__


found = [compared(), compared(rel=2**-17), compared(rel=1e-5)]
print(f"pytest {pytest.__version__}: default {found[0]}, rel=2**-17 {found[1]}, rel=1e-05 {found[2]}")
assert found == ["True", "True", sys.argv[1]]
assert jnp.array(1.0) == pytest.approx(1.0, rel=1e-5)
PY
"$work/venv/bin/python" approx.py True
"$work/venv/bin/python" -m pip install --quiet pytest==9.2.0
"$work/venv/bin/python" approx.py NotImplementedError
