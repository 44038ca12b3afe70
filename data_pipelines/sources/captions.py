"""Captions files of a folder: captions.csv with the columns `file_name` and `caption`, or captions.jsonl with an object
a line that has them."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines import files
from data_pipelines.broken import Broken
from jmm.errors import UserError

CAPTION_FILES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class CaptionFile:
    """The lines of a captions file."""

    path: str
    lines: list[tuple[int, Any]]
    """Each with its number: a row of a table, or a line of JSON that is not read yet."""

    def where(self, index: int) -> str:
        """What a line is called in an error."""
        return f"line {self.lines[index][0]} of {self.path}"

    def row(self, index: int) -> tuple[str, dict[str, Any]]:
        """The file that a line names, and its other columns.

        Raises:
          Broken: it is no JSON object, or names no file.
        """
        row = self.lines[index][1]
        if isinstance(row, str):
            try:
                row = json.loads(row)
            except json.JSONDecodeError as error:
                raise Broken("record", f"it is no JSON object ({error.msg})") from error
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            raise Broken("field", "it names no file as file_name")
        # Of a row that is longer than the table's head the rest has no name.
        return name, {key: value for key, value in row.items() if key not in (None, "file_name")}


def read_captions(folder: str) -> CaptionFile | None:
    """The captions file of a folder, also in a bucket; None: there is none.

    Raises:
      UserError: it is no text, or the folder no folder.
    """
    there = files.listing(folder)
    name = next((name for name in CAPTION_FILES if name in there), None)
    if name is None:
        return None
    path = files.join(folder, name)
    try:
        text = files.read(path, 0, files.size(path)).decode("utf-8-sig")
        if not name.endswith(".csv"):
            return CaptionFile(path, [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()])
        reader = csv.DictReader(io.StringIO(text, newline=""))
        return CaptionFile(path, [(reader.line_num, row) for row in reader])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not readable as UTF-8 text ({error})") from error


def optional_captions(folder: Path, found: Sequence[Path]) -> dict[str, str]:
    """The captions of files or folders that were found, by their path below the folder; empty without a captions file.

    Raises:
      UserError: a line without a name or a caption, or one that names what was not found.
    """
    file = read_captions(str(folder))
    captions: dict[str, str] = {}
    names = {path.relative_to(folder).as_posix() for path in found}
    for index in range(len(file.lines) if file else 0):
        assert file is not None
        try:
            name, others = file.row(index)
        except Broken as error:
            raise UserError(f"{file.where(index)}: {error}") from error
        if name not in names:
            raise UserError(f"{file.where(index)} names {name}, which is not in {folder}")
        if not others.get("caption"):
            raise UserError(f"{file.where(index)} has no caption")
        captions[name] = others["caption"]
    return captions
