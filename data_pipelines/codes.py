"""A dataset whose pictures an image tokenizer has read once (`jmm encode`), so that a second stage trains on ids.

FOLDER/
  codes.json               rows and columns of codes, and how many kinds there are
  train.array_record       one example a record: its texts and label as a line of JSON, and behind it its codes,
  held_out.array_record    row by row, each two bytes, the lower first
  tokenizer/               the model that made them (`jmm.load`)
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Int

from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Dataset, Example, Source, Split
from jmm.errors import UserError

DESCRIPTION, TOKENIZER = "codes.json", "tokenizer"
KEPT = ("caption", "prompt", "answer", "answers", "kind", "label")
"""Fields of an example that are kept beside its codes."""
MOST = 1 << 16
"""Kinds of codes that two bytes tell apart."""


@dataclass(frozen=True)
class Codes:
    """Codes and texts of a dataset."""

    path: str
    """The folder that `jmm encode` wrote."""
    data: Dataset
    """What was encoded; the texts are read as its preprocessing says."""

    def source(self, split: Split) -> Source:
        """Examples with `codes` int32 [h, w] and the texts of the dataset; a record is read when it is asked for.

        Raises:
          UserError: the folder is none that `jmm encode` wrote, or a file of it is torn.
        """
        return CodeSource(Path(self.path), split)

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """Unchanged: its picture is no longer there."""
        return example

    def preprocessor(self) -> Preprocess:
        """That of the dataset."""
        return self.data.preprocessor()

    @property
    def tokenizer(self) -> Path:
        """The model that made the codes."""
        return Path(self.path) / TOKENIZER


@dataclass(frozen=True)
class CodeSource:
    """Reads records when they are asked for."""

    folder: Path
    split: Split

    def __post_init__(self) -> None:
        """Raises UserError, as `Codes.source` does."""
        expected = self._description["examples"][self.split]
        if len(self) != expected:
            raise UserError(f"{self._file} is torn: it has {len(self)} examples, and {DESCRIPTION} says {expected}")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return unpacked(self._records[index], self._description["grid"])

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.split}.array_record"

    @cached_property
    def _description(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
            rows, columns = map(int, found["grid"])
            examples = {split: int(found["examples"][split]) for split in get_args(Split)}
        except OSError as error:
            raise UserError(f"{self.folder} is no folder of codes: it holds no readable {DESCRIPTION}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder / DESCRIPTION} is none that jmm encode wrote") from error
        return {"grid": (rows, columns), "examples": examples}

    @cached_property
    def _records(self) -> Any:
        from grain.sources import ArrayRecordDataSource

        if not self._file.is_file():
            raise UserError(f"{self.folder} holds no {self._file.name}")
        try:
            source = ArrayRecordDataSource([str(self._file)])
            len(source)
        except Exception as error:  # what the reader raises is no documented kind
            raise UserError(f"{self._file} is no file of records, or is torn") from error
        return source


def packed(example: Example, codes: Int[np.ndarray, "h w"]) -> bytes:
    """The record of an example.

    Raises:
      UserError: a code that two bytes cannot hold.
    """
    if not 0 <= codes.min() <= codes.max() < MOST:
        raise UserError(f"codes must lie from 0 to {MOST - 1}, not at {codes.max()}")
    kept = {name: example[name] for name in KEPT if name in example}
    return json.dumps(kept).encode() + b"\n" + codes.astype("<u2").tobytes()


def unpacked(record: bytes, grid: tuple[int, int]) -> Example:
    """The example of a record.

    Raises:
      UserError: it is none with so many codes.
    """
    header, _, raw = record.partition(b"\n")
    try:
        codes = np.frombuffer(raw, "<u2").reshape(grid).astype(np.int32)
        return {**json.loads(header), "codes": codes}
    except (ValueError, TypeError) as error:
        raise UserError(f"a record is no example with {grid[0]}×{grid[1]} codes") from error
