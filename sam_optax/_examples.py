"""The second gradient on the examples that the perturbation hurts most."""

import inspect
import math

import jax
import optax

from sam_optax import _checks


def select_examples(
    link: optax.GradientTransformation, gamma: float
) -> optax.GradientTransformationExtraArgs:
    """The link, with its second gradient on the share γ of the batch that is most sensitive.

    With ℓ_i the loss of example i and s_i = ℓ_i(w + ε) − ℓ_i(w), g' is the gradient of the mean
    loss over the K = max(1, ⌊γB⌋) of the B examples with the largest s_i. That costs one forward
    pass at w + ε, and one at w where XLA does not find it in the first gradient's, and a gradient
    on K examples in place of one on B. The update takes two more things::

        updates, opt_state = tx.update(
            grads, opt_state, params,
            grad_fn=lambda p, indices: jax.grad(loss)(p, batch[indices]),   # indices: int32[K]
            example_loss_fn=lambda p: losses(p, batch),                     # float[B]
        )

    Args:
      link: a sharpness-aware method that takes its first gradient at the parameters, and grad_fn
        for nothing but its second.
      gamma: the share γ in (0, 1]. 1 is the neutral setting: all examples, in the order of their
        s_i. It sets a shape, so it is not to be injected.

    Returns:
      A link with the state of the one inside.

    Raises:
      ValueError: gamma is outside (0, 1]; at the update, example_loss_fn or grad_fn is missing,
        or example_loss_fn does not return one loss for each example.
      TypeError: gamma is no Python number; at the update, grad_fn does not take the indices.

    References:
      Du et al., Efficient Sharpness-aware Minimization (ESAM), 2022: sharpness-sensitive data
      selection. Deviation: the authors' code keeps K − 1 examples.
    """
    _checks.static("gamma", gamma)
    _checks.interval("gamma", gamma, "(0, 1]", schedule=False)

    def update(updates, state, params=None, *, grad_fn=None, example_loss_fn=None, **extra):
        if grad_fn is None or example_loss_fn is None:
            missing = "grad_fn" if grad_fn is None else "example_loss_fn"
            raise ValueError(
                f"selecting examples needs {missing}: call update(grads, opt_state, params, "
                "grad_fn=lambda params, indices: ..., example_loss_fn=lambda params: ...), the "
                "gradient of the mean loss over the examples at indices, and the loss of each "
                "example; gamma=1 takes the whole batch and needs no example_loss_fn."
            )
        _check_takes_indices(grad_fn)

        def second(point):
            clean = example_loss_fn(params)
            if clean.ndim != 1:
                raise ValueError(
                    "example_loss_fn must return one loss for each example, an array [B], got "
                    f"shape {list(clean.shape)}: leave out the mean over the batch."
                )
            # Rounded first: 0.29 · 100 is 28.999… in floating point.
            kept = max(1, math.floor(round(gamma * clean.shape[0], 6)))
            _, indices = jax.lax.top_k(example_loss_fn(point) - clean, kept)
            return grad_fn(point, indices)

        return link.update(updates, state, params, grad_fn=second, **extra)

    return optax.GradientTransformationExtraArgs(link.init, update)


def _check_takes_indices(grad_fn):
    """Raises unless grad_fn(params, indices) is a call that its signature allows."""
    try:
        inspect.signature(grad_fn).bind(None, None)
    except TypeError:
        raise TypeError(
            "grad_fn must take the indices of the examples to keep: grad_fn(params, indices) -> "
            "gradient of the mean loss over them; gamma=1 takes the whole batch."
        ) from None
    except ValueError:  # a callable without a signature
        pass
