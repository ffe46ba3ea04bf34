"""Digits trained in pure bfloat16: what docs/results/bfloat16.md tells.

python tests/bfloat16_digits.py [--seeds 10] [--epochs 100]
"""

import argparse
import dataclasses
import json
from pathlib import Path
import statistics
from unittest import mock

import jax
import jax.numpy as jnp

from experiments.data import loading
from experiments.data.disk import DATA_DIR
from experiments.data.feeds import arrays
from experiments.recipes import RECIPES
from experiments.training import fit
from experiments.training.trainer import Trainer
import sam_optax
from sam_optax import _rounding, _tree

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NOISE = 0.4
RADII = (0.02, 0.05, 0.1, 0.2, 0.5)
# The dtype of parameters, momentum and computation, and how w + ε is rounded in it.
WAYS = {
    "bfloat16, to the nearest": (
        "bfloat16",
        lambda params, epsilon, *_: _tree.add(params, epsilon),
    ),
    "bfloat16, up or down at random": ("bfloat16", _rounding.moved),
    "float32": ("float32", _rounding.moved),
}


def accuracies(radius, way, *, seeds, epochs):
    """Test accuracies after training, one a seed; without a radius those of SGD."""
    dtype, rounding = WAYS[way]
    recipe = dataclasses.replace(
        RECIPES["digits"], label_noise=NOISE, epochs=epochs, dtype=dtype, settings={}
    )
    data = [
        loading.load(recipe, seed, DATA_DIR, workers=1, skip_corrupt=False) for seed in range(seeds)
    ]
    method, settings = ("sgd", {}) if radius is None else ("sam", {"rho": radius})
    trainer = Trainer(recipe, method, settings, data=data[0], on_host=False, together=True)
    states = [of_dtype(trainer, trainer.init(data[0].train.shape, i), dtype) for i in range(seeds)]
    sets = [arrays(one) for one in data]
    state, train = (jax.tree.map(lambda *a: jnp.stack(a), *trees) for trees in (states, sets))
    with mock.patch.object(_rounding, "moved", rounding):
        state = fit.fit([fit.Phase(0, epochs, trainer)], state, train)
    found = []
    for i, (one, own) in enumerate(zip(data, sets, strict=True)):
        end = jax.tree.map(lambda leaf, i=i: leaf[i], state)
        assert {leaf.dtype for leaf in jax.tree.leaves(end.params)} == {jnp.dtype(dtype)}
        found.append(100 * trainer.evaluate(end, one.test, own)["accuracy"])
    return found


def of_dtype(trainer, state, dtype):
    """A state before the first step, all of the dtype."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), state.params)
    return state._replace(
        params=params,
        method_state=trainer.optimizer.method.init(params),
        base_state=trainer.optimizer.base.init(params),
    )


def cell(figures, form=".1f"):
    error = statistics.stdev(figures) / len(figures) ** 0.5
    return f"{statistics.fmean(figures):{form}} ± {error:.1f}"


def row(name, columns):
    nearest, random, _ = columns
    gains = [b - a for a, b in zip(nearest, random, strict=True)]
    return f"| {name} | {' | '.join([*map(cell, columns), cell(gains, '+.1f')])} |"


def page(found):
    """The whole page."""
    ways = list(WAYS)
    table = [
        row("SGD" if radius == "None" else f"SAM, ρ = {radius}", [cells[way] for way in ways])
        for radius, cells in found["accuracies"].items()
    ]
    versions = found["versions"]
    return f"""# Pure bfloat16: what SAM's offset is worth in it

A perceptron on digits, {100 * NOISE:.0f} % of the training labels wrong, {found["seeds"]} seeds,
{found["epochs"]} epochs: accuracy on the test set with its standard error, in percent. In bfloat16
parameters, momentum and computation all have that dtype, so that SGD's own steps are rounded too;
w + ε is rounded to the nearest number, as a plain sum is, or up or down at random, as `sam_optax`
does. The last column is the gain of that, seed by seed.

| | {" | ".join(ways)} | gain |
| --- | --- | --- | --- | --- |
{chr(10).join(table)}

What is right in the mean need not be seen in an accuracy: here it hardly is. The rounding of SGD's
own steps matters more: it keeps small radii from fitting the wrong labels, as float32 does not. For
a paper's figures keep the parameters in float32.

On CPU with jax {versions["jax"]}, by `python tests/bfloat16_digits.py`
([figures](bfloat16.json)).
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    sizes = {"seeds": options.seeds, "epochs": options.epochs}
    found = {}
    for radius in (None, *RADII):
        found[str(radius)] = {way: accuracies(radius, way, **sizes) for way in WAYS}
        means = {way: statistics.fmean(figures) for way, figures in found[str(radius)].items()}
        print(radius, means, flush=True)
    report = {
        "accuracies": found,
        **sizes,
        "versions": {"jax": jax.__version__, "sam_optax": sam_optax.__version__},
    }
    (RESULTS / "bfloat16.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "bfloat16.md").write_text(page(report))


if __name__ == "__main__":
    main()
