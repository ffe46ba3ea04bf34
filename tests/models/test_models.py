"""The models of the experiments: published sizes, shapes, dtypes, and what train changes."""

import functools
import math
from typing import NamedTuple

from flax import linen as nn
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.models import pyramidnet, resnet, wide_resnet
from experiments.models.layers import convolution
from experiments.models.vit import Block, ViT


class Published(NamedTuple):
    """What is published of a model.

    Attributes:
      parameters: by the number of classes.
      macs: multiply-adds of an image, for the first number of classes.
      stages: the shape [H, W, C] or [T, C] after a submodule.
      size: height and width of the images, of 3 channels.
    """

    parameters: dict[int, int]
    macs: float
    stages: dict[str, tuple[int, ...]]
    size: int = 32

    @property
    def image(self):
        return (1, self.size, self.size, 3)

    @property
    def classes(self):
        return next(iter(self.parameters))


# Parameters and multiply-adds of ResNet-18 and -50: the pruning benchmark of
# github.com/microsoft/nni; of ResNet-32: He et al., table 6 (0.46 million), and
# github.com/chenyaofo/pytorch-cifar-models; of WRN-28-10 and PyramidNet: github.com/osmr/imgclsmob;
# parameters of WRN-34-10: Li et al., arXiv:2003.05733, table 4; of ResNet-34: pytorch-cifar's.
# The multiply-adds have those of normalisation too, which are half a percent.
# Of those for ImageNet: torchvision's documentation of its weights (resnet18, resnet50, resnet101,
# vit_b_16), and timm's of DeiT-S; the ResNets' shapes:
# He et al., table 1.
VIT_B16 = Published(
    {1000: 86_567_656}, 17.564e9, {"patches": (196, 768), "block12": (197, 768)}, 224
)
TABLE = {
    "resnet18": Published(
        {10: 11_173_962, 100: 11_220_132},
        556_651_530,
        {"stage1_block2": (32, 32, 64), "stage2_block2": (16, 16, 128),
         "stage3_block2": (8, 8, 256), "stage4_block2": (4, 4, 512)},
    ),
    "resnet34": Published(
        {10: 21_282_122, 100: 21_328_292},
        1.16e9,
        {"stage1_block3": (32, 32, 64), "stage2_block4": (16, 16, 128),
         "stage3_block6": (8, 8, 256), "stage4_block3": (4, 4, 512)},
    ),
    "resnet50": Published(
        {10: 23_520_842, 100: 23_705_252},
        1_304_694_794,
        {"stage1_block3": (32, 32, 256), "stage2_block4": (16, 16, 512),
         "stage3_block6": (8, 8, 1024), "stage4_block3": (4, 4, 2048)},
    ),
    "resnet32": Published(
        {10: 464_154, 100: 470_004},
        69e6,
        {"stage1_block5": (32, 32, 16), "stage2_block5": (16, 16, 32),
         "stage3_block5": (8, 8, 64)},
    ),
    "wrn28_10": Published(
        {10: 36_479_194, 100: 36_536_884},
        5_246.98e6,
        {"stage1_block4": (32, 32, 160), "stage2_block4": (16, 16, 320),
         "stage3_block4": (8, 8, 640)},
    ),
    "wrn34_10": Published(
        {10: 46_160_474, 100: 46_218_164},
        6.66e9,
        {"stage1_block5": (32, 32, 160), "stage2_block5": (16, 16, 320),
         "stage3_block5": (8, 8, 640)},
    ),
    "pyramidnet110": Published(
        {10: 28_485_477, 100: 28_511_307},
        4_730.60e6,
        {"stage1_block1": (32, 32, 21), "stage1_block18": (32, 32, 106),
         "stage2_block1": (16, 16, 111), "stage2_block18": (16, 16, 196),
         "stage3_block1": (8, 8, 201), "stage3_block18": (8, 8, 286)},
    ),
    "imagenet_resnet18": Published(
        {1000: 11_689_512},
        1.814e9,
        {"Conv_0": (112, 112, 64), "stage1_block2": (56, 56, 64), "stage2_block2": (28, 28, 128),
         "stage3_block2": (14, 14, 256), "stage4_block2": (7, 7, 512)},
        224,
    ),
    "imagenet_resnet50": Published(
        {1000: 25_557_032},
        4.089e9,
        {"Conv_0": (112, 112, 64), "stage1_block3": (56, 56, 256), "stage2_block4": (28, 28, 512),
         "stage3_block6": (14, 14, 1024), "stage4_block3": (7, 7, 2048)},
        224,
    ),
    "imagenet_resnet101": Published(
        {1000: 44_549_160},
        7.801e9,
        {"Conv_0": (112, 112, 64), "stage1_block3": (56, 56, 256), "stage2_block4": (28, 28, 512),
         "stage3_block23": (14, 14, 1024), "stage4_block3": (7, 7, 2048)},
        224,
    ),
    "vit_s16": Published(
        {1000: 22_050_664}, 4.6e9, {"patches": (196, 384), "block12": (197, 384)}, 224
    ),
    "vit_b16": VIT_B16,
    "vit_b16_original": VIT_B16,
}  # fmt: skip
# Parameters and multiply-adds of those that no paper has, or not at this size; a change of theirs
# is a change of the recipes.
OWN = {
    "mlp": (411_146, 410_880),
    "cnn": (373_834, 39_520_768),
    "small_cnn": (24_346, 2_802_304),
    "small_resnet": (1_228_970, 15_952_384),
    "vit_small": (21_342_346, 1_420_309_248),
}
# Those of the code of another that is quicker to trace.
ALIKE = ("resnet34", "wrn34_10", "imagenet_resnet50", "imagenet_resnet101", "vit_s16", "vit_b16")
KINDS, PUBLISHED = (
    [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in names]
    for names in (models.MODELS, TABLE)
)
# Those of which a really computed test is quick.
QUICK = {"mlp": 8, "cnn": 4, "small_cnn": 4, "small_resnet": 4}


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def abstract(model, shape=(1, 32, 32, 3)):
    """The variables as shapes and dtypes; nothing is computed."""
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@functools.cache
def traced(model, shape=(1, 32, 32, 3)):
    """A forward pass: its equations, the logits and what each module returns."""
    apply = functools.partial(
        model.apply, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    program, (logits, captured) = jax.make_jaxpr(apply, return_shape=True)(
        abstract(model, shape), x
    )
    return list(equations(program.jaxpr)), logits, captured["intermediates"]


def equations(jaxpr):
    """Those of a program and of its inner functions."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def parameters(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def macs(equation):
    """Multiply-adds of a convolution or of a matrix product."""
    left, right = (v.aval.shape for v in equation.invars[:2])
    outputs = equation.outvars[0].aval.size
    if equation.primitive.name == "conv_general_dilated":
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return outputs * math.prod(right) // right[features]
    (contracted, _), _ = equation.params["dimension_numbers"]
    return outputs * math.prod(left[axis] for axis in contracted)


def products(model, shape=(1, 32, 32, 3)):
    kinds = ("conv_general_dilated", "dot_general")
    return [e for e in traced(model, shape)[0] if e.primitive.name in kinds]


def init(model, x):
    return jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)


def names(variables):
    paths = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths}


# Sizes


def test_every_model_is_in_one_table():
    assert sorted([*TABLE, *OWN]) == sorted(models.MODELS)


@pytest.mark.parametrize("name", TABLE)
def test_parameters_are_as_many_as_published(name):
    for classes, published in TABLE[name].parameters.items():
        variables = abstract(models.make(name, classes), TABLE[name].image)
        assert parameters(variables) == published


@pytest.mark.parametrize("name", OWN)
def test_sizes_of_the_models_of_no_paper(name):
    model = models.make(name, 10)
    assert (parameters(abstract(model)), sum(map(macs, products(model)))) == OWN[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds_are_as_many_as_published(name):
    published = TABLE[name]
    model = models.make(name, published.classes)
    counted = sum(map(macs, products(model, published.image)))
    np.testing.assert_allclose(counted, published.macs, rtol=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_stage_has_the_published_shape(name):
    published = TABLE[name]
    _, logits, captured = traced(models.make(name, published.classes), published.image)
    assert logits.shape == (1, published.classes)
    for stage, shape in published.stages.items():
        assert captured[stage]["__call__"][0].shape == (1, *shape), stage


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (96, 1), (130, 2)])
def test_heads_of_the_vit_have_64_units_or_the_next_divisor(width, heads):
    shape = abstract(models.make("vit_small", 10, width=width))["params"]["block1"]["qkv"]["kernel"]
    assert shape.shape == (width, 3, heads, width // heads)


# The interface


@pytest.mark.parametrize("name", KINDS)
def test_width_is_that_of_the_narrowest_layer_and_all_others_are_in_proportion(name):
    published = models.make(name, 1000)
    half = models.make(name, 1000, width=published.width // 2)
    for model in (published, half):
        leaves = jax.tree.leaves(abstract(model)["params"])
        assert min(leaf.size for leaf in leaves if leaf.ndim == 1) == model.width
    for full, scaled in zip(
        *(jax.tree.leaves(abstract(m)) for m in (published, half)), strict=True
    ):
        for a, b in zip(full.shape, scaled.shape, strict=True):
            # PyramidNet rounds its channels; kernel sizes, colours, classes and heads' units stay
            assert b == a or abs(2 * b - a) <= 1


SMALL = (2, 16, 16, 3)


def narrowest(name):
    return models.make(name, 7, dtype=jnp.bfloat16, width=1)


@pytest.mark.parametrize("name", KINDS)
def test_every_model_runs_at_a_width_of_1(name):
    _, logits, _ = traced(narrowest(name), SMALL)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", KINDS)
def test_convolutional_tells_whether_there_are_convolutions(name):
    model = narrowest(name)
    found = any(e.primitive.name == "conv_general_dilated" for e in traced(model, SMALL)[0])
    assert model.convolutional == found


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_is_of_all_but_parameters_statistics_and_logits(name):
    model = narrowest(name)
    variables = abstract(model, SMALL)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    _, logits, captured = traced(model, SMALL)
    assert logits.dtype == jnp.float32
    inner = [leaf for leaf in jax.tree.leaves(captured) if leaf.shape != (2, 7)]
    assert {leaf.dtype for leaf in inner} == {jnp.dtype("bfloat16")}
    *body, head = (
        {v.aval.dtype for v in equation.invars[:2]} for equation in products(model, SMALL)
    )
    assert all(dtypes == {jnp.dtype("bfloat16")} for dtypes in body)
    assert head == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["cnn", "resnet18", "wrn28_10"])
def test_running_statistics_stay_float32_in_bfloat16(name):
    model = models.make(name, 7, dtype=jnp.bfloat16, width=1)
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    _, state = jax.eval_shape(apply, abstract(model), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_vit_in_bfloat16_is_near_float32():
    x = images(2, 8, 8, 3)
    model = ViT(10, width=12, depth=1)
    variables = init(model, x)
    exact, rounded = (
        jax.jit(functools.partial(m.apply, train=False))(variables, x)
        for m in (model, model.copy(dtype=jnp.bfloat16))
    )
    np.testing.assert_allclose(rounded, exact, atol=0.01)


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (2, 8, 8, 1)])
@pytest.mark.parametrize("name", QUICK)
def test_small_models_take_digits(name, shape):
    model = models.make(name, 10, width=QUICK[name])
    x = images(*shape)
    logits = jax.jit(functools.partial(model.apply, train=False))(init(model, x), x)
    assert logits.shape == (2, 10)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", sorted(set(QUICK) - {"mlp"}))
def test_train_normalises_by_the_batch_and_moves_the_running_statistics_by_a_tenth(name):
    model = models.make(name, 10, width=QUICK[name])
    x = images(4, 8, 8, 3)
    variables = init(model, x)

    @functools.partial(jax.jit, static_argnames="train")
    def apply(variables, x, train):
        return model.apply(
            variables, x, train=train, capture_intermediates=True,
            mutable=["batch_stats", "intermediates"],
        )  # fmt: skip

    logits, trained = apply(variables, x, train=True)
    evaluated, kept = apply(variables, x, train=False)
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])
    assert not np.allclose(logits, evaluated, atol=1e-3)
    (features,) = trained["intermediates"]["Conv_0"]["__call__"]
    (normal,) = trained["intermediates"]["BatchNorm_0"]["__call__"]
    moved = trained["batch_stats"]["BatchNorm_0"]
    features = np.asarray(features)
    mean, var = features.mean((0, 1, 2)), features.var((0, 1, 2))
    np.testing.assert_allclose(moved["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * var, rtol=1e-5)
    np.testing.assert_allclose(normal, (features - mean) / np.sqrt(var + 1e-5), atol=1e-4)


@pytest.mark.parametrize("model", [models.make("mlp", 10), ViT(10, width=12, depth=1)])
def test_train_makes_no_difference_without_batch_norm(model):
    x = jnp.zeros((1, 8, 8, 3))
    assert set(abstract(model, x.shape)) == {"params"}
    on, off = (
        jax.make_jaxpr(functools.partial(model.apply, train=train))(abstract(model, x.shape), x)
        for train in (True, False)
    )
    assert str(on) == str(off)


def test_an_unknown_name_tells_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'resnet_18': did you mean resnet18 or "):
        models.make("resnet_18", 10)
    with pytest.raises(ValueError, match=r"unknown model 'zzz': there are mlp, cnn, "):
        models.make("zzz", 10)


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("width", [0, -4])
def test_a_width_below_1_is_refused(name, width):
    with pytest.raises(ValueError, match=f"width must be 1 or more, got {width}"):
        models.make(name, 10, width=width)


def test_names_of_parameters_are_those_of_earlier_checkpoints():
    dense = [f"params/Dense_{i}/{leaf}" for i in range(3) for leaf in ("bias", "kernel")]
    assert names(abstract(models.make("mlp", 10))) == set(dense)
    for name in ("cnn", "small_cnn"):
        assert names(abstract(models.make(name, 10))) == {
            *(f"params/Conv_{i}/kernel" for i in range(3)),
            *(f"params/BatchNorm_{i}/{leaf}" for i in range(3) for leaf in ("bias", "scale")),
            *(f"batch_stats/BatchNorm_{i}/{leaf}" for i in range(3) for leaf in ("mean", "var")),
            "params/Dense_0/bias",
            "params/Dense_0/kernel",
        }


# The layers


def test_a_strided_convolution_is_centred_on_the_pixels_of_pytorch():
    x = jnp.arange(64.0).reshape(1, 8, 8, 1)
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    y = convolution(1, 3, stride=2, dtype=jnp.float32).apply({"params": {"kernel": centre}}, x)
    np.testing.assert_array_equal(y, x[:, ::2, ::2])


def test_kernels_are_he_normal_with_fan_out():
    layer = convolution(256, 3, dtype=jnp.float32)
    variables = jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 4, 4, 16)))
    kernel = np.asarray(variables["params"]["kernel"])
    np.testing.assert_allclose(kernel.std(), math.sqrt(2 / (9 * 256)), rtol=0.02)
    assert abs(kernel).max() > 4 * kernel.std()  # not truncated


SHORTCUTS = {
    "resnet": (resnet.Block(4), nn.relu),
    "resnet32": (
        resnet.Block(7, stride=2, projection=False),
        lambda x: nn.relu(jnp.pad(x[:, ::2, ::2], [(0, 0)] * 3 + [(0, 3)])),
    ),
    "bottleneck": (resnet.Block(1, bottleneck=True), nn.relu),
    "wide_resnet": (wide_resnet.Block(4), lambda x: x),
    "pyramidnet": (
        pyramidnet.Block(7, stride=2),
        lambda x: jnp.pad(
            x.reshape(2, 4, 2, 4, 2, 4).mean((2, 4)), [(0, 0)] * 3 + [(0, 3)]
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_block_of_zeros_is_its_shortcut(name):
    block, shortcut = SHORTCUTS[name]
    x = images(2, 8, 8, 4)

    @jax.jit
    def both(x):
        variables = block.init(jax.random.key(0), x, train=False)
        params = jax.tree.map(jnp.zeros_like, variables["params"])
        return block.apply({**variables, "params": params}, x, train=False), shortcut(x)

    np.testing.assert_allclose(*both(x), atol=1e-6)


def test_patches_are_those_of_a_strided_convolution():
    model, x = ViT(10, width=6, depth=1), images(2, 12, 8, 3)
    variables = init(model, x)
    apply = functools.partial(
        model.apply, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    _, captured = jax.jit(apply)(variables, x)
    (patches,) = captured["intermediates"]["patches"]["__call__"]
    kernel = variables["params"]["patches"]["kernel"].reshape(4, 4, 3, 6)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(patches, expected.reshape(2, 6, 6), atol=1e-5)


@pytest.mark.parametrize("approximate", [False, True])
def test_a_block_of_the_vit_is_equations_2_and_3_of_its_paper(approximate):
    block, x = Block(heads=2, gelu_approximate=approximate), images(2, 3, 8)
    # biases and scales away from 0 and 1, and kernels large enough for a softmax that is not flat
    params = jax.tree.map(
        lambda leaf: images(*leaf.shape, seed=leaf.size) / 2,
        jax.eval_shape(block.init, jax.random.key(0), x)["params"],
    )
    y = jax.jit(block.apply)({"params": params}, x)
    p, x = jax.tree.map(functools.partial(np.asarray, dtype=np.float64), (params, x))

    def norm(z, name):
        z = z - z.mean(-1, keepdims=True)
        z = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6)
        return z * p[name]["scale"] + p[name]["bias"]

    qkv = np.einsum("btc,cihd->ibhtd", norm(x, "attention_norm"), p["qkv"]["kernel"])
    q, k, v = qkv + p["qkv"]["bias"][:, None, :, None]
    weights = np.exp(q @ k.swapaxes(2, 3) / math.sqrt(4))
    attended = weights / weights.sum(-1, keepdims=True) @ v
    out = p["attention_out"]
    x = x + np.einsum("bhtd,hdc->btc", attended, out["kernel"]) + out["bias"]
    z = norm(x, "mlp_norm") @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
    if approximate:
        gelu = z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2
    else:
        gelu = z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2
    x = x + gelu @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"]
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)


def test_patches_that_do_not_tile_the_images_are_refused():
    with pytest.raises(ValueError, match=r"patches of 4 do not tile images of 30x32"):
        abstract(models.make("vit_small", 10), (1, 30, 32, 3))
