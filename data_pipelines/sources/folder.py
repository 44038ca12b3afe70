"""A folder of images with a captions file (`sources.captions`)."""

from dataclasses import dataclass
from pathlib import Path

from data_pipelines.sources.captions import read_captions
from data_pipelines.sources.records import Raw, Record


@dataclass(frozen=True)
class Folder:
    """Images and captions."""

    path: str
    """The folder; it holds captions.csv or captions.jsonl with `file_name` and `caption`."""

    def open(self) -> Raw:
        """Records with `image` and `caption`, in the order of the captions file.

        Raises:
          UserError: as of `read_captions`.
        """
        return FolderRecords(read_captions(Path(self.path)))


@dataclass(frozen=True)
class FolderRecords:
    """Reads pairs when they are asked for."""

    pairs: list[tuple[Path, str]]

    def __len__(self) -> int:
        return len(self.pairs)

    def where(self, index: int) -> str:
        """The file of the image."""
        return str(self.pairs[index][0])

    def __getitem__(self, index: int) -> Record:
        path, caption = self.pairs[index]
        return {"image": path.read_bytes(), "caption": caption}
