"""Mel-frequency cepstral coefficients, and how they change in time."""

import numpy as np
from jaxtyping import Float

from data_pipelines.spectrograms import HUBERT
from jmm.errors import UserError


def cepstra(log_mel: Float[np.ndarray, "T M"], count: int, lifter: float = 0.0) -> Float[np.ndarray, "T C"]:
    """The first `count` coefficients of the orthonormal DCT-II of each row (Davis & Mermelstein 1980):
    c_k = √(2/M) Σ_m x_m cos(π k (m + ½) / M), and c_0 divided by √2. With a `lifter` Q each is then weighed by
    1 + Q/2 · sin(π k / Q), as Kaldi does.

    Raises:
      UserError: more coefficients than bands, or none.
    """
    bands = log_mel.shape[1]
    if not 1 <= count <= bands:
        raise UserError(f"a spectrogram of {bands} bands has 1 to {bands} cepstral coefficients, not {count}")
    order, middle = np.arange(count), np.arange(bands) + 0.5
    basis = np.cos(np.pi / bands * middle[:, None] * order) * np.sqrt(2 / bands)
    basis[:, 0] /= np.sqrt(2)
    if lifter:
        basis *= 1 + lifter / 2 * np.sin(np.pi * order / lifter)
    return (log_mel.astype(np.float64) @ basis).astype(np.float32)


def deltas(features: Float[np.ndarray, "T C"], reach: int = 2) -> Float[np.ndarray, "T C"]:
    """The slope of each feature at each frame: of the line that fits best through the frames up to `reach` before and
    behind it, Σ_n n (x_{t+n} − x_{t−n}) / 2 Σ_n n². The first and the last frame are repeated beyond the ends."""
    padded = np.pad(features.astype(np.float64), ((reach, reach), (0, 0)), mode="edge")
    steps, count = range(1, reach + 1), len(features)
    slope = sum(n * (padded[reach + n :][:count] - padded[reach - n :][:count]) for n in steps)
    return np.asarray(slope / (2 * sum(n * n for n in steps)), np.float32)


def hubert(samples: Float[np.ndarray, "S"]) -> Float[np.ndarray, "T 39"]:
    """Of a sound at 16 kHz the features whose clusters are HuBERT's first targets (Hsu et al. 2021, section IV.A): 13
    coefficients of Kaldi's 23 bands, their slopes and the slopes of these."""
    first = cepstra(HUBERT(samples), 13, lifter=22.0)
    second = deltas(first)
    return np.concatenate([first, second, deltas(second)], axis=1)
