"""What others call the variables of a vision transformer."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from experiments.models.pretrained.layouts import (
    Entry,
    Shape,
    Variable,
    flat,
    linear,
    patches,
    positions,
    same,
    stacked,
)
from experiments.models.vit import ViT


class Names(NamedTuple):
    """The names in files of one origin; a module's ends with what stands in front of a leaf's.

    Attributes:
      torch: whether leaves and layouts are PyTorch's, or Flax's.
      qkv: one module, or those of queries, keys and values.
      block: in front of the modules of a block, with its number from 0.
    """

    torch: bool
    patches: str
    class_token: str
    positions: str
    block: str
    attention_norm: str
    qkv: tuple[str, ...]
    attention_out: str
    mlp_norm: str
    mlp_in: str
    mlp_out: str
    norm: str
    head: str


TORCHVISION = Names(
    torch=True,
    patches="conv_proj.",
    class_token="class_token",
    positions="encoder.pos_embedding",
    block="encoder.layers.encoder_layer_{}.",
    attention_norm="ln_1.",
    qkv=("self_attention.in_proj_",),
    attention_out="self_attention.out_proj.",
    mlp_norm="ln_2.",
    mlp_in="mlp.0.",
    mlp_out="mlp.3.",
    norm="encoder.ln.",
    head="heads.head.",
)
# Those of the files that torchvision gives out; it renames them as it loads them.
TORCHVISION_FILES = TORCHVISION._replace(mlp_in="mlp.linear_1.", mlp_out="mlp.linear_2.")
TIMM = Names(
    torch=True,
    patches="patch_embed.proj.",
    class_token="cls_token",
    positions="pos_embed",
    block="blocks.{}.",
    attention_norm="norm1.",
    qkv=("attn.qkv.",),
    attention_out="attn.proj.",
    mlp_norm="norm2.",
    mlp_in="mlp.fc1.",
    mlp_out="mlp.fc2.",
    norm="norm.",
    head="head.",
)
TRANSFORMERS = Names(
    torch=True,
    patches="vit.embeddings.patch_embeddings.projection.",
    class_token="vit.embeddings.cls_token",
    positions="vit.embeddings.position_embeddings",
    block="vit.encoder.layer.{}.",
    attention_norm="layernorm_before.",
    qkv=tuple(f"attention.attention.{part}." for part in ("query", "key", "value")),
    attention_out="attention.output.dense.",
    mlp_norm="layernorm_after.",
    mlp_in="intermediate.dense.",
    mlp_out="output.dense.",
    norm="vit.layernorm.",
    head="classifier.",
)
ORIGINAL = Names(
    torch=False,
    patches="embedding/",
    class_token="cls",
    positions="Transformer/posembed_input/pos_embedding",
    block="Transformer/encoderblock_{}/",
    attention_norm="LayerNorm_0/",
    qkv=tuple(f"MultiHeadDotProductAttention_1/{part}/" for part in ("query", "key", "value")),
    attention_out="MultiHeadDotProductAttention_1/out/",
    mlp_norm="LayerNorm_2/",
    mlp_in="MlpBlock_3/Dense_0/",
    mlp_out="MlpBlock_3/Dense_1/",
    norm="Transformer/encoder_norm/",
    head="head/",
)


def entries(names: Names, model: ViT, shapes: Mapping[Variable, Shape]) -> Iterator[Entry]:
    """What each variable of a model is made of.

    Args:
      names: those in the file.
      model: the transformer.
      shapes: of its variables.

    Yields:
      An entry for each.
    """

    def norm(module, source):
        scale = "weight" if names.torch else "scale"
        for leaf, name in (("scale", scale), ("bias", "bias")):
            variable = ("params", *module, leaf)
            yield Entry(variable, (source + name,), *same(shapes[variable]))

    def dense(module, sources, inputs=1):
        for leaf, name in (("kernel", "weight" if names.torch else "kernel"), ("bias", "bias")):
            variable = ("params", *module, leaf)
            shape = shapes[variable]
            if len(sources) > 1:
                shape = shape[:-3] + shape[-2:]
            if not names.torch:
                layout = same(shape)
            else:
                layout = linear(shape, inputs) if leaf == "kernel" else flat(shape)
            if len(sources) > 1:
                layout = stacked(layout)
            yield Entry(variable, tuple(source + name for source in sources), *layout)

    kernel, bias = dense(("patches",), (names.patches,))
    shape, convert = patches(shapes[kernel.variable], model.patch, torch=names.torch)
    yield from (kernel._replace(shape=shape, convert=convert), bias)
    for leaf, source, layout in (
        ("class_token", names.class_token, same),
        ("positions", names.positions, positions),
    ):
        yield Entry(("params", leaf), (source,), *layout(shapes["params", leaf]))
    for number in range(model.depth):
        block, prefix = f"block{number + 1}", names.block.format(number)
        yield from norm((block, "attention_norm"), prefix + names.attention_norm)
        yield from dense((block, "qkv"), tuple(prefix + part for part in names.qkv))
        yield from dense((block, "attention_out"), (prefix + names.attention_out,), inputs=2)
        yield from norm((block, "mlp_norm"), prefix + names.mlp_norm)
        yield from dense((block, "mlp_in"), (prefix + names.mlp_in,))
        yield from dense((block, "mlp_out"), (prefix + names.mlp_out,))
    yield from norm(("norm",), names.norm)
    yield from dense(("head",), (names.head,))
