"""Which axes of a leaf make one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sam_optax import _axes, _kernels, _names
from sam_optax._kernels import AxesOf
from sam_optax._purity import ours


def kernel_axes(out_axis: int | Sequence[int] = -1, batch_axis: int | Sequence[int] = ()) -> AxesOf:
    """Which axes of a leaf make one kernel, told as in `jax.nn.initializers.variance_scaling`.

    They are the axes that are neither outputs nor a batch; where there are none, as in a bias, all
    that are no batch. So are those of a bias, by its name, whose other axes are of size 1, as in a
    convolution of Equinox. Some layouts:

    - (in, out) and (window, in, out), as in Flax: `kernel_axes()`
    - (out, in) and (out, in, window), as in Equinox and PyTorch: `kernel_axes(out_axis=0)`
    - (rows, features), an embedding, each row a kernel: `kernel_axes(out_axis=0)`
    - (in, heads, size), the query, key and value of attention: `kernel_axes(out_axis=(-2, -1))`
    - (layers, ...), stacked for a scan: `kernel_axes(batch_axis=0)`

    Args:
      out_axis: the axis or axes of the outputs, each of which has a kernel of its own.
      batch_axis: the axis or axes along which whole layers are stacked. A leaf that lacks an axis
        does without it.

    Returns:
      A function (key path, leaf) ↦ the axes of one kernel.

    Raises:
      TypeError: an axis is no integer.
      ValueError: in the init of a method inside `jax.shard_map`, where the whole shape of a bias is
        not seen.

    Example:
      >>> import jax.numpy as jnp, sam_optax
      >>> kernels = {
      ...     "embedding": sam_optax.start.kernel_axes(out_axis=0),
      ...     "blocks": sam_optax.start.kernel_axes(batch_axis=0),
      ...     "head": None}  # the default
      >>> link = sam_optax.r_sam(gamma=0.01, kernels=kernels)
    """
    outputs, batch = _several("out_axis", out_axis), _several("batch_axis", batch_axis)

    @ours(outputs, batch)
    def axes(path: tuple[Any, ...], w: jax.typing.ArrayLike) -> tuple[int, ...]:
        shape = jnp.shape(w)
        ndim = len(shape)
        own = [i for i in range(ndim) if i not in batch and i - ndim not in batch]
        inside = [i for i in own if i not in outputs and i - ndim not in outputs]
        # A bias of (out, 1, 1) is as one of (out).
        is_flat = all(shape[i] == 1 for i in inside) and _names.is_bias(_names.last(path))
        if is_flat and inside and isinstance(w, jax.core.Tracer) and _axes.varying(w):
            raise ValueError(
                f"the kernels of params{jax.tree_util.keystr(path)} depend on its whole shape, of "
                "which a device sees a part: make the state by init of the whole parameters, "
                "outside jax.shard_map."
            )
        return tuple(own if is_flat or not inside else inside)

    return axes


def _several(name: str, axes: int | Sequence[int]) -> tuple[int, ...]:
    found = axes if isinstance(axes, Sequence) else [axes]
    if isinstance(axes, str) or not all(map(_kernels.is_axis, found)):
        raise TypeError(f"{name} must be an axis or several, such as -1 or (0, 1), got {axes!r}.")
    return tuple(found)
