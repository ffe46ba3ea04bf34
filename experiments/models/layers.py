"""The layers that the convolutional models share."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# As in the code of ResNet (fb.resnet.torch), of WRN, of PyramidNet and of SAM, all of which draw
# from N(0, 2 / (k² · output channels)).
HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# U(±1/√inputs), Torch's default, which the first three leave to the classifier.
TORCH_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def convolution(channels: int, size: int, *, stride: int = 1, dtype: Any) -> nn.Conv:
    """A convolution without bias, from He normal kernels with fan-out.

    It is padded by (size − 1) / 2 on every side, as in PyTorch; "SAME" pads at stride 2 only after
    the last row and column, and so takes other pixels.

    Args:
      channels: of the output.
      size: height and width of the kernel, odd.
      stride: in both directions.
      dtype: of the computation; the kernel [size, size, C, channels] is float32.

    Returns:
      The module, from [B, H, W, C] to [B, ⌈H / stride⌉, ⌈W / stride⌉, channels].
    """
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=(size - 1) // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=HE_NORMAL,
    )


def batch_norm(*, train: bool, dtype: Any) -> nn.BatchNorm:
    """Batch normalisation over batch, height and width, with PyTorch's defaults.

    Momentum 0.9 is PyTorch's 0.1; ε is 1e-5; the scale starts at 1 and the shift at 0. The running
    variance is of the batch's n values and not, as PyTorch's, scaled by n / (n − 1).

    Args:
      train: whether to normalise by the batch and to update the running statistics.
      dtype: of the result; scale, shift and statistics [C] are float32, and are computed in it.

    Returns:
      The module, from [B, H, W, C] to the same shape.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


def pad_channels(x: jax.Array, channels: int) -> jax.Array:
    """Zero channels behind those of x [B, H, W, C], for [B, H, W, channels]."""
    return jnp.pad(x, [(0, 0)] * 3 + [(0, channels - x.shape[-1])])


def classify(x: jax.Array, classes: int | None) -> jax.Array:
    """Logits [B, classes] of the mean over the positions of features [B, H, W, C].

    For classes of None it is that mean, [B, C]. Mean and logits are float32 at least, whatever the
    dtype of the features: they cost next to nothing, and bfloat16 logits would have two or three
    digits. Weights start from U(±1/√C), biases from 0.
    """
    pooled = x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
    if classes is None:
        return pooled
    return nn.Dense(classes, kernel_init=TORCH_UNIFORM, name="head")(pooled)
