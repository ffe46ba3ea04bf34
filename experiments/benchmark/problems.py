"""What the steps are measured on: a model's loss on a made batch."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import models
from experiments.models import sizes


class Problem(NamedTuple):
    """A loss and where to take it.

    Attributes:
      name: what it is called in the tables.
      params: the parameters.
      model_state: the batch statistics, or an empty dictionary.
      batches: what the steps are fed in turn; several, so that a method that decides has a choice.
      losses: (params, model_state, batch) -> (the loss of each example, the new model_state).
      convolutional: whether the model has convolutions, whose methods decide on the host on CPU.
    """

    name: str
    params: Any
    model_state: Any
    batches: Any
    losses: Callable[..., Any]
    convolutional: bool

    def loss(self, params: Any, model_state: Any, batch: Any) -> tuple[jax.Array, Any]:
        """The mean loss, and beside it the new model_state and the losses."""
        losses, model_state = self.losses(params, model_state, batch)
        return losses.mean(), (model_state, losses)


class Model(NamedTuple):
    """What a model takes: the shape of an image, how many a step, and turns for a small error."""

    shape: tuple[int, int, int]
    batch_size: int
    turns: int


BATCHES = 8
MODELS = {
    "mlp": Model((28, 28, 1), 4096, 101),
    "small_cnn": Model((28, 28, 1), 128, 101),
    "resnet18": Model((32, 32, 3), 4, 11),
    "vit_small": Model((32, 32, 3), 4, 11),
}


def of_model(name: str, *, batch_size: int | None = None, width: int | None = None) -> Problem:
    """The cross-entropy of a model on random images of ten classes.

    Args:
      name: a key of `MODELS`.
      batch_size: images of the batch; None for the benchmark's.
      width: of the model's narrowest layer; None for the published one.

    Raises:
      UserError: they do not fit into memory.
    """
    model = MODELS[name]
    module = models.make(name, 10, width=width)
    rng = np.random.default_rng(0)
    size = batch_size or model.batch_size
    sizes.check(name, width, 10, model.shape, BATCHES * size)
    batches = [
        (
            jnp.asarray(rng.normal(size=(size, *model.shape)), jnp.float32),
            jnp.asarray(rng.integers(0, 10, size), jnp.int32),
        )
        for _ in range(BATCHES)
    ]
    init = jax.jit(functools.partial(module.init, train=False))
    model_state = dict(init(jax.random.key(0), batches[0][0][:1]))
    params = model_state.pop("params")

    def losses(params, model_state, batch):
        images, labels = batch
        variables = {"params": params, **model_state}
        logits, model_state = module.apply(variables, images, train=True, mutable=list(model_state))
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each, model_state

    return Problem(name, params, model_state, batches, losses, module.convolutional)
