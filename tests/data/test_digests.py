"""A set that has changed since it was read is told from the set that it was."""

import dataclasses
import json
import os
from pathlib import Path
import pickle
import shutil

import made
import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_data import data_dir, examples_of, images_of, prepare  # noqa: F401

from experiments.data import disk, reading, sets, streams
from experiments.data.othersets import OtherSet
from experiments.data.pipeline import digests, records
from experiments.data.pipeline.records import FolderRecords, TfdsRecords
from experiments.recipes import Recipe

STREAMED = Recipe(
    dataset="imagenet2012",
    model="mlp",
    epochs=1,
    batch_size=4,
    learning_rate=0.1,
    image_size=8,
    normalization="half",
)
DOMAINS = dataclasses.replace(STREAMED, dataset="pacs", domain="photo")


# Sets in memory


def read_of(path, train=None, **how):
    """What is read of a set of these training images in a folder."""
    train = examples_of(images_of(30)) if train is None else train
    prepare(path, {"train": train, "test": examples_of(images_of(6, seed=1))}, **how)
    return sets.load("tiny", data_dir=path).read


def test_a_set_in_memory_is_told_by_its_splits(data_dir):  # noqa: F811
    read = sets.load("digits", data_dir=data_dir).read
    assert {split: (e["examples"], e["classes"]) for split, e in read.items()} == {
        "train": (1437, 10),
        "test": (360, 10),
    }
    assert all(len(entry["sha256"]) == 64 for entry in read.values())
    assert json.loads(json.dumps(read)) == read


@pytest.mark.parametrize(
    "asked",
    [
        {"seed": 3},
        {"label_noise": 0.4},
        {"label_noise": 0.4, "noise": "symmetric"},
        {"validation": 0.2},
        {"imbalance": 5},
        {"train_examples": 99},
    ],
)
def test_what_is_read_is_the_set_before_anything_is_drawn(asked, data_dir):  # noqa: F811
    whole = sets.load("digits", data_dir=data_dir).read
    assert sets.load("digits", data_dir=data_dir, **asked).read == whole


def test_a_set_in_memory_is_the_same_wherever_it_lies(tmp_path):
    read = read_of(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert sets.load("tiny", data_dir=tmp_path / "two").read == read


def swapped(examples):
    return [examples[1], examples[0], *examples[2:]]


def relabelled(examples):
    return [{**examples[0], "label": 2}, *examples[1:]]


def repainted(examples):
    other = examples_of(images_of(1, seed=7))
    return [{**examples[0], "image": other[0]["image"]}, *examples[1:]]


@pytest.mark.parametrize("change", [swapped, relabelled, repainted])
def test_another_order_label_or_image_in_memory_is_another_set(change, tmp_path):
    before = read_of(tmp_path / "before")
    after = read_of(tmp_path / "after", change(examples_of(images_of(30))))
    assert sets.changes(before, after) == "train: other images or classes"


def test_other_class_names_in_memory_are_another_set(tmp_path):
    read = []
    for i, names in enumerate((["a", "b", "c"], ["a", "b", "d"])):
        features = made.features(names, (4, 6, 3)) | {"id": tfds.features.Text()}
        del features["file_name"]
        read.append(read_of(tmp_path / str(i), features=features))
    assert sets.changes(*read) == "; ".join(
        f"{split}: other images or classes" for split in ("train", "test")
    )


def test_images_of_another_shape_with_the_same_bytes_are_another_set():
    one, other = (
        reading._entry(reading.Split(np.zeros(shape, np.uint8), np.zeros(2, np.int32)), ["a"])
        for shape in ((2, 4, 6, 1), (2, 6, 4, 1))
    )
    assert one != other


# Prepared sets that are streamed


def streamed(path, **how):
    """What is read of a streamed set in a folder."""
    return streams.load(STREAMED, data_dir=path, workers=0, **how).read


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared")
    made.imagenet(path, train=12, validation=5, classes=("cat", "dog"))
    return path


def test_a_streamed_set_is_told_by_its_splits(prepared):
    read = streamed(prepared)
    assert {split: (e["examples"], e["classes"]) for split, e in read.items()} == {
        "train": (12, 2),
        "validation": (5, 2),
    }
    assert json.loads(json.dumps(read)) == read


def test_a_streamed_set_is_the_same_wherever_it_lies_and_whatever_is_held_out(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    read = streamed(prepared)
    assert streamed(tmp_path / "copy", seed=3, skip_corrupt=True) == read
    part = dataclasses.replace(STREAMED, validation=0.2, train_examples=5)
    assert streams.load(part, data_dir=prepared, workers=1).read == read


def test_no_record_is_read_for_what_is_told_of_a_streamed_set(prepared, monkeypatch):
    monkeypatch.setattr(TfdsRecords, "__getitem__", None)
    monkeypatch.setattr(TfdsRecords, "_opened", None)
    assert set(streamed(prepared)) == {"train", "validation"}


def test_a_copy_of_records_tells_the_same(prepared):
    read = TfdsRecords("imagenet2012", "train", data_dir=prepared)
    copy = pickle.loads(pickle.dumps(read))
    assert copy.digest == read.digest
    assert copy.class_names == read.class_names == ("cat", "dog")


def renumbered(folder):
    folder.rename(folder.with_name("5.1.1"))
    info = folder.with_name("5.1.1") / "dataset_info.json"
    info.write_text(info.read_text().replace("5.1.0", "5.1.1"))


def longer(folder):
    (file,) = folder.glob("*train.array*")
    file.write_bytes(file.read_bytes() + bytes(2**16))


def renamed(folder):
    (folder / "label.labels.txt").write_text("cat\nwolf\n")


@pytest.mark.parametrize(
    ("change", "train", "validation"),
    [(renumbered, True, True), (longer, True, False), (renamed, True, True)],
)
def test_another_version_file_or_class_is_another_streamed_set(
    change, train, validation, prepared, tmp_path
):
    shutil.copytree(prepared, tmp_path / "copy")
    change(tmp_path / "copy" / "imagenet2012" / "5.1.0")
    before, after = streamed(prepared), streamed(tmp_path / "copy")
    assert (before["train"] != after["train"]) == train
    assert (before["validation"] != after["validation"]) == validation


def test_one_image_that_takes_other_bytes_is_another_streamed_set(prepared, tmp_path):
    """Though the file has as many, as TFDS makes them multiples of 64 KiB."""
    images = [*map(made.jpeg, range(11)), made.jpeg(99)]
    made.imagenet(tmp_path, train=images, validation=5, classes=("cat", "dog"))
    assert sets.changes(streamed(prepared), streamed(tmp_path)) == "train: other images or classes"
    sizes = [next(p.glob("*/*/*train.array*")).stat().st_size for p in (prepared, tmp_path)]
    assert sizes[0] == sizes[1]


def test_a_missing_file_of_a_streamed_set_is_told(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    (file,) = tmp_path.glob("copy/imagenet2012/*/*train.array*")
    file.unlink()
    with pytest.raises(disk.CorruptedError, match=f"a file of imagenet2012/5.1.0 .*{file}"):
        streamed(tmp_path / "copy")


def test_parts_of_a_split_and_other_labels_are_told_apart(tmp_path):
    made.imagenet(tmp_path, train=12)
    made.imagenet_real(tmp_path)
    entries = [
        TfdsRecords(name, split, data_dir=tmp_path, label=label).digest["sha256"]
        for name, split, label in (
            ("imagenet2012", "train", "label"),
            ("imagenet2012", "train[:6]", "label"),
            ("imagenet2012", "train[6:]", "label"),
            ("imagenet2012_real", "validation", "real_label"),
            ("imagenet2012_real", "validation", "original_label"),
        )
    ]
    assert len(set(entries)) == 5


def test_a_changed_test_set_has_another_digest(prepared, tmp_path):
    before = OtherSet("imagenet2012", prepared).digest
    made.imagenet(tmp_path, train=3, validation=5, classes=("cat", "dog"))
    assert OtherSet("imagenet2012", tmp_path).digest == before  # of the test split alone
    renamed(tmp_path / "imagenet2012" / "5.1.0")
    assert OtherSet("imagenet2012", tmp_path).digest != before
    assert len(before) == 16
    int(before, 16)


# Image folders


def domains(path):
    """What is read of the domains in a folder."""
    return streams.load(DOMAINS, data_dir=path, workers=0).read


@pytest.fixture
def folders(tmp_path):
    return made.folders(tmp_path / "one" / "pacs")


def test_image_folders_are_told_by_domain(folders):
    read = domains(folders.parent)
    assert list(read) == ["photo", "art_painting", "cartoon", "sketch"]
    assert {(e["examples"], e["classes"]) for e in read.values()} == {(14, 7)}
    assert json.loads(json.dumps(read)) == read


def test_image_folders_are_the_same_wherever_they_lie(folders, tmp_path):
    shutil.copytree(folders, tmp_path / "two" / "pacs")
    other = tmp_path / "two" / "pacs" / "photo" / "dog"
    (other / "notes.txt").write_text("none")
    (other / ".hidden.jpg").write_bytes(b"")
    os.utime(other / "pic_000.jpg", (0, 0))
    assert domains(tmp_path / "two") == domains(folders.parent)


def grown(file):
    file.write_bytes(file.read_bytes() + b" ")


def another(file):
    file.with_name("new.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Path.unlink, "photo: 14 images then, 13 now"),
        (another, "photo: 14 images then, 15 now"),
        (grown, "photo: other images or classes"),
        (lambda file: file.rename(file.with_name("x.jpg")), "photo: other images or classes"),
        (lambda file: (file.unlink(), file.mkdir()), "photo: other images or classes"),
        (lambda file: (file.unlink(), file.symlink_to("no")), "photo: other images or classes"),
    ],
)
def test_a_changed_file_is_another_set_of_its_domain(change, said, folders):
    before = domains(folders.parent)
    change(folders / "photo" / "dog" / "pic_000.jpg")
    assert sets.changes(before, domains(folders.parent)) == said


def test_a_class_folder_that_is_renamed_is_another_set(folders):
    before = domains(folders.parent)
    for domain in made.DOMAINS:
        (folders / domain / "dog").rename(folders / domain / "doh")
    found = sets.changes(before, domains(folders.parent))
    assert found.count("other images or classes") == 4


def test_a_class_without_an_image_counts_by_its_name(tmp_path):
    found = []
    for name in ("a", "z"):  # first and last, so that the labels of the others move
        root = made.folders(tmp_path / name, splits=("all",), class_names=("m",))
        (root / "all" / name).mkdir()
        found.append({"all": FolderRecords(root, "all").digest})
    assert sets.changes(*found) == "all: other images or classes"


def test_the_size_of_a_folder_that_is_called_an_image_does_not_count(tmp_path):
    """Each file system gives another."""
    assert records._size(str(tmp_path)) == -1


def test_a_domain_more_or_less_is_told(folders):
    before = domains(folders.parent)
    shutil.rmtree(folders / "cartoon")
    now = domains(folders.parent)
    assert sets.changes(before, now) == "cartoon: no longer there"
    assert sets.changes(now, before) == "cartoon: not there then"


def test_names_of_any_bytes_are_told_apart(tmp_path):
    root = made.folders(tmp_path / "set", splits=("all",), class_names=("a",))
    found = set()
    for name in (b"\xff\n.jpg", b"\xfe\n.jpg", b"\xff\n0.jpg", "é.jpg".encode()):
        file = os.path.join(os.fsencode(root / "all" / "a"), name)
        Path(os.fsdecode(file)).write_bytes(b"")
        found.add(FolderRecords(root, "all").digest["sha256"])
        os.unlink(file)
    assert len(found) == 4


# In words


ENTRY = {"examples": 1437, "classes": 10, "sha256": "one"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, ""),
        ({"examples": 1436, "sha256": "two"}, "train: 1,437 images then, 1,436 now"),
        ({"classes": 9, "sha256": "two"}, "train: 10 classes then, 9 now"),
        (
            {"examples": 5, "classes": 9},
            "train: 1,437 images then, 5 now and 10 classes then, 9 now",
        ),
        ({"sha256": "two"}, "train: other images or classes"),
    ],
)
def test_what_differs_is_told_in_words(other, said):
    test = {"test": ENTRY}
    assert sets.changes({"train": ENTRY, **test}, {**test, "train": ENTRY | other}) == said


def test_a_digest_tells_where_a_part_ends():
    one, other = (
        digests.entry(digests.words(names), examples=1, classes=2)
        for names in (("a", "bc"), ("ab", "c"))
    )
    assert one != other


def test_words_may_be_any_string():
    assert list(digests.words(("\udcff", "\ud800", "\n"))) == [
        b"3",
        b"\xed\xb3\xbf",
        b"\xed\xa0\x80",
        b"\n",
    ]
