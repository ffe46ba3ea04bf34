"""The mean over devices, behind a link that is fed local gradients."""

from __future__ import annotations

import jax
import optax

from sam_optax import _axes
from sam_optax._axes import AxisName
from sam_optax._contracts import Tree


def average(axis_name: AxisName) -> optax.GradientTransformation:
    """The mean of the updates over devices, as a link.

    Behind a sharpness-aware link that is fed local gradients it gives m-sharpness, a perturbation
    for each device, as in the papers of SAM and GSAM::

        optax.chain(sam_optax.sam(0.05), sam_optax.average("batch"), optax.sgd(0.1))

    Under `jax.shard_map` as it comes (check_vma=True), the gradient of a local loss with respect to
    replicated parameters is already a sum over devices. Take local gradients with
    `jax.lax.pcast(params, axis_name, to="varying")`, or with check_vma=False.

    Args:
      axis_name: the mapped axis or axes of `jax.pmap`, `jax.vmap` or `jax.shard_map`.

    Returns:
      A stateless transformation.

    Raises:
      ValueError: at update, `shard_map` knows a leaf of the updates to be equal on all devices
        already, as where it has summed its gradients.
      TypeError: axis_name is no name of an axis, nor a tuple of names.
    """
    _axes.check(axis_name)

    def mean(updates: Tree, params: Tree | None) -> Tree:
        del params
        _check_local(updates, axis_name)
        averaged: Tree = jax.lax.pmean(updates, axis_name)
        return averaged

    return optax.stateless(mean)


def _check_local(updates: Tree, axis_name: AxisName) -> None:
    """Raises where `shard_map` knows of a leaf that it is equal along an axis."""
    for name in _axes.names(axis_name):
        if not _axes.varying(jax.lax.axis_index(name)):
            continue  # no shard_map that keeps count
        for path, leaf in jax.tree.leaves_with_path(updates):
            if name not in _axes.varying(leaf):
                raise ValueError(
                    f"average({axis_name!r}) got updates{jax.tree_util.keystr(path)}, which is "
                    f"equal on all devices along {name!r} already. shard_map sums the gradients "
                    "of replicated parameters over the devices: take the gradients at "
                    f'jax.lax.pcast(params, {name!r}, to="varying"), or leave average away where '
                    "grad_fn averages. Mark a leaf that is equal for another reason, such as a "
                    f'constant, by jax.lax.pcast(leaf, {name!r}, to="varying").'
                )
