"""Tiny image sets in the formats of the catalogue and of image folders, made without network."""

from collections.abc import Mapping, Sequence
import io
from pathlib import Path

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def jpeg(
    seed: int, size: tuple[int, int] | None = None, *, mode: str = "RGB", quality: int = 90
) -> bytes:
    """A JPEG of a smooth random image, of its own size (width, height) unless one is given."""
    rng = np.random.default_rng(seed)
    size = size or tuple(int(side) for side in rng.integers(24, 64, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, "jpeg", quality=quality)
    return file.getvalue()


def set_of_tfds(
    data_dir: Path,
    name: str,
    splits: Mapping[str, Sequence[dict]],
    features: Mapping[str, tfds.features.FeatureConnector],
    *,
    config: str | None = None,
    version: str = "1.0.0",
) -> Path:
    """Writes a set of the given examples, in their order, as TFDS does; returns its folder."""
    called = name

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = called
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            described = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=described, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: iter(enumerate(examples)) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError  # abstract, and not called: the splits hold the examples

    tfds.disable_progress_bar()
    builder = Made(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)


def examples(
    images: Sequence[bytes],
    classes: int | Sequence[str],
    labels: Sequence[int] | None = None,
) -> list[dict]:
    """One for each encoded image, its label its number modulo the classes, or the given one."""
    if labels is None:
        labels = [i % _label(classes).num_classes for i in range(len(images))]
    return [
        {
            "image": io.BytesIO(image),
            "label": label,
            "file_name": f"n{label:08}_{i}.JPEG",
        }
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def imagenet(
    data_dir: Path,
    *,
    train: Sequence[bytes] | int = 24,
    validation: Sequence[bytes] | int = 10,
    classes: int | Sequence[str] = 1000,
) -> Path:
    """`imagenet2012`: JPEGs of differing sizes, as many as told or the given ones."""
    splits = {
        "train": examples(_jpegs(train, 0), classes),
        "validation": examples(_jpegs(validation, 10_000), classes),
    }
    return set_of_tfds(data_dir, "imagenet2012", splits, features(classes), version="5.1.0")


def cifar100(data_dir: Path, *, train: int, test: int, classes: int = 100, side: int = 32) -> Path:
    """`cifar100`, of images of one size, as JPEGs."""
    splits = {
        split: examples([jpeg(seed + i, (side, side)) for i in range(count)], classes)
        for split, count, seed in (("train", train, 50_000), ("test", test, 60_000))
    }
    described = features(classes, (side, side, 3))
    return set_of_tfds(data_dir, "cifar100", splits, described, version="3.0.2")


def imagenet_real(
    data_dir: Path,
    *,
    validation: Sequence[bytes] | int = 10,
    right: Sequence[Sequence[int]] | None = None,
    classes: int | Sequence[str] = 1000,
) -> Path:
    """`imagenet2012_real`, by default with 0, 1, 2 and 3 right classes in turn."""
    images = _jpegs(validation, 10_000)
    given = examples(images, classes)
    for i, example in enumerate(given):
        label = example.pop("label")
        example["original_label"] = label
        count = i % 4
        labels = [(label + j) % _label(classes).num_classes for j in range(count)]
        example["real_label"] = list(right[i]) if right is not None else labels
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "original_label": _label(classes),
        "real_label": tfds.features.Sequence(_label(classes)),
        "file_name": tfds.features.Text(),
    }
    return set_of_tfds(data_dir, "imagenet2012_real", {"validation": given}, features)


def imagenet_v2(
    data_dir: Path,
    *,
    config: str = "matched-frequency",
    test: Sequence[bytes] | int = 10,
    labels: Sequence[int] | None = None,
    classes: int | Sequence[str] = 1000,
) -> Path:
    """`imagenet_v2/<config>`."""
    splits = {"test": examples(_jpegs(test, 20_000), classes, labels)}
    return set_of_tfds(
        data_dir, "imagenet_v2", splits, features(classes), config=config, version="3.0.0"
    )


def imagenet_r(
    data_dir: Path,
    *,
    test: Sequence[bytes] | int = 10,
    labels: Sequence[int] | None = None,
    classes: int | Sequence[str] = 1000,
) -> Path:
    """`imagenet_r`."""
    splits = {"test": examples(_jpegs(test, 30_000), classes, labels)}
    return set_of_tfds(data_dir, "imagenet_r", splits, features(classes), version="0.2.0")


def imagenet_corrupted(
    data_dir: Path,
    config: str = "gaussian_noise_1",
    *,
    validation: Sequence[bytes] | int = 4,
    labels: Sequence[int] | None = None,
    classes: int | Sequence[str] = 1000,
) -> Path:
    """`imagenet2012_corrupted/<config>`, whose images are all 224 x 224."""
    if isinstance(validation, int):
        validation = [jpeg(40_000 + i, (224, 224)) for i in range(validation)]
    splits = {"validation": examples(validation, classes, labels)}
    described = features(classes, (224, 224, 3))
    return set_of_tfds(
        data_dir, "imagenet2012_corrupted", splits, described, config=config, version="3.1.0"
    )


def folders(
    root: Path,
    *,
    splits: Sequence[str] = DOMAINS,
    class_names: Sequence[str] = CLASSES,
    each: int = 2,
) -> Path:
    """Image folders in the layout of PACS, with as many images as told of each class."""
    for s, split in enumerate(splits):
        for c, class_name in enumerate(class_names):
            folder = root / split / class_name
            folder.mkdir(parents=True)
            for i in range(each):
                (folder / f"pic_{i:03}.jpg").write_bytes(jpeg(1000 * s + 10 * c + i))
    return root


def features(
    classes: int | Sequence[str], shape: tuple[int | None, ...] = (None, None, 3)
) -> dict[str, tfds.features.FeatureConnector]:
    """Those of `imagenet2012`, of so many classes or of classes of these names."""
    return {
        "image": tfds.features.Image(shape=shape, encoding_format="jpeg"),
        "label": _label(classes),
        "file_name": tfds.features.Text(),
    }


def _label(classes):
    """The feature of so many classes, or of classes of these names."""
    if isinstance(classes, int):
        return tfds.features.ClassLabel(num_classes=classes)
    return tfds.features.ClassLabel(names=classes)


def _jpegs(images, seed):
    if isinstance(images, int):
        return [jpeg(seed + i) for i in range(images)]
    return images
