"""The loss over a whole set, batch by batch, with its gradient and its Hessian."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


class AnalysisError(Exception):
    """What was asked for cannot be computed; the message says what to change."""


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The mean of a loss over all examples of a set.

    A pass over the set is a Python loop around one compiled function, so that the set may be larger
    than a device, and convolutions on CPU are compiled outside of loops, where they are fast.

    Attributes:
      loss_fn: loss_fn(params, batch) is the mean loss over the examples of a batch, a scalar.
      batches: pytrees of arrays whose leading axis is that of the examples; the last may be
        shorter, which compiles once more.
      on_pass: called after each pass over the set, to show progress.
    """

    loss_fn: Callable[[optax.Params, Any], jax.Array]
    batches: Sequence[Any]
    on_pass: Callable[[], None] = lambda: None

    @classmethod
    def divided(
        cls, loss_fn: Callable[..., jax.Array], examples: Any, size: int, **more: Any
    ) -> "Objective":
        """The objective over examples, in batches of a size.

        Args:
          loss_fn: as above.
          examples: a pytree of arrays with the examples along the leading axis.
          size: examples in a batch.
          **more: further attributes.

        Raises:
          AnalysisError: there is no example, or size is less than 1.
        """
        count = _examples(examples) if jax.tree.leaves(examples) else 0
        if count < 1 or size < 1:
            raise AnalysisError(
                f"there must be an example, and one in a batch, got {count} in batches of {size}."
            )
        parts = [
            jax.tree.map(lambda leaf, i=i: leaf[i : i + size], examples)
            for i in range(0, count, size)
        ]
        return cls(loss_fn, parts, **more)

    @functools.cached_property
    def weights(self) -> list[float]:
        """The share of all examples that each batch has."""
        counts = [_examples(batch) for batch in self.batches]
        return [count / sum(counts) for count in counts]

    def loss(self, params: optax.Params) -> float:
        """The loss; the sum over batches is taken in float64."""
        losses = [self._loss(params, batch) for batch in self.batches]
        self.on_pass()
        return sum(w * float(loss) for w, loss in zip(self.weights, losses, strict=True))

    def gradient(self, params: optax.Params) -> optax.Updates:
        """The gradient, shaped like params."""
        return self._sum(self._add_gradient, params)

    def gradients(self, params: optax.Params) -> Any:
        """An iterator over the gradients of the batches, one after the other."""
        for batch in self.batches:
            yield self._gradient(params, batch)
        self.on_pass()

    def product(self, params: optax.Params, vector: optax.Params) -> optax.Updates:
        """The Hessian at params times a vector; both, and the product, are shaped alike."""
        return self._sum(self._add_product, params, vector)

    def parts(self, size: int, most: int | None = None) -> list["Objective"]:
        """The objectives over so many examples each, the first of the set; at most so many of them.

        Raises:
          AnalysisError: size is not between 1 and the number of examples.
        """
        count = sum(map(_examples, self.batches))
        if not 0 < size <= count:
            raise AnalysisError(f"a part must have between 1 and {count} examples, got {size}.")
        wanted = min(count // size, most or count) * size
        ends = itertools.accumulate(map(_examples, self.batches))
        needed = [
            b for b, end in zip(self.batches, ends, strict=True) if end - _examples(b) < wanted
        ]
        first = jax.tree.map(lambda *leaves: np.concatenate(leaves), *needed)
        return [
            dataclasses.replace(
                self, batches=[jax.tree.map(lambda leaf, i=i: leaf[i : i + size], first)]
            )._sharing(self)
            for i in range(0, wanted, size)
        ]

    def _sum(self, add, *args):
        total = jax.tree.map(jnp.zeros_like, args[0])
        for weight, batch in zip(self.weights, self.batches, strict=True):
            total = add(total, weight, batch, *args)
        self.on_pass()
        return total

    def _sharing(self, other):
        """This objective, with the compiled functions of another of the same loss."""
        for name in ("_loss", "_gradient", "_add_gradient", "_add_product"):
            self.__dict__[name] = getattr(other, name)
        return self

    @functools.cached_property
    def _loss(self):
        return jax.jit(self.loss_fn)

    @functools.cached_property
    def _gradient(self):
        return jax.jit(jax.grad(self.loss_fn))

    @functools.cached_property
    def _add_gradient(self):
        def add(total, weight, batch, params):
            return _add_scaled(total, weight, jax.grad(self.loss_fn)(params, batch))

        return jax.jit(add, donate_argnums=0)

    @functools.cached_property
    def _add_product(self):
        def add(total, weight, batch, params, vector):
            gradient = jax.grad(lambda p: self.loss_fn(p, batch))
            return _add_scaled(total, weight, jax.jvp(gradient, (params,), (vector,))[1])

        return jax.jit(add, donate_argnums=0)


def _add_scaled(total, weight, tree):
    return jax.tree.map(lambda t, x: (t + weight * x).astype(t.dtype), total, tree)


def _examples(tree):
    return len(jax.tree.leaves(tree)[0])
