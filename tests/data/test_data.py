"""Image sets: what is read, what is held out, made wrong or left out, and what goes wrong."""

import collections
import json
import os
from pathlib import Path
import pwd
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import made
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from experiments.data import digits, disk, reading, sets, streams
from experiments.data.othersets import OtherSet
from experiments.data.pipeline.records import TfdsRecords


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS directory with digits prepared."""
    path = tmp_path_factory.mktemp("tfds")
    sets.load("digits", data_dir=path)
    return path


def images_of(count, shape=(4, 6, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def examples_of(images, classes=3):
    return [
        {"id": f"{i}", "image": Image.fromarray(image), "label": i % classes}
        for i, image in enumerate(images)
    ]


def prepare(path, splits=None, *, name="tiny", version="1.0.0", config=None, features=None):
    """Writes a set of the given examples as TFDS does, and returns its folder."""
    if splits is None:
        splits = {"train": examples_of(images_of(30)), "test": examples_of(images_of(6, seed=1))}
    features = features or {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    return made.set_of_tfds(path, name, splits, features, config=config, version=version)


def rewrite(folder, old, new):
    """Changes the description of a prepared set."""
    path = folder / "dataset_info.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# What is read


def test_digits_are_split_by_a_fixed_permutation(data_dir):
    loaded = sets.load("digits", data_dir=data_dir)
    assert loaded.train.images.shape == (1437, 8, 8, 1)
    assert loaded.test.images.shape == (360, 8, 8, 1)
    assert loaded.train.images.dtype == np.uint8
    assert loaded.train.labels.dtype == np.int32
    assert loaded.classes == 10
    assert loaded.flipped == 0
    assert loaded.validation is None
    # every class is in both, none rare: a split by position would separate the writers
    assert np.bincount(loaded.test.labels).min() > 20


def test_the_bytes_and_the_labels_come_back_in_order(tmp_path):
    prepare(tmp_path)
    loaded = sets.load("tiny", data_dir=tmp_path)
    np.testing.assert_array_equal(loaded.train.images, images_of(30))
    np.testing.assert_array_equal(loaded.train.labels, np.arange(30) % 3)
    np.testing.assert_array_equal(loaded.test.images, images_of(6, seed=1))
    assert loaded.classes == 3


def test_more_than_one_block_and_more_than_one_file(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    train = folder / "tiny-train.array_record-00000-of-00001"
    for shard in range(3):
        (folder / f"tiny-train.array_record-0000{shard}-of-00003").write_bytes(train.read_bytes())
    lengths = json.loads((folder / "dataset_info.json").read_text())
    lengths["splits"][0]["shardLengths"] = ["30"] * 3
    (folder / "dataset_info.json").write_text(json.dumps(lengths))
    monkeypatch.setattr(reading, "BLOCK", 7)
    loaded = sets.load("tiny", data_dir=tmp_path)
    np.testing.assert_array_equal(loaded.train.images, np.tile(images_of(30), (3, 1, 1, 1)))
    np.testing.assert_array_equal(loaded.train.labels, np.tile(np.arange(30) % 3, 3))
    # of a broken one the record is counted over all files, and the file is the right one
    (folder / "tiny-train.array_record-00001-of-00003").write_bytes(b"")
    with pytest.raises(disk.CorruptedError, match=r"record 30 of the train .*record-00001-of-0000"):
        sets.load("tiny", data_dir=tmp_path)


def test_mean_and_deviation_are_those_of_what_is_trained_on(data_dir):
    loaded = sets.load("digits", data_dir=data_dir, validation=0.3, train_examples=500)
    pixels = loaded.train.images.astype(np.float64)
    np.testing.assert_allclose(loaded.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(loaded.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert loaded.mean.dtype == loaded.std.dtype == np.float32


def test_moments_are_exact_and_of_each_channel():
    images = images_of(50) // np.array([1, 2, 4], np.uint8)
    images[..., 2] = 7
    mean, std = sets.moments(images)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, [*images.std((0, 1, 2))[:2], 1], rtol=1e-6)


def test_validation_stands_in_for_a_missing_test_split(tmp_path):
    splits = {"train": examples_of(images_of(9)), "validation": examples_of(images_of(5, seed=2))}
    prepare(tmp_path, splits)
    loaded = sets.load("tiny", data_dir=tmp_path)
    np.testing.assert_array_equal(loaded.test.images, images_of(5, seed=2))
    assert loaded.validation is None


def test_the_newest_version_is_read_whatever_lies_beside_it(tmp_path):
    """10.0.0 comes after 9.0.0, and an interrupted preparation is none."""
    for count, version in ((7, "9.0.0"), (8, "10.0.0"), (9, "11.0.0")):
        folder = prepare(tmp_path, {s: examples_of(images_of(count)) for s in ("train", "test")},
                         version=version)  # fmt: skip
    (folder / "features.json").unlink()
    (tmp_path / "tiny" / "incomplete.ABC123_12.0.0").mkdir()
    assert len(sets.load("tiny", data_dir=tmp_path).train.labels) == 8


def test_a_configuration_is_named_with_its_set(tmp_path):
    prepare(tmp_path, name="cifar10_corrupted", config="fog_1")
    loaded = sets.load("cifar10_corrupted/fog_1", data_dir=tmp_path)
    assert len(loaded.train.labels) == 30
    with pytest.raises(disk.NotPreparedError, match="such as cifar10_corrupted/fog_1"):
        sets.load("cifar10_corrupted", data_dir=tmp_path)


# Reading once


@pytest.fixture
def read(monkeypatch):
    """The splits that are read, from a start at which none is kept."""
    found, examples = [], reading._examples

    def watched(builder, split):
        found.append(split)
        return examples(builder, split)

    monkeypatch.setattr(reading, "_examples", watched)
    monkeypatch.setattr(reading, "_last", {})
    return found


def test_a_set_is_read_once_for_all_seeds(read, data_dir):
    asked = {"label_noise": 0.3, "validation": 0.2}
    for seed in range(3):
        sets.load("digits", data_dir=data_dir, seed=seed, **asked)
    test = reading.load_tested("digits", data_dir=data_dir)
    assert read == ["train", "test"]
    again = sets.load("digits", data_dir=data_dir, seed=1, **asked)
    reading._last.clear()
    anew = sets.load("digits", data_dir=data_dir, seed=1, **asked)
    for one, other in ((again.train, anew.train), (again.test, anew.test), (test, anew.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(again.mean, anew.mean)
    assert again.read == anew.read
    assert again.flipped == anew.flipped


def test_one_set_is_kept(read, data_dir, tmp_path):
    prepare(tmp_path)
    for name, path in (("digits", data_dir), ("tiny", tmp_path)) * 2:
        sets.load(name, data_dir=path)
        assert len(reading._last) == 1
    assert len(read) == 8


def test_a_test_split_alone_does_not_displace_what_is_kept(read, data_dir, tmp_path):
    prepare(tmp_path)
    sets.load("digits", data_dir=data_dir)
    reading.load_tested("tiny", data_dir=tmp_path)
    sets.load("digits", data_dir=data_dir)
    assert read == ["train", "test", "test"]


def test_a_set_that_has_changed_is_read_anew(read, tmp_path):
    folder = prepare(tmp_path)
    before = sets.load("tiny", data_dir=tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    sets.load("tiny", data_dir=tmp_path / "link")
    assert len(read) == 2
    shutil.rmtree(folder)
    splits = {"train": examples_of(images_of(30, seed=9)), "test": examples_of(images_of(6))}
    prepare(tmp_path, splits)
    after = sets.load("tiny", data_dir=tmp_path)
    np.testing.assert_array_equal(after.train.images, images_of(30, seed=9))
    assert sets.changes(before.read, after.read).count("other images") == 2
    # of the same size, and at the same place
    os.utime(folder / "features.json", (0, 0))
    sets.load("tiny", data_dir=tmp_path)
    assert len(read) == 6


def test_what_a_caller_does_to_the_arrays_is_not_seen_by_the_next(data_dir):
    def loaded():
        return sets.load("digits", data_dir=data_dir, validation=0.2)

    one = loaded()
    for part in (one.train, one.validation):
        part.images[:], part.labels[:] = 0, 0
    one.mean[:] = one.std[:] = 7
    one.read["train"]["examples"] = 0
    two = loaded()
    assert two.train.images.any()
    assert two.validation.images.any()
    assert len(np.unique(two.train.labels)) == 10
    assert two.mean != 7
    assert two.std != 7
    assert two.read["train"]["examples"] == 1437
    whole = sets.load("digits", data_dir=data_dir)
    whole.train.labels[:] = 0
    for array in (
        whole.train.images,
        *whole.test,
        *reading.load_tested("digits", data_dir=data_dir),
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    assert sets.load("digits", data_dir=data_dir).train.labels.any()


# Label noise


def test_label_noise_flips_its_share_of_the_training_labels_alone(data_dir):
    clean = sets.load("digits", data_dir=data_dir, seed=3)
    noisy = sets.load("digits", data_dir=data_dir, seed=3, label_noise=0.4)
    again = sets.load("digits", data_dir=data_dir, seed=3, label_noise=0.4)
    other = sets.load("digits", data_dir=data_dir, seed=4, label_noise=0.4)
    wrong = noisy.train.labels != clean.train.labels
    assert wrong.sum() == round(0.4 * 1437)
    assert noisy.flipped == pytest.approx(wrong.mean())
    np.testing.assert_array_equal(noisy.test.labels, clean.test.labels)
    np.testing.assert_array_equal(noisy.train.labels, again.train.labels)
    np.testing.assert_array_equal(noisy.train.images, clean.train.images)
    assert (noisy.train.labels != other.train.labels).any()


def test_symmetric_noise_may_draw_the_true_class(data_dir):
    clean = sets.load("digits", data_dir=data_dir)
    flipped = sets.load("digits", data_dir=data_dir, label_noise=0.6)
    noisy = sets.load("digits", data_dir=data_dir, label_noise=0.6, noise="symmetric")
    wrong = noisy.train.labels != clean.train.labels
    assert noisy.flipped == wrong.mean()
    assert noisy.flipped == pytest.approx(0.6 * 9 / 10, abs=0.03)  # four standard deviations
    # the same examples are drawn for either noise
    assert not (wrong & (flipped.train.labels == clean.train.labels)).any()


@pytest.mark.parametrize(
    ("noise", "true_class"), [(sets.flip, 0), (sets.symmetric, 9_000)], ids=["flip", "symmetric"]
)
def test_every_replacement_is_equally_likely(noise, true_class):
    labels = np.full(90_000, 7, np.int32)
    noisy = noise(labels, 1.0, 10, np.random.default_rng(0))
    counts = np.bincount(noisy, minlength=10)
    assert counts[7] == pytest.approx(true_class, rel=0.05)
    np.testing.assert_allclose(np.delete(counts, 7), (90_000 - true_class) / 9, rtol=0.05)
    assert noisy.dtype == np.int32
    assert (labels == 7).all()


# The held-out part


def test_the_held_out_part_leaves_the_test_split_alone(data_dir):
    whole = sets.load("digits", data_dir=data_dir, label_noise=0.3)
    held = sets.load("digits", data_dir=data_dir, label_noise=0.3, validation=0.2)
    assert len(held.validation.labels) == 287
    assert len(held.train.labels) == 1150
    np.testing.assert_array_equal(held.test.images, whole.test.images)
    np.testing.assert_array_equal(held.test.labels, whole.test.labels)

    def rows(*splits):
        joined = [np.concatenate([s.images.reshape(len(s.labels), -1) for s in splits])]
        joined.append(np.concatenate([s.labels for s in splits])[:, None])
        return sorted(map(tuple, np.concatenate(joined, axis=1)))

    # together they are the noisy training split, each image with its label
    assert rows(held.train, held.validation) == rows(whole.train)


def test_the_streams_stay_those_of_earlier_results(data_dir):
    """Noise over the whole split from stream 1 of the seed, then the part held out from 0."""
    clean = sets.load("digits", data_dir=data_dir)
    loaded = sets.load("digits", data_dir=data_dir, seed=5, label_noise=0.4, validation=0.2)
    labels = sets.flip(clean.train.labels, 0.4, 10, np.random.default_rng([5, 1]))
    order = np.random.default_rng([5, 0]).permutation(1437)
    np.testing.assert_array_equal(loaded.validation.labels, labels[order[:287]])
    np.testing.assert_array_equal(loaded.validation.images, clean.train.images[order[:287]])
    np.testing.assert_array_equal(loaded.train.labels, labels[order[287:]])
    np.testing.assert_array_equal(loaded.train.images, clean.train.images[order[287:]])
    assert loaded.flipped == np.mean((labels != clean.train.labels)[order[287:]])


@pytest.mark.parametrize("other", [{"label_noise": 0.8}, {"train_examples": 99}])
def test_the_same_part_is_held_out_whatever_else_is_asked_for(other, data_dir):
    plain, asked = (
        sets.load("digits", data_dir=data_dir, validation=0.1, **settings)
        for settings in ({}, other)
    )
    np.testing.assert_array_equal(plain.validation.images, asked.validation.images)


# The long tail


def test_a_held_out_part_of_a_long_tail_leaves_as_many_whatever_the_seed(data_dir):
    """So that one compiled program serves all seeds."""
    parts = [
        sets.load("digits", data_dir=data_dir, seed=seed, validation=0.2, imbalance=5)
        for seed in range(4)
    ]
    tail = sets.load("digits", data_dir=data_dir, imbalance=5)
    held_out = round(0.2 * len(tail.train.labels))
    assert {len(one.validation.labels) for one in parts} == {held_out}
    assert {len(one.train.labels) for one in parts} == {len(tail.train.labels) - held_out}
    assert (parts[0].train.images != parts[1].train.images).any()


@pytest.mark.parametrize(("imbalance", "total"), [(100, 10_847), (50, 12_608)])
def test_the_long_tail_has_the_published_sizes(imbalance, total):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))
    kept = sets.long_tail(labels, imbalance, 100, np.random.default_rng(1))
    counts = np.bincount(labels[kept])
    assert len(kept) == len(set(kept)) == total
    assert counts[0] == 500
    assert counts[99] == 500 // imbalance
    assert (np.diff(counts) <= 0).all()


def test_the_long_tail_chooses_by_chance_within_a_class():
    labels = np.repeat(np.arange(2), 1000)
    kept = sets.long_tail(labels, 4, 2, np.random.default_rng(0))
    tail = kept[labels[kept] == 1] - 1000
    assert len(tail) == 250
    assert 450 < tail.mean() < 550  # not the first ones
    other = sets.long_tail(labels, 4, 2, np.random.default_rng(1))
    assert set(kept) != set(other)
    longer = sets.long_tail(labels, 8, 2, np.random.default_rng(0))
    assert set(longer) < set(kept)


def test_the_long_tail_goes_by_the_true_classes_and_leaves_the_noise(data_dir):
    whole = sets.load("digits", data_dir=data_dir, seed=1, label_noise=0.4)
    clean = sets.load("digits", data_dir=data_dir, seed=1, imbalance=10)
    noisy = sets.load("digits", data_dir=data_dir, seed=1, imbalance=10, label_noise=0.4)
    np.testing.assert_array_equal(noisy.train.images, clean.train.images)
    assert noisy.flipped == np.mean(noisy.train.labels != clean.train.labels)
    assert noisy.flipped == pytest.approx(0.4, abs=0.1)
    label_of = dict(zip(map(bytes, whole.train.images), whole.train.labels, strict=True))
    assert [label_of[bytes(image)] for image in noisy.train.images] == noisy.train.labels.tolist()
    # a class that is smaller than the largest may have fewer than the profile asks for
    sizes = np.bincount(sets.load("digits", data_dir=data_dir).train.labels)
    asked = [int(max(sizes) * 10 ** (-i / 9)) for i in range(10)]
    np.testing.assert_array_equal(np.bincount(clean.train.labels), np.minimum(sizes, asked))


# Fewer examples


def test_fewer_training_examples_are_a_part_of_more(data_dir):
    loads = [
        sets.load("digits", data_dir=data_dir, seed=2, validation=0.2, train_examples=count)
        for count in (100, 300, 1150, None)
    ]
    assert [len(loaded.train.labels) for loaded in loads] == [100, 300, 1150, 1150]
    few, more, most, whole = (set(map(bytes, loaded.train.images)) for loaded in loads)
    assert few < more < most == whole
    assert len(np.unique(loads[0].train.labels)) == 10  # by chance, not the first ones of a sort
    one, other = (
        sets.load("digits", data_dir=data_dir, seed=seed, train_examples=100) for seed in range(2)
    )
    assert set(map(bytes, one.train.images)) != set(map(bytes, other.train.images))


# What goes wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_noise": -0.1}, "label_noise must lie in [0, 1], got -0.1: pass a share"),
        ({"label_noise": 1.5}, "label_noise must lie in [0, 1], got 1.5"),
        ({"label_noise": float("nan")}, "label_noise must lie in [0, 1], got nan"),
        ({"noise": "pair"}, "noise must be flip or symmetric, got 'pair'"),
        ({"validation": 1}, "validation must lie in [0, 1), got 1: pass a share"),
        ({"validation": -0.5}, "validation must lie in [0, 1), got -0.5"),
        ({"validation": 0.9999}, "holds out 1437 of 1437 images: pass a share that leaves some on"),
        ({"validation": 1e-9}, "leaves some on both sides"),
        ({"imbalance": 0.5}, "imbalance must lie in [1, inf), got 0.5"),
        ({"imbalance": float("inf")}, "imbalance must lie in [1, inf), got inf"),
        ({"imbalance": 1e4}, "leaves class 9 without an example: pass less than 1"),
        ({"train_examples": 0}, "train_examples must lie in [1, 1437], got 0"),
        ({"train_examples": 1438}, "train_examples must lie in [1, 1437], got 1438"),
        ({"train_examples": 1200, "validation": 0.2}, "must lie in [1, 1150], got 1200"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message, data_dir):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the message is matched as it stands
        sets.load("digits", data_dir=data_dir, **settings)
    assert message in str(error.value)


def test_a_set_that_is_not_prepared_names_the_command(tmp_path):
    command = (
        rf"sam_optax\[prepare\]' && tfds build cifar10 --file_format=array_record .*{tmp_path}"
    )
    with pytest.raises(FileNotFoundError, match=command):
        sets.load("cifar10", data_dir=tmp_path)
    (tmp_path / "cifar10" / "incomplete.ABC123_3.0.2").mkdir(parents=True)
    with pytest.raises(disk.NotPreparedError, match=f"is not prepared under {tmp_path}"):
        sets.load("cifar10", data_dir=tmp_path)
    # TFDS itself would take such a folder for a prepared set
    (tmp_path / "cifar10" / "3.0.2").mkdir()
    with pytest.raises(disk.NotPreparedError, match=r"3\.0\.2: delete that folder.* tfds build"):
        sets.load("cifar10", data_dir=tmp_path)


def test_a_set_in_another_format_names_the_command(tmp_path):
    rewrite(prepare(tmp_path), '"array_record"', '"tfrecord"')
    with pytest.raises(disk.NotPreparedError, match=r"as tfrecord.*--file_format=array_record"):
        sets.load("tiny", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cifar01", "cifar10"), ("MNIST", "mnist"), ("cifar1O/x", "cifar10"), ("qqqq", "tensorflow.")],
)
def test_an_unknown_set_offers_the_nearest(name, hint, tmp_path):
    with pytest.raises(ValueError, match=f"unknown data set '{name}'.*{hint}"):
        sets.load(name, data_dir=tmp_path)


def test_a_set_of_other_features_is_refused(tmp_path):
    numbers = {"x": np.float32, "label": tfds.features.ClassLabel(num_classes=2)}
    splits = {"train": [{"x": 1.0, "label": 0}], "test": [{"x": 1.0, "label": 0}]}
    prepare(tmp_path, splits, features=numbers)
    with pytest.raises(ValueError, match="tiny has the features label, x, and not byte images"):
        sets.load("tiny", data_dir=tmp_path)


@pytest.mark.parametrize(("train", "test"), [((4, 5), (4,)), ((4,), (4, 5)), ((4,), (5,))])
def test_images_of_different_sizes_are_refused(train, test, tmp_path):
    """Within a split, and between the two."""

    def of_heights(heights):
        return examples_of([image for h in heights for image in images_of(2, (h, 6, 3))])

    prepare(tmp_path, {"train": of_heights(train), "test": of_heights(test)})
    with pytest.raises(ValueError, match=r"different sizes, \(4, 6, 3\) and \(5, 6, 3\)"):
        sets.load("tiny", data_dir=tmp_path)


def test_a_set_without_a_split_to_evaluate_on_is_refused(tmp_path):
    prepare(tmp_path, {"train": examples_of(images_of(3))})
    with pytest.raises(ValueError, match="no images in a split 'validation', but the splits train"):
        sets.load("tiny", data_dir=tmp_path)


def test_images_without_labels_are_refused(tmp_path):
    splits = {s: examples_of(images_of(3)) for s in ("train", "test")}
    splits["test"][1]["label"] = -1
    prepare(tmp_path, splits)
    with pytest.raises(ValueError, match="without a label in 'test'"):
        sets.load("tiny", data_dir=tmp_path)


@pytest.mark.parametrize("kept", [0, 0.5, 0.999], ids=["empty", "half", "end"])
def test_a_truncated_file_is_told_with_its_name(kept, tmp_path):
    file = prepare(tmp_path) / "tiny-test.array_record-00000-of-00001"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(disk.CorruptedError, match=f"record 0 of the test split.*{file}") as error:
        sets.load("tiny", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_a_broken_record_is_told_with_its_index(tmp_path):
    folder = prepare(tmp_path)
    file = folder / "tiny-train.array_record-00000-of-00001"
    content = bytearray(file.read_bytes())
    starts = [i for i in range(len(content)) if content[i : i + 4] == b"\x89PNG"]
    content[starts[17] + 30] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(disk.CorruptedError, match=r"record 17 of the train split of tiny/1\.0\.0"):
        sets.load("tiny", data_dir=tmp_path)


def test_an_image_that_cannot_be_decoded_is_told_with_its_index(tmp_path, monkeypatch):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    examples = examples_of(images_of(9))
    examples[5]["image"] = str(tmp_path / "cut.png")
    prepare(tmp_path, {"train": examples, "test": examples_of(images_of(3))})
    monkeypatch.setattr(reading, "BLOCK", 4)
    with pytest.raises(disk.CorruptedError, match="record 5 of the train split"):
        sets.load("tiny", data_dir=tmp_path)


def test_fewer_records_than_described_are_told(tmp_path):
    rewrite(prepare(tmp_path), '"30"', '"40"')
    with pytest.raises(disk.CorruptedError, match="record 30 of the train split"):
        sets.load("tiny", data_dir=tmp_path)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_broken_description_is_told(file, tmp_path):
    path = prepare(tmp_path) / file
    path.write_text(path.read_text()[:100])
    with pytest.raises(disk.CorruptedError, match=f"description of tiny in .*{path.parent.name}"):
        sets.load("tiny", data_dir=tmp_path)


def test_two_processes_may_prepare_digits_at_once(tmp_path, monkeypatch):
    """The one that ends last finds a folder in its way, and reads that."""
    once = digits.Digits.download_and_prepare

    def beaten(self, **settings):
        once(self, **settings)
        raise OSError("Directory not empty")

    monkeypatch.setattr(digits.Digits, "download_and_prepare", beaten)
    assert len(sets.load("digits", data_dir=tmp_path).train.labels) == 1437


def test_a_directory_that_cannot_be_written_is_an_os_error():
    with pytest.raises(OSError, match="/dev/null/tfds"):
        sets.load("digits", data_dir="/dev/null/tfds")


# Without a home


@pytest.fixture
def homeless(monkeypatch):
    """Nobody knows the home directory, as of a user without a name in a container."""
    monkeypatch.delenv("HOME", raising=False)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(
    "ask",
    [
        lambda path: sets.load("digits", data_dir=path),
        lambda path: reading.load_tested("digits", data_dir=path),
        lambda path: disk.opened("digits", path),
        lambda path: disk.is_prepared("digits", path),
        lambda path: streams.is_streamed("digits", path, None),
        lambda path: TfdsRecords("digits", "train", data_dir=path),
        lambda path: OtherSet("digits", path),
    ],
)
def test_without_a_home_the_option_is_told(ask):
    with pytest.raises(ValueError, match=r"home directory in ~/tens.* --data-dir"):
        ask(disk.DATA_DIR)


def test_a_directory_in_the_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare(tmp_path / "sets")
    path = Path("~/sets")
    assert sets.load("tiny", data_dir=path).classes == 3
    assert disk.is_prepared("tiny", path)
    assert not streams.is_streamed("digits", path, None)  # prepares itself
    assert len(OtherSet("tiny", path).split(4).labels) == 4
    assert (tmp_path / "sets" / "digits").is_dir()


def test_the_module_is_imported_without_a_home():
    program = """
import os, pwd
os.environ.pop("HOME", None)
pwd.getpwuid = {}.__getitem__
from experiments.data import disk
print(disk.DATA_DIR)
"""
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "~/tensorflow_datasets\n"


# Damage


def test_a_label_that_is_no_class_is_told(tmp_path):
    path = prepare(tmp_path) / "features.json"
    path.write_text(path.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    with pytest.raises(disk.CorruptedError, match=r"has the label 2 in 'train', and 2 classes"):
        sets.load("tiny", data_dir=tmp_path)


@pytest.mark.parametrize("count", ["-3", "1000000000000000"])
def test_a_number_of_classes_that_cannot_be_is_told(count, tmp_path):
    path = prepare(tmp_path) / "features.json"
    path.write_text(path.read_text().replace('"numClasses": "3"', f'"numClasses": "{count}"'))
    with pytest.raises(disk.CorruptedError, match=rf"description of tiny .*{count} classes"):
        sets.load("tiny", data_dir=tmp_path)


@pytest.mark.parametrize("count", ["-30", "1000000000000000"])
def test_a_number_of_images_that_cannot_be_is_told(count, tmp_path):
    rewrite(prepare(tmp_path), '"30"', f'"{count}"')
    for load in (sets.load, reading.load_tested):
        with pytest.raises(disk.CorruptedError, match=rf"description of tiny .*{count} images"):
            load("tiny", data_dir=tmp_path)


def test_images_without_a_pixel_are_told(tmp_path, monkeypatch):
    prepare(tmp_path)
    empty = {"image": np.zeros((4, 0, 3), np.uint8), "label": 0}
    monkeypatch.setattr(reading, "_examples", lambda *_: iter([empty] * 30))
    with pytest.raises(ValueError, match=r"images of \(4, 0, 3\), without a pixel"):
        sets.load("tiny", data_dir=tmp_path)


@pytest.mark.parametrize("count", [10**14, 10**20])
def test_more_images_than_the_memory_holds_are_told(count):
    split = SimpleNamespace(name="train", num_examples=count)
    with pytest.raises(ValueError, match=r"of \(4, 6, 3\) in 'train', more than there is memory"):
        reading._room("tiny/1.0.0", split, (4, 6, 3))


VALUES = [None, [], {}, "", "x", -5, "-5", 0, "0", "7", 10**15, str(10**15), 1.5, True, ["1", "2"]]
VALUES += [{"a": 1}, "uint16", "float32", "../x", "\ud800x", "tfrecord", "{X}"]


def damage(folder, rng):
    """Does something to a file of a set; tells what."""
    file = rng.choice(sorted(folder.iterdir()))
    kind = rng.choice(("cut", "flip", "flip", "more", "less", "empty", "folder", "gone", "swap"))
    if file.suffix == ".json" and rng.random() < 0.7:
        kind = "value"
    content = bytearray(file.read_bytes())
    place = rng.choice([i for i, byte in enumerate(content) if byte])  # most are padding
    match kind:
        case "value":
            content = json.dumps(other_value(json.loads(content), rng)).encode()
        case "cut":
            del content[place:]
        case "flip":
            content[place] ^= 1 << rng.randrange(8)
        case "more":
            content[place:place] = rng.randbytes(rng.choice((1, 100)))
        case "less":
            del content[place : place + rng.choice((1, 100))]
        case "empty":
            content.clear()
        case "swap":
            other = rng.choice(sorted(folder.iterdir()))
            content, _ = other.read_bytes(), other.write_bytes(content)
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind != "gone":
        file.write_bytes(content)
    return f"{kind} of {file.name} at {place}"


def other_value(tree, rng):
    """A JSON tree of which one value is another, or is missing."""
    places = list(inside(tree))
    parent, key = rng.choice(places)
    if rng.random() < 0.3:
        del parent[key]
    else:
        parent[key] = rng.choice(VALUES)
    return tree


def inside(tree):
    """Where the values of a JSON tree stand."""
    if not isinstance(tree, dict | list):
        return
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        yield from inside(tree[key])


def content(loaded):
    return loaded.classes, *(a.tobytes() for split in (loaded.train, loaded.test) for a in split)


def uses(name, path):
    """What is asked of a set, by name."""

    def records():
        found = TfdsRecords(name, "train", data_dir=path)
        return [found[i] for i in range(len(found))]

    return {
        "load": lambda: sets.load(name, data_dir=path),
        "load_tested": lambda: reading.load_tested(name, data_dir=path),
        "is_streamed": lambda: streams.is_streamed(name, path, None),
        "other": lambda: OtherSet(name, path).digest,
        "records": records,
    }


def test_damage_ends_in_an_error_that_tells_it_or_is_seen_in_what_was_read(tmp_path, monkeypatch):
    """A hundred kinds of it; the errors are those that are documented."""

    def few(self, _):
        parts = {"train": range(60), "test": range(60, 80)}
        return {split: self._generate_examples(indices) for split, indices in parts.items()}

    monkeypatch.setattr(digits.Digits, "_split_generators", few)
    whole, path = sets.load("digits", data_dir=tmp_path / "whole"), tmp_path / "digits" / "1.0.0"
    ends = collections.Counter()
    for seed in range(100):
        shutil.copytree(tmp_path / "whole" / "digits" / "1.0.0", path)
        what = damage(path, random.Random(seed))
        for name, use in uses("digits", tmp_path).items():
            try:
                found = use()
            except Exception as error:
                # not those of JSON and of Unicode, which are ValueErrors too
                known = type(error) in (ValueError, disk.CorruptedError)
                if not known and not isinstance(error, OSError):
                    raise AssertionError((seed, what, name)) from error
                ends[name, type(error)] += 1
            else:
                ends[name, None] += 1
                if name == "load" and content(found) != content(whole):
                    assert found.read != whole.read, (seed, what)
        shutil.rmtree(path)
    assert ends["load", None] > 5
    assert ends["load", disk.CorruptedError] > 30
