"""A step as pure functions of a state and a batch, none of them compiled.

On a mesh the same step runs over a divided batch, and JAX adds the collectives: one perturbation of
the global batch. Where each device perturbs for itself, the step is mapped over the devices, each
with a state of the method of its own, and the directions are averaged.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import optax

from experiments.data import augment
from experiments.recipes.base import Recipe
from experiments.system.mesh import DATA, Layout
from experiments.training.glmc import Glmc
from experiments.training.objectives import CrossEntropy
from experiments.training.optimizers import Optimizer
from experiments.training.state import TrainState, ascents, rise, tells_rise
import sam_optax

# A random stream of the seed; the orders of the epochs have the streams 0, 1, 2, …
AUGMENTATION = 2**32 - 1


class Step:
    """What a step of one method on one recipe computes."""

    def __init__(
        self,
        recipe: Recipe,
        optimizer: Optimizer,
        objective: CrossEntropy | Glmc,
        *,
        examples: int,
        layout: Layout | None = None,
        apart: bool = False,
    ):
        """Builds the model.

        Args:
          recipe: what to train.
          optimizer: the method's link, and the rest of the chain.
          objective: what a step minimizes.
          examples: how many there are to train on.
          layout: the mesh to train on, whose devices divide the batch; None for the default
            device.
          apart: whether each device along the mesh's "data" perturbs for itself.
        """
        self._recipe, self._optimizer, self._objective = recipe, optimizer, objective
        self._examples, self._layout, self._apart = examples, layout, apart
        self.model = objective.model()
        self.per_epoch = examples // recipe.batch_size
        # A method that selects examples asks for their losses, by name.
        asked = inspect.signature(optimizer.method.update).parameters
        self._selects_examples = "example_loss_fn" in asked

    def order(self, seed: jax.Array, epoch: jax.typing.ArrayLike) -> jax.Array:
        """The examples of each batch of an epoch: int32[steps, batch]."""
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        order = jax.random.permutation(key, self._examples)
        return order[: self.per_epoch * self._recipe.batch_size].reshape(self.per_epoch, -1)

    def batch(
        self, state: TrainState, train: Any, order: jax.Array, i: jax.typing.ArrayLike
    ) -> Any:
        """A batch of a set in memory, as the objective makes it."""
        progress = state.step // self.per_epoch / self._recipe.epochs
        indices = self._divided(order[i])
        return self._divided(self._objective.batch(self._key(state), progress, train, indices))

    def prepared(self, state: TrainState, scale: Any, images: jax.Array, labels: jax.Array) -> Any:
        """The same of a streamed set's images."""
        return self._divided(self._objective.prepared(self._key(state), scale, images, labels))

    def _key(self, state):
        """Of all that is drawn for the batch of a step."""
        key = jax.random.fold_in(jax.random.key(state.seed), AUGMENTATION)
        return jax.random.fold_in(key, state.step)

    def _divided(self, batch):
        """A batch of which each device has its part, where it can be divided."""
        if self._layout is None or len(jax.tree.leaves(batch)[0]) % self._layout.size:
            return batch
        return jax.lax.with_sharding_constraint(batch, self._layout.batch)

    def evaluated(
        self,
        state: TrainState,
        scale: Any,
        images: jax.Array,
        labels: jax.Array,
        valid: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sums over the valid images, with the running statistics: loss, hits, their number."""
        images, labels, valid = self._divided((images, labels, valid))
        images = augment.augment(None, images, *scale, (), size=self._recipe.image_size)
        variables = {"params": state.params, **state.model_state}
        logits = self.model.apply(variables, images, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = logits.argmax(-1) == labels
        return jnp.where(valid, losses, 0).sum(), (correct & valid).sum(), valid.sum()

    def _forward(self, params, model_state, batch):
        variables = {"params": params, **model_state}
        losses, hits, model_state = self._objective.losses(self.model, variables, batch)
        return losses, (model_state, hits.mean())

    def loss(self, params: Any, model_state: Any, batch: Any) -> tuple[jax.Array, Any]:
        """The mean, and beside it the new statistics, the accuracy and the loss of each example."""
        losses, (model_state, accuracy) = self._forward(params, model_state, batch)
        return losses.mean(), (model_state, accuracy, losses)

    def losses(self, model_state: Any, batch: Any, params: Any) -> jax.Array:
        """The loss of each example."""
        return self._forward(params, model_state, batch)[0]

    def first(self, state: TrainState, batch: Any) -> tuple[Any, Any, jax.Array, dict[str, Any]]:
        """Gradient, batch statistics, losses, loss and accuracy, all of the first pass."""
        point = sam_optax.gradient_point(state.method_state, state.params)
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (model_state, accuracy, losses)), grads = value_and_grad(
            point, state.model_state, batch
        )
        norm = optax.tree.norm(grads)
        metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": norm}
        return grads, model_state, losses, metrics

    def second(
        self, model_state: Any, batch: Any, params: Any, kept: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Loss and gradient, on the examples kept; the batch statistics are dropped."""
        if kept is not None:
            batch = jax.tree.map(lambda a: a[kept], batch)
            if not self._apart:
                # Divided again: else every device would take the gradient on all examples kept.
                batch = self._divided(batch)
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, _), gradient = value_and_grad(params, model_state, batch)
        return loss, gradient

    def update(
        self,
        state: TrainState,
        batch: Any,
        first: Callable[..., Any],
        second: Callable[..., Any],
        losses: Callable[..., Any],
        fire: bool | None = None,
    ) -> tuple[Any, TrainState, dict[str, Any]]:
        """The method's link: the first gradient, and the second where the method takes it.

        Args:
          state: the state before the step.
          batch: the objective's.
          first: the function `first`, compiled or not.
          second: `second`.
          losses: `losses`.
          fire: the method's decision, where it is known.
        """
        grads, model_state, example_losses, metrics = first(state, batch)
        fixed = state.model_state, batch
        extra = {"value_and_grad_fn": functools.partial(second, *fixed)}
        if tells_rise(state.method_state):
            extra["value"] = metrics["loss"]
        if self._selects_examples:
            extra["example_loss_fn"] = functools.partial(losses, *fixed)
            extra["example_losses"] = example_losses
        before = ascents(state.method_state)
        updates, method_state = self._optimizer.method.update(
            grads, state.method_state, state.params, fire=fire, **extra
        )
        fired = ascents(method_state) - before
        metrics |= {
            "sam_fraction": fired,
            "rise": jnp.where(fired > 0, rise(method_state), 0.0),
        }
        state = state._replace(model_state=model_state, method_state=method_state)
        return updates, state, metrics

    def applied(self, state: TrainState, direction: Any, metrics: dict[str, Any]) -> TrainState:
        """The state after the rest of the chain, and the count of the step."""
        updates, base_state = self._optimizer.base.update(direction, state.base_state, state.params)
        metrics = {**metrics, "direction_norm": optax.tree.norm(direction)}
        begins = state.step % self.per_epoch == 0
        return state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            base_state=base_state,
            metrics={
                name: jnp.where(begins, 0.0, total) + metrics[name]
                for name, total in state.metrics.items()
            },
        )

    def __call__(self, state: TrainState, batch: Any, fire: bool | None = None) -> TrainState:
        """The whole step, on a batch of the objective's, with the decision where it is known."""
        if not self._apart:
            return self._whole(state, batch, fire)
        # Unchecked, so that a gradient is the device's own, and a state of the method may say that
        # it is equal on all devices, such as its count of steps, without showing it.
        return jax.shard_map(
            functools.partial(self._on_one_device, fire=fire),
            mesh=self._layout.mesh,
            in_specs=(_mapped(PartitionSpec(DATA)), PartitionSpec(DATA)),
            out_specs=_mapped(PartitionSpec(DATA)),
            check_vma=False,
        )(state, batch)

    def _on_one_device(self, state, batch, fire):
        """The step of one device, with the method's state and the part of the batch that it has."""
        own = jax.tree.map(lambda leaf: leaf[0], state.method_state)
        state = self._whole(state._replace(method_state=own), batch, fire)
        model_state, metrics = jax.lax.pmean((state.model_state, state.metrics), DATA)
        own = jax.tree.map(lambda leaf: leaf[None], state.method_state)
        return state._replace(method_state=own, model_state=model_state, metrics=metrics)

    def _whole(self, state, batch, fire):
        updates, state, metrics = self.update(
            state, batch, self.first, self.second, self.losses, fire
        )
        return self.applied(state, updates, metrics)


def _mapped(divided: PartitionSpec) -> TrainState:
    """What of a state each device has for itself, in the words of `jax.shard_map`."""
    whole = TrainState(*(PartitionSpec() for _ in TrainState._fields))
    return whole._replace(method_state=divided)
