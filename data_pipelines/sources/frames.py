"""Video as folders of frames.

videos/
  captions.csv            file_name,caption       optional
  swing/000.jpg           swing,"a child on a swing"
  swing/001.jpg
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data_pipelines import files
from data_pipelines.broken import Broken
from data_pipelines.images import list_images
from data_pipelines.preprocess import evenly
from data_pipelines.sources.captions import optional_captions
from data_pipelines.sources.records import Raw, Record
from jmm.errors import UserError


@dataclass(frozen=True)
class Frames:
    """A folder with a folder of frames for each video."""

    path: str
    """The folder."""
    frames: int = 8
    """How many are taken, evenly spaced over the video; a shorter one repeats some."""

    def __post_init__(self) -> None:
        """Raises UserError for no frame."""
        if self.frames < 1:
            raise UserError(f"frames must be at least 1, not {self.frames}")

    def open(self) -> Raw:
        """Records with `video`, a list of its frames, and `caption` where there is a captions file.

        Raises:
          UserError: no folder, no video in it, or a captions file that names one that is not there.
        """
        folder = Path(self.path)
        found = sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
        if not found:
            raise UserError(f"{self.path} holds no folder of frames")
        return FrameRecords(found, self.frames, optional_captions(folder, found))


@dataclass(frozen=True)
class FrameRecords:
    """Reads videos when they are asked for."""

    folders: list[Path]
    frames: int
    captions: dict[str, str]

    def __len__(self) -> int:
        return len(self.folders)

    def where(self, index: int) -> str:
        """Its folder."""
        return str(self.folders[index])

    def __getitem__(self, index: int) -> Record:
        folder = self.folders[index]
        try:
            paths = sorted(list_images(folder), key=_numbered)
        except UserError as error:
            raise Broken("field", str(error)) from error
        places = evenly(len(paths), self.frames)
        video = {"video": [files.content(paths[place]) for place in places]}
        return video | ({"caption": self.captions[folder.name]} if folder.name in self.captions else {})


def _numbered(path: Path) -> list[tuple[int, str]]:
    """For sorting by the numbers in a name: frame2 comes before frame10."""
    parts = re.split(r"([0-9]+)", path.as_posix())
    return [(int(each), "") if place % 2 else (-1, each) for place, each in enumerate(parts)]
