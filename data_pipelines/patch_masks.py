"""Which patches of an image a model does not see: random ones, and blocks. True is hidden."""

import math

import numpy as np
from jaxtyping import Bool

from jmm.errors import UserError


def random_mask(patches: int, ratio: float, rng: np.random.Generator) -> Bool[np.ndarray, "N"]:
    """Patches drawn without replacement, each as likely (MAE, He et al. 2022, section 3, "Masking").

    N − ⌊N (1 − ratio)⌋ of N are hidden, the same number for every image, so that what is seen has one length.

    Raises:
      UserError: a ratio not from 0 to 1.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"the ratio of hidden patches must be from 0 to 1, not {ratio}")
    seen = int(round(patches * (1 - ratio), 6))  # 10 · (1 − 0.9) is a hair less than 1
    return rng.permutation(patches) >= seen


def block_mask(
    grid: tuple[int, int],
    rng: np.random.Generator,
    ratio: float = 0.4,
    smallest: int = 16,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Bool[np.ndarray, "h w"]:
    """Blocks of patches until more than `ratio` of the grid is hidden (BEiT, Bao et al. 2022, algorithm 1).

    A block has from `smallest` patches to what is missing; its height over its width lies in `aspect`, log-uniform as
    in BEiT's own program, where the paper's uniform would have most blocks high; what is larger than the grid is cut.
    Blocks may overlap, and the last may hide more than was missing: the number differs from image to image.

    Raises:
      UserError: a ratio not from 0 to below 1, or `smallest` or a side of the grid below 1.
    """
    if not 0 <= ratio < 1 or min(smallest, *grid) < 1:
        raise UserError(
            "the ratio of hidden patches must be from 0 to below 1, smallest and both sides of the grid at least 1,"
            f" not {ratio}, {smallest} and {grid}"
        )
    hidden = np.zeros(grid, bool)
    wanted = ratio * hidden.size
    while (count := int(hidden.sum())) <= wanted:
        area = rng.uniform(smallest, max(smallest, wanted - count))
        shape = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        height, width = _side(math.sqrt(area * shape), grid[0]), _side(math.sqrt(area / shape), grid[1])
        top, left = rng.integers(grid[0] - height + 1), rng.integers(grid[1] - width + 1)
        hidden[top : top + height, left : left + width] = True
    return hidden


def _side(length: float, longest: int) -> int:
    return min(max(round(length), 1), longest)
