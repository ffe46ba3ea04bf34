"""Steps in float16 until a NaN, for every method: what docs/results/float16.md tells.

python tests/float16_steps.py LABEL

measures the package that is imported, and writes its column; of an older one with its folder in
PYTHONPATH.
"""

import json
from pathlib import Path
import sys
from typing import NamedTuple

from flax.training.dynamic_scale import DynamicScale
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import METHODS, NAMES

import sam_optax

RESULTS = Path(__file__).parents[1] / "docs" / "results"
STEPS = 20_000
WEIGHTS = jnp.array([1.0, -2.0, 0.5, 0.3])


class Run(NamedTuple):
    """What came of it.

    Attributes:
      first_nan: the first step after which parameters or state are not finite; None for none.
      firsts: the steps whose first gradient overflowed.
      others: those of the rest whose second did, as far as the state tells.
      counted: what the state has counted in the end.
      loss: the last one.
    """

    first_nan: int | None
    firsts: int
    others: int
    counted: int
    loss: float


def network():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (32, 4))
    params = {
        "hidden": {"kernel": jax.random.normal(keys[1], (4, 8)) / 2, "bias": jnp.zeros(8)},
        "out": {"kernel": jax.random.normal(keys[2], (8, 1)) / 3, "bias": jnp.zeros(1)},
    }
    return params, x, 3 * jnp.sin(x @ WEIGHTS)


def losses(params, x, y):
    params, x, y = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), (params, x, y))
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return ((hidden @ params["out"]["kernel"] + params["out"]["bias"])[:, 0] - y) ** 2


def mean(p, x, y):
    return losses(p, x, y).mean().astype(jnp.float32)


def optimizer_of(name):
    row = METHODS[name].unnamed
    link = row.factory(**row.required)
    rest = optax.scale_by_learning_rate(0.01) if row.momentum is None else optax.sgd(0.01, 0.9)
    return optax.chain(link, rest)


def lost_in(state):
    """How often a method's own gradient was lost, where the package counts it."""
    try:
        return sam_optax.read(state, "notfinite")
    except KeyError:
        return jnp.zeros([], jnp.int32)


def all_finite(tree):
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def run(name, *, steps, both):
    """The recipe, with Flax's scale, which doubles after 100 steps without an overflow.

    With both it falls where the second gradient alone has overflowed, too.
    """
    tx = optimizer_of(name)
    params, x, y = network()

    def step(carry, _):
        params, opt_state, scale = carry
        gradient = scale.value_and_grad(mean)
        following, finite, value, grads = gradient(params, x, y)
        extra = {}
        if name == "esam":
            extra["example_loss_fn"] = lambda p: losses(p, x, y).astype(jnp.float32)
        updates, state = tx.update(
            grads, opt_state, params,
            grad_fn=lambda p, i=slice(None): gradient(p, x[i], y[i])[3], **extra,
        )  # fmt: skip
        lost = lost_in(state) > lost_in(opt_state)
        if both:
            following = following.replace(
                scale=jnp.where(lost, scale.scale / 2, following.scale),
                fin_steps=jnp.where(lost, 0, following.fin_steps),
            )
        new = optax.apply_updates(params, updates), state
        params, opt_state = optax.tree.where(finite, new, (params, opt_state))
        nan = ~all_finite((params, opt_state))
        return (params, opt_state, following), (value, nan, ~finite, lost & finite)

    @jax.jit
    def whole(carry):
        return jax.lax.scan(step, carry, None, length=steps)

    scale = DynamicScale(growth_interval=100)
    (params, opt_state, _), (values, nan, *lost) = whole((params, tx.init(params), scale))
    first_nan = int(np.argmax(nan)) + 1 if np.any(nan) else None
    counts = [int(np.sum(flags)) for flags in lost]
    return Run(first_nan, *counts, int(lost_in(opt_state)), float(values[-1]))


def main(label):
    """Measures, and writes the page anew."""
    path = RESULTS / "float16.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found[label] = {"jax": jax.__version__, "optax": optax.__version__, "methods": {}}
    for name in NAMES:
        runs = [run(name, steps=STEPS, both=both)._asdict() for both in (False, True)]
        found[label]["methods"][name] = dict(zip(("first", "both"), runs, strict=True))
        print(name, *runs, flush=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    if {"before", "after"} <= set(found):
        (RESULTS / "float16.md").write_text(page(found))


TEXT = """# Float16: steps until a NaN

A network of 49 parameters computes in float16 for {steps:,} steps of each method with its default
radius, in the loop of [mixed precision](../recipes.md#mixed-precision): Flax's `DynamicScale`
doubles the scale of the loss after 100 steps without an overflow, and a step whose first gradient
overflowed is kept out of parameters and state.

Before: a second gradient that overflowed was handed on. After: it counts as not taken, and the
state counts it; the scale is led by the first gradient alone, as in Flax, or falls where either
was lost, as in the recipe. Led by the first alone it may stay where every second gradient
overflows.

On CPU with jax {jax} and optax {optax}, by `python tests/float16_steps.py after`, and by `before`
with the package as it was in `PYTHONPATH`.

"""
HEADER = (
    "method",
    "before: first NaN after step",
    "after: first NaN",
    "steps without their second gradient, scale led by the first",
    "by both",
)


def page(found):
    """The table of what was measured before the guard and after it."""
    rows = [HEADER, ["---"] * len(HEADER)]
    for name, runs in found["after"]["methods"].items():
        before = found["before"]["methods"][name]["first"]["first_nan"]
        nans = [before, min_of(runs[way]["first_nan"] for way in ("first", "both"))]
        lost = [f"{runs[way]['others']:,}" for way in ("first", "both")]
        rows.append([f"`{name}`", *("none" if n is None else f"{n:,}" for n in nans), *lost])
    versions = {key: found["after"][key] for key in ("jax", "optax")}
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return TEXT.format(steps=STEPS, **versions) + table + "\n"


def min_of(steps):
    return min((step for step in steps if step is not None), default=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
