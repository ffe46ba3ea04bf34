"""Augmentation: where windows, mirrors and squares fall, and what they leave as it was."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from experiments.data import augment

MEAN = np.array([120.0, 110.0, 100.0], np.float32)
STD = np.array([60.0, 50.0, 40.0], np.float32)
H, W = 16, 12  # not square, so that rows and columns cannot stand in for one another


# compiled as one program, as in a training step, and not operation by operation
normalize = jax.jit(augment.normalize)
crop = jax.jit(augment.crop, static_argnames="padding")
flip = jax.jit(augment.flip)
cutout = jax.jit(augment.cutout, static_argnames="size")
mixup = jax.jit(augment.mixup)
augmented = jax.jit(augment.augment, static_argnames=("names", "size"))


def key(seed=0):
    return jax.random.key(seed)


def images_of(count, shape=(H, W, 3)):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def positions(count):
    """Images [N, H, W, 2] whose pixels hold their row and column, counted from 1."""
    grid = np.stack(np.meshgrid(np.arange(1, H + 1), np.arange(1, W + 1), indexing="ij"), -1)
    return np.tile(grid.astype(np.uint8), (count, 1, 1, 1))


def offsets_of(key, count, padding):
    """Where the windows of `crop` begin in the padded image, read off a pixel near the middle."""
    cropped = np.asarray(crop(key, positions(count), padding=padding)).astype(int)
    return cropped[:, H // 2, W // 2] - 1 - [H // 2, W // 2] + padding


def test_normalize_is_that_of_numpy():
    images = images_of(5)
    normalized = normalize(images, MEAN, STD)
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, (images.astype(np.float64) - MEAN) / STD, atol=1e-6)


# Crop


@pytest.mark.parametrize("padding", [4, 2])
def test_every_position_of_the_window_is_equally_likely(padding):
    each, width = 100, 2 * padding + 1
    offsets = offsets_of(key(), each * width**2, padding)
    assert offsets.min() == 0
    assert offsets.max() == 2 * padding
    counts = np.bincount(offsets @ [width, 1], minlength=width**2)
    assert len(counts) == width**2
    assert counts.min() > each / 2  # five standard deviations
    assert counts.max() < 1.5 * each
    for axis in range(2):
        np.testing.assert_allclose(np.bincount(offsets[:, axis]), each * width, rtol=0.2)


def test_a_window_is_that_of_numpy():
    images = images_of(64)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    windows = [
        image[row : row + H, column : column + W]
        for image, (row, column) in zip(padded, offsets_of(key(3), 64, 4), strict=True)
    ]
    cropped = crop(key(3), images)
    assert cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, windows)


# Flip


def test_half_of_the_images_are_mirrored_and_the_others_left():
    images = images_of(4000, (3, 4, 3))
    flipped = np.asarray(flip(key(), images))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.04)  # five standard deviations
    assert flipped.dtype == np.uint8


# Cutout


@pytest.mark.parametrize("size", [None, 8, 5])
def test_the_squares_are_clipped_at_the_border_and_centred_anywhere(size):
    count = 50 * H * W
    kept = np.asarray(cutout(key(), np.ones((count, H, W, 2), np.float32), size=size)) == 1
    assert (kept == kept[..., :1]).all()  # all channels alike
    hidden = ~kept[..., 0]
    rows, columns = hidden.any(2), hidden.any(1)
    np.testing.assert_array_equal(hidden, rows[:, :, None] & columns[:, None, :])

    side, centres = size or H // 2, []
    for covered, length in ((rows, H), (columns, W)):
        expected = np.zeros((length, length), bool)
        for centre in range(length):
            start = centre - side // 2
            expected[centre, max(start, 0) : start + side] = True
        matches = (covered[:, None] == expected).all(2)
        assert (matches.sum(1) == 1).all()  # each is the cover of one centre
        np.testing.assert_allclose(matches.sum(0), count / length, rtol=0.2)
        centres.append(matches.argmax(1))
    assert len(set(zip(*centres, strict=True))) == H * W


def test_a_square_hides_a_quarter_of_a_cifar_image_at_most_and_nothing_else():
    images = np.random.default_rng(0).normal(size=(200, 32, 32, 3)).astype(np.float32)
    cut = np.asarray(cutout(key(), images))
    hidden = (cut == 0).all(3)
    np.testing.assert_array_equal(cut[~hidden], images[~hidden])
    areas = hidden.sum((1, 2))
    assert areas.max() == 16 * 16
    assert areas.min() < 16 * 16
    assert cut.dtype == np.float32


# Mixup


def test_mixup_mixes_images_and_labels_with_one_weight_and_one_order():
    images = images_of(9).astype(np.float32)
    mixed, labels = mixup(key(1), images, np.eye(9, dtype=np.float32), 1.0)
    # one-hot labels of nine classes are the matrix λ I + (1 − λ) P of the mixture itself
    matrix = np.asarray(labels)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(matrix.sum(0), 1, rtol=1e-6)
    weight = np.diag(matrix).min()
    order = (matrix - weight * np.eye(9)) / (1 - weight)
    np.testing.assert_allclose(order, order.round(), atol=1e-5)
    assert 0 < weight < 1
    assert (order.round().argmax(1) != np.arange(9)).any()
    np.testing.assert_allclose(mixed, np.einsum("ij,jhwc->ihwc", matrix, images), rtol=1e-4)
    assert mixed.dtype == labels.dtype == np.float32


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_weight_of_mixup_is_beta_distributed(alpha):
    images, one_hot = np.zeros((8, 1, 1, 1), np.float32), np.eye(8, dtype=np.float32)
    mix = jax.jit(jax.vmap(augment.mixup, (0, None, None, None)))
    _, labels = mix(jax.random.split(key(), 4000), images, one_hot, alpha)
    weights = np.asarray(labels).diagonal(axis1=1, axis2=2).min(1)
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.07)
    # every example is as likely to be mixed with any of the batch, itself included
    clear = weights < 0.99  # else the partner drowns in rounding
    partners = (np.asarray(labels) - weights[:, None, None] * np.eye(8))[clear].argmax(2)
    assert (np.sort(partners, axis=1) == np.arange(8)).all()
    np.testing.assert_allclose(np.bincount(partners[:, 0]), clear.sum() / 8, rtol=0.25)


# All together


def test_no_names_only_normalize():
    images = images_of(4)
    np.testing.assert_array_equal(
        augmented(key(), images, MEAN, STD, ()), normalize(images, MEAN, STD)
    )


def test_the_crop_is_black_and_the_square_is_the_mean():
    """Crop before the normalization and cutout after it, whatever order the names have."""
    images = np.full((300, H, W, 3), 200, np.uint8)
    result = augmented(key(), images, MEAN, STD, ("cutout", "crop"))
    levels = np.unique(np.asarray(result).reshape(-1, 3), axis=0)
    np.testing.assert_array_equal(levels[1], [0, 0, 0])
    np.testing.assert_allclose(levels[[0, 2]], [-MEAN / STD, (200 - MEAN) / STD], rtol=1e-6)


def test_cutout_comes_after_the_crop():
    """Without a square the window is that of the crop; the square lies over its border too."""
    images = images_of(500) | 1  # no pixel is black
    names = ("crop", "flip", "cutout")
    cut = np.asarray(augmented(key(), images, MEAN, STD, names))
    whole = np.asarray(augmented(key(), images, MEAN, STD, names[:2]))
    hidden = (cut == 0).all(3)
    np.testing.assert_array_equal(cut[~hidden], whole[~hidden])
    over_border = hidden & np.isclose(whole, -MEAN / STD).all(3)
    assert over_border.any()
    rows, columns = hidden.any(2), hidden.any(1)
    np.testing.assert_array_equal(hidden, rows[:, :, None] & columns[:, None, :])


@pytest.mark.parametrize("name", augment.NAMES)
def test_each_name_has_a_key_of_its_own(name):
    images = images_of(32)
    own = jax.random.split(key(2), 3)[augment.NAMES.index(name)]
    alone = {
        "crop": lambda: normalize(crop(own, images), MEAN, STD),
        "flip": lambda: normalize(flip(own, images), MEAN, STD),
        "cutout": lambda: cutout(own, normalize(images, MEAN, STD)),
    }[name]()
    np.testing.assert_allclose(augmented(key(2), images, MEAN, STD, (name,)), alone, atol=1e-6)


def test_one_more_name_leaves_what_the_others_draw():
    """The windows are the same with the mirrors, and as often mirrored as not wherever they lie."""
    images = positions(4000)
    mean, std = np.zeros(2, np.float32), np.ones(2, np.float32)
    cropped = np.asarray(augmented(key(), images, mean, std, ("crop",)))
    both = np.asarray(augmented(key(), images, mean, std, ("crop", "flip")))
    alone = np.asarray(augmented(key(), images, mean, std, ("flip",)))
    mirrored = (both != cropped).any((1, 2, 3))
    np.testing.assert_array_equal(both[mirrored], cropped[mirrored][:, :, ::-1])
    np.testing.assert_array_equal(mirrored, (alone != images).any((1, 2, 3)))
    middle = cropped[:, H // 2, W // 2]
    for axis in range(2):
        assert abs(np.corrcoef(mirrored, middle[:, axis])[0, 1]) < 0.08  # five deviations


@pytest.mark.parametrize("names", [(), augment.NAMES])
def test_the_key_decides_and_jit_changes_nothing(names):
    images = images_of(32)
    plain = augment.augment(key(5), images, MEAN, STD, names)
    again = augmented(key(5), images, MEAN, STD, names)
    other = augmented(key(6), images, MEAN, STD, names)
    assert plain.dtype == again.dtype == jnp.float32
    assert plain.shape == images.shape
    np.testing.assert_allclose(plain, again, rtol=1e-6, atol=1e-6)
    assert (np.asarray(again) != np.asarray(other)).any() == bool(names)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="unknown augmentation 'cutmix': pass any of crop, flip"):
        augmented(key(), images_of(1), MEAN, STD, ("crop", "cutmix"))


@pytest.mark.parametrize("size", [5, 8, 13, 40])
def test_images_are_resized_as_pillow_resizes(size):
    """Bilinear between the pixels, and over all that a new one covers where it shrinks."""
    images = images_of(2)
    resized = np.asarray(augmented(None, images, np.zeros(3), np.ones(3), (), size=size))
    assert resized.shape == (2, size, size, 3)
    for image, ours in zip(images, resized, strict=True):
        for channel in range(3):
            plane = Image.fromarray(image[..., channel].astype(np.float32))
            expected = plane.resize((size, size), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(ours[..., channel], expected, atol=1e-3)


def test_a_size_that_the_images_have_changes_nothing():
    images = images_of(2)[:, :8, :8]
    same = augmented(None, images, MEAN, STD, (), size=8)
    np.testing.assert_array_equal(same, augmented(None, images, MEAN, STD, ()))
