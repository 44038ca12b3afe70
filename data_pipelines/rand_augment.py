"""RandAugment: a few random operations, all of one strength (Cubuk et al. 2020), with torchvision's ranges."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from data_pipelines.augmentations import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    blend,
    solarize,
)
from jmm.errors import UserError

Picture = UInt8[np.ndarray, "H W 3"]

STEPS = 30
"""Magnitudes count from 0, nothing, to this."""

SHEAR = 0.3
"""At full strength a row is shifted against the next by so many pixels,"""
SHIFT = 150 / 331
"""the image by this part of its side (150 pixels of 331 in AutoAugment, Cubuk et al. 2019),"""
TURN = 30
"""and turned by so many degrees;"""
FACTOR = 0.9
"""factors of colors go to 1 ± this,"""
BITS = 4
"""and so many of 8 bits are dropped."""


def rand_augment(
    image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator, ops: int = 2, magnitude: int = 9
) -> UInt8[np.ndarray, "H W 3"]:
    """`ops` operations of the 14 in `OPERATIONS`, drawn one by one, each as likely (Cubuk et al. 2020, section 3).

    What has a direction goes either way; what comes from outside the image is black.

    Raises:
      UserError: `ops` below 0, or a `magnitude` outside 0–30.
    """
    if ops < 0 or not 0 <= magnitude <= STEPS:
        raise UserError(f"ops must be at least 0 and magnitude from 0 to {STEPS}, not {ops} and {magnitude}")
    names = list(OPERATIONS)
    for _ in range(ops):
        name, sign = names[rng.integers(len(names))], rng.choice((-1, 1))
        strength = magnitude / STEPS
        image = OPERATIONS[name](image, strength if name in ONE_WAY else sign * strength)
    return image


def _identity(image: Picture, strength: float) -> Picture:
    return image


def _shear(image: Picture, strength: float, axis: int) -> Picture:
    """Rows (axis 1) or columns (axis 0) shifted in proportion to their place; the first stays."""
    amount = SHEAR * strength
    return _mapped(image, (1.0, amount, 0.0, 0.0, 1.0, 0.0) if axis == 1 else (1.0, 0.0, 0.0, amount, 1.0, 0.0))


def _translate(image: Picture, strength: float, axis: int) -> Picture:
    """Down (axis 0) or to the right (axis 1) by whole pixels."""
    pixels = float(int(SHIFT * image.shape[axis] * strength))
    return _mapped(image, (1.0, 0.0, -pixels, 0.0, 1.0, 0.0) if axis == 1 else (1.0, 0.0, 0.0, 0.0, 1.0, -pixels))


def _mapped(image: Picture, matrix: tuple[float, ...]) -> Picture:
    """(x, y) of a pixel taken from (a x + b y + c, d x + e y + f), the nearest there; black outside."""
    picture = Image.fromarray(image)
    return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST))


def _rotate(image: Picture, strength: float) -> Picture:
    """Counterclockwise about the middle."""
    return np.asarray(Image.fromarray(image).rotate(TURN * strength, Image.Resampling.NEAREST))


def _sharpness(image: Picture, strength: float) -> Picture:
    """From smoothed over 3 × 3 pixels to sharper; the outermost pixels stay as they are."""
    return blend(image, np.asarray(Image.fromarray(image).filter(ImageFilter.SMOOTH)), 1 + FACTOR * strength)


def _posterize(image: Picture, strength: float) -> Picture:
    """The lowest bits cleared."""
    dropped = round(BITS * strength)
    return image >> dropped << dropped


def _solarize(image: Picture, strength: float) -> Picture:
    """Inverted from 255 (nothing but white) down to 0 (everything) on."""
    return solarize(image, 255 - 255 * strength)


def _autocontrast(image: Picture, strength: float) -> Picture:
    """In each channel the darkest value becomes 0, the brightest 255."""
    return _by_channel(image, _stretch)


def _equalize(image: Picture, strength: float) -> Picture:
    """In each channel all values become about as frequent."""
    return _by_channel(image, _equal)


def _by_channel(image: Picture, table: Callable[[np.ndarray], np.ndarray]) -> Picture:
    """Values looked up in a table that is made of how often a channel holds each."""
    channels = [image[:, :, i] for i in range(image.shape[2])]
    return np.stack([table(np.bincount(c.reshape(-1), minlength=256))[c] for c in channels], axis=2)


def _stretch(counts: np.ndarray) -> UInt8[np.ndarray, "256"]:
    low, high = np.flatnonzero(counts)[[0, -1]]
    if low == high:
        return np.arange(256, dtype=np.uint8)
    scale = 255 / (high - low)
    return (np.arange(256) * scale - low * scale).clip(0, 255).astype(np.uint8)


def _equal(counts: np.ndarray) -> UInt8[np.ndarray, "256"]:
    """Each value becomes the count of pixels below it, in steps that bring the brightest to 255."""
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if step == 0:  # one value, or so few pixels that they are spread already
        return np.arange(256, dtype=np.uint8)
    return ((counts.cumsum() - counts + step // 2) // step).clip(0, 255).astype(np.uint8)


def _factor(image: Picture, strength: float, adjust: Callable[[Picture, float], Picture]) -> Picture:
    return adjust(image, 1 + FACTOR * strength)


OPERATIONS: dict[str, Callable[[Picture, float], Picture]] = {
    "identity": _identity,
    "shear_x": partial(_shear, axis=1),
    "shear_y": partial(_shear, axis=0),
    "translate_x": partial(_translate, axis=1),
    "translate_y": partial(_translate, axis=0),
    "rotate": _rotate,
    "brightness": partial(_factor, adjust=adjust_brightness),
    "color": partial(_factor, adjust=adjust_saturation),
    "contrast": partial(_factor, adjust=adjust_contrast),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""An image and a strength, from −1 (from 0 where it is one of `ONE_WAY`) to 1, to the changed image."""

ONE_WAY = ("posterize", "solarize")
"""These have no other direction."""
