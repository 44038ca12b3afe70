"""Captions as answers, for models whose every task is a prompt."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Dataset, Example, Source, Split


@dataclass(frozen=True)
class Asked:
    """A dataset of captions, each the answer to one prompt."""

    captions: Dataset
    """Images and captions."""
    prompt: str
    """What is asked of every image."""

    def source(self, split: Split) -> Source:
        """The examples with `prompt` and `answer`; the caption stays."""
        return AskedSource(self.captions.source(split), self.prompt)

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """As that of the captions; what is asked stays."""
        changed = self.captions.augment(example, rng)
        return {**changed, "answer": changed["caption"]}

    def preprocessor(self) -> Preprocess:
        """That of the captions."""
        return self.captions.preprocessor()


@dataclass(frozen=True)
class AskedSource:
    """Adds the prompt to each example."""

    captions: Source
    prompt: str

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Example:
        example = self.captions[index]
        return {**example, "prompt": self.prompt, "answer": example["caption"]}
