"""Examples of a stream with text on both sides of an image (RuDOLPH): what is given stands on the left, the codes of
the picture in the middle, and what is to be written of it on the right."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from data_pipelines.codes import Codes
from data_pipelines.mixture import Mixture
from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Dataset, Example, Source, Split
from jmm.errors import UserError

Task = Literal["draw", "tell", "answer"]

TELL = "Answer"
"""What a right text begins with: nothing predicts its first token."""


@dataclass(frozen=True)
class Stream:
    """One task on codes; a mixture of several alternates between them."""

    codes: Codes
    """Pictures' codes and texts, whose preprocessing has a `target_length`, that of the right text."""
    task: Task = "draw"
    """draw: the caption on the left, and nothing behind the picture. tell: nothing on the left, and the caption on the
    right. answer: the question on the left, and its answer on the right."""

    def source(self, split: Split) -> Source:
        """Examples with `codes`, `prompt` and `answer`; `answers`, all that may be written, without `TELL`."""
        return StreamSource(self.codes.source(split), self.task)

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """Unchanged."""
        return example

    def preprocessor(self) -> Preprocess:
        """That of the codes; a caption is asked for by no words."""
        return replace(self.codes.preprocessor(), describe="")


@dataclass(frozen=True)
class StreamSource:
    """Puts the texts where they belong."""

    source: Source
    task: Task

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        needed = ("prompt", "answer") if self.task == "answer" else ("caption",)
        missing = [name for name in needed if name not in example]
        if missing:
            what = f"no {missing[0]}, without which there is nothing to {self.task}"
            raise UserError(f"an example of the codes has {what}")
        if self.task == "answer":
            right = example["answer"]
            return example | {"answer": f"{TELL} {right}", "answers": example.get("answers", (right,))}
        caption = example["caption"]
        if self.task == "draw":
            return example | {"prompt": caption, "answer": ""}
        return example | {"prompt": "", "answer": f"{TELL} {caption}", "answers": (caption,), "kind": ""}


def codes_of(data: Dataset) -> Codes | None:
    """The codes that a dataset, or the first part of a mixture, consists of; None: it has none."""
    if isinstance(data, Mixture):
        found = (codes_of(part.dataset) for part in data.parts)
        return next((codes for codes in found if codes), None)
    data = data.codes if isinstance(data, Stream) else data
    return data if isinstance(data, Codes) else None
