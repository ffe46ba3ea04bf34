"""Weights that others trained, read from a file into the variables of a model.

A file is told by the names in it:

| names of | model | expects images |
|---|---|---|
| torchvision's `resnet18`, `resnet50`, `resnet101` | `imagenet_resnet18` and so on | ImageNet's |
| torchvision's `vit_b_16` | `vit_b16` | ImageNet's |
| DeiT (`deit_base_patch16_224`) and timm | `vit_b16`, `vit_s16` | ImageNet's |
| Hugging Face transformers' `ViTForImageClassification` | `vit_b16`, `vit_s16` | ImageNet's |
| the original ViT (`.npz`) | `vit_b16_original` | from −1 to 1 |

The third and fourth are the names of Google's weights too, if timm or Hugging Face gives them out:
those expect images from −1 to 1, which no name in the file tells. `vit_b16` differs from
`vit_b16_original` by the GELU alone, so that each takes the files of the other.

`files` reads a file, `layouts` tells how an array becomes a variable, `resnet` and `vit` which of
them makes which. It may import what its room may. Begin with `load` below.
"""

from collections.abc import Callable, Iterable
import functools
from pathlib import Path
import re
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from experiments.data.normalization import HALF, IMAGENET, Moments
from experiments.models.pretrained import resnet, vit
from experiments.models.pretrained.files import WeightsError, read
from experiments.models.pretrained.layouts import Entry
from experiments.models.resnet import ResNet
from experiments.models.vit import ViT

__all__ = ["Loaded", "Source", "WeightsError", "load"]

SHOWN = 20  # differences that a message lists


class Format(NamedTuple):
    """What is known of the files of one origin.

    Attributes:
      name: for messages.
      mark: what a name in such a file begins with, as a regular expression.
      model: the class of the models.
      entries: from a model and the shapes of its variables to their entries.
      moments: of the images that the weights expect.
    """

    name: str
    mark: str
    model: type[nn.Module]
    entries: Callable[..., Iterable[Entry]]
    moments: Moments


def _vit(name, mark, names, moments=IMAGENET):
    return Format(name, mark, ViT, functools.partial(vit.entries, names), moments)


# The first that fits counts.
FORMATS = (
    Format("torchvision ResNet", r"(bn1|layer\d+\.\d+)\.", ResNet, resnet.entries, IMAGENET),
    _vit("torchvision ViT", r"encoder\.layers\..*\.linear_[12]\.", vit.TORCHVISION_FILES),
    _vit("torchvision ViT", r"(conv_proj|encoder\.layers)\.", vit.TORCHVISION),
    _vit("DeiT or timm ViT", r"(patch_embed|blocks\.\d+)\.", vit.TIMM),
    _vit("transformers ViT", r"vit\.", vit.TRANSFORMERS),
    _vit("original ViT", r"(embedding|Transformer)/", vit.ORIGINAL, HALF),
)
UNUSED = r".*\.num_batches_tracked"  # PyTorch counts the batches; momentum needs none
BEFORE_HEAD = r"pre_logits/.*"  # of those trained on ImageNet-21k; goes with the head
HEAD = tuple(("params", "head", leaf) for leaf in ("kernel", "bias"))


class Source(NamedTuple):
    """What was read.

    Attributes:
      format: the origin of the file, by its names.
      sha256: of the file, in hexadecimal.
      parameters: how many of the model's are the file's.
      new_head: whether the classifier is not the file's.
      moments: of the images that the weights expect.
    """

    format: str
    sha256: str
    parameters: int
    new_head: bool
    moments: Moments


class Loaded(NamedTuple):
    """The variables of a model with the weights of a file, and what was read."""

    params: Any
    model_state: Any
    source: Source


def load(
    path: Path, params: Any, model_state: Any, *, model: nn.Module, new_head: bool = False
) -> Loaded:
    """The variables of a model, as a file has them.

    Every variable must be in the file in its shape and finite, and the file may hold no other. Of
    position embeddings for another size of images, those of the patches are interpolated, see
    `layouts.positions`. Statistics of batch normalisation are the file's.

    Args:
      path: of a .safetensors, .npz, .pth, .pt or .bin file in one of the formats above.
      params: of the model, as initialised.
      model_state: its other collections, batch statistics or none.
      model: the module that they are of, a `ResNet` or a `ViT`.
      new_head: whether the classifier is made anew where the file's has another number of classes:
        of zeros for a ViT, as in Dosovitskiy et al., 2021 (section 3.2), else as in params. The
        layer that stood in front of it in the original ViT's files for ImageNet-21k goes with it.

    Returns:
      The variables, in the structure and the dtypes of those given, and what was read.

    Raises:
      WeightsError: the file cannot be read, is in none of the formats, is of another model, or does
        not fit; the message lists what is missing, unexpected, of another shape or type, not
        finite, or a negative variance.
    """
    arrays, sha256 = read(path)
    known = _format(path, arrays, model)
    variables = traverse_util.flatten_dict({"params": params, **model_state})
    shapes = {variable: leaf.shape for variable, leaf in variables.items()}
    entries = {entry.variable: entry for entry in known.entries(model, shapes)}

    # A classifier that is not taken is held against its own number of classes.
    (width, classes), bias = shapes[HEAD[0]], arrays.get(entries[HEAD[1]].sources[0])
    others = classes if bias is None else bias.size
    anew = new_head and others != classes
    if anew:
        shapes |= dict(zip(HEAD, ((width, others), (others,)), strict=True))
        entries = {entry.variable: entry for entry in known.entries(model, shapes)}

    expected = {source for entry in entries.values() for source in entry.sources}
    passed_over = f"{UNUSED}|{BEFORE_HEAD}" if anew else UNUSED
    unexpected = [
        f"unexpected: {name} {array.shape}"
        for name, array in arrays.items()
        if name not in expected and not re.fullmatch(passed_over, name)
    ]
    values, differences = {}, unexpected
    for variable, entry in entries.items():
        values[variable], wrong = _value(entry, arrays, variables[variable].dtype)
        differences += wrong
    if differences:
        refused_head = None if anew or others == classes else (others, classes)
        raise WeightsError(_message(path, known, differences, refused_head))

    if anew:
        for variable in HEAD:
            leaf = variables[variable]
            values[variable] = jnp.zeros_like(leaf) if known.model is ViT else leaf
    taken = (v.size for k, v in values.items() if k[0] == "params" and not (anew and k in HEAD))
    source = Source(known.name, sha256, sum(taken), anew, known.moments)
    loaded = traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in values.items()})
    return Loaded(loaded.pop("params"), loaded, source)


def _format(path, arrays, model):
    """The format of a file, if it is one for the model."""
    known = next(
        (known for known in FORMATS if any(re.match(known.mark, name) for name in arrays)), None
    )
    if known is None:
        names = ", ".join(list(arrays)[:3]) or "none"
        raise WeightsError(
            f"{path} is in no known format: its names are {names} and so on. Pass a file of "
            f"{', '.join(dict.fromkeys(f.name for f in FORMATS))}."
        )
    if not isinstance(model, known.model):
        raise WeightsError(
            f"{path} is of the format {known.name}, for models of the class "
            f"{known.model.__name__}, and the model is a {type(model).__name__}: pass another of "
            "the two."
        )
    return known


def _value(entry, arrays, dtype):
    """A variable, or None, and what is wrong with its sources."""
    sources, wrong = [], []
    for name in entry.sources:
        if name not in arrays:
            wrong.append(f"missing: {name} {entry.wanted}")
            continue
        array = arrays[name]
        if not entry.fits(array.shape):
            wrong.append(f"shape: {name} is {array.shape} and must be {entry.wanted}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            wrong.append(f"type: {name} is {array.dtype} and must be floating-point")
        else:
            with np.errstate(over="ignore"):  # what float32 does not hold is told as not finite
                sources.append(array.astype(dtype))
            if count := np.sum(~np.isfinite(sources[-1])):
                wrong.append(f"not finite: {count} of {array.size} numbers of {name}")
            elif entry.variable[-1] == "var" and (count := np.sum(array < 0)):
                wrong.append(f"negative: {count} of {array.size} variances of {name}")
    if wrong:
        return None, wrong
    try:
        return entry.convert(*sources).astype(dtype), []
    except ValueError as error:
        return None, [f"shape: {entry.sources[0]} has {error}"]


def _message(path, known, differences, refused_head):
    """What does not fit, and what to do."""
    shown, more = differences[:SHOWN], len(differences) - SHOWN
    lines = [f"{path}, a {known.name}, does not fit the model. Differences: {len(differences)}."]
    lines += [f"  {difference}" for difference in shown]
    if more > 0:
        lines.append(f"  and {more} more.")
    if refused_head:
        others, classes = refused_head
        lines.append(f"It is for {others} classes and the model for {classes}: allow a new head.")
    else:
        lines.append("Pass the file of this very model, or the model of the file.")
    return "\n".join(lines)
