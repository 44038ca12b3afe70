"""Which layout a path has, told by what lies there."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipelines import files
from data_pipelines.broken import Broken
from data_pipelines.images import IMAGE_SUFFIXES
from data_pipelines.sources.array_record import ArrayRecord
from data_pipelines.sources.captions import CAPTION_FILES, read_captions
from data_pipelines.sources.folder import Folder
from data_pipelines.sources.frames import Frames
from data_pipelines.sources.hugging_face import HuggingFace
from data_pipelines.sources.pages import Pages
from data_pipelines.sources.parquet import Parquet
from data_pipelines.sources.records import Raw, Records
from data_pipelines.sources.sound import SUFFIXES, Sounds
from data_pipelines.sources.tfds import TFDS
from data_pipelines.sources.web_dataset import WebDataset
from jmm.errors import UserError

BY_SUFFIX = {".tar": WebDataset, ".parquet": Parquet, ".array_record": ArrayRecord}

KNOWN = (
    "a folder with captions.csv, captions.jsonl or pages.jsonl, of WAV or FLAC files, or of folders of frames; *.tar, "
    "*.parquet or *.array_record; a dataset of TFDS or one that Hugging Face's datasets has saved"
)


@dataclass(frozen=True)
class Found:
    """Records of whatever layout lies at a path."""

    path: str
    """A file, a folder, or names with *, ? or {000..127}."""
    split: str = "train"
    """Of a dataset that has several."""

    def open(self) -> Raw:
        """As their layout opens them.

        Raises:
          UserError: there is nothing of a known layout.
        """
        return records(self.path, self.split).open()


def records(path: str, split: str = "train") -> Records:
    """The records at a path.

    Raises:
      UserError: there is nothing of a known layout.
    """
    name = (path if files.exists(path) else path.split(",")[0]).rstrip("/")
    for suffix, layout in BY_SUFFIX.items():
        if re.search(rf"{re.escape(suffix)}(?![a-z])", name.rsplit("/", 1)[-1]):
            return layout(path)
    if files.is_remote(path):
        if files.listing(path) & set(CAPTION_FILES):
            return Folder(path)
        found = {Path(each).suffix for each in files.shards(path, tuple(BY_SUFFIX))}
        return BY_SUFFIX[found.pop()](path)
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no {path}" if not folder.exists() else f"{path} is of no known layout: {KNOWN}")
    names = {each.name for each in folder.iterdir()}
    if names & {"state.json", "dataset_dict.json"}:
        return HuggingFace(path, split)
    if {"dataset_info.json", "features.json"} <= names:
        return TFDS(path, split)
    if "pages.jsonl" in names:
        return Pages(path)
    for suffix, layout in BY_SUFFIX.items():
        if any(name.endswith(suffix) for name in names):
            return layout(path)
    if names & set(CAPTION_FILES):
        first = _first_name(path)
        return Frames(path) if first and (folder / first).is_dir() else _by_suffix(first)(path)
    files_below = (each for each in folder.rglob("*") if each.is_file())
    for each in files_below:
        if each.suffix.lower() in SUFFIXES:
            return Sounds(path)
        if each.suffix.lower() in IMAGE_SUFFIXES and each.parent.parent == folder:
            return Frames(path)
    raise UserError(f"{path} is of no known layout: {KNOWN}")


def _first_name(folder: str) -> str:
    """What the first line of a captions file names that names anything."""
    file = read_captions(folder)
    for index in range(len(file.lines) if file else 0):
        assert file is not None
        with suppress(Broken):
            return file.row(index)[0]
    return ""


def _by_suffix(name: str) -> type[Sounds] | type[Folder]:
    return Sounds if name.lower().endswith(SUFFIXES) else Folder
