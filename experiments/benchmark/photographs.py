"""Images of ImageNet's size, made to be read from disk."""

import io

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

WIDTH, HEIGHT, NOISE, QUALITY = 500, 375, 19, 90  # about 110 kB


class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Smooth random images with noise, that are as hard to decode as photographs."""

    name = "made"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, images, **kwargs):
        self.images = images
        super().__init__(**kwargs)

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(self.images):
            yield i, {"image": io.BytesIO(photograph(i)), "label": i % 1000}


def photograph(seed: int) -> bytes:
    """A JPEG of ImageNet's mean size in pixels and bytes."""
    rng = np.random.default_rng(seed)
    size = (WIDTH, HEIGHT) if seed % 4 else (HEIGHT, WIDTH)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, NOISE, smooth.shape[:2])[..., None]
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=QUALITY)
    return file.getvalue()
