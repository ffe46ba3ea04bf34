"""Residual networks, for small images and for ImageNet."""

import functools
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from experiments.models.layers import batch_norm, classify, convolution, pad_channels


class Block(nn.Module):
    """A residual block, with batch normalisation and ReLU after the convolutions.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, figure 5.

    Attributes:
      channels: of the 3x3 convolutions.
      stride: of the first 3x3 convolution and of the shortcut.
      bottleneck: whether 1x1 convolutions stand around one 3x3 convolution, the last to four times
        the channels, in place of two 3x3 convolutions.
      projection: whether a shortcut that changes the shape is a 1x1 convolution (option B) or takes
        every stride-th pixel and adds zero channels (option A).
      dtype: of the computation.
    """

    channels: int
    stride: int = 1
    bottleneck: bool = False
    projection: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From [B, H, W, C] to [B, ⌈H / stride⌉, ⌈W / stride⌉, channels or 4 · channels]."""
        conv = functools.partial(convolution, dtype=self.dtype)
        norm = functools.partial(batch_norm, train=train, dtype=self.dtype)
        if self.bottleneck:
            # The stride is in the 3x3 convolution, as in fb.resnet.torch and the code after it; in
            # the authors' own it is in the first.
            layers = [
                conv(self.channels, 1),
                conv(self.channels, 3, stride=self.stride),
                conv(4 * self.channels, 1),
            ]
        else:
            layers = [conv(self.channels, 3, stride=self.stride), conv(self.channels, 3)]
        y = x
        for layer in layers[:-1]:
            y = nn.relu(norm()(layer(y)))
        y = norm()(layers[-1](y))
        channels = y.shape[-1]
        if self.stride == 1 and x.shape[-1] == channels:
            shortcut = x
        elif self.projection:
            shortcut = norm()(conv(channels, 1, stride=self.stride)(x))
        else:
            shortcut = pad_channels(x[:, :: self.stride, :: self.stride], channels)
        return nn.relu(y + shortcut)


class ResNet(nn.Module):
    """A residual network, by default with a 3x3 convolution in front and without max-pooling.

    ResNet-18, -34 and -50 of He et al., CVPR 2016, table 1, in the form for CIFAR of
    github.com/kuangliu/pytorch-cifar, which the code of ESAM has too; ResNet-32 is of their section
    4.2 itself. Kernels start from He normal (their section 3.4), with the fan-out of their code;
    pytorch-cifar leaves PyTorch's default, U(±1/√fan-in), a sixth of the variance.

    With the stem of ImageNet they are the table's own, as torchvision has them ("v1.5": the stride
    is in the 3x3 convolution of a bottleneck); their weights load, see
    `experiments.models.pretrained`. Only the classifier's biases start otherwise, from zero.

    Attributes:
      classes: the number of classes; None for features [B, C] in place of logits.
      blocks: in each stage; from the second on, a stage halves the resolution and doubles the
        channels.
      width: channels of the first convolution and of the first stage's 3x3 convolutions.
      bottleneck: of the blocks.
      projection: of the blocks. Section 4.2 has none, "option A"; its zeros are behind the channels
        as in fb.resnet.torch, where others put half of them in front, a permutation of channels.
      stem_stride: of the first convolution; 2 makes every layer four times as cheap.
      imagenet_stem: whether a 7x7 convolution of stride 2 and a 3x3 max-pooling of stride 2 stand
        in front, in place of the 3x3 convolution of stem_stride.
      dtype: of the computation; parameters, batch statistics and logits are float32.
    """

    convolutional: ClassVar[bool] = True

    classes: int | None
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    bottleneck: bool = False
    projection: bool = True
    stem_stride: int = 1
    imagenet_stem: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits [B, classes] of images [B, H, W, C]; train updates the running statistics."""
        size, stride = (7, 2) if self.imagenet_stem else (3, self.stem_stride)
        x = convolution(self.width, size, stride=stride, dtype=self.dtype)(images)
        x = nn.relu(batch_norm(train=train, dtype=self.dtype)(x))
        if self.imagenet_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = Block(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    projection=self.projection,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train=train)
        return classify(x, self.classes)
