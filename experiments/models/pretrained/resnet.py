"""What torchvision calls the variables of a residual network."""

from collections.abc import Iterator, Mapping

from experiments.models.pretrained.layouts import (
    Entry,
    Shape,
    Variable,
    convolution,
    flat,
    linear,
    same,
)
from experiments.models.resnet import ResNet

NORM = (
    ("params", "scale", "weight"),
    ("params", "bias", "bias"),
    ("batch_stats", "mean", "running_mean"),
    ("batch_stats", "var", "running_var"),
)


def entries(model: ResNet, shapes: Mapping[Variable, Shape]) -> Iterator[Entry]:
    """What each variable of a model is made of.

    Args:
      model: the network.
      shapes: of its variables.

    Yields:
      An entry for each.
    """

    def layer(module, number, conv, norm):
        variable = ("params", *module, f"Conv_{number}", "kernel")
        yield Entry(variable, (f"{conv}.weight",), *convolution(shapes[variable]))
        for collection, leaf, name in NORM:
            variable = (collection, *module, f"BatchNorm_{number}", leaf)
            yield Entry(variable, (f"{norm}.{name}",), *same(shapes[variable]))

    yield from layer((), 0, "conv1", "bn1")
    layers = 3 if model.bottleneck else 2
    for stage, blocks in enumerate(model.blocks, 1):
        for block in range(blocks):
            module, prefix = (f"stage{stage}_block{block + 1}",), f"layer{stage}.{block}"
            for number in range(layers):
                names = (f"{prefix}.{kind}{number + 1}" for kind in ("conv", "bn"))
                yield from layer(module, number, *names)
            if ("params", *module, f"Conv_{layers}", "kernel") in shapes:
                names = (f"{prefix}.downsample.{number}" for number in (0, 1))
                yield from layer(module, layers, *names)
    for leaf, name, layout in (("kernel", "weight", linear), ("bias", "bias", flat)):
        variable = ("params", "head", leaf)
        yield Entry(variable, (f"fc.{name}",), *layout(shapes[variable]))
