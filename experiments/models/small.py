"""Models that a CPU trains in seconds or minutes; none is of a paper."""

from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
    """Dense layers with ReLU, from Flax's LeCun normal kernels and zero biases.

    Attributes:
      classes: the number of classes.
      width: units of each hidden layer.
      layers: the number of hidden layers.
      dtype: of the computation; parameters and logits are float32.
    """

    convolutional: ClassVar[bool] = False

    classes: int
    width: int = 128
    layers: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits [B, classes] of images [B, H, W, C]; train makes no difference."""
        del train
        x = images.reshape(images.shape[0], -1)
        for _ in range(self.layers):
            x = nn.relu(nn.Dense(self.width, dtype=self.dtype)(x))
        return nn.Dense(self.classes)(x)  # in the dtype of its parameters, or of x if wider


class CNN(nn.Module):
    """Three 3x3 convolutions with batch norm and ReLU, of which the last two have stride 2.

    Those two double the channels. Kernels and padding ("SAME") are Flax's defaults, unlike the
    ResNets'.

    Attributes:
      classes: the number of classes.
      width: channels of the first convolution.
      dtype: of the computation; parameters, batch statistics and logits are float32.
    """

    convolutional: ClassVar[bool] = True

    classes: int
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits [B, classes] of images [B, H, W, C]; train updates the running statistics."""
        x = images
        for channels, stride in ((self.width, 1), (2 * self.width, 2), (4 * self.width, 2)):
            x = nn.Conv(channels, (3, 3), strides=stride, use_bias=False, dtype=self.dtype)(x)
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)
            x = nn.relu(norm(x))
        pooled = x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return nn.Dense(self.classes)(pooled)
