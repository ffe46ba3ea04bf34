"""Flax models. Each takes images [B, H, W, C] and returns logits [B, classes].

`convolutional` tells whether a model has convolutions, whose gradients decide on the host on CPU.
"""

from typing import ClassVar

from flax import linen as nn
import jax


class MLP(nn.Module):
    """Dense layers with ReLU."""

    convolutional: ClassVar[bool] = False

    classes: int
    widths: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits; train makes no difference."""
        del train
        x = images.reshape(images.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


class CNN(nn.Module):
    """3x3 convolutions with batch norm and ReLU; each but the first halves the resolution."""

    convolutional: ClassVar[bool] = True

    classes: int
    channels: tuple[int, ...] = (64, 128, 256)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits; train normalises by the batch and updates the running statistics."""
        x = images
        for i, channels in enumerate(self.channels):
            stride = 1 if i == 0 else 2
            x = nn.Conv(channels, (3, 3), strides=(stride, stride), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.classes)(x.mean((1, 2)))
