"""How a variable of a model is made of arrays of a file."""

from collections.abc import Callable
import math
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]
Variable = tuple[str, ...]  # the names that lead to it, from the collection on


class Entry(NamedTuple):
    """A variable of the model, and what it is made of.

    Attributes:
      variable: its names.
      sources: the names in the file; more than one where queries, keys and values are apart.
      shape: of each source; −1 for a length that is free.
      convert: from the sources to the variable.
    """

    variable: Variable
    sources: tuple[str, ...]
    shape: Shape
    convert: Callable[..., np.ndarray]

    @property
    def wanted(self) -> str:
        """The shape of each source in words."""
        return str(self.shape).replace("-1", "any")

    def fits(self, shape: Shape) -> bool:
        """Whether a source may have this shape."""
        return len(shape) == len(self.shape) and all(
            wanted in (-1, found) for wanted, found in zip(self.shape, shape, strict=True)
        )


Layout = tuple[Shape, Callable[..., np.ndarray]]  # `shape` and `convert` of an entry


def same(shape: Shape) -> Layout:
    """A source of the variable's own shape."""
    return shape, lambda source: source


def flat(shape: Shape) -> Layout:
    """A source [N] of all elements of the variable."""
    return (math.prod(shape),), lambda source: source.reshape(shape)


def linear(shape: Shape, inputs: int = 1) -> Layout:
    """PyTorch's weight [out, in] of a linear layer, of a kernel with so many axes of inputs."""
    source = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
    return source, lambda weight: weight.T.reshape(shape)


def convolution(shape: Shape) -> Layout:
    """PyTorch's weight [out, in, height, width] of a kernel [height, width, in, out]."""
    source = tuple(shape[axis] for axis in (3, 2, 0, 1))
    return source, lambda weight: weight.transpose(2, 3, 1, 0)


def stacked(layout: Layout) -> Layout:
    """Sources for queries, keys and values each, of one variable [..., 3, heads, units]."""
    shape, convert = layout
    return shape, lambda *sources: np.stack([convert(source) for source in sources], axis=-3)


def patches(shape: Shape, patch: int, *, torch: bool) -> Layout:
    """The kernel of a convolution that makes tokens, of a dense kernel [patch² · C, width]."""
    kernel = (patch, patch, shape[0] // patch**2, shape[1])
    source, convert = convolution(kernel) if torch else same(kernel)
    return source, lambda weight: convert(weight).reshape(shape)


def positions(shape: Shape) -> Layout:
    """Position embeddings of a class token and a square of patches, for another such square.

    Interpolation is bilinear from corner to corner, as in the code of Dosovitskiy et al., 2021
    (section 3.2 and `scipy.ndimage.zoom` of order 1); timm's is bicubic. Those of the class token
    stay as they are, and all of them where the size is the same.
    """
    side = math.isqrt(shape[1] - 1)

    def convert(source):
        if source.shape == shape:
            return source
        token, grid = source[:, :1], source[0, 1:]
        old = math.isqrt(len(grid))
        if not old or old**2 != len(grid) or side**2 != shape[1] - 1:
            raise ValueError(
                f"{source.shape[1]} positions and the model {shape[1]}, which are not both one and "
                "a square"
            )
        at = np.linspace(0, old - 1, side)
        weights = np.stack([np.interp(at, np.arange(old), unit) for unit in np.eye(old)], axis=1)
        grid = grid.reshape(old, old, -1)
        grid = np.einsum("ri,cj,ijw->rcw", weights, weights, grid)
        return np.concatenate([token, grid.reshape(1, side**2, -1)], axis=1)

    return (1, -1, shape[2]), convert
