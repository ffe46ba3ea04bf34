"""What trains a recipe with a method: its steps compiled, an epoch of them, and the evaluation.

A method whose decisions are known ahead is told them, and trained by programs without conditional.
Any other that decides on the device is trained by compiled loops of several steps, one that decides
on the host by the pieces of each step. A set in memory lies on the device, where each step takes
its batch from it; a streamed one comes batch by batch.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import augment, feeds
from experiments.data.disk import CorruptedError
from experiments.data.feeds import Arrays, Feed
from experiments.data.pipeline.stream import Stream
from experiments.data.reading import Split
from experiments.data.sets import Data
from experiments.models.pretrained import Source
from experiments.models.weights import Weights
from experiments.recipes.base import Recipe
from experiments.system.mesh import DATA, Layout, place
from experiments.training import ahead, objectives
from experiments.training.optimizers import optimizer
from experiments.training.pieces import Pieces
from experiments.training.state import METRICS, TrainState
from experiments.training.step import Step

# A random stream of the seed, beside `step.AUGMENTATION`.
METHOD = 2**32 - 2


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
        first, last = epochs or (0, recipe.epochs)
        self._epochs = last - first
        # A method keeps its random key in its state, so that one compiled step serves all seeds.
        self._build = functools.partial(
            optimizer,
            recipe,
            method,
            settings,
            epochs=last - first,
            first_epoch=first,
            steps_per_epoch=self.steps_per_epoch,
            axis_name=DATA if apart else None,
        )
        self.optimizer = self._build()
        # How many gradients the first of a step is the mean of.
        self.samples = settings.get("samples", 1)
        self.step = Step(
            recipe,
            self.optimizer,
            objectives.make(recipe, data.classes),
            examples=self.examples,
            layout=layout,
            apart=apart,
        )
        self.model = self.step.model
        self._jit_init = jax.jit(functools.partial(self.model.init, train=False))
        self._each = jax.vmap if together else lambda function, in_axes=0: function
        self.jit_step = jax.jit(self.step, donate_argnums=0, static_argnames="fire")
        self.jit_steps = jax.jit(self._steps, donate_argnums=0, static_argnames="fire")
        self.jit_order = jax.jit(self._each(self.step.order, in_axes=(0, None)))
        self.jit_batch = jax.jit(self.step.batch)
        self.host_step = Pieces(self.step)
        self._jit_prepared = jax.jit(self.step.prepared)
        self._jit_evaluated = jax.jit(self.step.evaluated)

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
        left = self.steps_per_epoch - first
        fires = ahead.decisions(self.optimizer.method, state.method_state, left)
        if isinstance(train, Feed):
            for state in self._streamed(state, train, fires):  # noqa: B020
                yield 1, state
            return
        order = self.jit_order(state.seed, epoch)
        stride = 1 if self.on_host else most
        for i in range(first, self.steps_per_epoch, stride):
            last = min(i + stride, self.steps_per_epoch)
            told = fires[i - first : last - first]
            if self.on_host:
                state = self._alone(state, self.jit_batch(state, train, order, i), *told)
            else:
                for begin, end, fire in ahead.stretches(told, i):
                    state = self.jit_steps(state, train, order, begin, end, fire=fire)
                    if jax.default_backend() == "cpu":  # where programs in flight share the cores
                        jax.block_until_ready(state)
                jax.block_until_ready(state)
            yield last - i, state

    def _alone(self, state, batch, fire):
        """One step of a batch: a program, or its pieces where the host has yet to decide."""
        if self.on_host and fire is None:
            return self.host_step(state, batch)
        return self.jit_step(state, batch, fire=fire)

    def _streamed(self, state, feed, fires):
        """The state after each of the steps with these decisions."""
        before = None
        batches = feed.batches(int(state.seed), int(state.step), len(fires))
        for fire, (images, labels) in zip(fires, batches, strict=True):
            batch = self._jit_prepared(state, feed.scale, images, labels)
            state = self._alone(state, batch, fire)
            # The next batch is fetched while the device computes this step, and no other waits.
            before, done = state.step + 0, before
            jax.block_until_ready(done)
            yield state

    def evaluate(
        self, state: TrainState, split: Split | Stream, train: Arrays | Feed, batch_size: int = 1000
    ) -> dict[str, float]:
        """Mean loss and accuracy over a split, with the running statistics."""
        totals = [
            self._jit_evaluated(state, train.scale, *batch)
            for batch in feeds.evaluated(split, batch_size, self.layout)
        ]
        loss, correct, count = (float(sum(column)) for column in zip(*totals, strict=True))
        if not count:
            raise CorruptedError("no image of the split can be decoded: prepare the set again.")
        return {"loss": loss / count, "accuracy": correct / count}

    def skips_gradients(self, states: Sequence[TrainState], train: Arrays) -> bool:
        """Whether a step of these seeds at once holds a conditional, of which it takes both sides.

        It does not where all decisions are known, and the same for all of them.
        """
        link, steps = self.optimizer.method, self._epochs * self.steps_per_epoch
        fires = [ahead.decisions(link, state.method_state, steps) for state in states]
        if all(None not in own and own == fires[0] for own in fires):
            return False
        order = jax.ShapeDtypeStruct((self.steps_per_epoch, self.recipe.batch_size), jnp.int32)
        jaxpr = jax.make_jaxpr(self._taken)(states[0], train, order, 0)
        return re.search(r"\bcond\[", str(jaxpr)) is not None

    def _taken(self, state, train, order, i, fire=None):
        return self.step(state, self.step.batch(state, train, order, i), fire)

    def _steps(self, state, train, order, first, last, fire=None):
        # The bounds are known when it runs: what a step computes does not depend on how the steps
        # are divided, and a resumed run ends where the whole one does.
        taken = self._each(functools.partial(self._taken, fire=fire), in_axes=(0, 0, 0, None))
        return jax.lax.fori_loop(first, last, lambda i, state: taken(state, train, order, i), state)
