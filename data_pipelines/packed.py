"""A dataset of texts whose batches are rows of several texts.

The global list of examples is cut into windows of W consecutive ones. Each window is packed on its own into R ≤ W rows,
and the rows of all windows, one after another, are the list that batches are cut from: a batch may begin in one window
and end in another, no row is left out, and none is filled up for the sake of a batch. Which examples a window has and
which rows they make depends on the seed and W alone. So row r of window w has the number w·W + r on any number of
processes and threads, and the number of the next row is the position of the whole pipeline: who reads on from there
packs that one window once more. From r = R on the numbers of a window have no row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.packing import pack
from data_pipelines.preprocess import Arrays, Preprocess
from data_pipelines.protocol import Dataset, Example, Source, Split
from jmm.errors import UserError

FIELDS = ("segment", "position")
"""What a model must read beside `text` and `text_mask`."""

NEXT = "next_example"
"""The field of a packed batch, no array of the model, that gives the number of the row behind it."""


@dataclass(frozen=True)
class Packed:
    """The training texts of a dataset, several to a row, for models that read `segment` and `position`; a batch has so
    many rows as an experiment's `batch_size` says. Held-out examples stay one to a row."""

    dataset: Dataset
    """Examples with captions, or with prompts and answers."""
    length: int
    """Tokens of a row; a text has at most as many."""
    window: int = 1024
    """Texts that are packed together. More of them fill the rows better, and take longer to read again when a run goes
    on from a checkpoint."""

    def __post_init__(self) -> None:
        """Raises UserError for a window without texts, and for rows that are shorter than a text may be."""
        if self.window < 1:
            raise UserError(f"a window needs at least 1 text, not {self.window}")
        longest = self.dataset.preprocessor().text_length
        if longest > self.length:
            raise UserError(f"rows of {self.length} tokens do not hold texts of {longest}, which the data may have")

    def source(self, split: Split) -> Source:
        """As of the dataset."""
        return self.dataset.source(split)

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """As of the dataset."""
        return self.dataset.augment(example, rng)

    def preprocessor(self) -> Preprocess:
        """That of the dataset."""
        return self.dataset.preprocessor()

    def pack(self, examples: Sequence[Arrays]) -> Arrays:
        """The rows of a window; a text without tokens is left out.

        Raises:
          UserError: an example without a text, or a window without tokens.
        """
        missing = [each for each in examples if "text" not in each]
        if missing:
            raise UserError(f"texts are packed, and an example of the data has only {', '.join(missing[0])}")
        texts = [each["text"][each["text_mask"]] for each in examples]
        return pack([{"text": text} for text in texts if len(text)], {"text": self.length})

    def batches(
        self, windows: Iterator[Arrays], position: int, batch_size: int, process: int, processes: int
    ) -> Iterator[Arrays]:
        """This process's share of each batch of `batch_size` rows, from the row of number `position` on; `NEXT` is the
        number of the row behind the batch.

        Args:
          windows: packed, from that on in which the row lies.
          position: window · W + row.
          batch_size: global; divides by `processes`.
          process: index of this process.
          processes: number of processes.

        Raises:
          UserError: there is no such row.
        """
        number, at = divmod(position, self.window)
        rows = batch_size // processes
        share = slice(process * rows, (process + 1) * rows)
        parts: list[Arrays] = []
        missing = batch_size
        for packed in windows:
            count = len(packed["text"])
            if at >= count:
                raise UserError(f"window {number} of the data has {count} rows and no row {at}: the data has changed")
            while at < count:
                part = {name: field[at : at + missing] for name, field in packed.items()}
                parts.append(part)
                at, missing = at + len(part["text"]), missing - len(part["text"])
                if not missing:
                    behind = number * self.window + at if at < count else (number + 1) * self.window
                    whole = {name: np.concatenate([part[name] for part in parts])[share] for name in packed}
                    yield whole | {NEXT: np.asarray(behind)}
                    parts, missing = [], batch_size
            number, at = number + 1, 0
