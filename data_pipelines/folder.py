"""A folder of the user's own images with a captions file.

    photos/
      captions.csv            file_name,caption
      harbour.jpg             harbour.jpg,"two boats in the harbour at dawn"
      trip/bridge.png         trip/bridge.png,"a stone bridge over a river"

`captions.jsonl` holds the same as one JSON object a line: {"file_name": "harbour.jpg", "caption": "…"}.
"""

from dataclasses import dataclass, field

import numpy as np

from data_pipelines.broken import Broken
from data_pipelines.images import affine
from data_pipelines.own import held_apart
from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Example, Source, Split
from data_pipelines.sources.folder import Folder
from data_pipelines.sources.records import Examples, Fields
from jmm.errors import UserError


@dataclass(frozen=True)
class ImageFolder:
    """Images and captions from a folder; every n-th pair is held out."""

    path: str
    """The folder; it holds captions.csv or captions.jsonl with `file_name` and `caption`."""
    hold_out: int = 10
    """One pair in this many is held out for evaluation."""
    rotate: float = 5.0
    """Training images are turned by up to so many degrees,"""
    scale: float = 0.15
    """enlarged or shrunk by up to this fraction,"""
    shift: float = 0.05
    """and shifted by up to this fraction of their size."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """Size of images and length of captions."""

    def source(self, split: Split) -> Source:
        """RGB images as they lie on disk, and their captions; a pair is read when it is asked for.

        Raises:
          UserError: a line of the captions file without a caption, or without a file that is there: of so small a
            dataset nothing is left out.
        """
        pairs = Folder(self.path).open()
        for index in range(len(pairs)):
            try:
                pairs.check(index)
            except Broken as error:
                raise UserError(f"{pairs.where(index)}: {error}") from error
        return held_apart(Examples(pairs, Fields()), self.hold_out, split)

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """A random turn, size and place of what the model will see."""
        image = self.preprocess.fit(example["image"])
        angle, scale, down, across = rng.uniform(-1, 1, 4)
        shift = (down * self.shift, across * self.shift)
        return {**example, "image": affine(image, angle * self.rotate, 1 + scale * self.scale, shift)}

    def preprocessor(self) -> Preprocess:
        """As configured."""
        return self.preprocess
