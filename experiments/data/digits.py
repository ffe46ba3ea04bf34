"""Scikit-learn's 1,797 handwritten digits as a TFDS data set, with no network and no TensorFlow."""

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey images of ten digits; 1,437 to train and 360 to test, by a fixed permutation.

    The source orders the digits by writer and by class, so a split by position would not be one of
    like from like.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            description="Optical recognition of handwritten digits (UCI), as in scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        order = np.random.default_rng(0).permutation(1797)
        return {
            "train": self._generate_examples(order[:1437]),
            "test": self._generate_examples(order[1437:]),
        }

    def _generate_examples(self, indices):
        from sklearn.datasets import load_digits  # seconds that only the preparation takes

        images, labels = load_digits(return_X_y=True)
        for i in indices:
            # 17 grey levels, 0 to 16, spread over the range of a byte
            image = (images[i].reshape(8, 8) * 15).astype(np.uint8)
            yield int(i), {"image": Image.fromarray(image), "label": int(labels[i])}
