"""Log-mel spectrograms of sounds and their cepstra: the features of Whisper, AST and HuBERT, in NumPy.

Samples are float32 [S] in [−1, 1]; a spectrogram has a row for each frame: [T, M]. transformers' Whisper wants [M, T].
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jmm.errors import UserError

BLOCK = 4096
"""Frames that are transformed at once: an hour of sound then needs no gigabytes."""

WHISPER_SAMPLES = 480_000
"""30 seconds at 16 kHz, on which Whisper was trained (Radford et al. 2023, section 2.2)."""

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
"""Of AudioSet's log-mel values (Gong et al. 2021, section 2.1 and the code beside it)."""

Scale = Literal["htk", "slaney"]
Window = Literal["hann", "hamming", "povey", "rectangular"]


@dataclass(frozen=True)
class LogMel:
    """How a sound becomes a log-mel spectrogram; what stands here by default is Whisper's."""

    bands: int = 80
    """M."""
    rate: int = 16_000
    """Samples a second."""
    length: int = 400
    """Samples of a window,"""
    hop: int = 160
    """from the beginning of a window to that of the next,"""
    fft: int = 400
    """and those of the Fourier transform: a window is filled up with zeros."""
    window: Window = "hann"
    """povey is Kaldi's: Hann's to the power of 0.85."""
    periodic: bool = True
    """The window is that of one more sample, without its last."""
    centred: bool = True
    """Frame t is centred on sample t · hop, and the sound mirrored at its ends; if not, only whole windows count."""
    remove_mean: bool = False
    """Each window's mean is taken off,"""
    preemphasis: float = 0.0
    """and then of each sample this share of the one before it."""
    power: Literal[1, 2] = 2
    """Magnitudes, or their squares."""
    low: float = 0.0
    """Where the first band begins, in Hz,"""
    high: float | None = None
    """and where the last one ends; None: half the rate."""
    scale: Scale = "slaney"
    """On which the bands are equally wide."""
    area: bool = True
    """Each band is divided by half its width (Slaney 1998), rather than 1 at its peak."""
    triangles: Literal["hertz", "mel"] = "hertz"
    """The axis on which bands rise and fall in straight lines."""
    log: Literal["ln", "log10", "decibel"] | None = "log10"
    """decibel: 10 log10 of a power, 20 log10 of a magnitude. None: no logarithm."""
    floor: float = 1e-10
    """What is smaller counts as so much."""

    def __post_init__(self) -> None:
        """Raises UserError where these settings contradict each other."""
        if not 1 <= self.length <= self.fft or self.hop < 1 or self.bands < 1:
            raise UserError(
                f"windows of {self.length} samples, {self.hop} apart, a transform of {self.fft}, {self.bands} bands: "
                "each must be positive, and the transform as long as a window"
            )
        if not 0 <= self.low < self.top <= self.rate / 2:
            raise UserError(f"bands lie between 0 and {self.rate / 2:g} Hz, not between {self.low:g} and {self.top:g}")
        if self.floor <= 0:
            raise UserError(f"the smallest value must have a logarithm, which {self.floor:g} has not")

    @property
    def top(self) -> float:
        """Where the last band ends, in Hz."""
        return self.rate / 2 if self.high is None else self.high

    def __call__(self, samples: Float[np.ndarray, "S"]) -> Float[np.ndarray, "T M"]:
        """Of a sound, float32; computed in float64.

        Raises:
          UserError: the sound is too short for a frame.
        """
        edge = self.length // 2 if self.centred else 0
        if len(samples) < (edge + 1 if self.centred else self.length):
            raise UserError(f"a sound of {len(samples)} samples is too short for windows of {self.length}")
        padded = np.pad(samples, edge, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.length)[:: self.hop]
        return np.concatenate([self._rows(frames[i : i + BLOCK]) for i in range(0, len(frames), BLOCK)])

    def _rows(self, frames: Float[np.ndarray, "T W"]) -> Float[np.ndarray, "T M"]:
        frames = frames.astype(np.float64)
        if self.remove_mean:
            frames -= frames.mean(axis=1, keepdims=True)
        # The first sample follows itself.
        frames -= self.preemphasis * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
        spectrum = np.abs(np.fft.rfft(frames * window(self.window, self.length, self.periodic), self.fft))
        mel = np.maximum(spectrum**self.power @ mel_filters(self), self.floor)
        if self.log is not None:
            mel = np.log(mel) if self.log == "ln" else np.log10(mel)
        return (mel * (20 / self.power if self.log == "decibel" else 1)).astype(np.float32)


KALDI: dict[str, Any] = {
    **{"fft": 512, "periodic": False, "centred": False, "remove_mean": True, "preemphasis": 0.97, "low": 20.0},
    **{"scale": "htk", "area": False, "triangles": "mel", "log": "ln", "floor": float(np.finfo(np.float32).eps)},
}
"""Kaldi's fbank at 16 kHz, as torchaudio computes it, of 25 ms every 10 ms."""

AST = LogMel(bands=128, **KALDI)
"""Of the Audio Spectrogram Transformer (Gong et al. 2021, section 2.1), before its mean is taken off."""

HUBERT = LogMel(bands=23, window="povey", **KALDI)
"""That of which HuBERT's first targets are the cepstra."""


def window(kind: Window, length: int, periodic: bool) -> Float[np.ndarray, "W"]:
    """The weights of a window's samples; all but the rectangular fall to (nearly) 0 at both ends."""
    if kind == "rectangular":
        return np.ones(length)
    cosine = np.cos(2 * np.pi * np.arange(length) / max(length - (not periodic), 1))
    if kind == "hamming":
        return 0.54 - 0.46 * cosine
    return (0.5 - 0.5 * cosine) ** (0.85 if kind == "povey" else 1)


def to_mel(hertz: Float[np.ndarray, "*n"], scale: Scale) -> Float[np.ndarray, "*n"]:
    """Pitch in mel. HTK: 2595 log10(1 + f / 700) (O'Shaughnessy 1987). Slaney 1998: 3 to 200 Hz up to 1 kHz, which is
    15, and from there 27 to a factor of 6.4."""
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4))


def to_hertz(mel: Float[np.ndarray, "*n"], scale: Scale) -> Float[np.ndarray, "*n"]:
    """The inverse of `to_mel`."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))


@lru_cache(maxsize=16)
def mel_filters(form: LogMel) -> Float[np.ndarray, "F M"]:
    """The weight of each of fft // 2 + 1 frequencies in each band: triangles, each from the peak of the band below to
    that of the band above. Where a band is narrower than the frequencies are apart, it may hold none of them."""
    first, last = to_mel(np.asarray([form.low, form.top], float), form.scale)
    edges = np.linspace(first, last, form.bands + 2)
    places = np.arange(form.fft // 2 + 1) * (form.rate / form.fft)
    if form.triangles == "mel":
        places = to_mel(places, form.scale)
    else:
        edges = to_hertz(edges, form.scale)
    below, peak, above = edges[:-2], edges[1:-1], edges[2:]
    rise, fall = (places[:, None] - below) / (peak - below), (above - places[:, None]) / (above - peak)
    weights = np.maximum(0, np.minimum(rise, fall)) * (2 / (above - below) if form.area else 1)
    weights.setflags(write=False)
    return weights


def fit_length(samples: Float[np.ndarray, "S"], length: int) -> Float[np.ndarray, "R"]:
    """The first `length` samples, or all of them and silence."""
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def whisper(
    samples: Float[np.ndarray, "S"], bands: int = 80, length: int = WHISPER_SAMPLES
) -> Float[np.ndarray, "T M"]:
    """What Whisper hears (Radford et al. 2023, section 2.2): log10 power of `length` samples at 16 kHz, at most 8 below
    the loudest, and scaled to about [−1, 1]. large-v3 has 128 bands."""
    rows = LogMel(bands=bands)(fit_length(samples, length))[:-1]
    return (np.maximum(rows, rows.max() - 8) + 4) / 4


def ast(samples: Float[np.ndarray, "S"], frames: int = 1024) -> Float[np.ndarray, "T M"]:
    """What the Audio Spectrogram Transformer sees of a sound at 16 kHz (Gong et al. 2021, section 2.1): `frames` rows,
    where the sound is shorter zeros behind it, of mean 0 and standard deviation ½ over AudioSet."""
    rows = AST(samples)[:frames]
    rows = np.pad(rows, ((0, frames - len(rows)), (0, 0)))
    return ((rows - AUDIOSET_MEAN) / (2 * AUDIOSET_STD)).astype(np.float32)
