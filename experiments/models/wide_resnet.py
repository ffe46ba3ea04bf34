"""Wide residual networks."""

import functools
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from experiments.models.layers import batch_norm, classify, convolution


class Block(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and ReLU, and a shortcut.

    Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, figure 1 (c), without dropout. Where
    the channels change, the shortcut is a 1x1 convolution of what the first ReLU gives.

    Attributes:
      channels: of both convolutions.
      stride: of the first convolution and of the shortcut.
      dtype: of the computation.
    """

    channels: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From [B, H, W, C] to [B, ⌈H / stride⌉, ⌈W / stride⌉, channels]."""
        conv = functools.partial(convolution, self.channels, dtype=self.dtype)
        norm = functools.partial(batch_norm, train=train, dtype=self.dtype)
        active = nn.relu(norm()(x))
        y = conv(3, stride=self.stride)(active)
        y = conv(3)(nn.relu(norm()(y)))
        if self.stride == 1 and x.shape[-1] == self.channels:
            return y + x
        return y + conv(1, stride=self.stride)(active)


class WideResNet(nn.Module):
    """WRN-depth-factor: three stages of (depth − 4) / 6 blocks.

    Zagoruyko & Komodakis, BMVC 2016, table 1 and their code, from which the initialisation is too
    (He normal with fan-out, a zero bias in the classifier). Without dropout: the SAM papers name
    none, and in ESAM's code it is 0. SAM's own code pads shortcuts with zeros in place of the 1x1
    convolutions, which the published 36.5 million parameters of WRN-28-10 include.

    Attributes:
      classes: the number of classes; None for features [B, C] in place of logits.
      depth: 6n + 4 layers.
      factor: channels of the first stage over those of the first convolution.
      width: channels of the first convolution; the stages have factor · width times 1, 2 and 4.
      dtype: of the computation; parameters, batch statistics and logits are float32.
    """

    convolutional: ClassVar[bool] = True

    classes: int | None
    depth: int = 28
    factor: int = 10
    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits [B, classes] of images [B, H, W, C]; train updates the running statistics."""
        x = convolution(self.width, 3, dtype=self.dtype)(images)
        for stage in range(3):
            for block in range((self.depth - 4) // 6):
                x = Block(
                    self.width * self.factor * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train=train)
        x = nn.relu(batch_norm(train=train, dtype=self.dtype)(x))
        return classify(x, self.classes)
