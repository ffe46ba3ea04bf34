"""Vision transformers."""

from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

# timm's trunc_normal_(std=0.02) cuts at ±2, a hundred standard deviations: a normal distribution.
NORMAL = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Self-attention and two dense layers, each after layer normalisation and with a shortcut.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, equations 2 and 3, without
    dropout.

    Attributes:
      heads: of the attention; a divisor of the width.
      gelu_approximate: whether GELU is its approximation by tanh.
      dtype: of the computation. The sums and the softmax of the attention, and the moments of layer
        normalisation, are float32.
    """

    heads: int
    gelu_approximate: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From tokens [B, T, width] to the same shape."""
        width = x.shape[-1]
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="attention_norm")(x)
        qkv = nn.DenseGeneral(
            (3, self.heads, width // self.heads), kernel_init=NORMAL, dtype=self.dtype, name="qkv"
        )(y)
        y = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
        x += nn.DenseGeneral(
            width, axis=(-2, -1), kernel_init=NORMAL, dtype=self.dtype, name="attention_out"
        )(y)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="mlp_norm")(x)
        y = nn.Dense(4 * width, kernel_init=NORMAL, dtype=self.dtype, name="mlp_in")(y)
        y = nn.gelu(y, approximate=self.gelu_approximate)
        return x + nn.Dense(width, kernel_init=NORMAL, dtype=self.dtype, name="mlp_out")(y)


class ViT(nn.Module):
    """A vision transformer that classifies by a class token.

    Dosovitskiy et al., ICLR 2021, in the size ViT-S of Touvron et al. (DeiT), "Training
    data-efficient image transformers", ICML 2021, table 1: 384 channels, 12 blocks, 6 heads, 22
    million parameters with patches of 16 on images of 224 and 1000 classes. The initialisation is
    DeiT's: N(0, 0.02²) for kernels, class token and positions, and zero biases; but LeCun normal
    for the patches as in the code of Dosovitskiy et al., where DeiT leaves PyTorch's U(±1/√inputs).

    The AE-SAM paper trains "ViT-S16" on CIFAR from scratch and does not give the size of images or
    patches; R-SAM's ViT-S-16 is for ImageNet at 224. Patches of 16 would leave 4 tokens of an image
    of 32, so the patches here are of 4, customary for CIFAR from scratch: 64 tokens, and 21.3
    million parameters.

    With patches of 16 and 768 channels it is ViT-B/16, which is DeiT-B too: 86.6 million
    parameters. Weights that others trained load, see `experiments.models.pretrained`.

    Attributes:
      classes: the number of classes.
      patch: height and width of a patch; divides those of the images.
      width: the size of a token. Heads are of 64 as in DeiT's sizes 192, 384 and 768; of the next
        larger divisor of the width where 64 is none.
      depth: the number of blocks.
      gelu_approximate: whether GELU is its approximation by tanh, Flax's default, with which
        Dosovitskiy et al. trained; DeiT, timm and torchvision have the exact one.
      dtype: of the computation; parameters and logits are float32.
    """

    convolutional: ClassVar[bool] = False

    classes: int
    patch: int = 4
    width: int = 384
    depth: int = 12
    gelu_approximate: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits [B, classes] of images [B, H, W, C]; train makes no difference.

        H and W are those of the images that initialised the positions [1, 1 + H·W / patch², width].

        Raises:
          ValueError: patch does not divide H and W.
        """
        del train
        batch, height, width, channels = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"patches of {self.patch} do not tile images of {height}x{width}: pass a common "
                "divisor of height and width."
            )
        # Equal to a convolution with the patch as kernel and stride, and a matrix product to XLA.
        rows, columns = height // self.patch, width // self.patch
        x = images.reshape(batch, rows, self.patch, columns, self.patch, channels)
        x = x.swapaxes(2, 3).reshape(batch, rows * columns, self.patch**2 * channels)
        x = nn.Dense(self.width, dtype=self.dtype, name="patches")(x)
        token = self.param("class_token", NORMAL, (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, self.width)), x], axis=1)
        positions = self.param("positions", NORMAL, (1, *x.shape[1:]))
        x += positions.astype(self.dtype)
        for block in range(self.depth):
            x = Block(
                self._heads(), self.gelu_approximate, dtype=self.dtype, name=f"block{block + 1}"
            )(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x[:, 0])
        return nn.Dense(self.classes, kernel_init=NORMAL, name="head")(x)

    def _heads(self) -> int:
        """The largest divisor of the width that leaves 64 or more to each head."""
        return next(h for h in range(max(1, self.width // 64), 0, -1) if self.width % h == 0)
