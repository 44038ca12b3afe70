"""What is seen of a training image."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from data_pipelines.augmentations import AREA, ASPECT, color_jitter, random_box
from data_pipelines.images import squash_box, to_channels
from data_pipelines.rand_augment import rand_augment
from jmm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RandomView:
    """A random part of the image, perhaps mirrored, and changed by more where that is asked for."""

    area: tuple[float, float] = AREA
    """The part of a training image that is seen, of all of it, and"""
    aspect: tuple[float, float] = ASPECT
    """its width over its height (Szegedy et al. 2014, section 6)."""
    mirror: bool = True
    """Half the training images are mirrored."""
    rand_augment: int = 0
    """Magnitude, from 0 to 30, of RandAugment's two operations on each (Cubuk et al. 2020); 0: none."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Brightness, contrast and saturation change by factors of 1 ± so much each, the hue by so much of its circle."""

    def __post_init__(self) -> None:
        """Raises UserError for a part or a shape that no image has."""
        if not (0 < self.area[0] <= self.area[1] <= 1):
            raise UserError(f"data.area is a smallest and a largest part, above 0 and at most 1, not {self.area}")
        if not (0 < self.aspect[0] <= self.aspect[1] < math.inf):
            raise UserError(f"data.aspect is a smallest and a largest width over height, above 0, not {self.aspect}")

    def view(
        self, image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], channels: int, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "H W C"]:
        """`image` as it is seen this time, of `size` (height, width).

        Raises:
          UserError: colors are to change, and there is one channel; or as `rand_augment` and `color_jitter`.
        """
        if channels != 3 and (self.rand_augment or any(self.jitter)):
            raise UserError(f"data.rand_augment and data.jitter need images of 3 channels, not {channels}")
        image = to_channels(image, channels)
        seen = squash_box(image, random_box((image.shape[0], image.shape[1]), rng, self.area, self.aspect), size)
        if self.mirror and rng.random() < 0.5:
            seen = seen[:, ::-1]
        if self.rand_augment:
            seen = rand_augment(np.ascontiguousarray(seen), rng, magnitude=self.rand_augment)
        if any(self.jitter):
            seen = color_jitter(np.ascontiguousarray(seen), rng, *self.jitter)
        return seen
