"""Image transforms under big_vision's names, equal to its TensorFlow ones to 1/255 where nothing is random.

Its other two are `images.resize`: `resize(size, antialias=True)` is "squash" with "bilinear", `central_crop(size)` is
"none". Without `antialias`, its old default, TensorFlow reads single pixels of a large image; Pillow always filters.
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.images import Resample, resize

TRIES = 100
"""Boxes that are drawn before the whole picture is taken."""


def resize_small(
    image: UInt8[np.ndarray, "h w C"], side: int, resample: Resample | Literal["area"] = "area"
) -> UInt8[np.ndarray, "H W C"]:
    """The shorter side brought to a length, the longer in proportion and rounded to whole pixels, half to even.

    transformers' processors round the longer side down, see `images.resize`.
    """
    factor = np.float32(side) / np.float32(min(image.shape[:2]))
    height, width = (int(np.rint(np.float32(each) * factor)) for each in image.shape[:2])
    return area(image, (height, width)) if resample == "area" else resize(image, (height, width), "squash", resample)


def area(image: UInt8[np.ndarray, "h w C"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W C"]:
    """Each pixel the mean of what it covers, parts of pixels counted by their area: TensorFlow's "area", but rounded
    where big_vision cuts off. Pillow's "box" counts whole pixels only."""
    height, width, channels = image.shape
    rows = _shares(height, size[0]) @ image.reshape(height, -1).astype(np.float32)
    columns = _shares(width, size[1]) @ rows.reshape(size[0], width, channels)
    return np.rint(columns).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _shares(length: int, wanted: int) -> Float[np.ndarray, "wanted length"]:
    """Of each of `length` pixels the share in each of `wanted` that cover the same line."""
    edges = np.arange(wanted + 1) * (length / wanted)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * (wanted / length)).astype(np.float32)


def inception_crop(
    image: UInt8[np.ndarray, "h w C"],
    size: tuple[int, int],
    rng: np.random.Generator,
    share: tuple[float, float] = (0.05, 1.0),
    resample: Resample = "bilinear",
) -> UInt8[np.ndarray, "H W C"]:
    """An `inception_box` of the image, squashed to `size` (height, width)."""
    top, left, height, width = inception_box((image.shape[0], image.shape[1]), rng, share)
    return resize(np.ascontiguousarray(image[top : top + height, left : left + width]), size, "squash", resample)


def inception_box(
    size: tuple[int, int],
    rng: np.random.Generator,
    share: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (0.75, 1.33),
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of an image, distributed as TensorFlow's distorted boxes are.

    First the width over the height is drawn, uniform in `aspect`, then the height, uniform among those with which the
    box fits and has a `share` of the image: small parts are rarer than from `augmentations.random_box`.
    """
    whole_height, whole_width = size
    for _ in range(TRIES):
        ratio = rng.uniform(*aspect)
        least, most = (math.sqrt(part * whole_height * whole_width / ratio) for part in share)
        highest = min(round(most), whole_height, math.floor((whole_width + 0.5) / ratio))
        height = int(rng.integers(min(round(least), highest), highest, endpoint=True))
        width = round(height * ratio)
        fits = height > 0 and 0 < width <= whole_width
        if fits and share[0] <= height * width / (whole_height * whole_width) <= share[1]:
            top, left = rng.integers(whole_height - height + 1), rng.integers(whole_width - width + 1)
            return int(top), int(left), height, width
    return 0, 0, whole_height, whole_width
