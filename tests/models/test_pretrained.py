"""Weights of others: their logits, in each format of files, and every way in which a file is bad.

The models of PyTorch are derived here once more in NumPy; where PyTorch is, `-m peers` compares
with torchvision, timm and transformers themselves, at full size.
"""

import functools
import hashlib
import io
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
import scipy.ndimage

from experiments import models
from experiments.data import normalization
from experiments.models import pretrained
from experiments.models.pretrained import WeightsError
from experiments.models.resnet import ResNet
from experiments.models.vit import ViT

SMALL_VIT = ViT(5, patch=4, width=128, depth=2)  # two heads
SMALL_RESNETS = {
    "basic": ResNet(5, blocks=(2, 1), width=6, imagenet_stem=True),
    "bottleneck": ResNet(5, blocks=(1, 2), width=4, bottleneck=True, imagenet_stem=True),
}
FILES = ("torchvision", "torchvision_files", "timm", "transformers", "original")


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


# State dicts with the names, shapes and layouts of PyTorch's models.


def filled(shapes):
    """Random arrays: weights that keep the size of what they multiply, all else off 0 and 1."""
    state = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        values = normal(*shape, seed=seed)
        if name.endswith("running_var"):
            values = 0.5 + values**2
        elif len(shape) in (2, 4):
            values *= 1.5 / math.sqrt(math.prod(shape[1:]))
        elif len(shape) == 1:
            values = 0.3 * values + (name.endswith("weight"))
        state[name] = values.astype(np.float32)
    return state


def vit_state(width=128, depth=2, patch=4, tokens=5, classes=5):
    shapes = {
        "class_token": (1, 1, width),
        "conv_proj.weight": (width, 3, patch, patch),
        "conv_proj.bias": (width,),
        "encoder.pos_embedding": (1, tokens, width),
    }
    for i in range(depth):
        block = f"encoder.layers.encoder_layer_{i}"
        shapes |= {
            f"{block}.ln_1.weight": (width,),
            f"{block}.ln_1.bias": (width,),
            f"{block}.self_attention.in_proj_weight": (3 * width, width),
            f"{block}.self_attention.in_proj_bias": (3 * width,),
            f"{block}.self_attention.out_proj.weight": (width, width),
            f"{block}.self_attention.out_proj.bias": (width,),
            f"{block}.ln_2.weight": (width,),
            f"{block}.ln_2.bias": (width,),
            f"{block}.mlp.0.weight": (4 * width, width),
            f"{block}.mlp.0.bias": (4 * width,),
            f"{block}.mlp.3.weight": (width, 4 * width),
            f"{block}.mlp.3.bias": (width,),
        }
    return filled(
        shapes
        | {
            "encoder.ln.weight": (width,),
            "encoder.ln.bias": (width,),
            "heads.head.weight": (classes, width),
            "heads.head.bias": (classes,),
        }
    )


def resnet_state(model):
    def norm(name, channels):
        leaves = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{leaf}": (channels,) for leaf in leaves}

    shapes = {"conv1.weight": (model.width, 3, 7, 7), **norm("bn1", model.width)}
    before = model.width
    for stage, blocks in enumerate(model.blocks):
        width = model.width * 2**stage
        after = 4 * width if model.bottleneck else width
        for i in range(blocks):
            block = f"layer{stage + 1}.{i}"
            sizes = (
                [(width, before, 1), (width, width, 3), (after, width, 1)]
                if model.bottleneck
                else [(width, before, 3), (width, width, 3)]
            )
            for j, (out, channels, size) in enumerate(sizes, 1):
                shapes[f"{block}.conv{j}.weight"] = (out, channels, size, size)
                shapes |= norm(f"{block}.bn{j}", out)
            if i == 0 and before != after:
                shapes[f"{block}.downsample.0.weight"] = (after, before, 1, 1)
                shapes |= norm(f"{block}.downsample.1", after)
            before = after
    state = filled({**shapes, "fc.weight": (model.classes, before), "fc.bias": (model.classes,)})
    counted = {
        re.sub("running_var$", "num_batches_tracked", name): np.array(7)
        for name in state
        if name.endswith("running_var")
    }
    return state | counted


RENAMES = {
    "torchvision": (),
    "torchvision_files": ((".mlp.0.", ".mlp.linear_1."), (".mlp.3.", ".mlp.linear_2.")),
    "timm": (
        ("class_token", "cls_token"),
        ("conv_proj.", "patch_embed.proj."),
        ("encoder.pos_embedding", "pos_embed"),
        ("encoder.layers.encoder_layer_", "blocks."),
        (".ln_1.", ".norm1."),
        (".self_attention.in_proj_", ".attn.qkv."),
        (".self_attention.out_proj.", ".attn.proj."),
        (".ln_2.", ".norm2."),
        (".mlp.0.", ".mlp.fc1."),
        (".mlp.3.", ".mlp.fc2."),
        ("encoder.ln.", "norm."),
        ("heads.head.", "head."),
    ),
    "transformers": (
        ("class_token", "vit.embeddings.cls_token"),
        ("conv_proj.", "vit.embeddings.patch_embeddings.projection."),
        ("encoder.pos_embedding", "vit.embeddings.position_embeddings"),
        ("encoder.layers.encoder_layer_", "vit.encoder.layer."),
        (".ln_1.", ".layernorm_before."),
        (".self_attention.in_proj_", ".attention.attention.QKV."),
        (".self_attention.out_proj.", ".attention.output.dense."),
        (".ln_2.", ".layernorm_after."),
        (".mlp.0.", ".intermediate.dense."),
        (".mlp.3.", ".output.dense."),
        ("encoder.ln.", "vit.layernorm."),
        ("heads.head.", "classifier."),
    ),
    "original": (
        ("class_token", "cls"),
        ("conv_proj.", "embedding/"),
        ("encoder.pos_embedding", "Transformer/posembed_input/pos_embedding"),
        ("encoder.layers.encoder_layer_", "Transformer/encoderblock_"),
        (".ln_1.weight", "/LayerNorm_0/scale"),
        (".ln_1.", "/LayerNorm_0/"),
        (".self_attention.in_proj_", "/MultiHeadDotProductAttention_1/QKV/"),
        (".self_attention.out_proj.", "/MultiHeadDotProductAttention_1/out/"),
        (".ln_2.weight", "/LayerNorm_2/scale"),
        (".ln_2.", "/LayerNorm_2/"),
        (".mlp.0.", "/MlpBlock_3/Dense_0/"),
        (".mlp.3.", "/MlpBlock_3/Dense_1/"),
        ("encoder.ln.weight", "Transformer/encoder_norm/scale"),
        ("encoder.ln.", "Transformer/encoder_norm/"),
        ("heads.head.", "head/"),
    ),
}


def told_as(origin, state):
    """A state dict of torchvision's ViT with the names and layouts of another origin."""
    width = state["class_token"].size
    others = {}
    for name, array in state.items():
        for old, new in RENAMES[origin]:
            name = name.replace(old, new)
        if origin == "original":
            name = name.replace("weight", "kernel")
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
            array = array.T if array.ndim == 2 else array
            if "/out/kernel" in name:
                array = array.reshape(width // 64, 64, width)
        if "QKV" in name:
            axis = -1 if origin == "original" else 0
            for part, piece in zip(
                ("query", "key", "value"), np.split(array, 3, axis), strict=True
            ):
                if origin == "original":
                    piece = piece.reshape(*piece.shape[:-1], width // 64, 64)
                others[name.replace("QKV", part)] = piece
        else:
            others[name] = array
    return others


def save(path, state):
    state = {name: np.ascontiguousarray(array) for name, array in state.items()}
    if path.suffix == ".npz":
        np.savez(path, **state)
    else:
        save_file(state, path)
    return path


# PyTorch's models in NumPy, on images [B, C, H, W].


def conv2d(x, weight, stride, padding):
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows[:, :, ::stride, ::stride], weight, optimize=True)


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias


def gelu(x, approximate):
    if approximate:
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def vit_forward(state, x, approximate=False):
    """torchvision's ViT, of heads of 64."""
    state = {name: array.astype(np.float64) for name, array in state.items()}
    weight = state["conv_proj.weight"]
    batch, (width, _, patch, _) = len(x), weight.shape
    x = conv2d(x, weight, patch, 0).reshape(batch, width, -1).transpose(0, 2, 1)
    x = x + state["conv_proj.bias"]
    token = np.broadcast_to(state["class_token"], (batch, 1, width))
    x = np.concatenate([token, x], 1) + state["encoder.pos_embedding"]
    depth = sum(name.endswith("in_proj_weight") for name in state)
    for i in range(depth):
        p = functools.partial("encoder.layers.encoder_layer_{}.{}".format, i)
        y = layer_norm(x, state[p("ln_1.weight")], state[p("ln_1.bias")])
        y = (
            y @ state[p("self_attention.in_proj_weight")].T
            + state[p("self_attention.in_proj_bias")]
        )
        q, k, v = (z.reshape(batch, -1, width // 64, 64).swapaxes(1, 2) for z in np.split(y, 3, -1))
        scores = np.exp(q @ k.swapaxes(2, 3) / 8)
        y = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
        out = p("self_attention.out_proj")
        x = x + y @ state[f"{out}.weight"].T + state[f"{out}.bias"]
        y = layer_norm(x, state[p("ln_2.weight")], state[p("ln_2.bias")])
        y = gelu(y @ state[p("mlp.0.weight")].T + state[p("mlp.0.bias")], approximate)
        x = x + y @ state[p("mlp.3.weight")].T + state[p("mlp.3.bias")]
    x = layer_norm(x[:, 0], state["encoder.ln.weight"], state["encoder.ln.bias"])
    return x @ state["heads.head.weight"].T + state["heads.head.bias"]


def resnet_forward(state, x, model):
    """torchvision's ResNet in evaluation."""
    state = {name: array.astype(np.float64) for name, array in state.items()}

    def layer(x, conv, norm, stride):
        weight = state[f"{conv}.weight"]
        x = conv2d(x, weight, stride, weight.shape[2] // 2)
        scale, bias, mean, var = (
            state[f"{norm}.{leaf}"][:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(layer(x, "conv1", "bn1", 2), 0)
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((4, 5))
    for stage, blocks in enumerate(model.blocks, 1):
        for i in range(blocks):
            block, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            strides = (1, stride, 1) if model.bottleneck else (stride, 1)
            y = x
            for j, s in enumerate(strides, 1):
                y = layer(y, f"{block}.conv{j}", f"{block}.bn{j}", s)
                y = np.maximum(y, 0) if j < len(strides) else y
            if f"{block}.downsample.0.weight" in state:
                x = layer(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            x = np.maximum(x + y, 0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


# Ours.


@functools.cache
def abstract(model, side):
    """Parameters and model state as shapes and dtypes."""
    x = jnp.zeros((1, side, side, 3))
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x)
    return variables.pop("params"), variables


def load(path, model=SMALL_VIT, side=8, **options):
    return pretrained.load(path, *abstract(model, side), model=model, **options)


@functools.cache
def compiled(model):
    return jax.jit(functools.partial(model.apply, train=False))


def logits(model, loaded, x):
    """Of images [B, C, H, W]."""
    variables = {"params": loaded.params, **loaded.model_state}
    return compiled(model)(variables, x.transpose(0, 2, 3, 1).astype(np.float32))


def assert_close(actual, expected, rtol):
    """To rtol of the largest logit, where a logit may be as near to 0 as it likes."""
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


# What is loaded.


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("origin", FILES)
def test_a_vit_has_the_logits_of_its_origin(origin, suffix, tmp_path):
    state, x = vit_state(), normal(2, 3, 8, 8, seed=1)
    path = save(tmp_path / f"weights{suffix}", told_as(origin, state))
    approximate = origin == "original"
    model = SMALL_VIT.copy(gelu_approximate=approximate)
    actual = logits(model, load(path, model), x)
    assert_close(actual, vit_forward(state, x, approximate), 1e-5)


@pytest.mark.parametrize("name", SMALL_RESNETS)
def test_a_resnet_has_the_logits_of_torchvisions(name, tmp_path):
    model, x = SMALL_RESNETS[name], normal(2, 3, 32, 32, seed=1)
    state = resnet_state(model)
    loaded = load(save(tmp_path / "resnet.safetensors", state), model, 32)
    assert_close(logits(model, loaded, x), resnet_forward(state, x, model), 1e-5)


@pytest.mark.parametrize("origin", FILES)
def test_loaded_variables_have_the_structure_the_shapes_and_the_dtypes_of_the_models(
    origin, tmp_path
):
    loaded = load(save(tmp_path / "vit.npz", told_as(origin, vit_state())))
    of = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert of((loaded.params, loaded.model_state)) == of(abstract(SMALL_VIT, 8))


def test_running_statistics_are_those_of_the_file(tmp_path):
    model = SMALL_RESNETS["basic"]
    state = resnet_state(model)
    loaded = load(save(tmp_path / "resnet.npz", state), model, 32)
    of = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert of((loaded.params, loaded.model_state)) == of(abstract(model, 32))
    for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
        kept = loaded.model_state["batch_stats"]["stage1_block2"]["BatchNorm_1"][ours]
        np.testing.assert_array_equal(kept, state[f"layer1.1.bn2.{theirs}"])


@pytest.mark.parametrize(
    ("origin", "name", "moments"),
    [
        ("torchvision", "torchvision ViT", normalization.IMAGENET),
        ("torchvision_files", "torchvision ViT", normalization.IMAGENET),
        ("timm", "DeiT or timm ViT", normalization.IMAGENET),
        ("transformers", "transformers ViT", normalization.IMAGENET),
        ("original", "original ViT", normalization.HALF),
    ],
)
def test_what_was_read_is_told(origin, name, moments, tmp_path):
    path = save(tmp_path / "vit.npz", told_as(origin, vit_state()))
    size = sum(array.size for array in vit_state().values())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(path).source == pretrained.Source(name, digest, size, False, moments)


def test_images_are_normalised_in_0_to_255():
    np.testing.assert_allclose(np.divide(normalization.IMAGENET.mean, 255), [0.485, 0.456, 0.406])
    np.testing.assert_allclose(np.divide(normalization.IMAGENET.std, 255), [0.229, 0.224, 0.225])
    for value in (0, 255):  # to −1 and 1
        scaled = np.divide(np.subtract(value, normalization.HALF.mean), normalization.HALF.std)
        np.testing.assert_array_equal(scaled, [math.copysign(1, value - 1)] * 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_weights_of_another_precision_become_that_of_the_parameters(dtype, tmp_path):
    state = {name: array.astype(dtype) for name, array in vit_state().items()}
    loaded = load(save(tmp_path / "vit.safetensors", state))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype("float32")}
    expected = np.asarray(state["class_token"], np.float32)
    np.testing.assert_array_equal(loaded.params["class_token"], expected)


def test_a_safetensors_file_of_another_type_of_numbers_says_which(tmp_path):
    path = save(tmp_path / "vit.safetensors", {"cls_token": np.zeros(3, bool)})
    with pytest.raises(WeightsError, match="cls_token is BOOL: convert it to one of F64, F32"):
        load(path)


@pytest.mark.parametrize(("tokens", "side"), [(5, 12), (10, 8), (17, 12), (17, 4)])
def test_positions_are_interpolated_as_in_the_code_of_the_vit(tokens, side, tmp_path):
    state = vit_state(tokens=tokens)
    loaded = load(save(tmp_path / "vit.npz", state), side=side)
    theirs, new = state["encoder.pos_embedding"], side // 4
    old = math.isqrt(tokens - 1)
    grid = theirs[0, 1:].reshape(old, old, -1)
    grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    expected = np.concatenate([theirs[0, :1], grid.reshape(new**2, -1)])
    np.testing.assert_allclose(loaded.params["positions"][0], expected, atol=1e-6)
    assert np.isfinite(logits(SMALL_VIT, loaded, normal(1, 3, side, side, seed=0))).all()


def test_positions_of_the_same_size_are_those_of_the_file(tmp_path):
    state = vit_state()
    loaded = load(save(tmp_path / "vit.npz", state))
    np.testing.assert_array_equal(loaded.params["positions"], state["encoder.pos_embedding"])


# A new head.


def test_a_new_head_of_a_vit_is_zero_and_all_else_is_the_files(tmp_path):
    path = save(tmp_path / "vit.npz", vit_state())
    model = SMALL_VIT.copy(classes=3)
    loaded, same = load(path, model, new_head=True), load(path)
    assert loaded.source.new_head
    assert loaded.source.parameters == same.source.parameters - 5 * 129
    head = loaded.params.pop("head")
    assert {k: (v.shape, bool((v == 0).all())) for k, v in head.items()} == {
        "kernel": ((128, 3), True),
        "bias": ((3,), True),
    }
    del same.params["head"]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, same.params)


def test_a_new_head_of_a_resnet_is_that_of_the_parameters(tmp_path):
    model = SMALL_RESNETS["basic"]
    path = save(tmp_path / "resnet.npz", resnet_state(model))
    other = model.copy(classes=3)
    state = jax.jit(functools.partial(other.init, train=False))(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    params = state.pop("params")
    loaded = pretrained.load(path, params, state, model=other, new_head=True)
    assert loaded.source.new_head
    jax.tree.map(np.testing.assert_array_equal, loaded.params["head"], params["head"])
    same = load(path, model, 32)
    jax.tree.map(np.testing.assert_array_equal, loaded.model_state, same.model_state)
    np.testing.assert_array_equal(
        loaded.params["Conv_0"]["kernel"], same.params["Conv_0"]["kernel"]
    )


def test_a_head_for_as_many_classes_is_kept_where_a_new_one_is_allowed(tmp_path):
    path = save(tmp_path / "vit.npz", vit_state())
    loaded = load(path, new_head=True)
    assert not loaded.source.new_head
    jax.tree.map(np.testing.assert_array_equal, loaded.params, load(path).params)


def test_another_number_of_classes_is_refused_where_no_new_head_is_allowed(tmp_path):
    path = save(tmp_path / "vit.npz", vit_state())
    with pytest.raises(WeightsError, match="Differences: 2") as caught:
        load(path, SMALL_VIT.copy(classes=3))
    assert "heads.head.weight is (5, 128) and must be (3, 128)" in str(caught.value)
    assert "for 5 classes and the model for 3: allow a new head" in str(caught.value)


def test_a_head_that_contradicts_itself_is_refused_where_a_new_one_is_allowed(tmp_path):
    state = vit_state()
    state["heads.head.bias"] = state["heads.head.bias"][:4]
    path = save(tmp_path / "vit.npz", state)
    with pytest.raises(WeightsError, match=r"weight is \(5, 128\) and must be \(4, 128\)"):
        load(path, SMALL_VIT.copy(classes=3), new_head=True)


def test_the_layer_before_the_head_goes_with_it_or_is_refused(tmp_path):
    state = told_as("original", vit_state())
    state["pre_logits/kernel"] = np.zeros((128, 128), np.float32)
    state["pre_logits/bias"] = np.zeros(128, np.float32)
    path = save(tmp_path / "vit.npz", state)
    assert load(path, SMALL_VIT.copy(classes=3), new_head=True).source.new_head
    with pytest.raises(WeightsError, match=r"unexpected: pre_logits/kernel \(128, 128\)"):
        load(path, new_head=True)


# What is refused.


def broken(state):
    """Five differences of all kinds."""
    del state["class_token"]
    state["extra.weight"] = np.zeros((2, 3), np.float32)
    state["encoder.ln.weight"] = np.zeros(64, np.float32)
    state["conv_proj.bias"][[1, 5]] = np.nan, np.inf
    state["encoder.ln.bias"] = np.zeros(128, np.int64)
    return state


def test_a_length_that_is_free_is_told_as_any(tmp_path):
    state = vit_state()
    state["encoder.pos_embedding"] = state["encoder.pos_embedding"][:, :, :64]
    path = save(tmp_path / "vit.npz", state)
    with pytest.raises(WeightsError, match=r"is \(1, 5, 64\) and must be \(1, any, 128\)"):
        load(path)


def test_all_differences_are_told_at_once(tmp_path):
    path = save(tmp_path / "vit.npz", broken(vit_state()))
    with pytest.raises(WeightsError, match="Differences: 5") as caught:
        load(path)
    assert str(path) in str(caught.value)
    for said in (
        "missing: class_token (1, 1, 128)",
        "unexpected: extra.weight (2, 3)",
        "shape: encoder.ln.weight is (64,) and must be (128,)",
        "not finite: 2 of 128 numbers of conv_proj.bias",
        "type: encoder.ln.bias is int64 and must be floating-point",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("layer2.0.bn1.running_var"), "missing: layer2.0.bn1.running_var"),
        (lambda s: s.update({"layer1.2.conv1.weight": s["conv1.weight"]}), "unexpected: layer1.2"),
        (lambda s: s.update({"conv1.weight": s["conv1.weight"][:, :, 2:5, 2:5]}), "(6, 3, 3, 3)"),
        (lambda s: s["fc.weight"].fill(np.nan), "not finite: 60 of 60 numbers of fc.weight"),
        (lambda s: s.update({"fc.bias": np.full(5, 1e300)}), "not finite: 5 of 5 numbers of fc"),
        (lambda s: s["bn1.running_var"].fill(-1), "negative: 6 of 6 variances of bn1.running_var"),
    ],
    ids=["missing", "unexpected", "shape", "nan", "overflow", "negative"],
)
def test_a_resnet_that_differs_in_one_thing_is_refused(change, said, tmp_path):
    model = SMALL_RESNETS["basic"]
    state = resnet_state(model)
    change(state)
    path = save(tmp_path / "resnet.npz", state)
    with pytest.raises(WeightsError, match=re.escape(said)) as caught:
        load(path, model, 32)
    assert "Differences: 1." in str(caught.value)


def test_of_many_differences_twenty_are_listed_and_all_counted(tmp_path):
    path = save(tmp_path / "vit.npz", vit_state(width=192))
    with pytest.raises(WeightsError, match="Differences: 31") as caught:
        load(path)
    assert str(caught.value).count("\n  shape: ") == 20
    assert "and 11 more" in str(caught.value)


@pytest.mark.parametrize(("tokens", "side"), [(8, 8), (1, 8)])
def test_positions_of_no_square_are_refused(tokens, side, tmp_path):
    path = save(tmp_path / "vit.npz", vit_state(tokens=tokens))
    with pytest.raises(WeightsError, match=f"encoder.pos_embedding has {tokens} positions and"):
        load(path, side=side)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused(share, suffix, tmp_path):
    path = save(tmp_path / f"vit{suffix}", vit_state())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(WeightsError, match=f"cannot be read as {suffix}: .*fetch it anew"):
        load(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    for name in ("vit.npz", "vit.safetensors"):
        (tmp_path / name).write_text("<!DOCTYPE html><title>404</title>" * 10)
        with pytest.raises(WeightsError, match="cannot be read as"):
            load(tmp_path / name)


def test_an_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "vit.npz", cls=np.array([{}], dtype=object))
    with pytest.raises(
        WeightsError, match=r"cannot be read as \.npz: Object arrays cannot be loaded"
    ):
        load(tmp_path / "vit.npz")


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.npz cannot be read: No such file"):
        load(tmp_path / "absent.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(WeightsError, match=r"folder\.npz cannot be read: Is a directory"):
        load(tmp_path / "folder.npz")


@pytest.mark.parametrize("name", ["weights", "weights.h5", "weights.tar.gz"])
def test_a_name_of_no_container_is_refused(name, tmp_path):
    with pytest.raises(WeightsError, match=r"no file of weights by its name: pass a \.safetensors"):
        load(tmp_path / name)


def test_names_of_no_format_are_refused(tmp_path):
    path = save(tmp_path / "cnn.npz", {"features.0.weight": np.zeros(3), "b": np.zeros(3)})
    with pytest.raises(WeightsError, match=r"its names are features\.0\.weight, b and so on"):
        load(path)


def test_weights_of_another_class_of_models_are_refused(tmp_path):
    model = SMALL_RESNETS["basic"]
    path = save(tmp_path / "resnet.npz", resnet_state(model))
    with pytest.raises(WeightsError, match="models of the class ResNet, and the model is a ViT"):
        load(path)
    path = save(tmp_path / "vit.npz", vit_state())
    for other in (model, models.make("cnn", 5), models.make("wrn28_10", 5, width=1)):
        with pytest.raises(WeightsError, match="models of the class ViT"):
            load(path, other, 32)


def test_a_file_of_pytorch_says_what_to_do_where_pytorch_is_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("vit.pth", "vit.pt", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(WeightsError, match=r"install torch, or convert .* to \.safetensors"):
            load(tmp_path / name)


# At full size, with the others' own code.


def randomised(module, torch):
    """A module in evaluation whose scales, biases, statistics and head are random too."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        values = torch.empty_like(tensor, dtype=torch.float32).normal_(generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + values**2)
        elif tensor.ndim == 1:
            tensor.add_(0.1 * values)
        elif name.split(".")[0] in ("heads", "head", "classifier", "class_token", "cls_token"):
            tensor.copy_(0.1 * values)
    return module.eval()


def peers():
    torch = pytest.importorskip("torch")
    return torch, torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def elements(state):
    counted = (v for k, v in state.items() if not k.endswith("num_batches_tracked"))
    return sum(math.prod(tensor.shape) for tensor in counted)


def assert_same_logits(name, path, module, torch, x, rtol=1e-4):
    model = models.make(name, 1000)
    params, state = abstract(model, 224)
    assert sum(leaf.size for leaf in jax.tree.leaves((params, state))) == elements(
        module.state_dict()
    )
    loaded = load(path, model, 224)
    with torch.no_grad():
        expected = module(x)
    expected = getattr(expected, "logits", expected).numpy()
    actual = np.asarray(logits(model, loaded, x.numpy()))
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    print(f"{name}, {path.name}: largest difference {difference:.1e} of the largest logit")
    assert_close(actual, expected, rtol)


@pytest.mark.peers
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("imagenet_resnet18", "resnet18"),
        ("imagenet_resnet50", "resnet50"),
        ("imagenet_resnet101", "resnet101"),
        ("vit_b16", "vit_b_16"),
    ],
)
def test_logits_are_torchvisions(ours, theirs, suffix, tmp_path):
    torch, x = peers()
    torchvision = pytest.importorskip("torchvision")
    module = randomised(torchvision.models.get_model(theirs), torch)
    path = tmp_path / f"{theirs}{suffix}"
    if suffix == ".pth":
        torch.save(module.state_dict(), path)
    else:
        save(path, {name: tensor.numpy() for name, tensor in module.state_dict().items()})
    assert_same_logits(ours, path, module, torch, x)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("vit_s16", "deit_small_patch16_224"), ("vit_b16", "deit_base_patch16_224")],
)
def test_logits_are_timms_of_deit(ours, theirs, tmp_path):
    torch, x = peers()
    module = randomised(pytest.importorskip("timm").create_model(theirs), torch)
    path = tmp_path / f"{theirs}.pth"
    torch.save({"model": module.state_dict()}, path)
    assert_same_logits(ours, path, module, torch, x)


@pytest.mark.peers
def test_logits_are_those_of_transformers(tmp_path):
    torch, x = peers()
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(num_labels=1000, layer_norm_eps=1e-6)
    module = randomised(transformers.ViTForImageClassification(config), torch)
    module.save_pretrained(tmp_path)
    assert_same_logits("vit_b16", tmp_path / "model.safetensors", module, torch, x)


@pytest.mark.peers
@pytest.mark.parametrize(("ours", "gelu"), [("vit_b16_original", "tanh"), ("vit_b16", "none")])
def test_logits_of_the_original_vits_files_are_those_that_timm_has_from_them(ours, gelu, tmp_path):
    torch, x = peers()
    timm = pytest.importorskip("timm")
    act = functools.partial(torch.nn.GELU, approximate=gelu)
    module = timm.create_model("vit_base_patch16_224", act_layer=act).eval()
    state = vit_state(width=768, depth=12, patch=16, tokens=197, classes=1000)
    path = save(tmp_path / "vit.npz", told_as("original", state))
    module.load_pretrained(str(path))
    assert_same_logits(ours, path, module, torch, x)


@pytest.mark.peers
def test_bfloat16_tensors_of_pytorch_become_float32(tmp_path):
    torch, _ = peers()
    state = {name: torch.tensor(array).bfloat16() for name, array in vit_state().items()}
    torch.save({"state_dict": state}, tmp_path / "vit.pt")
    loaded = load(tmp_path / "vit.pt")
    expected = state["class_token"].float().numpy()
    np.testing.assert_array_equal(loaded.params["class_token"], expected)


@pytest.mark.peers
def test_a_file_of_pytorch_that_is_cut_off_or_no_state_dict_is_refused(tmp_path):
    torch, _ = peers()
    path, buffer = tmp_path / "vit.pth", io.BytesIO()
    torch.save({name: torch.tensor(array) for name, array in vit_state().items()}, buffer)
    for share in (0, 0.01, 0.5, 0.999):
        path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
        with pytest.raises(WeightsError, match=r"cannot be read as \.pth"):
            load(path)
    for other in (torch.zeros(3), {"epoch": 3}, {0: torch.zeros(3)}, [torch.zeros(3)]):
        torch.save(other, path)
        with pytest.raises(WeightsError, match="more than tensors by name"):
            load(path)
    torch.save(torch.nn.Linear(2, 2), path)  # a module would run code of its own
    with pytest.raises(WeightsError, match=r"cannot be read as \.pth: Weights only load failed"):
        load(path)
