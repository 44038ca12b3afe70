"""ArrayRecord files whose records are MessagePack maps, as `jmm data convert` writes them: the layout to train from."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines import files
from data_pipelines.broken import Broken, Unreadable
from data_pipelines.sources.extra import needed
from data_pipelines.sources.records import Files, Raw, Record, opened

ARRAY = "ndarray"
"""The only key of a map that stands for an array, whose value is [type, shape, bytes]."""


@dataclass(frozen=True)
class ArrayRecord:
    """Records of ArrayRecord files."""

    path: str
    """A file, a folder of *.array_record, or names with *, ? or {000..127}."""

    def open(self) -> Raw:
        """The records of all files, in the order of their names.

        Raises:
          UserError: there is no file, or none is an ArrayRecord file.
        """
        paths = files.shards(self.path, (".array_record",))
        try:
            return _packed(self.path, paths)
        except Unreadable:
            return Files(opened(paths, lambda path: _packed(path, [path])))


def _packed(path: str, paths: list[str]) -> "Packed":
    module = needed("array_record.python.array_record_data_source", "data", path)
    try:
        return Packed(path, module.ArrayRecordDataSource(paths))
    except (RuntimeError, ValueError) as error:
        raise Unreadable(f"{path} is no readable ArrayRecord ({error})") from error


@dataclass(frozen=True)
class Packed:
    """Reads records when they are asked for."""

    path: str
    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def where(self, index: int) -> str:
        """Its number."""
        return f"record {index} of {self.path}"

    def __getitem__(self, index: int) -> Record:
        try:
            data = self.records[index]
        except (RuntimeError, ValueError) as error:
            raise Broken("record", f"it cannot be read ({error})") from error
        return unpack(data)


def pack(record: Record) -> bytes:
    """A record as MessagePack: strings, bytes, numbers, lists of such and arrays.

    Raises:
      TypeError: a value of another kind.
    """
    import msgpack

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype != object:
            return {ARRAY: [value.dtype.str, list(value.shape), value.tobytes()]}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"a record holds {type(value).__name__}, which has no place in a file")

    return bytes(msgpack.packb(dict(record), default=plain))


def unpack(data: bytes) -> dict[str, Any]:
    """Undoes `pack`.

    Raises:
      Broken: the bytes are no MessagePack map.
    """
    import msgpack

    def arrays(value: dict[str, Any]) -> Any:
        if set(value) != {ARRAY}:
            return value
        kind, shape, content = value[ARRAY]
        if np.dtype(kind).hasobject:
            raise ValueError("an array of objects")
        return np.frombuffer(content, kind).reshape(shape)

    try:
        record = msgpack.unpackb(data, object_hook=arrays)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise Broken("record", f"a record is no MessagePack map ({error})") from error
    if not isinstance(record, dict):
        raise Broken("record", f"a record is {type(record).__name__}, not a map")
    return record
