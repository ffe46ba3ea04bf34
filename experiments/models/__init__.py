"""Flax models. Each takes images [B, H, W, C] and returns float32 logits [B, classes].

Residual networks return the features in front of the classifier too: `encoder`.

`convolutional` tells whether a model has convolutions, with which methods decide on the host on
CPU.
Parameters and batch statistics are float32 whatever the dtype of the computation.

`small`, `resnet`, `wide_resnet`, `pyramidnet` and `vit` are the models, made of `layers`; `weights`
and `pretrained` are what others trained, and `sizes` tells whether a model fits into memory. The
room may import data, results, recipes and system. Begin with MODELS below: a new model is a module
beside these and a line there.
"""

from collections.abc import Callable
import difflib
import functools
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from experiments.models.pyramidnet import PyramidNet
from experiments.models.resnet import ResNet
from experiments.models.small import CNN, MLP
from experiments.models.vit import ViT
from experiments.models.wide_resnet import WideResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "small_cnn": functools.partial(CNN, width=16),
    # ResNet-10, half as wide and on half the resolution: what a CPU trains in minutes.
    "small_resnet": functools.partial(ResNet, blocks=(1, 1, 1, 1), width=32, stem_stride=2),
    "resnet18": functools.partial(ResNet, blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "imagenet_resnet18": functools.partial(ResNet, blocks=(2, 2, 2, 2), imagenet_stem=True),
    "imagenet_resnet50": functools.partial(
        ResNet, blocks=(3, 4, 6, 3), bottleneck=True, imagenet_stem=True
    ),
    "imagenet_resnet101": functools.partial(
        ResNet, blocks=(3, 4, 23, 3), bottleneck=True, imagenet_stem=True
    ),
    "resnet32": functools.partial(ResNet, blocks=(5, 5, 5), width=16, projection=False),
    "wrn28_10": functools.partial(WideResNet, depth=28, factor=10),
    "wrn34_10": functools.partial(WideResNet, depth=34, factor=10),
    "pyramidnet110": functools.partial(PyramidNet, depth=110, alpha=270),
    "vit_small": ViT,
    "vit_s16": functools.partial(ViT, patch=16),  # DeiT-S
    "vit_b16": functools.partial(ViT, patch=16, width=768),  # DeiT-B
    # ViT-B/16 as its authors' own code computes it, for their weights.
    "vit_b16_original": functools.partial(ViT, patch=16, width=768, gelu_approximate=True),
}

ENCODERS = (ResNet, WideResNet, PyramidNet)


def make(
    name: str, classes: int | None, *, dtype: Any = jnp.float32, width: int | None = None
) -> nn.Module:
    """The model of a name.

    Args:
      name: a key of `MODELS`.
      classes: the number of classes; of None the module is that of `encoder`, where there is one.
      dtype: of the computation, bfloat16, float32 or float64; parameters and batch statistics are
        made float32, and logits are float32 at least.
      width: channels of the narrowest layer, to which all others are in proportion; the size of a
        token of the ViT, the units of the MLP. None for the published width.

    Returns:
      The module; `module.apply(variables, images, train=...)` gives the logits.

    Raises:
      ValueError: no model has this name, or no model this width.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(MODELS)}."
        raise ValueError(f"unknown model {name!r}: {hint}")
    if width is None:
        return MODELS[name](classes=classes, dtype=dtype)
    if width < 1:
        raise ValueError(f"width must be 1 or more, got {width}: pass the channels of a layer.")
    return MODELS[name](classes=classes, dtype=dtype, width=width)


def encoder(name: str, *, dtype: Any = jnp.float32, width: int | None = None) -> nn.Module:
    """The model of a name without its classifier: images [B, H, W, C] to features [B, channels].

    Args:
      name: of a residual network.
      dtype: of the computation; features are float32 at least.
      width: as in `make`.

    Raises:
      ValueError: as `make`, or the model is no residual network.
    """
    model = make(name, None, dtype=dtype, width=width)
    if not isinstance(model, ENCODERS):
        kinds = ", ".join(kind.__name__ for kind in ENCODERS)
        raise ValueError(
            f"model must give features, as a {kinds} does, got {name!r}: pass such as resnet32."
        )
    return model
