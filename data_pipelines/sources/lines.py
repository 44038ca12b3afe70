"""Files of one JSON object a line, read in any order."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import files
from data_pipelines.broken import Broken
from jmm.errors import UserError


class JSONLines:
    """The objects of a file. Where its lines begin is found once; they are read when they are asked for."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UserError(f"there is no {path}")
        starts, ends, place = [], [], 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    starts.append(place)
                    ends.append(place + len(line))
                place += len(line)
        if not starts:
            raise UserError(f"{path} is empty")
        self._starts, self._ends = np.array(starts), np.array(ends)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = int(self._starts[index]), int(self._ends[index])
        try:
            found = json.loads(files.read(str(self.path), start, end - start))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise Broken("record", f"it is no JSON ({error})") from error
        if not isinstance(found, dict):
            raise Broken("record", f"it is {type(found).__name__}, not an object")
        return found
