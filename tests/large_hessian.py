"""The ten largest eigenvalues of ResNet-18's Hessian, and the memory that they took.

python tests/large_hessian.py IMAGES
"""

import resource
import sys
import time

import jax
import numpy as np
import optax

from experiments import models
from experiments.analysis import hessian
from experiments.analysis.objective import Objective


def main(images):
    """Prints parameters, seconds, products and the largest resident size in GB."""
    model, rng = models.make("resnet18", 10), np.random.default_rng(0)
    x = rng.normal(size=(images, 32, 32, 3)).astype(np.float32)
    y = rng.integers(0, 10, images)
    init = jax.jit(lambda key: model.init(key, x[:1], train=False))
    variables = init(jax.random.key(0))
    params = variables.pop("params")

    def loss_fn(params, batch):
        logits, _ = model.apply(
            {"params": params, **variables}, batch[0], train=True, mutable=list(variables)
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    passes = []
    objective = Objective.divided(loss_fn, (x, y), 16, on_pass=lambda: passes.append(1))
    start = time.perf_counter()
    found = hessian.top(objective, params, 10, key=jax.random.key(1))
    assert len(found.values) == 10
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(size, round(time.perf_counter() - start), len(passes), round(peak, 2))


if __name__ == "__main__":
    main(int(sys.argv[1]))
