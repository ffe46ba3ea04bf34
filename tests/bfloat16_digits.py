"""Digits trained in pure bfloat16: what docs/results/bfloat16.md tells.

python tests/bfloat16_digits.py [--seeds 10] [--epochs 100]
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
import statistics
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import models
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
MODELS, OTHER_RADII = ("mlp", "small_cnn"), (0.5, 0.2, 0.05, 0.01)
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


def directions():
    """How far what looksam and wsam hand on is off where the loss is computed in bfloat16."""
    recipe = RECIPES["digits"]
    data = loading.load(recipe, 0, DATA_DIR, workers=1, skip_corrupt=False)
    images, labels = (jnp.asarray(array[:512]) for array in (data.train.images, data.train.labels))
    images = (images - data.mean) / data.std
    rows = []
    for model in MODELS:
        nets = [models.make(model, 10, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)]
        rest = dict(nets[0].init(jax.random.key(0), images[:1], train=False))
        params = rest.pop("params")

        @functools.partial(jax.jit, static_argnums=1)
        def gradient(params, i, nets=nets, rest=rest):
            def loss(params):
                logits, _ = nets[i].apply(
                    {"params": params, **rest}, images, train=True, mutable=list(rest)
                )
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            return jax.grad(loss)(params)

        for steps in (0, 60):
            for _ in range(steps):
                params = jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient(params, 0))
            for radius in OTHER_RADII:
                found = [of_rule(gradient, params, i, radius) for i in range(2)]
                off = [
                    np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(*found, strict=True)
                ]
                rows.append(
                    {
                        "model": model,
                        "steps": steps,
                        "rho": radius,
                        "looksam": off[0],
                        "wsam": off[1],
                    }
                )
    return rows


def of_rule(gradient, params, i, radius):
    """looksam's unit(v), and wsam's direction with γ = .99, by their formulas in float64."""
    first = gradient(params, i)
    scale = radius / optax.tree.norm(first)
    second = gradient(jax.tree.map(lambda w, g: w + scale * g, params, first), i)
    g, h = (
        np.concatenate([np.ravel(np.float64(leaf)) for leaf in jax.tree.leaves(t)])
        for t in (first, second)
    )
    v = h - g * (g @ h) / (g @ g)
    return v / np.linalg.norm(v), g + 99 * (h - g)


def cell(figures, form=".1f"):
    error = statistics.stdev(figures) / len(figures) ** 0.5
    return f"{statistics.fmean(figures):{form}} ± {error:.1f}"


def row(name, columns):
    nearest, random, _ = columns
    gains = [b - a for a, b in zip(nearest, random, strict=True)]
    return f"| {name} | {' | '.join([*map(cell, columns), cell(gains, '+.1f')])} |"


def off(row):
    where = f"{row['model']}, {'before' if row['steps'] == 0 else 'after'}"
    return f"| {where} | {row['rho']} | {row['looksam']:.0%} | {row['wsam']:.0%} |"


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

## Float32 parameters, a loss computed in bfloat16

How far off is what a method makes of g′ − g, against the same in float32: LookSAM's stale
direction, unit(v), and WSAM's with γ = .99. On digits, before training and after 60 steps of SGD.

| | ρ | LookSAM | WSAM |
| --- | --: | --: | --: |
{chr(10).join(map(off, found["directions"]))}

At an angle of 60° it is 100 %, at a right angle 141 %. These methods hand on g′ − g alone or many
times, so that with a small radius, or flat ground, they hand on rounding: compute their losses in
float32, or take a radius at which both agree.

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
        "directions": directions(),
        **sizes,
        "versions": {"jax": jax.__version__, "sam_optax": sam_optax.__version__},
    }
    (RESULTS / "bfloat16.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "bfloat16.md").write_text(page(report))


if __name__ == "__main__":
    main()
