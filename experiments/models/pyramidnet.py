"""Pyramidal residual networks."""

import functools
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from experiments.models.layers import batch_norm, classify, convolution, pad_channels


class Block(nn.Module):
    """Two 3x3 convolutions among three batch normalisations, with one ReLU between them.

    Han et al., "Deep Pyramidal Residual Networks", CVPR 2017. The shortcut has no parameters: mean
    pooling where the resolution halves, and zeros for the channels that are new.

    Attributes:
      channels: of both convolutions, no fewer than those of the input.
      stride: of the first convolution, 1 or 2.
      dtype: of the computation.
    """

    channels: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From [B, H, W, C] to [B, H / stride, W / stride, channels]."""
        conv = functools.partial(convolution, self.channels, 3, dtype=self.dtype)
        norm = functools.partial(batch_norm, train=train, dtype=self.dtype)
        y = conv(stride=self.stride)(norm()(x))
        y = conv()(nn.relu(norm()(y)))
        y = norm()(y)
        if self.stride > 1:
            x = nn.avg_pool(x, (self.stride,) * 2, (self.stride,) * 2)
        return y + pad_channels(x, self.channels)


class PyramidNet(nn.Module):
    """Additive PyramidNet of basic blocks: three stages of (depth − 2) / 6 blocks.

    Han et al., CVPR 2017, equation 2, and their code, from which the initialisation is too (He
    normal with fan-out). The AE-SAM and LE-SAM papers say no more than "PyramidNet-110"; the code
    of ESAM, on which LE-SAM's is based, has basic blocks and α = 270. Each of the 54 blocks has 5
    channels more than the one before then, from 16 to 286: 28,485,477 parameters for 10 classes,
    the count of github.com/osmr/imgclsmob too. Without ShakeDrop, with which SAM's own code trains
    a PyramidNet-272 of bottlenecks.

    Attributes:
      classes: the number of classes; None for features [B, C] in place of logits.
      depth: 6n + 2 layers.
      alpha: the channels that all blocks together add to a width of 16; in proportion to another.
      width: channels of the first convolution.
      dtype: of the computation; parameters, batch statistics and logits are float32.
    """

    convolutional: ClassVar[bool] = True

    classes: int | None
    depth: int = 110
    alpha: int = 270
    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits [B, classes] of images [B, H, W, C]; train updates the running statistics.

        H and W are multiples of 4: the two poolings of the shortcuts leave no pixel over.
        """
        norm = functools.partial(batch_norm, train=train, dtype=self.dtype)
        x = norm()(convolution(self.width, 3, dtype=self.dtype)(images))
        blocks = (self.depth - 2) // 6
        for index in range(3 * blocks):
            stage, block = divmod(index, blocks)
            growth = self.alpha / 16 * (index + 1) / (3 * blocks)
            x = Block(
                # Rounded as in the authors' code, and floored in the paper: for α = 270 the same.
                round(self.width * (1 + growth)),
                stride=2 if stage > 0 and block == 0 else 1,
                dtype=self.dtype,
                name=f"stage{stage + 1}_block{block + 1}",
            )(x, train=train)
        return classify(nn.relu(norm()(x)), self.classes)
