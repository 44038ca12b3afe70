"""Random changes of training images: crops, flips, colors, blur.

Each takes the example's own `rng` and draws from it in a fixed order; what is not random takes its amount instead. All
keep the size and the type of a uint8 image except the crops. Colors go as in torchvision on Pillow images.
"""

import math

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageFilter

from data_pipelines.images import Resample, resize
from jmm.errors import UserError

TRIES = 10
"""Boxes that are drawn before the whole picture is taken."""

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
"""The parts of ImageNet's training images (Szegedy et al. 2014, section 6)."""

MAX_HUE = 0.5
"""Half of the circle of hues either way is all of it."""


def random_box(
    size: tuple[int, int],
    rng: np.random.Generator,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of an image of this height and width.

    Its share of the image is uniform in `area`, its width over its height log-uniform in `aspect`, its place uniform
    (Szegedy et al. 2014, section 6). After `TRIES` boxes that do not fit it is the whole image.
    """
    whole_height, whole_width = size
    for _ in range(TRIES):
        pixels = whole_height * whole_width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        height, width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < height <= whole_height and 0 < width <= whole_width:
            top, left = rng.integers(whole_height - height + 1), rng.integers(whole_width - width + 1)
            return int(top), int(left), height, width
    return 0, 0, whole_height, whole_width


def random_resized_crop(
    image: UInt8[np.ndarray, "h w C"],
    size: tuple[int, int],
    rng: np.random.Generator,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    resample: Resample = "bicubic",
) -> UInt8[np.ndarray, "H W C"]:
    """A `random_box` of the image, squashed to `size` (height, width)."""
    top, left, height, width = random_box((image.shape[0], image.shape[1]), rng, area, aspect)
    return resize(np.ascontiguousarray(image[top : top + height, left : left + width]), size, "squash", resample)


def random_flip(image: Shaped[np.ndarray, "H W C"], rng: np.random.Generator) -> Shaped[np.ndarray, "H W C"]:
    """Every second image mirrored, left to right."""
    return np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image


def color_jitter(
    image: UInt8[np.ndarray, "H W 3"],
    rng: np.random.Generator,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
) -> UInt8[np.ndarray, "H W 3"]:
    """Four changes in random order. The factors are uniform within 1 ± the number, but never below 0; the turn of the
    hues within ± `hue` of the whole circle. Above are DINO's numbers; SimCLR's are 0.8, 0.8, 0.8 and 0.2.

    Raises:
      UserError: a number below 0, or `hue` above 0.5.
    """
    if min(brightness, contrast, saturation, hue) < 0 or hue > MAX_HUE:
        raise UserError(
            f"brightness, contrast and saturation must be at least 0 and hue from 0 to {MAX_HUE},"
            f" not {brightness}, {contrast}, {saturation} and {hue}"
        )
    order = rng.permutation(4)
    factors = [rng.uniform(max(0.0, 1 - each), 1 + each) for each in (brightness, contrast, saturation)]
    turn = rng.uniform(-hue, hue)
    for change in order:
        if change == 3:
            image = adjust_hue(image, turn)
        else:
            image = (adjust_brightness, adjust_contrast, adjust_saturation)[change](image, factors[change])
    return image


def adjust_brightness(image: UInt8[np.ndarray, "H W C"], factor: float) -> UInt8[np.ndarray, "H W C"]:
    """From black (0) by way of the image (1) to brighter."""
    return blend(image, np.float32(0), factor)


def adjust_contrast(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """From its mean gray (0) by way of the image (1) to more contrast."""
    return blend(image, np.float32(int(_luma(image).mean() + 0.5)), factor)


def adjust_saturation(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """From gray (0) by way of the image (1) to more colorful."""
    return blend(image, _luma(image), factor)


def adjust_hue(image: UInt8[np.ndarray, "H W 3"], turn: float) -> UInt8[np.ndarray, "H W 3"]:
    """All hues moved on along their circle, of which 1 is the whole, in steps of 1/255 as Pillow's HSV counts them."""
    steps = int(turn * 255)
    if steps == 0:
        return image  # to HSV and back would change it
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[:, :, 0] += np.uint8(steps % 256)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def grayscale(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The luma of the image in all three channels."""
    return np.repeat(_luma(image), 3, axis=2)


def gaussian_blur(image: UInt8[np.ndarray, "H W 3"], sigma: float) -> UInt8[np.ndarray, "H W 3"]:
    """Smoothed with a standard deviation of `sigma` pixels, by Pillow's three box filters, as DINO does."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def solarize(image: UInt8[np.ndarray, "H W C"], threshold: float = 128) -> UInt8[np.ndarray, "H W C"]:
    """Every value from `threshold` on inverted."""
    return np.where(image < threshold, image, 255 - image)


def blend(
    image: UInt8[np.ndarray, "H W C"], other: np.ndarray | np.float32, factor: float
) -> UInt8[np.ndarray, "H W C"]:
    """`other` at 0, `image` at 1, beyond it above 1; in float32 and cut off to whole numbers, as Pillow does."""
    low = np.asarray(other, np.float32)
    return (low + np.float32(factor) * (image - low)).clip(0, 255).astype(np.uint8)


def _luma(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 1"]:
    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
