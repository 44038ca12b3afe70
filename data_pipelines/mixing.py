"""Batches whose images are mixed in pairs, and their labels with them: mixup and CutMix."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from jmm.errors import UserError


@dataclass(frozen=True)
class Mixed:
    """A batch, each row of which is of two examples."""

    images: Shaped[np.ndarray, "B H W C"]
    labels: Float[np.ndarray, "B V"]
    """Each row still sums to what the labels' rows did, 1 for probabilities."""


def mixup(
    images: Shaped[np.ndarray, "B H W C"],
    labels: Shaped[np.ndarray, "B ..."],
    rng: np.random.Generator,
    alpha: float = 0.2,
) -> Mixed:
    """λ x + (1 − λ) x' in float32, and the same of the labels, one-hot or soft [B, V] (Zhang et al. 2018, section 2).

    λ ~ Beta(α, α) is one for the batch, as in the paper's own program; x' is the batch in random order.

    Raises:
      UserError: `alpha` not above 0, or labels that are no [B, V].
    """
    share, order = _drawn(images, labels, rng, alpha)
    whole = np.float32(share)
    pixels = images.astype(np.float32)
    return Mixed(whole * pixels + (1 - whole) * pixels[order], _mixed_labels(labels, order, share))


def cutmix(
    images: Shaped[np.ndarray, "B H W C"],
    labels: Shaped[np.ndarray, "B ..."],
    rng: np.random.Generator,
    alpha: float = 1.0,
) -> Mixed:
    """A box of each image is another's, and so is that share of its label (Yun et al. 2019, section 3.1).

    The box has the image's proportions, 1 − λ of its area and its middle anywhere, λ ~ Beta(α, α); what would lie
    outside is cut off, and the labels go by what is left. One box for the batch; the images keep their type.

    Raises:
      UserError: as `mixup`.
    """
    share, order = _drawn(images, labels, rng, alpha)
    side = math.sqrt(1 - share)
    rows, columns = (_span(length, side, rng) for length in images.shape[1:3])
    mixed = images.copy()
    mixed[:, rows, columns] = images[order, rows, columns]
    other = (rows.stop - rows.start) * (columns.stop - columns.start) / math.prod(images.shape[1:3])
    return Mixed(mixed, _mixed_labels(labels, order, 1 - other))


def _drawn(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, alpha: float
) -> tuple[float, Shaped[np.ndarray, "B"]]:
    """λ, and the order of the partners."""
    if alpha <= 0:
        raise UserError(f"alpha must be above 0, not {alpha}: without it nothing is mixed")
    if labels.ndim != 2:
        raise UserError(
            f"labels must be probabilities of classes, [{len(images)}, V], to be mixed, not {list(labels.shape)}"
        )
    return float(rng.beta(alpha, alpha)), rng.permutation(len(images))


def _span(length: int, part: float, rng: np.random.Generator) -> slice:
    """So much of a side, about a random place of it, as lies within it."""
    extent, middle = int(length * part), int(rng.integers(length))
    return slice(max(middle - extent // 2, 0), min(middle - extent // 2 + extent, length))


def _mixed_labels(labels: Shaped[np.ndarray, "B V"], order: np.ndarray, share: float) -> Float[np.ndarray, "B V"]:
    whole, soft = np.float32(share), labels.astype(np.float32)
    return whole * soft + (1 - whole) * soft[order]
