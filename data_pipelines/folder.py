"""A folder of the user's own images with a captions file.

    photos/
      captions.csv            file_name,caption
      harbour.jpg             harbour.jpg,"two boats in the harbour at dawn"
      trip/bridge.png         trip/bridge.png,"a stone bridge over a river"

`captions.jsonl` holds the same as one JSON object a line: {"file_name": "harbour.jpg", "caption": "…"}.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.images import affine, read_image
from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Example, Source, Split
from jmm.errors import UserError

CAPTION_FILES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")


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
        """RGB images as they lie on disk, and their captions; a pair is read when it is asked for."""
        if self.hold_out < 2:
            raise UserError(f"data.hold_out must be at least 2, not {self.hold_out}: one pair in so many is held out")
        pairs = read_captions(Path(self.path))
        held = [i % self.hold_out == self.hold_out - 1 for i in range(len(pairs))]
        return FolderSource([pair for pair, out in zip(pairs, held, strict=True) if out == (split == "held_out")])

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """A random turn, size and place of what the model will see."""
        image = self.preprocess.fit(example["image"])
        angle, scale, down, across = rng.uniform(-1, 1, 4)
        shift = (down * self.shift, across * self.shift)
        return {**example, "image": affine(image, angle * self.rotate, 1 + scale * self.scale, shift)}

    def preprocessor(self) -> Preprocess:
        """As configured."""
        return self.preprocess


@dataclass(frozen=True)
class FolderSource:
    """Reads pairs when they are asked for."""

    pairs: list[tuple[Path, str]]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        path, caption = self.pairs[index]
        return {"image": read_image(path), "caption": caption}


def read_captions(folder: Path) -> list[tuple[Path, str]]:
    """The pairs that the captions file of a folder lists, in its order.

    Raises:
      UserError: no folder, no captions file, a row without `file_name` or `caption`, a file that is missing or
        lies outside the folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} holds no captions file ({', '.join(CAPTION_FILES)})")
    pairs = [_pair(folder, found[0], line, row) for line, row in _rows(found[0])]
    if not pairs:
        raise UserError(f"{found[0]} lists no images")
    return pairs


def _rows(file: Path) -> Iterable[tuple[int, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                reader = csv.DictReader(lines)
                yield from ((reader.line_num, row) for row in reader)
            else:
                yield from ((number, _json(file, number, line)) for number, line in enumerate(lines, 1) if line.strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not readable as UTF-8 text ({error})") from error


def _json(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"line {number} of {file} is no JSON object ({error.msg})") from error


def _pair(folder: Path, file: Path, line: int, row: Any) -> tuple[Path, str]:
    name, caption = (row.get("file_name"), row.get("caption")) if isinstance(row, dict) else (None, None)
    if not (isinstance(name, str) and name and isinstance(caption, str) and caption):
        raise UserError(f"line {line} of {file} needs a file_name and a caption")
    path = folder / name
    try:
        inside, there = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(f"line {line} of {file} names a file that cannot exist ({error})") from error
    if not inside:
        raise UserError(f"line {line} of {file} names {name}, which lies outside {folder}")
    if not there:
        raise UserError(f"line {line} of {file} names {name}, which is not in {folder}")
    return path, caption
