"""A mesh of devices, and where on it the arrays of a run lie.

The axis "data" divides the batch. The axis "model" divides the batch too, and the parameters with
all that is shaped like them (fully sharded data parallelism): JAX gathers a parameter where it is
used.
"""

from collections.abc import Mapping
import math
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax

DATA, MODEL = AXES = ("data", "model")


class Layout:
    """Where the arrays of a run lie.

    Attributes:
      mesh: the devices, with both axes.
      batch: of arrays whose leading axis is the batch.
      replicated: of what every device holds.
    """

    def __init__(self, sizes: Mapping[str, int]):
        """A mesh of the first devices.

        Args:
          sizes: devices along "data" and "model"; an axis that is left out has one.

        Raises:
          ValueError: there are not so many devices, or some of a process would be left out.
        """
        shape = tuple(sizes.get(axis, 1) for axis in AXES)
        wanted, there = math.prod(shape), jax.device_count()
        if wanted > there or (wanted < there and jax.process_count() > 1):
            raise ValueError(
                f"a mesh of {wanted} devices, and there are {there}: choose data and model so that "
                f"their product is {there}."
            )
        self.mesh = jax.make_mesh(
            shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:wanted]
        )
        self.batch = NamedSharding(self.mesh, PartitionSpec(AXES))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.device = NamedSharding(self.mesh, PartitionSpec(DATA))

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.mesh.size

    def params(self, params: Any) -> Any:
        """The sharding of each parameter: its largest axis that "model" divides, or replicated."""
        parts = self.mesh.shape[MODEL]

        def sharding(leaf):
            axes = [axis for axis, size in enumerate(leaf.shape) if size and size % parts == 0]
            if parts == 1 or not axes:
                return self.replicated
            largest = max(axes, key=lambda axis: leaf.shape[axis])
            return NamedSharding(self.mesh, PartitionSpec(*(None,) * largest, MODEL))

        return jax.tree.map(sharding, params)

    def like_params(self, tx: optax.GradientTransformation, state: Any, params: Any) -> Any:
        """The sharding of an optimizer's state: what is shaped like parameters lies like them."""
        return optax.tree.map_params(
            tx,
            lambda leaf, sharding: sharding,
            state,
            self.params(params),
            transform_non_params=lambda leaf: self.replicated,
        )

    def everywhere(self, tree: Any) -> Any:
        """The sharding of a tree that every device holds."""
        return jax.tree.map(lambda leaf: self.replicated, tree)


def place(tree: Any, shardings: Any) -> Any:
    """The tree with its arrays where the shardings say.

    Of what one process holds alone each has the whole, and puts its own part in place; the rest
    they send each other.
    """

    def put(leaf, sharding):
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree, shardings)


def parse(text: str) -> dict[str, int]:
    """The sizes that "data=4,model=2" names.

    Raises:
      ValueError: it does not read like that.
    """
    sizes: dict[str, int] = {}
    for item in text.split(","):
        name, _, size = item.partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"a mesh must read data=4 or data=4,model=2, with whole numbers of devices, got "
                f"{text!r}."
            )
        sizes[name] = int(size)
    return sizes
