"""Images of any proportions as sequences of patches: NaFlex (Tschannen et al. 2025, SigLIP 2, section 2.4.2).

A picture is resized to as many whole patches as fit into a sequence, its proportions kept but for the rounding of each
side to whole patches; what the sequence has left is padding. (NaViT, Dehghani et al. 2023, and FlexiViT, Beyer et al.
2023, are where the two halves of the name come from.)
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int32, Shaped, UInt8

from data_pipelines.images import Resample, resize
from jmm.errors import UserError

SCALES = (1e-6, 100.0)
"""Between these the factor of the sides is looked for, by halves until it is known to"""
PRECISION = 1e-5
"""this much. The numbers are SigLIP 2's own: with others a side is now and then a patch longer."""


@dataclass(frozen=True)
class Patches:
    """One picture as a sequence of at most N patches, and padding."""

    pixels: UInt8[np.ndarray, "N D"] | Float[np.ndarray, "N D"]
    """Each patch row by row, its channels last: D = patch_size · patch_size · C; zeros in the padding."""
    positions: Int32[np.ndarray, "N 2"]
    """Row and column of each patch; zeros in the padding."""
    mask: Bool[np.ndarray, "N"]
    """True where a patch is real."""
    grid: tuple[int, int]
    """Rows and columns of patches; their product is how many are real."""


def naflex_size(size: tuple[int, int], patch_size: int, patches: int) -> tuple[int, int]:
    """Height and width in pixels, multiples of `patch_size`, that a picture of this height and width is resized to.

    Both sides are multiplied by the largest factor (up to 100) with which, each rounded up to whole patches, no more
    than `patches` cover the picture. Small pictures are enlarged too.

    Raises:
      UserError: a side, `patch_size` or `patches` below 1.
    """
    if min(*size, patch_size, patches) < 1:
        raise UserError(
            f"sides, patch_size and the number of patches must be at least 1, not {size}, {patch_size} and {patches}"
        )

    def rounded(scale: float) -> tuple[int, int]:
        height, width = (patch_size * max(math.ceil(side * scale / patch_size), 1) for side in size)
        return height, width

    low, high = SCALES
    while high - low >= PRECISION:
        middle = (low + high) / 2
        if math.prod(rounded(middle)) <= patches * patch_size**2:
            low = middle
        else:
            high = middle
    return rounded(low)


def naflex(
    image: UInt8[np.ndarray, "h w C"], patch_size: int = 16, patches: int = 256, resample: Resample = "bilinear"
) -> Patches:
    """A picture of any size as a sequence of exactly `patches` patches, uint8, padding included.

    Pillow resamples, filtered where it shrinks; bilinear is what SigLIP 2 was published with. `Preprocess.normalise`
    makes what the model reads of `pixels`, whose padding is then no longer zero: the mask leaves it out.

    Raises:
      UserError: as `naflex_size`.
    """
    resized = resize(image, naflex_size((image.shape[0], image.shape[1]), patch_size, patches), "squash", resample)
    return pad(patchify(resized, patch_size), (resized.shape[0] // patch_size, resized.shape[1] // patch_size), patches)


def patchify(image: Shaped[np.ndarray, "H W C"], patch_size: int) -> Shaped[np.ndarray, "n D"]:
    """Patches row by row, and within each its pixels row by row, channels last.

    Raises:
      UserError: a side is no multiple of `patch_size`.
    """
    height, width, channels = image.shape
    if patch_size < 1 or not image.size or height % patch_size or width % patch_size:
        raise UserError(f"an image of {height} × {width} cannot be cut into patches of {patch_size} × {patch_size}")
    rows, columns = height // patch_size, width // patch_size
    cut = image.reshape(rows, patch_size, columns, patch_size, channels)
    return cut.swapaxes(1, 2).reshape(rows * columns, patch_size * patch_size * channels)


def pad(pixels: Shaped[np.ndarray, "n D"], grid: tuple[int, int], patches: int) -> Patches:
    """The patches of a grid, lengthened to a sequence of `patches`.

    Raises:
      UserError: the grid holds more.
    """
    count = len(pixels)
    if count > patches:
        raise UserError(f"a picture of {grid[0]} × {grid[1]} patches does not fit a sequence of {patches}")
    behind = ((0, patches - count), (0, 0))
    positions = np.indices(grid, np.int32).reshape(2, -1).T
    return Patches(np.pad(pixels, behind), np.pad(positions, behind), np.arange(patches) < count, grid)
