"""By which mean and deviation the bytes of images become the floats that a model sees."""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """The mean and the standard deviation of each channel, in 0 to 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Both as float32 [C]; of other than three channels all have their mean."""
        mean, std = (np.array(values, np.float32) for values in self)
        if channels != len(mean):
            mean, std = (np.full(channels, values.mean(), np.float32) for values in (mean, std))
        return mean, std


IMAGENET = Moments((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # 255 · 0.485 and so on
HALF = Moments((127.5,) * 3, (127.5,) * 3)  # bytes to −1 … 1, as in the code of ViT
NORMALIZATIONS = {"imagenet": IMAGENET, "half": HALF}
