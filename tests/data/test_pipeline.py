"""Images from disk: each transform by hand, and the stream whatever makes it."""

import gc
import io
import itertools
import math
import multiprocessing
from multiprocessing.shared_memory import SharedMemory
import os
from pathlib import Path
import pickle
import queue
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import made
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
import pytest
import tensorflow_datasets as tfds

from experiments.data.disk import CorruptedError, NotPreparedError
from experiments.data.pipeline import batches as putting
from experiments.data.pipeline import blocks, stream, transforms
from experiments.data.pipeline.batches import LostWorkerError
from experiments.data.pipeline.maker import Plan, opened
from experiments.data.pipeline.records import FolderRecords, Record, TfdsRecords
from experiments.data.pipeline.stream import Stream

SIZE, CLASSES = 16, 1000


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A TFDS directory with every made set."""
    path = tmp_path_factory.mktemp("tfds")
    made.imagenet(path, train=50)
    made.imagenet_real(path)
    made.imagenet_v2(path)
    made.imagenet_r(path)
    made.imagenet_corrupted(path)
    return path


@pytest.fixture(scope="module")
def records(data_dir):
    return TfdsRecords("imagenet2012", "train", data_dir=data_dir)


def rng_of(seed=0):
    return np.random.default_rng(seed)


def image_of(seed=0, size=(40, 30)):
    return Image.fromarray(rng_of(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def taken(batches, count):
    """The first batches, of which the workers are then closed."""
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype


def joined(parts):
    """The batches of all processes, each from its parts in order."""
    steps = zip(*parts, strict=True)
    return [tuple(map(np.concatenate, zip(*step, strict=True))) for step in steps]


class Held:
    """Records in memory, each an image in one colour, (index, 0, 0), or whatever is given."""

    several, classes = False, CLASSES

    def __init__(self, count, broken=(), unreadable=()):
        self.count, self.broken, self.unreadable = count, broken, unreadable

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.unreadable:
            raise CorruptedError(f"{self.name(index)} cannot be read")
        file = io.BytesIO()
        Image.new("RGB", (20, 24), (index, 0, 0)).save(file, "png")
        image = file.getvalue()[:40] if index in self.broken else file.getvalue()
        return Record(image, index, f"{self.name(index)} (file)")

    def name(self, index):
        return f"record {index}"


def plain(records, **kwargs):
    """A stream that only crops centrally."""
    return Stream(records, size=SIZE, classes=CLASSES, augmentation=(), **kwargs)


# Decoding


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_mode_become_rgb(mode):
    encoded = made.jpeg(3, (20, 10), mode=mode)
    image = transforms.decode(encoded)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    np.testing.assert_array_equal(image, Image.open(io.BytesIO(encoded)).convert("RGB"))


def encoded(image, kind="png", **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def test_transparency_is_dropped_and_the_format_is_that_of_the_bytes():
    image = image_of()
    with_alpha = image.copy()
    with_alpha.putalpha(7)
    np.testing.assert_array_equal(transforms.decode(encoded(with_alpha)), image)
    palette = image.quantize(8)
    clear = encoded(palette, transparency=bytes(range(8)))
    np.testing.assert_array_equal(transforms.decode(clear), palette.convert("RGB"))


def test_sixteen_bits_keep_the_upper_eight():
    values = np.array([[0, 256, 65535, 257 * 200]], np.uint16)
    image = transforms.decode(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(image)[0, :, 0], [0, 1, 255, 200])


@pytest.mark.parametrize("damaged", [b"", b"no image", made.jpeg(0)[:-200]])
def test_damaged_bytes_are_no_image(damaged):
    with pytest.raises(OSError, match=r"identify|truncated"):
        transforms.decode(damaged)


# Crops and flips


def window(image):
    """Of an image whose pixels hold their place, what a resize to itself would show."""
    return np.asarray(image)[..., :2].astype(int)


def places(width, height):
    """An image whose red is the column and whose green is the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


def weights(start, length, of, size):
    """The triangles [size, of] that resize the pixels from start to start + length of a line."""
    scale = length / size
    reach = max(scale, 1)
    centres = start + (np.arange(size) + 0.5) * scale
    distances = np.abs(np.arange(of) + 0.5 - centres[:, None]) / reach
    triangles = np.maximum(1 - distances, 0)
    return triangles / triangles.sum(1, keepdims=True)


def test_a_crop_resizes_the_window_drawn_by_triangles():
    image, size = image_of(size=(90, 60)), 24
    pixels = np.asarray(image).astype(float)
    for seed in range(20):
        found = transforms.random_resized_crop(rng_of(seed), image, size)
        rng = rng_of(seed)
        while True:
            area = rng.uniform(0.08, 1) * 90 * 60
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if w <= 90 and h <= 60:
                break
        left, top = rng.integers(0, 90 - w + 1), rng.integers(0, 60 - h + 1)
        rows, columns = weights(top, h, 60, size), weights(left, w, 90, size)
        expected = np.einsum("ij,jkc,lk->ilc", rows, pixels, columns)
        np.testing.assert_allclose(found, expected, atol=1.5)


def windows_of(count, **kwargs):
    """Width, height, left and top of the windows drawn from an image of 200 x 150."""
    boxes = []

    class Spy:
        size = (200, 150)

        def resize(self, size, resample, box):
            boxes.append((box[2] - box[0], box[3] - box[1], box[0], box[1]))

    rng = rng_of(1)
    for _ in range(count):
        transforms.random_resized_crop(rng, Spy(), 32, **kwargs)
    return np.array(boxes, float).T


def test_areas_are_uniform_and_ratios_are_in_their_logarithm():
    width, height, left, top = windows_of(4000, area=(0.1, 0.3))
    area, log_ratio = width * height / 30_000, np.log(width / height)
    # rounding to pixels moves an area by up to 3 per cent
    assert 0.095 < area.min() < 0.103
    assert 0.297 < area.max() < 0.305
    for values, low, high in ((area, 0.1, 0.3), (log_ratio, -math.log(4 / 3), math.log(4 / 3))):
        shares = np.sort((values - low) / (high - low))
        distance = np.abs(shares - (np.arange(4000) + 0.5) / 4000).max()
        assert distance < 1.95 / math.sqrt(4000)  # Kolmogorov and Smirnov, one in a thousand
    assert abs(np.corrcoef(area, log_ratio)[0, 1]) < 0.06
    for start, end in ((left, 200 - width), (top, 150 - height)):
        assert start.min() == 0
        assert abs(np.mean(start / end) - 0.5) < 0.02
        assert (start == end).any()


def test_of_an_image_too_long_the_centre_is_taken():
    wide = places(240, 12)
    rng = rng_of()
    found = window(transforms.random_resized_crop(rng, wide, 8, area=(0.9, 1)))
    # 12 · 4/3 = 16 columns around 120
    np.testing.assert_allclose(found[0, [0, -1], 0], [112.5, 126.5], atol=1)
    tall = window(transforms.random_resized_crop(rng, places(12, 240), 8, area=(0.9, 1)))
    np.testing.assert_allclose(tall[[0, -1], 0, 1], [112.5, 126.5], atol=1)


def test_half_of_the_images_are_mirrored():
    image, rng = image_of(), rng_of()
    mirrored = np.asarray(image)[:, ::-1]
    found = [np.asarray(transforms.flip(rng, image)) for _ in range(400)]
    count = sum(np.array_equal(x, mirrored) for x in found)
    assert sum(np.array_equal(x, image) for x in found) == 400 - count
    assert 160 < count < 240


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (36, 36), (200, 33)])
def test_the_centre_is_that_of_the_image_with_its_shorter_side_resized(size):
    image = image_of(size=size)
    found = transforms.centre_crop(image, 28, 0.875)
    scale = 32 / min(size)
    whole = image.resize((round(size[0] * scale), round(size[1] * scale)), 2)
    left, top = (whole.width - 28) // 2, (whole.height - 28) // 2
    assert min(whole.size) == 32
    np.testing.assert_array_equal(found, np.asarray(whole)[top : top + 28, left : left + 28])


def test_the_whole_of_an_image_of_the_right_size_is_left_as_it_is():
    image = image_of(size=(24, 24))
    np.testing.assert_array_equal(transforms.centre_crop(image, 24, 1.0), image)


# Colours


def test_jitter_multiplies_in_a_random_order():
    image = image_of()
    orders = set()
    for seed in range(12):
        rng = rng_of(seed)
        order = tuple(rng.permutation(4))
        b, c, s, h = rng.uniform([0.7, 0.6, 0.5, -0.1], [1.3, 1.4, 1.5, 0.1])
        expected = image
        for i in order:
            if i < 3:
                kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[i]
                expected = kind(expected).enhance((b, c, s)[i])
            else:
                expected = transforms.turn_hue(expected, h)
        found = transforms.color_jitter(rng_of(seed), image, 0.3, 0.4, 0.5, 0.1)
        np.testing.assert_array_equal(found, expected)
        orders.add(order)
    assert len(orders) > 6


def test_hue_turns_red_to_green_in_a_third_of_the_circle():
    image = Image.new("RGB", (1, 1), (255, 0, 0))
    # in 256 steps, of which six colours take 42 or 43 each
    np.testing.assert_allclose(transforms.turn_hue(image, 1 / 3), [[[0, 255, 0]]], atol=6)
    np.testing.assert_allclose(transforms.turn_hue(image, -1 / 3), [[[0, 0, 255]]], atol=6)


def test_one_image_in_ten_is_grey():
    image, rng = image_of(), rng_of()
    pixels = np.asarray(image).astype(float)
    grey = pixels @ [0.299, 0.587, 0.114]
    found = [np.asarray(transforms.grayscale(rng, image)) for _ in range(500)]
    changed = [x for x in found if not np.array_equal(x, image)]
    assert 25 < len(changed) < 80
    assert (changed[0] == changed[0][..., :1]).all()
    np.testing.assert_allclose(changed[0][..., 0], grey, atol=1)


# RandAugment


def operation(name, image, magnitude, seed=0):
    return np.asarray(transforms.OPERATIONS[name](rng_of(seed), image, magnitude / 10))


SIMPLE = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": lambda image: 255 - np.asarray(image),
    "posterize": lambda image: np.asarray(image) & 0b11100000,  # int(4 · 0.8) = 3 bits
    "solarize": lambda image: np.where((x := np.asarray(image)) < 204, x, 255 - x),
    "solarize_add": lambda image: np.where(
        (x := np.asarray(image).astype(int)) < 128, np.minimum(x + 88, 255), x
    ),
    "color": lambda image: ImageEnhance.Color(image).enhance(1.54),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.54),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.54),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.54),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_an_operation_without_chance_at_magnitude_8(name):
    image = image_of(3)
    np.testing.assert_array_equal(operation(name, image, 8), SIMPLE[name](image))


def grey_of(pixels):
    return np.round(pixels @ [0.299, 0.587, 0.114])


@pytest.mark.parametrize("magnitude", [0, 1, 2.4, 30])
@pytest.mark.parametrize("name", transforms.OPERATIONS)
def test_an_operation_takes_every_magnitude(name, magnitude):
    assert operation(name, image_of(3), magnitude).shape == np.asarray(image_of(3)).shape


@pytest.mark.parametrize(("magnitude", "bits"), [(0, 0), (2.4, 0), (2.5, 1), (10, 4), (30, 8)])
def test_posterize_keeps_so_many_upper_bits(magnitude, bits):
    kept = np.uint8(256 - (256 >> bits))
    found = operation("posterize", image_of(3), magnitude)
    np.testing.assert_array_equal(found, np.asarray(image_of(3)) & kept)


def test_colours_are_blends_with_a_degenerate_image():
    image = image_of(4)
    pixels = np.asarray(image).astype(float)
    grey = grey_of(pixels)[..., None]
    smooth = np.asarray(image.filter(ImageFilter.SMOOTH)).astype(float)
    degenerate = {
        "color": grey,
        "contrast": np.round(grey.mean()),
        "brightness": 0.0,
        "sharpness": smooth,
    }
    for name, base in degenerate.items():
        for magnitude in (2, 9):
            factor = 0.1 + 1.8 * magnitude / 10
            expected = (base + factor * (pixels - base)).clip(0, 255)
            np.testing.assert_allclose(operation(name, image, magnitude), expected, atol=2)


def test_equalized_and_stretched_channels_fill_the_range():
    image = Image.fromarray((np.asarray(image_of(5)) // 4 + 60).astype(np.uint8))
    stretched = operation("auto_contrast", image, 5)
    assert (stretched.min((0, 1)) == 0).all()
    assert (stretched.max((0, 1)) == 255).all()
    counts = np.histogram(operation("equalize", image, 5)[..., 0], 4, (0, 256))[0]
    assert counts.max() < 2 * counts.min()  # of 64 values, and all in one bin before


def moved(pixels, shift, axis):
    """The pixels moved, with grey behind them, by index arithmetic."""
    result = np.full_like(pixels, 128)
    length = pixels.shape[axis]
    source = np.arange(length) + shift
    inside = (source >= 0) & (source < length)
    index = [slice(None)] * 3
    index[axis] = np.flatnonzero(inside)
    result[tuple(index)] = np.take(pixels, source[inside], axis)
    return result


@pytest.mark.parametrize(("name", "axis"), [("translate_x", 1), ("translate_y", 0)])
def test_images_are_moved_by_ten_pixels_a_magnitude_either_way(name, axis):
    image = image_of(6)
    found = {operation(name, image, 1, seed).tobytes() for seed in range(20)}
    pixels = np.asarray(image)
    assert found == {moved(pixels, shift, axis).tobytes() for shift in (10, -10)}


@pytest.mark.parametrize("name", ["shear_x", "shear_y"])
def test_rows_and_columns_are_sheared_by_03_a_pixel_at_magnitude_10(name):
    image = image_of(7)
    pixels = np.asarray(image)
    turned = pixels if name == "shear_x" else pixels.swapaxes(0, 1)
    expected = []
    for level in (0.3, -0.3):
        rows = np.arange(len(turned))
        # the nearest pixel to the centre of each, moved with its row's centre
        columns = np.floor(np.arange(turned.shape[1]) + 0.5 + level * (rows[:, None] + 0.5))
        inside = (columns >= 0) & (columns < turned.shape[1])
        picked = turned[rows[:, None], columns.clip(0, turned.shape[1] - 1).astype(int)]
        result = np.where(inside[..., None], picked, 128)
        expected.append(result if name == "shear_x" else result.swapaxes(0, 1))
    found = [operation(name, image, 10, seed) for seed in range(20)]
    agreeing = [[np.mean(x == y) for y in expected] for x in found]
    assert set(np.argmax(agreeing, 1)) == {0, 1}  # both ways
    assert np.max(agreeing, 1).min() > 0.99  # but for where the nearest of two is rounding


def test_images_are_turned_by_3_degrees_a_magnitude():
    image = image_of(8)
    found = {operation("rotate", image, 10, seed).tobytes() for seed in range(20)}
    nearest = Image.Resampling.NEAREST
    turned = [image.rotate(angle, nearest, fillcolor=(128, 128, 128)) for angle in (30, -30)]
    assert found == {x.tobytes() for x in turned}
    # a quarter turn by hand, at magnitude 30
    square = image_of(9, (30, 30))
    ways = {np.rot90(np.asarray(square), k).tobytes() for k in (1, 3)}
    assert {operation("rotate", square, 30, seed).tobytes() for seed in range(20)} == ways


def test_a_grey_square_of_eight_pixels_a_magnitude_is_cut_out():
    image = Image.new("RGB", (60, 50), (1, 2, 3))
    sizes = set()
    for seed in range(60):
        cut = (operation("cutout", image, 2, seed) == 128).all(-1)
        rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
        assert cut.sum() == len(rows) * len(columns)
        assert 8 <= len(rows) <= 16
        assert 8 <= len(columns) <= 16
        sizes.add((len(rows), len(columns)))
    assert (16, 16) in sizes  # whole where it is inside
    assert len(sizes) > 5  # and clipped at borders
    np.testing.assert_array_equal(image, Image.new("RGB", (60, 50), (1, 2, 3)))


def test_operations_are_drawn_equally_and_one_after_another(monkeypatch):
    drawn = []

    def noting(name):
        def note(rng, image, level):
            drawn.append((name, level))
            return image

        return note

    monkeypatch.setattr(transforms, "OPERATIONS", {n: noting(n) for n in transforms.OPERATIONS})
    rng = rng_of()
    for _ in range(1600):
        transforms.rand_augment(rng, image_of(), 2, 15)
    assert len(drawn) == 3200
    assert {level for _, level in drawn} == {1.5}
    names = [name for name, _ in drawn]
    counts = [names.count(name) for name in transforms.OPERATIONS]
    assert len(counts) == 16
    assert sum((c - 200) ** 2 / 200 for c in counts) < 37.7  # χ², 15 degrees, one in a thousand
    # the second does not follow from the first
    assert len({tuple(names[i : i + 2]) for i in range(0, 3200, 2)}) == 256


# Records


def test_records_are_the_bytes_as_stored_with_label_and_name(data_dir, records):
    record = records[17]
    assert len(records) == 50
    assert records.classes == CLASSES
    assert record.image == made.jpeg(17)
    assert record.label == 17
    assert record.name == "record 17 of imagenet2012/5.1.0 train (n00000017_17.JPEG)"
    assert TfdsRecords("imagenet2012", "train[10:20]", data_dir=data_dir)[3].label == 13


def test_records_of_the_other_sets(data_dir):
    for name, split, first in (
        ("imagenet_v2/matched-frequency", "test", made.jpeg(20_000)),
        ("imagenet_r", "test", made.jpeg(30_000)),
        ("imagenet2012_corrupted/gaussian_noise_1", "validation", made.jpeg(40_000, (224, 224))),
    ):
        assert TfdsRecords(name, split, data_dir=data_dir)[0].image == first
    name = "imagenet2012_real"
    real = TfdsRecords(name, "validation", data_dir=data_dir, label="real_label")
    original = TfdsRecords(name, "validation", data_dir=data_dir, label="original_label")
    assert [real[i].label for i in range(4)] == [(), (1,), (2, 3), (3, 4, 5)]
    assert [original[i].label for i in range(4)] == [0, 1, 2, 3]


def test_a_copy_of_records_opens_its_own_files(records):
    records[0]
    copy = pickle.loads(pickle.dumps(records))
    assert copy[5] == records[5]
    assert len(pickle.dumps(records)) < 1000


def test_sets_splits_and_features_that_are_not_there(data_dir):
    with pytest.raises(ValueError, match="no split 'test', but train, validation"):
        TfdsRecords("imagenet2012", "test", data_dir=data_dir)
    with pytest.raises(ValueError, match="features file_name, image, original_label, real_label"):
        TfdsRecords("imagenet2012_real", "validation", data_dir=data_dir)
    with pytest.raises(NotPreparedError, match="imagenet_v2/matched-frequency"):
        TfdsRecords("imagenet_v2", "test", data_dir=data_dir)
    with pytest.raises(NotPreparedError, match="tfds build imagenet_a"):
        TfdsRecords("imagenet_a", "test", data_dir=data_dir)


def test_records_that_do_not_exist(records):
    for index in (-1, 50):
        with pytest.raises(IndexError, match="there are 50 records"):
            records[index]


def test_a_file_that_cannot_be_read_names_the_record(tmp_path):
    folder = made.imagenet(tmp_path, train=4)
    records = TfdsRecords("imagenet2012", "train", data_dir=tmp_path)
    (file,) = folder.glob("*train*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(CorruptedError, match=r"record \d of .* train cannot be read"):
        [records[i] for i in range(4)]


def test_a_record_may_name_any_bytes_as_its_file(tmp_path):
    described = made.features(2) | {"file_name": tfds.features.Tensor(shape=(), dtype=np.bytes_)}
    examples = made.examples([made.jpeg(0), made.jpeg(1)], 2)
    examples[1]["file_name"] = b"bad\xff\n.jpg"
    made.set_of_tfds(tmp_path, "tiny", {"train": examples}, described)
    records = TfdsRecords("tiny", "train", data_dir=tmp_path)
    assert records[0].name == "record 0 of tiny/1.0.0 train (n00000000_0.JPEG)"
    assert records[1].name == "record 1 of tiny/1.0.0 train (bad\\xff\n.jpg)"


def test_a_file_name_that_is_none_is_left_out(tmp_path):
    described = made.features(2) | {"file_name": tfds.features.Scalar(np.int64)}
    examples = made.examples([made.jpeg(0)], 2)
    examples[0]["file_name"] = 5
    made.set_of_tfds(tmp_path, "tiny", {"train": examples}, described)
    records = TfdsRecords("tiny", "train", data_dir=tmp_path)
    assert records[0].name == "record 0 of tiny/1.0.0 train"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_of_any_name_is_read_and_told(workers, tmp_path):
    root = made.folders(tmp_path, splits=("all",), class_names=("a\udcfe\n",), each=1)
    (root / "all" / "a\udcfe\n" / "bad\udcff\n.JPEG").write_bytes(b"none")
    told = plain(FolderRecords(root, "all"), workers=workers, skip_corrupt=True)
    (batch,) = told.once(batch_size=2)
    assert batch.valid.tolist() == [False, True]
    assert told.corrupt == [f"all/a\udcfe\n/bad\udcff\n.JPEG in {root}"]


def test_folders_are_read_by_class_and_file_name(tmp_path):
    root = made.folders(tmp_path / "pacs")
    (root / "photo" / "dog" / ".hidden.jpg").write_bytes(b"")
    (root / "photo" / "dog" / "notes.txt").write_text("")
    (root / ".cache").mkdir()
    records = FolderRecords(root, "photo")
    assert records.splits == made.DOMAINS
    assert records.class_names == made.CLASSES
    assert records.classes == 7
    assert len(records) == 14
    assert [records[i].label for i in range(14)] == [i // 2 for i in range(14)]
    assert records[3].image == made.jpeg(2011)
    assert records[3].name == f"photo/elephant/pic_001.jpg in {root}"
    both = FolderRecords(root, ("sketch", "cartoon"))
    assert len(both) == 28
    assert both[14].name.startswith("cartoon/dog/pic_000.jpg")
    assert pickle.loads(pickle.dumps(both))[20] == both[20]


def test_folders_that_are_no_set(tmp_path):
    with pytest.raises(NotPreparedError, match="there is no folder"):
        FolderRecords(tmp_path / "nowhere", "photo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotPreparedError, match="no folders split/class"):
        FolderRecords(tmp_path / "empty", "photo")
    root = made.folders(tmp_path / "pacs", each=1)
    with pytest.raises(ValueError, match="no split 'foto', but art_painting, cartoon"):
        FolderRecords(root, "foto")
    (root / "sketch" / "cat").mkdir()
    with pytest.raises(ValueError, match=r"art_painting and sketch .* differ in the classes cat"):
        FolderRecords(root, "photo")
    none = made.folders(tmp_path / "none", each=0)
    with pytest.raises(ValueError, match="no images in photo"):
        FolderRecords(none, "photo")


# The stream


def test_batches_are_bit_equal_for_any_number_of_workers(records):
    found = []
    for workers in (0, 1, 2):
        training = Stream(
            records,
            size=SIZE,
            classes=CLASSES,
            augmentation=stream.AUGMENTATIONS,
            randaugment=(2, 10),
            workers=workers,
        )
        # 40 images are two pieces; 3 batches are three epochs
        found.append(taken(training.batches(seed=5, batch_size=40), 3))
    for batch in found[0]:
        assert batch.images.shape == (40, SIZE, SIZE, 3)
        assert batch.images.dtype == np.uint8
        assert batch.labels.dtype == np.int32
        assert batch.valid.all()
    assert_equal(found[0], found[1])
    assert_equal(found[0], found[2])


def test_evaluation_is_the_same_with_workers(data_dir):
    records = TfdsRecords("imagenet2012", "validation", data_dir=data_dir)
    each = [
        list(Stream(records, size=SIZE, classes=CLASSES, workers=w).once(batch_size=4))
        for w in (0, 2)
    ]
    assert_equal(*each)


def test_a_run_that_goes_on_from_a_step_meets_the_same_batches(records):
    training = Stream(records, size=SIZE, classes=CLASSES)
    whole = taken(training.batches(seed=1, batch_size=20), 7)
    assert_equal(whole[3:], taken(training.batches(seed=1, batch_size=20, first_step=3), 4))


def test_processes_share_each_batch_in_order(records):
    training = Stream(records, size=SIZE, classes=CLASSES)
    whole = taken(training.batches(seed=1, batch_size=24), 5)
    parts = [
        taken(training.batches(seed=1, batch_size=24, process=p, processes=3), 5) for p in range(3)
    ]
    assert_equal(whole, joined(parts))


def labels_of(batches):
    return np.concatenate([batch.labels for batch in batches])


def test_an_epoch_is_a_permutation_and_the_next_one_another():
    training = plain(Held(40))
    found = taken(training.batches(seed=1, batch_size=8), 10)
    first, second = labels_of(found[:5]), labels_of(found[5:])
    assert sorted(first) == sorted(second) == list(range(40))
    assert (first != second).any()
    assert (first != np.arange(40)).any()


def test_another_seed_is_another_order_and_not_that_of_another_epoch():
    training = plain(Held(40))
    orders = {}
    for seed in (0, 1, 2):
        found = taken(training.batches(seed=seed, batch_size=40), 3)
        orders |= {tuple(batch.labels): (seed, epoch) for epoch, batch in enumerate(found)}
    assert len(orders) == 9


def test_the_order_is_not_drawn_from_the_numbers_of_the_first_crop():
    """To NumPy zeros at the end of a seed are none, so that [seed, epoch] has the same ones."""
    maker = plain(Held(40))._maker(plan=Plan(40, 40, 0, 1, seed=3), shared=False)
    for epoch in (0, 1):
        of_crop = np.random.default_rng([3, epoch, 0, 0]).permutation(40)
        assert (maker._order(epoch) != of_crop).any()


def test_the_same_image_is_augmented_anew_in_each_epoch(records):
    training = Stream(records, size=SIZE, classes=CLASSES, indices=[7])
    found = taken(training.batches(seed=1, batch_size=1), 4)
    assert len({batch.images.tobytes() for batch in found}) == 4


def test_one_more_augmentation_leaves_what_the_others_draw(records):
    def images(*names):
        training = Stream(records, size=SIZE, classes=CLASSES, augmentation=names)
        (batch,) = taken(training.batches(seed=2, batch_size=30), 1)
        return batch.images

    cropped, both = images("inception"), images("inception", "flip")
    same = (cropped == both).all((1, 2, 3))
    mirrored = (cropped[:, :, ::-1] == both).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 5 < same.sum() < 25


def test_the_last_images_that_fill_no_batch_are_dropped_and_change_from_epoch_to_epoch():
    found = taken(plain(Held(10)).batches(seed=1, batch_size=4), 12)
    seen = [frozenset(labels_of(found[2 * e : 2 * e + 2])) for e in range(6)]
    assert {len(epoch) for epoch in seen} == {8}
    assert len(set(seen)) > 1


def test_only_the_indices_are_used_and_evaluated_in_their_order():
    chosen = plain(Held(30), indices=np.array([9, 4, 20]))
    assert chosen.examples == 3
    (batch,) = chosen.once(batch_size=3)
    np.testing.assert_array_equal(batch.labels, [9, 4, 20])
    assert set(labels_of(taken(chosen.batches(seed=0, batch_size=3), 4))) == {4, 9, 20}


def test_a_part_of_a_stream_has_some_of_its_images_and_tells_what_is_corrupt():
    whole = plain(Held(10, broken=(6,)), indices=[9, 6, 2, 5], skip_corrupt=True)
    part = whole.part(np.array([3, 1, 0]))
    (batch,) = part.once(batch_size=3)
    np.testing.assert_array_equal(batch.labels[batch.valid], [5, 9])
    assert (part.examples, whole.examples) == (3, 4)
    assert len(whole.corrupt) == 1
    (batch,) = whole.once(batch_size=4)
    np.testing.assert_array_equal(batch.labels[batch.valid], [9, 2, 5])


def test_the_images_are_those_of_their_labels(records):
    (batch,) = Stream(records, size=SIZE, classes=CLASSES).once(batch_size=50)
    for i in (0, 31, 32, 49):
        image = Image.open(io.BytesIO(made.jpeg(i)))
        np.testing.assert_array_equal(batch.images[i], transforms.centre_crop(image, SIZE))
        assert batch.labels[i] == i


def test_the_last_batch_is_padded_and_each_process_gets_as_many():
    whole = list(plain(Held(10)).once(batch_size=4))
    assert [list(batch.valid) for batch in whole] == [[True] * 4] * 2 + [[True, True] + [False] * 2]
    assert not whole[2].images[2:].any()
    parts = [list(plain(Held(10)).once(batch_size=4, process=p, processes=2)) for p in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    assert not parts[1][2].valid.any()
    assert_equal(whole, joined(parts))


def test_several_right_classes_are_a_row_of_ones_and_none_is_not_valid(data_dir):
    records = TfdsRecords("imagenet2012_real", "validation", data_dir=data_dir, label="real_label")
    (batch,) = Stream(records, size=SIZE, classes=CLASSES).once(batch_size=10)
    assert batch.labels.shape == (10, CLASSES)
    assert batch.labels.dtype == np.uint8
    assert [list(np.flatnonzero(row)) for row in batch.labels[:4]] == [[], [1], [2, 3], [3, 4, 5]]
    assert list(batch.valid) == [bool(i % 4) for i in range(10)]


# What cannot be decoded


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_an_error_with_the_records_name(workers):
    records = Held(20, broken=(7,))
    for batches in (
        plain(records, workers=workers).batches(seed=0, batch_size=20),
        plain(records, workers=workers).once(batch_size=20),
    ):
        with pytest.raises(CorruptedError, match=r"record 7 \(file\) cannot be decoded"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)


def test_a_record_that_cannot_be_read_is_an_error_or_skipped():
    records = Held(20, unreadable=(7,))
    with pytest.raises(CorruptedError, match="record 7 cannot be read"):
        next(plain(records).once(batch_size=20))
    skipping = plain(records, skip_corrupt=True)
    (batch,) = skipping.once(batch_size=20)
    assert list(np.flatnonzero(~batch.valid)) == [7]
    assert skipping.corrupt == ["record 7"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_image_gives_its_place_to_the_next_good_one(workers):
    good = labels_of(taken(plain(Held(40)).batches(seed=3, batch_size=40), 1))
    # two in a row, and the last one, whose next is the first
    broken = {int(good[4]), int(good[5]), int(good[39])}
    skipping = plain(Held(40, broken=broken), skip_corrupt=True, workers=workers)
    expected = good.copy()
    expected[[4, 5, 39]] = good[[6, 6, 0]]
    found = taken(skipping.batches(seed=3, batch_size=40), 2)
    np.testing.assert_array_equal(found[0].labels, expected)
    np.testing.assert_array_equal(found[0].images[:, 0, 0, 0], expected)
    assert all(batch.valid.all() for batch in found)
    assert sorted(skipping.corrupt) == sorted(f"record {i} (file)" for i in broken)


def test_a_skipped_image_is_not_valid_in_evaluation():
    skipping = plain(Held(9, broken=(2, 8)), skip_corrupt=True)
    found = list(skipping.once(batch_size=4))
    valid = np.concatenate([batch.valid for batch in found])
    assert list(np.flatnonzero(~valid)) == [2, 8, 9, 10, 11]
    assert skipping.corrupt == ["record 2 (file)", "record 8 (file)"]
    list(skipping.once(batch_size=4))
    assert len(skipping.corrupt) == 2


def test_a_set_of_corrupt_images_is_an_error_even_where_they_are_skipped():
    skipping = plain(Held(6, broken=range(6)), skip_corrupt=True)
    with pytest.raises(CorruptedError, match="none of the 6 records can be decoded"):
        next(skipping.batches(seed=0, batch_size=3))


def test_an_image_without_a_label_is_an_error():
    class Unlabelled(Held):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(label=-1)

    with pytest.raises(ValueError, match=r"record 0 \(file\) has the label -1"):
        next(plain(Unlabelled(3)).once(batch_size=3))


# Arguments, and the end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"classes": 5}, "classes must be at least the 1000 of the records, got 5"),
        ({"workers": -1}, "workers must be an integer of at least 0, got -1"),
        ({"augmentation": ("crop",)}, "unknown augmentation 'crop'"),
        ({"crop_area": (0.5, 0.1)}, "crop_area must be two shares"),
        ({"crop_area": (0.0, 1.0)}, "crop_area must be two shares"),
        ({"randaugment": (0, 10)}, "randaugment must be at least one layer"),
        ({"randaugment": (2, -1)}, "randaugment must be at least one layer"),
        ({"fraction": 0.0}, "fraction must lie in"),
        ({"indices": []}, "indices must be a vector of integers"),
        ({"indices": [0.5]}, "indices must be a vector of integers"),
        ({"indices": [3]}, r"indices must lie in \[0, 3\), got 3 to 3"),
    ],
)
def test_arguments_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        Stream(Held(3), **{"size": SIZE, "classes": CLASSES, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, "batch_size must be at most the 3 images, got 4"),
        ({"batch_size": 0}, "batch_size must be a positive multiple of the 1 processes"),
        ({"batch_size": 3, "processes": 2}, "positive multiple of the 2 processes, got 3"),
        ({"process": 1}, r"process must lie in \[0, processes\), got 1 of 1"),
        ({"seed": -1}, "seed must lie in"),
        ({"seed": 2**32}, "seed must lie in"),
        ({"first_step": -1}, "first_step must not be negative"),
    ],
)
def test_batches_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        plain(Held(3)).batches(**{"seed": 0, "batch_size": 2, **changes})


def test_a_closed_stream_of_batches_has_no_more():
    batches = plain(Held(6)).batches(seed=0, batch_size=2)
    next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


PROGRAM = """
import gc
import os
import signal
import sys
from experiments.data.pipeline.records import TfdsRecords
from experiments.data.pipeline.stream import Stream

if __name__ == "__main__":
    # where the tests run in the background, Ctrl-C is ignored unless told otherwise
    signal.signal(signal.SIGINT, signal.default_int_handler)
    records = TfdsRecords("imagenet2012", "train", data_dir=sys.argv[1])
    stream = Stream(records, size=8, classes=1000, workers=2)
    if sys.argv[2] == "read":
        gc.disable()  # in a large program a cycle may live long
        closed = stream.batches(seed=0, batch_size=8)
        for _ in range(3):  # of both workers: Grain kills one that takes long to start
            next(closed)
        closed.close()
        files = len(os.listdir("/proc/self/fd"))
        print(sum(raw.valid.sum() for raw in stream.once(batch_size=8)))
        print(len(os.listdir("/proc/self/fd")) - files)
        sys.exit()
    batches = stream.batches(seed=0, batch_size=8)
    print(next(batches).valid.sum(), flush=True)
    if sys.argv[2] == "left at once":
        from experiments.cli import command  # which the workers do not need
        command._leave(7)
    if sys.argv[2] == "interrupted":
        while True:
            next(batches)
"""


@pytest.fixture
def program(tmp_path, data_dir):
    """Starts the program above, in a group of processes of its own."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, str(path), str(data_dir), how],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(stream.__file__).parents[3])},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("left", 0), ("left at once", 7)])
def test_a_program_that_leaves_its_workers_running_ends(how, code, program):
    process = program(how)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "8\n", "")


def test_a_program_that_closes_a_stream_or_reads_it_to_its_end_leaves_nothing(program, data_dir):
    """No file open, and no shared memory, of which Python would warn."""
    out, err = program("read").communicate(timeout=60)
    read, files = map(int, out.split())
    assert read == len(TfdsRecords("imagenet2012", "train", data_dir=data_dir))
    assert (files, err) == (0, "")


def is_there(name):
    try:
        SharedMemory(name).close()
    except FileNotFoundError:
        return False
    return True


@pytest.mark.parametrize("broken", [(), (1,)])
def test_a_piece_that_is_not_sent_leaves_no_shared_memory(broken, monkeypatch):
    """Whether it was made, or a record of it is broken."""
    names = []

    def named(**arguments):
        memory = SharedMemory(**arguments)
        names.append(memory.name)
        return memory

    monkeypatch.setattr(blocks, "SharedMemory", named)
    plan = Plan(2, 2, 0, 1)
    maker = plain(Held(2, broken=broken))._maker(plan=plan, shared=True)
    if broken:
        with pytest.raises(CorruptedError, match="record 1"):
            maker(plan[0])
    else:
        assert maker(plan[0]).raw.valid.all()
    gc.collect()
    (name,) = names
    assert not is_there(name)


def test_a_block_is_used_again_once_the_receiver_has_let_go_of_it():
    """By name it is there until the receiver has opened it, and never after."""
    plan = Plan(4, 2, 0, 1)
    maker = plain(Held(4, broken=(3,)), skip_corrupt=True)._maker(plan=plan, shared=True)
    first = maker(plan[0])
    sent = pickle.dumps(first)
    name = first._memory.name
    assert is_there(name)
    received = pickle.loads(sent)
    assert not is_there(name)
    expected = np.copy(received.raw.images)
    second = maker(plan[0])  # the first is taken
    assert second._memory.name != name
    np.testing.assert_array_equal(received.raw.images, expected)
    received.let_go()
    third = maker((None, np.array([3, -1])))  # corrupt, and padding
    assert third._memory.name == name
    assert not third.raw.images.any()
    assert not third.raw.valid.any()
    again = pickle.loads(pickle.dumps(third))
    assert again._memory is received._memory
    opened.forget(maker.stream)


def test_a_stream_has_few_blocks_and_forgets_them(records):
    others = set(opened._streams)
    batches = plain(records, workers=1).batches(seed=0, batch_size=8)
    found = list(itertools.islice(batches, 40))
    (own,) = set(opened._streams) - others
    assert len(found) == 40 > 8 > len(opened._streams[own]) > 0
    batches.close()
    assert own not in opened._streams


def test_a_worker_without_a_parent_ends_once_its_shared_memory_is_known(monkeypatch):
    """Where it ended between the two, the memory would stay until the machine is started anew."""
    ended = threading.Event()
    monkeypatch.setattr(putting, "parent_process", lambda: SimpleNamespace(join=lambda: None))
    monkeypatch.setattr(putting.util, "Finalize", lambda *args, **kwargs: None)
    monkeypatch.setattr(putting.os, "_exit", lambda code: ended.set())

    def slow(**arguments):
        putting._prepare_worker(0, 1)
        assert not ended.wait(0.2)
        return SharedMemory(**arguments)

    monkeypatch.setattr(blocks, "SharedMemory", slow)
    plan = Plan(2, 2, 0, 1)
    plain(Held(2))._maker(plan=plan, shared=True)(plan[0])
    assert ended.wait(10)


def test_ctrl_c_ends_a_program_and_its_workers_say_nothing(program):
    process = program("interrupted")
    assert process.stdout.readline() == "8\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, err = process.communicate(timeout=60)
    assert err.count("Traceback") == err.count("KeyboardInterrupt") == 1
    assert "SpawnProcess" not in err


@pytest.mark.slow
def test_a_killed_worker_is_told(records):
    others = set(multiprocessing.active_children())
    batches = plain(records, workers=1).batches(seed=0, batch_size=8)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    worker.kill()
    said = r"^a process that decodes images has ended unexpectedly \(SIGKILL\), .* fewer --workers"
    with pytest.raises(LostWorkerError, match=said):
        list(itertools.islice(batches, 100))  # what it had made before comes first


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(program):
    process = program("interrupted")
    assert process.stdout.readline() == "8\n"
    process.kill()
    # the workers hold the other end of the pipe until they end
    process.communicate(timeout=60)


def test_a_thread_that_collects_its_own_stream_does_not_wait_for_itself():
    wanted = queue.SimpleQueue()
    putting._end(threading.current_thread(), wanted)
    assert wanted.get() is False
