"""The training loop: pure steps, and the two ways to take a method's decision.

On the device an epoch is one compiled scan. On the host each step is a few compiled pieces around
the method's own Python branch: the way to train convolutions on CPU, whose gradients XLA compiles
to slow code inside loops and conditionals.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.data import Data
from experiments.recipes import Recipe
import sam_optax

SGD = "sgd"


class TrainState(NamedTuple):
    """All that a step changes."""

    params: Any
    model_state: Any
    method_state: Any
    base_state: Any


class Epoch(NamedTuple):
    """What an epoch tells; loss and accuracy are means over its batches, at the first gradients."""

    epoch: int
    loss: float
    accuracy: float
    state: TrainState


class Optimizer(NamedTuple):
    """A method and the rest of its chain, apart so that the method can decide on the host."""

    method: optax.GradientTransformationExtraArgs
    base: optax.GradientTransformation
    learning_rate: optax.Schedule


def optimizer(
    recipe: Recipe, method: str, settings: Mapping[str, Any], *, total_steps: int, seed: int = 0
) -> Optimizer:
    """SGD with momentum and weight decay behind a method of `sam_optax`, found by its name.

    What a method asks for by the names of its arguments it gets: `total_steps`, `key`, the
    `base` of a decoupled one, and first gradients at the gradient point.
    """
    learning_rate = optax.cosine_decay_schedule(recipe.learning_rate, total_steps)
    direction = optax.chain(
        optax.add_decayed_weights(recipe.weight_decay), optax.trace(recipe.momentum)
    )
    descent = optax.scale_by_learning_rate(learning_rate)
    if method == SGD:
        link = optax.with_extra_args_support(optax.identity())
        return Optimizer(link, optax.chain(direction, descent), learning_rate)
    function = getattr(sam_optax, method)
    offered = {
        "base": direction,
        "key": seed,
        "total_steps": total_steps,
        "updates_at": "gradient_point",
    }
    asked = inspect.signature(function).parameters
    link = function(**{k: v for k, v in offered.items() if k in asked} | dict(settings))
    base = descent if "base" in asked else optax.chain(direction, descent)
    return Optimizer(link, base, learning_rate)


class Trainer:
    """One method on one recipe, compiled once for any number of seeds."""

    def __init__(
        self,
        recipe: Recipe,
        method: str,
        settings: Mapping[str, Any],
        *,
        classes: int,
        total_steps: int,
        on_host: bool,
    ):
        """Builds the model and the optimizer.

        Args:
          recipe: what to train.
          method: "sgd" or the name of a method of `sam_optax`.
          settings: the method's keyword arguments.
          classes: the number of classes.
          total_steps: the length of the learning rate's schedule.
          on_host: whether the method decides on the host in `epochs`.

        Raises:
          ValueError, TypeError: the method does not take these settings.
        """
        self.model = recipe.model(classes)
        self.batch_size = recipe.batch_size
        self.on_host = on_host
        build = functools.partial(optimizer, recipe, method, settings, total_steps=total_steps)
        self.optimizer = build()
        # A method that selects examples asks for their losses, by name again.
        asked = inspect.signature(self.optimizer.method.update).parameters
        self._selects_examples = "example_loss_fn" in asked
        # A method keeps its random key in its state, so that one compiled step serves all seeds.
        self._init_method = lambda params, seed: build(seed=seed).method.init(params)
        self.jit_step = jax.jit(self._step, donate_argnums=0)
        self._jit_scan = jax.jit(self._scan, donate_argnums=0)
        self._jit_first = jax.jit(self._first)
        self._jit_second = jax.jit(self._second)
        self._jit_losses = jax.jit(self._losses)
        self._jit_apply = jax.jit(self._apply, donate_argnums=1)
        self._jit_evaluate = jax.jit(self._evaluate)

    def init(self, images: jax.typing.ArrayLike, seed: int) -> TrainState:
        """The state before the first step; seed draws the weights and the method's numbers."""
        model_state = dict(self.model.init(jax.random.key(seed), images[:1], train=False))
        params = model_state.pop("params")
        return TrainState(
            params, model_state, self._init_method(params, seed), self.optimizer.base.init(params)
        )

    def epochs(
        self,
        state: TrainState,
        data: Data,
        *,
        epochs: int,
        seed: int,
        on_step: Callable[[int], None] = lambda steps: None,
    ) -> Iterator[Epoch]:
        """Trains, and yields after each epoch; seed orders the data.

        `on_step` is told the number of steps just taken. The state given is donated, and so is a
        state yielded when the next epoch is asked for.
        """
        images, labels = map(jnp.asarray, data.train)
        run = self._host_epoch if self.on_host else self._device_epoch
        for epoch in range(epochs):
            key = jax.random.fold_in(jax.random.key(seed), epoch)
            state, (loss, accuracy) = run(state, images, labels, key, on_step)
            yield Epoch(epoch, float(loss), float(accuracy), state)

    def evaluate(self, state: TrainState, split: Any, batch_size: int = 1024) -> dict[str, float]:
        """Mean loss and accuracy over a split, with the running statistics."""
        totals = [
            self._jit_evaluate(state, *(a[i : i + batch_size] for a in split))
            for i in range(0, len(split.labels), batch_size)
        ]
        loss, correct = (
            float(sum(column)) / len(split.labels) for column in zip(*totals, strict=True)
        )
        return {"loss": loss, "accuracy": correct}

    def steps_per_epoch(self, examples: int) -> int:
        """Full batches in so many examples."""
        return examples // self.batch_size

    def _evaluate(self, state, images, labels):
        variables = {"params": state.params, **state.model_state}
        logits = self.model.apply(variables, images, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum(), (logits.argmax(-1) == labels).sum()

    def _forward(self, params, model_state, images, labels):
        variables = {"params": params, **model_state}
        logits, model_state = self.model.apply(
            variables, images, train=True, mutable=list(model_state)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses, (model_state, (logits.argmax(-1) == labels).mean())

    def _loss(self, params, model_state, images, labels):
        losses, (model_state, accuracy) = self._forward(params, model_state, images, labels)
        return losses.mean(), (model_state, accuracy, losses)

    def _losses(self, model_state, images, labels, params):
        """The loss of each example."""
        return self._forward(params, model_state, images, labels)[0]

    def _first(self, state, images, labels):
        """Gradient, batch statistics, losses, loss and accuracy, all of the first pass."""
        point = sam_optax.gradient_point(state.method_state, state.params)
        value_and_grad = jax.value_and_grad(self._loss, has_aux=True)
        (loss, (model_state, accuracy, losses)), grads = value_and_grad(
            point, state.model_state, images, labels
        )
        return grads, model_state, losses, (loss, accuracy)

    def _second(self, model_state, images, labels, params, kept=None):
        """The gradient alone, on the examples kept; its batch statistics are dropped."""
        if kept is not None:
            images, labels = images[kept], labels[kept]
        return jax.grad(self._loss, has_aux=True)(params, model_state, images, labels)[0]

    def _apply(self, updates, state):
        updates, base_state = self.optimizer.base.update(updates, state.base_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, base_state=base_state)

    def _order(self, key, examples):
        steps = self.steps_per_epoch(examples)
        order = jax.random.permutation(key, examples)
        return order[: steps * self.batch_size].reshape(steps, self.batch_size)

    def _update(self, state, images, labels, first, second, losses):
        """The method's link: the first gradient, and the second where the method takes it."""
        grads, model_state, example_losses, metrics = first(state, images, labels)
        fixed = state.model_state, images, labels
        extra = {"grad_fn": functools.partial(second, *fixed)}
        if self._selects_examples:
            extra["example_loss_fn"] = functools.partial(losses, *fixed)
            extra["example_losses"] = example_losses
        updates, method_state = self.optimizer.method.update(
            grads, state.method_state, state.params, **extra
        )
        return updates, state._replace(model_state=model_state, method_state=method_state), metrics

    def _step(self, state, images, labels):
        updates, state, metrics = self._update(
            state, images, labels, self._first, self._second, self._losses
        )
        return self._apply(updates, state), metrics

    def host_step(self, state: TrainState, images: jax.Array, labels: jax.Array):
        """One step around the method's Python branch; state is donated."""
        updates, state, metrics = self._update(
            state, images, labels, self._jit_first, self._jit_second, self._jit_losses
        )
        return self._jit_apply(updates, state), metrics

    def _device_epoch(self, state, images, labels, key, on_step):
        state, metrics = self._jit_scan(state, images, labels, key)
        metrics = jax.block_until_ready(metrics)
        on_step(self.steps_per_epoch(len(labels)))
        return state, metrics

    def _scan(self, state, images, labels, key):
        def step(state, indices):
            return self._step(state, images[indices], labels[indices])

        state, metrics = jax.lax.scan(step, state, self._order(key, len(labels)))
        return state, jax.tree.map(jnp.mean, metrics)

    def _host_epoch(self, state, images, labels, key, on_step):
        history = []
        for indices in self._order(key, len(labels)):
            state, metrics = self.host_step(state, images[indices], labels[indices])
            history.append(metrics)
            on_step(1)
        return state, jax.tree.map(lambda *m: sum(m) / len(m), *history)
