"""Datasets that Hugging Face's `datasets` has saved to disk (`save_to_disk`), read without it.

    data/
      state.json                      "_data_files": [{"filename": "data-00000-of-00002.arrow"}, …]
      data-00000-of-00002.arrow

A folder of several splits holds dataset_dict.json and a folder for each of them.
"""

import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.sources.extra import needed
from data_pipelines.sources.records import Raw, Record
from jmm.errors import UserError


@dataclass(frozen=True)
class HuggingFace:
    """Rows of a saved dataset."""

    path: str
    """The folder."""
    split: str = "train"
    """Which of several splits; a dataset that has none is read whole."""

    def open(self) -> Raw:
        """The rows as they were saved.

        Raises:
          UserError: it is no such folder, lacks the split or a file, or pyarrow is not installed.
        """
        folder = Path(self.path)
        if (folder / "dataset_dict.json").is_file():
            splits = _json(folder / "dataset_dict.json").get("splits", [])
            if self.split not in splits:
                raise UserError(f"{folder} has no split {self.split}; it has {', '.join(splits)}")
            folder = folder / self.split
        if not (folder / "state.json").is_file():
            raise UserError(f"{folder} is no saved dataset: it holds no state.json")
        names = [str(each["filename"]) for each in _json(folder / "state.json").get("_data_files", [])]
        if any(Path(name).name != name for name in names):
            raise UserError(f"{folder}/state.json names a file outside its folder")
        return Tables(folder, [folder / name for name in names])


class Tables:
    """Arrow files, mapped into memory."""

    def __init__(self, folder: Path, paths: list[Path]):
        pyarrow = needed("pyarrow", "data", str(folder))
        self._folder, self._batches = folder, list[Any]()
        for path in paths:
            try:
                self._batches += pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all().to_batches()
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{path} is no readable Arrow file ({error})") from error
        self._ends = np.array(list(accumulate(map(len, self._batches))), int)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def where(self, index: int) -> str:
        """Its row."""
        return f"row {index} of {self._folder}"

    def __getitem__(self, index: int) -> Record:
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        row: Record = self._batches[number].slice(index - start, 1).to_pylist()[0]
        return row


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no readable JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found
