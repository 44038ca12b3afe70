"""A folder of images with a captions file (`sources.captions`), whose other columns are fields of a record as well."""

from dataclasses import dataclass

from data_pipelines import files
from data_pipelines.broken import Broken
from data_pipelines.sources.captions import CAPTION_FILES, CaptionFile, read_captions
from data_pipelines.sources.records import Record
from jmm.errors import UserError


@dataclass(frozen=True)
class Folder:
    """Images and captions."""

    path: str
    """The folder, also in a bucket; it holds captions.csv or captions.jsonl with `file_name` and `caption`."""

    def open(self) -> "FolderRecords":
        """Records with `image` and the columns of the captions file, in its order.

        Raises:
          UserError: there is no captions file, or it lists nothing, or is no text.
        """
        found = read_captions(self.path)
        if found is None:
            raise UserError(f"{self.path} holds no captions file ({', '.join(CAPTION_FILES)})")
        if not found.lines:
            raise UserError(f"{found.path} lists no images")
        return FolderRecords(self.path, found)


@dataclass(frozen=True)
class FolderRecords:
    """Reads pairs when they are asked for."""

    folder: str
    file: CaptionFile

    def __len__(self) -> int:
        return len(self.file.lines)

    def where(self, index: int) -> str:
        """The line of the captions file and the file that it names."""
        line = self.file.where(index)
        try:
            return f"{line} ({self.file.row(index)[0]})"
        except Broken:
            return line

    def __getitem__(self, index: int) -> Record:
        name, others = self.file.row(index)
        return {**others, "image": files.read_below(self.folder, name)}

    def check(self, index: int) -> None:
        """Reads no image.

        Raises:
          Broken: a line without a caption, or whose file is not there.
        """
        name, others = self.file.row(index)
        if not files.is_file(files.below(self.folder, name)):
            raise Broken("field", f"there is no file {name} in {self.folder}")
        if not isinstance(others.get("caption"), str) or not others["caption"].strip():
            raise Broken("caption", "it has no caption")
