"""Multi-crop: several views of one image, few large and many small (DINO, Caron et al. 2021, section 3.1)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from data_pipelines.augmentations import (
    color_jitter,
    gaussian_blur,
    grayscale,
    random_flip,
    random_resized_crop,
    solarize,
)

JITTERED, GRAY = 0.8, 0.2
"""How often colors are changed, and how often taken away."""
SIGMA = (0.1, 2.0)
"""Blur, in pixels of the view."""


@dataclass(frozen=True)
class MultiCrop:
    """The views that DINO trains on; the colors of each change as BYOL's do (Grill et al. 2020, appendix B)."""

    global_size: int = 224
    """Height and width of the two large views,"""
    global_area: tuple[float, float] = (0.4, 1.0)
    """and the part of the image that each shows."""
    local_size: int = 96
    """The same of the small views,"""
    local_area: tuple[float, float] = (0.05, 0.4)
    """which together with the large ones cover scales from whole to detail."""
    local_views: int = 8
    """How many there are."""

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
    ) -> list[UInt8[np.ndarray, "side side 3"]]:
        """Two large views, the first always blurred, the second seldom but perhaps solarized, then the small ones."""
        return [
            view(image, rng, self.global_size, self.global_area, blurred=1.0),
            view(image, rng, self.global_size, self.global_area, blurred=0.1, solarized=0.2),
            *(view(image, rng, self.local_size, self.local_area, blurred=0.5) for _ in range(self.local_views)),
        ]


def view(
    image: UInt8[np.ndarray, "h w 3"],
    rng: np.random.Generator,
    side: int,
    area: tuple[float, float],
    blurred: float,
    solarized: float = 0.0,
) -> UInt8[np.ndarray, "side side 3"]:
    """A random part of the image, perhaps mirrored, in other colors; `blurred` and `solarized` are probabilities."""
    image = random_flip(random_resized_crop(image, (side, side), rng, area), rng)
    if rng.random() < JITTERED:
        image = color_jitter(image, rng)
    if rng.random() < GRAY:
        image = grayscale(image)
    if rng.random() < blurred:
        image = gaussian_blur(image, rng.uniform(*SIGMA))
    return solarize(image) if rng.random() < solarized else image
