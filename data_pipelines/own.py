"""The user's own data in any layout of `data_pipelines.sources`."""

from dataclasses import dataclass, field

import numpy as np

from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Example, Source, Split
from data_pipelines.sources.records import Examples, Fields, Records
from data_pipelines.view import RandomView
from jmm.errors import UserError


@dataclass(frozen=True)
class OwnData(RandomView):
    """Records of one layout, and what the model sees of them."""

    records: Records
    """Where they lie: Folder, WebDataset, Parquet, HuggingFace, TFDS, ArrayRecord."""
    held_out: Records | None = None
    """Records to evaluate on, as where a dataset has a split for that; None: part of the others is held out."""
    fields: Fields = field(default_factory=Fields)
    """What the names in a record stand for."""
    hold_out: int = 10
    """Without records of their own, one in this many is held out."""
    area: tuple[float, float] = field(default=(0.9, 1.0), kw_only=True)
    """The part of a training image that is seen, of all of it; OpenCLIP's, whose captions must stay true of it."""
    mirror: bool = field(default=False, kw_only=True)
    """Half the training images are mirrored, which is wrong where captions know left from right."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """Size of images and length of texts."""

    def source(self, split: Split) -> Source:
        """Raw examples, read when they are asked for."""
        if self.held_out is not None:
            return Examples((self.held_out if split == "held_out" else self.records).open(), self.fields)
        return held_apart(Examples(self.records.open(), self.fields), self.hold_out, split)

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """A random view of the image, or of all frames of a video, at the size that the model reads, and a random part
        of a sound."""
        cfg, seen = self.preprocess, dict(example)
        if "image" in example:
            seen["image"] = self.view(example["image"], cfg.image_size, cfg.channels, rng)
        if "video" in example and cfg.video_frames:
            same = int(rng.integers(1 << 62))  # all frames are seen alike
            frames = [(each, np.random.default_rng(same)) for each in cfg.frames(example["video"])]
            seen["video"] = np.stack([self.view(each, cfg.image_size, cfg.channels, rng) for each, rng in frames])
        if "audio" in example and cfg.audio_length:
            start = int(rng.integers(max(len(example["audio"]) - cfg.audio_length, 0) + 1))
            seen["audio"] = cfg.clip(example["audio"], start)
        return seen

    def preprocessor(self) -> Preprocess:
        """As configured."""
        return self.preprocess


def held_apart(source: Source, hold_out: int, split: Split) -> Source:
    """The training examples of a source of which one in `hold_out` is held out, or those that are.

    Raises:
      UserError: a `hold_out` below 2.
    """
    if hold_out < 2:
        raise UserError(f"data.hold_out must be at least 2, not {hold_out}: one example in so many is held out")
    return Every(source, hold_out, split == "held_out")


@dataclass(frozen=True)
class Every:
    """Every n-th example of a source, or all others; without a list of them, which for many takes gigabytes."""

    source: Source
    count: int
    these: bool

    def __len__(self) -> int:
        held = len(self.source) // self.count
        return held if self.these else len(self.source) - held

    def __getitem__(self, index: int) -> Example:
        if self.these:
            return self.source[index * self.count + self.count - 1]
        return self.source[index // (self.count - 1) * self.count + index % (self.count - 1)]
