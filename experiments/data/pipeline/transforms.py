"""Images from bytes, and what they go through one by one: crops, flips, colours, RandAugment.

Each takes and gives a Pillow image in RGB, and draws from the generator it is given alone. What is
resized is resized bilinearly with Pillow's antialiasing, as in torchvision.
"""

from collections.abc import Callable
import io
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
TRIES = 10  # of a random crop
GREY = (128, 128, 128)  # what RandAugment fills with

_Rng = np.random.Generator


def decode(image: bytes) -> Image.Image:
    """The RGB image of an encoded one, of whatever format Pillow reads, whatever its file is named.

    CMYK, greys and palettes are converted, transparency is dropped, and an orientation in EXIF is
    not followed: as TensorFlow's decoder does it.

    Raises:
      OSError, SyntaxError, ValueError, or another of Pillow's: it is damaged or no image.
    """
    with Image.open(io.BytesIO(image)) as opened:
        if opened.mode == "RGB":
            opened.load()
            return opened
        if opened.has_transparency_data:
            return opened.convert("RGBA").convert("RGB")
        if opened.mode.startswith("I"):
            return _sixteen_bits(opened)
        return opened.convert("RGB")


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """The upper eight of 16 bits, which `convert` would clip to 255 instead."""
    values = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")


def random_resized_crop(
    rng: _Rng,
    image: Image.Image,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A window of random area and shape anywhere in the image, as a square.

    Its share of the area is uniform and the logarithm of its width over its height is; of 10 draws
    the first that fits into the image is taken, else the largest window in the centre with the
    image's own ratio brought into the range. At the window's border the filter of the resize sees
    what lies beyond it, where a crop of its own would end it there.

    Args:
      rng: of the window.
      image: of any size.
      size: the square's side in pixels.
      area: the smallest and the largest share.
      ratio: the smallest and the largest width over height.

    References:
      Szegedy et al. 2015, Going Deeper with Convolutions, section 6, as torchvision's
      RandomResizedCrop.
    """
    width, height = image.size
    for _ in range(TRIES):
        pixels = width * height * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            break
    else:
        w, h = width, height
        if width / height < ratio[0]:
            h = max(1, round(width / ratio[0]))
        elif width / height > ratio[1]:
            w = max(1, round(height * ratio[1]))
        left, top = (width - w) // 2, (height - h) // 2
    return image.resize((size, size), BILINEAR, box=(left, top, left + w, top + h))


def flip(rng: _Rng, image: Image.Image) -> Image.Image:
    """The image, mirrored left to right with probability 1/2."""
    if rng.random() < 0.5:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def centre_crop(image: Image.Image, size: int, fraction: float = 0.875) -> Image.Image:
    """The square in the centre of the image with its shorter side resized to size/fraction.

    Args:
      image: of any size.
      size: the square's side in pixels.
      fraction: of the shorter side that is kept, in (0, 1]; 0.875 resizes to 256 for 224.
    """
    shorter = round(size / fraction)
    width, height = image.size
    if width < height:
        width, height = shorter, max(shorter, round(shorter * height / width))
    else:
        width, height = max(shorter, round(shorter * width / height)), shorter
    left, top = (width - size) // 2, (height - size) // 2
    resized = image if image.size == (width, height) else image.resize((width, height), BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def color_jitter(
    rng: _Rng,
    image: Image.Image,
    brightness: float = 0.3,
    contrast: float = 0.3,
    saturation: float = 0.3,
    hue: float = 0.3,
) -> Image.Image:
    """Brightness, contrast, saturation and hue changed at random, in a random order.

    Args:
      rng: of the changes and their order.
      image: of any size.
      brightness: a; the image is multiplied by a factor in [max(0, 1 − a), 1 + a].
      contrast: the same of the distance to the mean grey.
      saturation: the same of the distance to the grey image.
      hue: h in [0, 1/2]; the hue is turned by a share of the circle in [−h, h].

    References:
      Gulrajani and Lopez-Paz 2021, In Search of Lost Domain Generalization (DomainBed), which takes
      0.3 for all four; torchvision's ColorJitter.
    """
    order = rng.permutation(4)
    low = [max(0, 1 - x) for x in (brightness, contrast, saturation)]
    high = [1 + x for x in (brightness, contrast, saturation)]
    factors = rng.uniform([*low, -hue], [*high, hue])
    for i in order:
        image = JITTERS[i](image, factors[i])
    return image


def turn_hue(image: Image.Image, share: float) -> Image.Image:
    """The image with its hue turned by a share of the circle, to the next of 256 steps."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + round(256 * share)) % 256
    turned = Image.fromarray(turned.astype(np.uint8))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def _enhanced(kind):
    return lambda image, factor: kind(image).enhance(factor)


JITTERS = (
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Color),
    turn_hue,
)


def grayscale(rng: _Rng, image: Image.Image, probability: float = 0.1) -> Image.Image:
    """The image, grey with a probability: 0.299 red + 0.587 green + 0.114 blue in all channels."""
    return image.convert("L").convert("RGB") if rng.random() < probability else image


# RandAugment: each operation (rng, image, level), the level being magnitude/10.


def _auto_contrast(rng, image, level):
    """Each channel is stretched so that its darkest pixel is 0 and its lightest 255."""
    del rng, level
    return ImageOps.autocontrast(image)


def _equalize(rng, image, level):
    """The histogram of each channel is made flat."""
    del rng, level
    return ImageOps.equalize(image)


def _invert(rng, image, level):
    """255 − x."""
    del rng, level
    return ImageOps.invert(image)


def _rotate(rng, image, level):
    """By ±30 · level degrees around the centre."""
    return image.rotate(_signed(rng, 30 * level), NEAREST, fillcolor=GREY)


def _posterize(rng, image, level):
    """All but the int(4 · level) upper bits are cleared: a higher level changes less."""
    del rng
    cleared = 255 >> min(int(4 * level), 8)  # all of them below level 1/4, where Pillow's refuses
    return image.point([x & ~cleared for x in range(256)] * 3)


def _solarize(rng, image, level):
    """255 − x from the threshold int(256 · level) on: a higher level changes less."""
    del rng
    return ImageOps.solarize(image, int(256 * level))


def _solarize_add(rng, image, level):
    """x + int(110 · level), at most 255, below the threshold 128."""
    del rng
    more = int(110 * level)
    return image.point([min(x + more, 255) if x < 128 else x for x in range(256)] * 3)


def _enhance(kind: type) -> Callable[[_Rng, Image.Image, float], Image.Image]:
    """Distance to what the kind of enhancement starts from, times 0.1 + 1.8 · level, clipped.

    That is the grey image for color, its mean for contrast, black for brightness, and the smoothed
    image for sharpness.
    """
    return lambda rng, image, level: kind(image).enhance(0.1 + 1.8 * level)


def _shear_x(rng, image, level):
    """Row y is moved by ±0.3 · level · y."""
    return _affine(image, (1, _signed(rng, 0.3 * level), 0, 0, 1, 0))


def _shear_y(rng, image, level):
    """Column x is moved by ±0.3 · level · x."""
    return _affine(image, (1, 0, 0, _signed(rng, 0.3 * level), 1, 0))


def _translate_x(rng, image, level):
    """Moved sideways by ±100 · level pixels."""
    return _affine(image, (1, 0, _signed(rng, 100 * level), 0, 1, 0))


def _translate_y(rng, image, level):
    """Moved up or down by ±100 · level pixels."""
    return _affine(image, (1, 0, 0, 0, 1, _signed(rng, 100 * level)))


def _cutout(rng, image, level):
    """A grey square of side 2 · int(40 · level) around any pixel, clipped at the border."""
    x, y = (int(rng.integers(side)) for side in image.size)
    reach = int(40 * level)
    image = image.copy()
    image.paste(GREY, (max(x - reach, 0), max(y - reach, 0), x + reach, y + reach))
    return image


def _signed(rng, value):
    return -value if rng.random() < 0.5 else value


def _affine(image, coefficients):
    """The pixel at (x, y) is that at (a x + b y + c, d x + e y + f) of the image, or grey."""
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, NEAREST, fillcolor=GREY
    )


OPERATIONS: dict[str, Callable[[_Rng, Image.Image, float], Image.Image]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "cutout": _cutout,
    "solarize_add": _solarize_add,
}


def rand_augment(rng: _Rng, image: Image.Image, layers: int, magnitude: float) -> Image.Image:
    """One of 16 operations after another, each equally likely and each at the same magnitude.

    The operations and what a magnitude means to each are those of the implementation that
    EfficientNets and Vision Transformers are trained with: the 14 of the paper without the
    identity, and invert, cutout and solarize_add. Pixels from outside are grey, (128, 128, 128),
    and geometry takes the nearest pixel. Deviation: contrast is Pillow's, around the mean grey as
    in the paper, where that implementation divides the sum of the histogram by 256.

    Args:
      rng: of the choice, of signs and of places.
      image: already of its final size: some operations count in pixels.
      layers: N, the number of operations.
      magnitude: M; 10 is each operation's end of the scale, and larger ones go beyond.

    References:
      Cubuk et al. 2020, RandAugment: Practical automated data augmentation with a reduced search
      space.
    """
    operations = list(OPERATIONS.values())
    for _ in range(layers):
        image = operations[rng.integers(len(operations))](rng, image, magnitude / 10)
    return image
