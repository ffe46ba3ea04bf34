"""The training loop: pure steps, and the two ways to take a method's decision.

A set in memory lies on the device, where each step takes its batch from it; a streamed one comes
batch by batch.

On the device several steps are one compiled loop. On the host each step is a few compiled pieces
around the method's own Python branch: the way to train convolutions on CPU, whose gradients XLA
compiles to slow code inside loops and conditionals.

On a mesh the same steps run over a divided batch, and JAX adds the collectives: one perturbation of
the global batch. Where each device perturbs for itself, a step is mapped over the devices, each
with a state of the method of its own, and the directions are averaged.
"""

from collections.abc import Iterator, Mapping
import functools
import inspect
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax

from experiments import augment, feeds, objectives
from experiments.data import CorruptedError, Data, Split
from experiments.feeds import Arrays, Feed
from experiments.mesh import DATA, Layout, place
from experiments.optimizers import optimizer
from experiments.pipeline.stream import Stream
from experiments.pretrained import Source
from experiments.recipes.base import Recipe
from experiments.weights import Weights
import sam_optax

# Random streams of the seed; the orders of the epochs have the streams 0, 1, 2, …
AUGMENTATION, METHOD = 2**32 - 1, 2**32 - 2

METRICS = ("loss", "accuracy", "gradient_norm", "direction_norm", "sam_fraction")


class TrainState(NamedTuple):
    """All that a step changes, and all that a checkpoint needs.

    Attributes:
      step: int32, the steps taken; with the seed it fixes the batch and its augmentation.
      seed: uint32, what every random number of the run follows from.
      params: the model's parameters.
      model_state: its batch statistics.
      method_state: the state of the method's link; with a leading axis of devices where each
        perturbs for itself.
      base_state: the state of the rest of the chain.
      metrics: sums over the steps of this epoch, float32 by the names in METRICS.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    model_state: Any
    method_state: Any
    base_state: Any
    metrics: dict[str, jax.Array]


def _mapped(divided: PartitionSpec) -> TrainState:
    """What of a state each device has for itself, in the words of `jax.shard_map`."""
    whole = TrainState(*(PartitionSpec() for _ in TrainState._fields))
    return whole._replace(method_state=divided)


def ascents(method_state: Any) -> jax.typing.ArrayLike:
    """The second gradients that a method has taken."""
    return getattr(method_state, "ascents", 0)


class Trainer:
    """One method on one recipe, compiled once for any number of seeds."""

    def __init__(
        self,
        recipe: Recipe,
        method: str,
        settings: Mapping[str, Any],
        *,
        data: Data,
        on_host: bool,
        epochs: tuple[int, int] | None = None,
        together: bool = False,
        layout: Layout | None = None,
        apart: bool = False,
        weights: Weights | None = None,
    ):
        """Builds the model and the optimizer.

        Args:
          recipe: what to train.
          method: "sgd" or the name of a method of `sam_optax`.
          settings: the method's keyword arguments.
          data: a set of the shapes and classes of the one to train on.
          on_host: whether the method decides on the host.
          epochs: the first that the method trains, and the one behind the last; all by default.
          together: whether states and arrays have a leading axis of seeds.
          layout: the mesh to train on, whose devices divide the batch; None for the default
            device.
          apart: whether each device along the mesh's "data" perturbs for itself.
          weights: what the parameters begin with; None for what the seed draws.

        Raises:
          ValueError, TypeError: the method does not take these settings, or the objective does not
            fit the recipe.
        """
        self.layout, self._apart, self._weights = layout, apart, weights
        self.source: Source | None = None  # of the weights, once they are read
        self.recipe = recipe
        self.examples = data.train.examples
        self.steps_per_epoch = self.examples // recipe.batch_size
        self.on_host = on_host
        self._objective = objectives.make(recipe, data.classes)
        self.model = self._objective.model()
        first, last = epochs or (0, recipe.epochs)
        build = functools.partial(
            optimizer,
            recipe,
            method,
            settings,
            epochs=last - first,
            first_epoch=first,
            steps_per_epoch=self.steps_per_epoch,
            axis_name=DATA if apart else None,
        )
        # How many gradients the first of a step is the mean of.
        self.samples = settings.get("samples", 1)
        self.optimizer = build()
        # A method that selects examples asks for their losses, by name.
        asked = inspect.signature(self.optimizer.method.update).parameters
        self._selects_examples = "example_loss_fn" in asked
        # A method keeps its random key in its state, so that one compiled step serves all seeds.
        self._build = build
        self._jit_init = jax.jit(functools.partial(self.model.init, train=False))
        self._each = jax.vmap if together else lambda function, in_axes=0: function
        self._each_step = self._each(self._step, in_axes=(0, 0, 0, None))
        self.jit_step = jax.jit(self._step_on, donate_argnums=0)
        self.jit_steps = jax.jit(self._steps, donate_argnums=0)
        self.jit_order = jax.jit(self._each(self._order, in_axes=(0, None)))
        self._jit_batch = jax.jit(self._batch)
        self._jit_prepared = jax.jit(self._prepared)
        self._jit_first = jax.jit(self._first)
        self._jit_second = jax.jit(self._second)
        self._jit_losses = jax.jit(self._losses)
        self._jit_apply = jax.jit(self._apply, donate_argnums=0)
        self._jit_evaluate = jax.jit(self._evaluate)

    def init(self, shape: tuple[int, int, int], seed: int) -> TrainState:
        """The state before the first step.

        Args:
          shape: height, width and channels of the images of the set.
          seed: draws the weights and the method's numbers.

        Raises:
          WeightsError: the file of weights does not fit.
        """
        example = jnp.zeros((1, *augment.shape(shape, self.recipe.image_size)), jnp.float32)
        model_state = dict(self._jit_init(jax.random.key(seed), example))
        params = model_state.pop("params")
        if self._weights is not None:
            params, model_state, self.source = self._weights.onto(self.model, params, model_state)
        state = TrainState(
            step=jnp.zeros([], jnp.int32),
            seed=jnp.asarray(seed, jnp.uint32),
            params=params,
            model_state=model_state,
            method_state=self._init_method(params, seed),
            base_state=self.optimizer.base.init(params),
            metrics={name: jnp.zeros([], jnp.float32) for name in METRICS},
        )
        return self._placed(state)

    def shardings(self, state: TrainState) -> TrainState:
        """Where on the mesh each array of a state lies."""
        layout, method = self.layout, self.optimizer.method
        if self._apart:
            method_state = jax.tree.map(lambda leaf: layout.device, state.method_state)
        else:
            method_state = layout.like_params(method, state.method_state, state.params)
        return layout.everywhere(state)._replace(
            params=layout.params(state.params),
            method_state=method_state,
            base_state=layout.like_params(self.optimizer.base, state.base_state, state.params),
        )

    def _placed(self, state):
        return state if self.layout is None else place(state, self.shardings(state))

    def adopt(self, state: TrainState) -> TrainState:
        """The state of another method's trainer, for this one to go on with."""
        return self._each(self.adopt_one)(state)

    def adopt_one(self, state: TrainState) -> TrainState:
        """The same, for the state of one seed."""
        return self._placed(
            state._replace(method_state=self._init_method(state.params, state.seed))
        )

    def _init_method(self, params, seed):
        """The method's state, its random numbers drawn from the seed."""
        # The link that trains sees an init too: then it compiles its pieces from the first step on,
        # and rounds alike in a run that is resumed.
        jax.eval_shape(self.optimizer.method.init, params)
        key = jax.random.fold_in(jax.random.key(seed), METHOD)
        state = self._build(key=key).method.init(params)
        if not self._apart:
            return state
        devices = self.layout.size
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (devices, *leaf.shape)), state)

    def dispatches(
        self, state: TrainState, train: Arrays | Feed, *, most: int
    ) -> Iterator[tuple[int, TrainState]]:
        """Trains to the end of the epoch that the state is in, in dispatches.

        A dispatch is at most so many steps on the device, or one step on the host or on a streamed
        batch; after each come its number of steps and the state. The state given is donated, and so
        is a state yielded when the next one is asked for.
        """
        if train.examples != self.examples:
            raise ValueError(
                f"this trainer is for {self.examples} examples, got {train.examples}: make one "
                "from this set."
            )
        epoch, first = divmod(int(np.min(state.step)), self.steps_per_epoch)
        if isinstance(train, Feed):
            for state in self._streamed(state, train, self.steps_per_epoch - first):  # noqa: B020
                yield 1, state
            return
        order = self.jit_order(state.seed, epoch)
        stride = 1 if self.on_host else most
        for i in range(first, self.steps_per_epoch, stride):
            last = min(i + stride, self.steps_per_epoch)
            if self.on_host:
                state = self.host_step(state, self._jit_batch(state, train, order, i))
            else:
                state = jax.block_until_ready(self.jit_steps(state, train, order, i, last))
            yield last - i, state

    def _streamed(self, state, feed, steps):
        """The state after each of so many steps."""
        before = None
        for images, labels in feed.batches(int(state.seed), int(state.step), steps):
            batch = self._jit_prepared(state, feed.scale, images, labels)
            state = (self.host_step if self.on_host else self.jit_step)(state, batch)
            # The next batch is fetched while the device computes this step, and no other waits.
            before, done = state.step + 0, before
            jax.block_until_ready(done)
            yield state

    def evaluate(
        self, state: TrainState, split: Split | Stream, train: Arrays | Feed, batch_size: int = 1000
    ) -> dict[str, float]:
        """Mean loss and accuracy over a split, with the running statistics."""
        totals = [
            self._jit_evaluate(state, train.scale, *batch)
            for batch in feeds.evaluated(split, batch_size, self.layout)
        ]
        loss, correct, count = (float(sum(column)) for column in zip(*totals, strict=True))
        if not count:
            raise CorruptedError("no image of the split can be decoded: prepare the set again.")
        return {"loss": loss / count, "accuracy": correct / count}

    def host_step(self, state: TrainState, batch: Any) -> TrainState:
        """One step around the method's Python branch, on a batch of the objective's.

        State is donated.
        """
        updates, state, metrics = self._update(
            state, batch, self._jit_first, self._jit_second, self._jit_losses
        )
        method_state = state.method_state
        # Not donated: what a method hands on may be part of its own state.
        rest = state._replace(method_state=())
        return self._jit_apply(rest, updates, metrics)._replace(method_state=method_state)

    def skips_gradients(self, state: TrainState, train: Arrays) -> bool:
        """Whether a step holds a conditional; for several seeds at once it takes both sides."""
        order = jax.ShapeDtypeStruct((self.steps_per_epoch, self.recipe.batch_size), jnp.int32)
        jaxpr = jax.make_jaxpr(self._step)(state, train, order, 0)
        return re.search(r"\bcond\[", str(jaxpr)) is not None

    def _order(self, seed, epoch):
        """The examples of each batch of an epoch: int32[steps, batch]."""
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        order = jax.random.permutation(key, self.examples)
        used = self.steps_per_epoch * self.recipe.batch_size
        return order[:used].reshape(self.steps_per_epoch, -1)

    def _batch(self, state, train, order, i):
        """A batch of a set in memory, as the objective makes it."""
        progress = state.step // self.steps_per_epoch / self.recipe.epochs
        indices = self._divided(order[i])
        return self._divided(self._objective.batch(self._key(state), progress, train, indices))

    def _prepared(self, state, scale, images, labels):
        """The same of a streamed set's images."""
        return self._divided(self._objective.prepared(self._key(state), scale, images, labels))

    def _key(self, state):
        """Of all that is drawn for the batch of a step."""
        key = jax.random.fold_in(jax.random.key(state.seed), AUGMENTATION)
        return jax.random.fold_in(key, state.step)

    def _divided(self, batch):
        """A batch of which each device has its part, where it can be divided."""
        if self.layout is None or len(jax.tree.leaves(batch)[0]) % self.layout.size:
            return batch
        return jax.lax.with_sharding_constraint(batch, self.layout.batch)

    def _evaluate(self, state, scale, images, labels, valid):
        images, labels, valid = self._divided((images, labels, valid))
        images = augment.augment(None, images, *scale, (), size=self.recipe.image_size)
        variables = {"params": state.params, **state.model_state}
        logits = self.model.apply(variables, images, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = logits.argmax(-1) == labels
        return jnp.where(valid, losses, 0).sum(), (correct & valid).sum(), valid.sum()

    def _forward(self, params, model_state, batch):
        variables = {"params": params, **model_state}
        losses, hits, model_state = self._objective.losses(self.model, variables, batch)
        return losses, (model_state, hits.mean())

    def _loss(self, params, model_state, batch):
        losses, (model_state, accuracy) = self._forward(params, model_state, batch)
        return losses.mean(), (model_state, accuracy, losses)

    def _losses(self, model_state, batch, params):
        """The loss of each example."""
        return self._forward(params, model_state, batch)[0]

    def _first(self, state, batch):
        """Gradient, batch statistics, losses, loss and accuracy, all of the first pass."""
        point = sam_optax.gradient_point(state.method_state, state.params)
        value_and_grad = jax.value_and_grad(self._loss, has_aux=True)
        (loss, (model_state, accuracy, losses)), grads = value_and_grad(
            point, state.model_state, batch
        )
        norm = optax.tree.norm(grads)
        metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": norm}
        return grads, model_state, losses, metrics

    def _second(self, model_state, batch, params, kept=None):
        """The gradient alone, on the examples kept; its batch statistics are dropped."""
        if kept is not None:
            batch = jax.tree.map(lambda a: a[kept], batch)
            if not self._apart:
                # Divided again: else every device would take the gradient on all examples kept.
                batch = self._divided(batch)
        return jax.grad(self._loss, has_aux=True)(params, model_state, batch)[0]

    def _update(self, state, batch, first, second, losses):
        """The method's link: the first gradient, and the second where the method takes it."""
        grads, model_state, example_losses, metrics = first(state, batch)
        fixed = state.model_state, batch
        extra = {"grad_fn": functools.partial(second, *fixed)}
        if self._selects_examples:
            extra["example_loss_fn"] = functools.partial(losses, *fixed)
            extra["example_losses"] = example_losses
        before = ascents(state.method_state)
        updates, method_state = self.optimizer.method.update(
            grads, state.method_state, state.params, **extra
        )
        metrics["sam_fraction"] = ascents(method_state) - before
        state = state._replace(model_state=model_state, method_state=method_state)
        return updates, state, metrics

    def _apply(self, state, direction, metrics):
        """The rest of the chain, and the count of the step."""
        updates, base_state = self.optimizer.base.update(direction, state.base_state, state.params)
        metrics = {**metrics, "direction_norm": optax.tree.norm(direction)}
        begins = state.step % self.steps_per_epoch == 0
        return state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            base_state=base_state,
            metrics={
                name: jnp.where(begins, 0.0, total) + metrics[name]
                for name, total in state.metrics.items()
            },
        )

    def _step(self, state, train, order, i):
        return self._step_on(state, self._batch(state, train, order, i))

    def _step_on(self, state, batch):
        if not self._apart:
            return self._one_step(state, batch)
        # Unchecked, so that a gradient is the device's own, and a state of the method may say that
        # it is equal on all devices, such as its count of steps, without showing it.
        return jax.shard_map(
            self._step_apart,
            mesh=self.layout.mesh,
            in_specs=(_mapped(PartitionSpec(DATA)), PartitionSpec(DATA)),
            out_specs=_mapped(PartitionSpec(DATA)),
            check_vma=False,
        )(state, batch)

    def _step_apart(self, state, batch):
        """The step of one device, with the method's state and the part of the batch that it has."""
        own = jax.tree.map(lambda leaf: leaf[0], state.method_state)
        state = self._one_step(state._replace(method_state=own), batch)
        model_state, metrics = jax.lax.pmean((state.model_state, state.metrics), DATA)
        own = jax.tree.map(lambda leaf: leaf[None], state.method_state)
        return state._replace(method_state=own, model_state=model_state, metrics=metrics)

    def _one_step(self, state, batch):
        updates, state, metrics = self._update(
            state, batch, self._first, self._second, self._losses
        )
        return self._apply(state, updates, metrics)

    def _steps(self, state, train, order, first, last):
        # The bounds are known when it runs: what a step computes does not depend on how the steps
        # are divided, and a resumed run ends where the whole one does.
        return jax.lax.fori_loop(
            first, last, lambda i, state: self._each_step(state, train, order, i), state
        )
