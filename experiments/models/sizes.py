"""Whether a model and its batches fit into memory at all, known before any of them is made."""

import functools
import math

import jax

from experiments import models
from experiments.system import memory


def check(
    model: str, width: int | None, classes: int, shape: tuple[int, int, int], batch_size: int
) -> None:
    """Raises where parameters or images take more than all memory; what a step needs is more.

    Args:
      model: its name.
      width: of its narrowest layer; None for the published one.
      classes: their number.
      shape: height, width and channels of the images that it sees.
      batch_size: images that are there at once.

    Raises:
      UserError: they do.
    """
    said = f"images of {shape[0]:,} x {shape[1]:,}"
    # An image is there as bytes and as numbers.
    memory.check(5 * batch_size * math.prod(shape), f"a batch of {batch_size:,} {said}")
    try:
        parameters = _parameters(model, width, classes, shape)
    except ValueError:
        return  # the model cannot take such images, as is told where it is made
    # They are there with a gradient and a perturbed copy.
    memory.check(3 * 4 * parameters, f"training {model} of {parameters:,} parameters on {said}")


@functools.cache
def _parameters(model, width, classes, shape):
    """How many a model has, of which none is made."""
    init = functools.partial(models.make(model, classes, width=width).init, train=False)
    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    variables = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), image)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
