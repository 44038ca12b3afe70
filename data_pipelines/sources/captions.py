"""Captions files of a folder: captions.csv with the columns `file_name` and `caption`, or captions.jsonl with an object
a line that has them."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jmm.errors import UserError

CAPTION_FILES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")


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


def _fields(file: Path, line: int, row: Any) -> tuple[str, str]:
    name, caption = (row.get("file_name"), row.get("caption")) if isinstance(row, dict) else (None, None)
    if not (isinstance(name, str) and name and isinstance(caption, str) and caption):
        raise UserError(f"line {line} of {file} needs a file_name and a caption")
    return name, caption


def _pair(folder: Path, file: Path, line: int, row: Any) -> tuple[Path, str]:
    name, caption = _fields(file, line, row)
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


def first_name(folder: Path) -> str | None:
    """The first file or folder that a captions file names; None: there is no captions file, or nothing in it.

    Raises:
      UserError: its first line has no name or no caption.
    """
    for file in (folder / name for name in CAPTION_FILES):
        if file.is_file():
            return next((_fields(file, line, row)[0] for line, row in _rows(file)), None)
    return None


def optional_captions(folder: Path, found: Sequence[Path]) -> dict[str, str]:
    """The captions of files or folders that were found, by their path below the folder; empty without a captions file.

    Raises:
      UserError: it names one that was not found.
    """
    files = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if not files:
        return {}
    captions = {}
    names = {path.relative_to(folder).as_posix() for path in found}
    for line, row in _rows(files[0]):
        name, caption = _fields(files[0], line, row)
        if name not in names:
            raise UserError(f"line {line} of {files[0]} names {name}, which is not in {folder}")
        captions[name] = caption
    return captions
