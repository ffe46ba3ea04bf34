"""The gradient through the outputs alone, at a perturbed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from sam_optax._contracts import GradFn, Tree


def functional_grad_fn(
    function: Callable[[Tree], Any], loss_fn: Callable[[Any], jax.Array], params: Tree
) -> GradFn:
    r"""A `grad_fn` whose loss sees the outputs at the parameters, wherever it is taken.

    .. math::
      p \mapsto J_F(p)^\top \, \nabla_F L(F(w))

    F is the function, L the loss of its outputs and w the parameters. At w it is the gradient.
    Handed to a sharpness-aware method in place of its `grad_fn`, it makes the method the functional
    one: what it flattens is the function, and not the loss of its outputs.

    Args:
      function: parameters ↦ outputs, such as logits; batch and all else closed over. It is to draw
        the same dropout masks at each call.
      loss_fn: outputs ↦ loss, a real scalar.
      params: w, the parameters that the update is given.

    Returns:
      A function of parameters that returns a gradient like them. It costs a forward and a backward
      pass; the outputs at w are one more forward pass outside jit, and inside jit that of the first
      gradient.

    Raises:
      TypeError: loss_fn does not return a real scalar.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> x, y = jnp.array([[1.0, 2.0]]), jnp.array([1.0])
      >>> model = lambda w: jnp.tanh(x @ w)
      >>> loss = lambda outputs: jnp.mean((outputs - y) ** 2)
      >>> w = jnp.array([0.5, -0.5])
      >>> grad_fn = sam_optax.functional_grad_fn(model, loss, w)
      >>> link = sam_optax.sam(0.1)
      >>> direction, _ = link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)

    References:
      Singh et al., `Avoiding spurious sharpness minimization broadens applicability of SAM
      <https://arxiv.org/abs/2502.02407>`_ (Functional SAM), 2025.
    """
    cotangent = jax.lax.stop_gradient(jax.grad(loss_fn)(function(params)))

    def grad_fn(p: Tree) -> Tree:
        _, pull_back = jax.vjp(function, p)
        gradient: Tree
        (gradient,) = pull_back(cotangent)
        return gradient

    return grad_fn
