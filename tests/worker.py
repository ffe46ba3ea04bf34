"""One of several processes that train the problem of the references together.

python tests/worker.py COORDINATOR PROCESSES NUMBER OUT
"""

import sys

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax

SHARED = ("sam", "ae_sam", "samar", "r_sam", "ss_sam")
STEPS, EXAMPLES = 5, 16


def main(coordinator, processes, number, out):
    """Five steps of each method on the batch of all processes; what this one saw of them."""
    jax.distributed.initialize(coordinator, int(processes), int(number))
    # Not before: a schedule of it is tried where it is made, which starts JAX.
    from reference import METHODS, initial_params, make_batch, make_step, ravel, sgd

    axes = {"axis_types": (AxisType.Auto,)}
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), **axes)

    def put(tree, spec):
        sharding = NamedSharding(mesh, spec)

        def one(x):
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(one, tree)

    found = {}
    for name in SHARED:
        row = METHODS[name]
        tx = optax.chain(row.link(), sgd(row.momentum))
        step = make_step(tx)
        params = initial_params()
        params, state = put((params, tx.init(params)), PartitionSpec())
        points = []
        for t in range(STEPS):
            batch = put(make_batch(t, EXAMPLES), PartitionSpec("batch"))
            params, state = step(params, state, batch)
            points.append(ravel(params))
        found[name] = np.stack(points)
        found[f"{name} ascents"] = np.asarray(optax.tree.get(state, "ascents"))
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
