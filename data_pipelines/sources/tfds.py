"""Datasets that TensorFlow Datasets has prepared on disk, read without TensorFlow.

They must have been prepared as ArrayRecord: `tfds build --file_format=array_record`.
"""

from dataclasses import dataclass
from typing import Any

from data_pipelines.broken import Broken
from data_pipelines.sources.extra import needed
from data_pipelines.sources.records import Raw, Record
from jmm.errors import UserError


@dataclass(frozen=True)
class TFDS:
    """Examples of one split."""

    path: str
    """The folder of one version: it holds dataset_info.json."""
    split: str = "train"
    """Also a part of one, such as train[:90%]."""

    def open(self) -> Raw:
        """The examples as they were written.

        Raises:
          UserError: it is no prepared dataset or of another file format, lacks the split, or tensorflow-datasets is not
            installed.
        """
        tfds = needed("tensorflow_datasets", "data", self.path)
        try:
            builder = tfds.builder_from_directory(self.path)
            images = {
                name: tfds.decode.SkipDecoding() for name, kind in builder.info.features.items() if _is_image(kind)
            }
            return Prepared(f"{self.split} of {self.path}", builder.as_data_source(split=self.split, decoders=images))
        except Exception as error:  # of many kinds, most of them plain ValueError
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{self.path} has no examples of {self.split} that can be read ({reason})") from error


def _is_image(kind: Any) -> bool:
    return type(kind).__name__ == "Image"


@dataclass(frozen=True)
class Prepared:
    """Reads examples when they are asked for."""

    name: str
    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def where(self, index: int) -> str:
        """Its number."""
        return f"example {index} of {self.name}"

    def __getitem__(self, index: int) -> Record:
        try:
            record: Record = self.records[index]
        except (ValueError, RuntimeError) as error:
            raise Broken("record", f"it cannot be read ({error})") from error
        return record
