"""1,797 handwritten digits that come with scikit-learn, with captions: real scans, entirely offline.

The scans are 8 × 8 with 17 shades (Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits, the
test part). They are shown as dark ink on white paper, as a photo of a note looks.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from data_pipelines.captions import caption
from data_pipelines.images import affine
from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Example, Source, Split
from jmm.errors import UserError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TEMPLATES = (
    "a photo of the digit {}",
    "a handwritten {}",
    "the number {}",
    "a scan of the number {} written by hand",
    "{} in ink on white paper",
    "somebody wrote a {}",
    "the figure {}, handwritten",
    "a small picture of a {}",
)

HELD_OUT = 360


@dataclass(frozen=True)
class Digits:
    """Handwritten digits with captions, split at random once and for all: 1,437 to train on, 360 held out."""

    rotate: float = 12.0
    """Training scans are turned by up to so many degrees,"""
    scale: float = 0.12
    """enlarged or shrunk by up to this fraction,"""
    shift: float = 0.08
    """and shifted by up to this fraction of their size."""
    text_length: int = 48
    """Tokens a caption, marks included."""
    image_size: int = 16
    """Side to which the 8 × 8 scans are enlarged."""
    templates: tuple[str, ...] = field(default=TEMPLATES)
    """Forms of the caption; {} is the digit's name. Held-out scans bear the first."""

    def source(self, split: Split) -> Source:
        """uint8 [S, S, 1] images, captions and labels 0–9."""
        scans, labels = load_digits()
        images = list(map(self.preprocessor().fit, scans))
        order = np.random.default_rng(0).permutation(len(scans))
        chosen = order[HELD_OUT:] if split == "train" else order[:HELD_OUT]
        return [
            {
                "image": images[i],
                "label": int(labels[i]),
                "caption": caption(self.templates[0], NAMES[labels[i]]),
            }
            for i in chosen
        ]

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """A random caption, and a random turn, size and place."""
        template = self.templates[rng.integers(len(self.templates))]
        angle, scale, down, across = rng.uniform(-1, 1, 4)
        shift = (down * self.shift, across * self.shift)
        return {
            **example,
            "image": affine(example["image"], angle * self.rotate, 1 + scale * self.scale, shift),
            "caption": caption(template, NAMES[example["label"]]),
        }

    def preprocessor(self) -> Preprocess:
        """Grey, squashed to a square: a user's own photo should show one digit that fills it."""
        return Preprocess(
            image_size=(self.image_size, self.image_size),
            channels=1,
            resize="squash",
            text_length=self.text_length,
        )


@cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 8, 8, 1] dark on white, and labels [1797].

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError("the digits come with scikit-learn: pip install scikit-learn") from None
    pixels, labels = datasets.load_digits(return_X_y=True)
    ink = pixels.reshape(-1, 8, 8, 1) * (255 / 16)
    return np.rint(255 - ink).astype(np.uint8), labels
