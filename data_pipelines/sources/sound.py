"""A folder of sounds, WAV or FLAC, with a captions file or without.

sounds/
  captions.csv      file_name,caption       optional
  bell.wav          bell.wav,"a church bell, far away"
  rain.flac         rain.flac,"rain on a tin roof"
"""

from dataclasses import dataclass
from pathlib import Path

from data_pipelines import files
from data_pipelines.sources.captions import optional_captions
from data_pipelines.sources.records import Raw, Record
from jmm.errors import UserError

SUFFIXES = (".wav", ".flac")


@dataclass(frozen=True)
class Sounds:
    """The WAV and FLAC files of a folder and those below."""

    path: str
    """The folder."""

    def open(self) -> Raw:
        """Records with `audio`, and `caption` where there is a captions file.

        Raises:
          UserError: no folder, no sound in it, or a captions file that names one that is not there.
        """
        folder = Path(self.path)
        found = sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES) if folder.is_dir() else []
        if not found:
            raise UserError(f"{self.path} holds no sound ({', '.join(SUFFIXES)})")
        return SoundRecords(folder, found, optional_captions(folder, found))


@dataclass(frozen=True)
class SoundRecords:
    """Reads sounds when they are asked for."""

    folder: Path
    paths: list[Path]
    captions: dict[str, str]

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, index: int) -> str:
        """Its file."""
        return str(self.paths[index])

    def __getitem__(self, index: int) -> Record:
        path = self.paths[index]
        name = path.relative_to(self.folder).as_posix()
        caption = {"caption": self.captions[name]} if name in self.captions else {}
        return {"audio": files.content(path)} | caption
