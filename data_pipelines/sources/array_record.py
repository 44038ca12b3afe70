"""ArrayRecord files whose records are MessagePack maps, as `jmm data convert` writes them: the layout to train from."""

import re
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from data_pipelines import files
from data_pipelines.broken import Broken, Unreadable
from data_pipelines.sources.extra import needed
from data_pipelines.sources.records import Files, Raw, Record, opened
from jmm.errors import UserError

OF = re.compile(r"-[0-9]+-of-([0-9]+)\.array_record$")

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
          UserError: there is no file, none is an ArrayRecord file, or the folder lacks some of its shards.
        """
        paths = files.shards(self.path, (".array_record",))
        if len(paths) < (count := _whole(self.path)):
            raise UserError(
                f"{self.path} holds {len(paths)} of {count} shards; the conversion that began it goes on by its "
                "command, and names with * take what is there"
            )
        try:
            return _packed(self.path, paths)
        except Unreadable:
            return Files(opened(paths, lambda path: _packed(path, [path])))


def _whole(path: str) -> int:
    """How many shards a folder should have, by their names; 0: those do not say."""
    names = [] if files.is_remote(path) or not Path(path).is_dir() else files.listing(path)
    return max((int(match[1]) for name in names if (match := OF.search(name))), default=0)


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
    """A record as MessagePack: strings, bytes, numbers, lists of such and arrays; dates and decimal numbers are
    written out.

    Raises:
      Broken: a value of another kind, a number of more than 64 bits, half a letter.
    """
    import msgpack

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype != object:
            return {ARRAY: [value.dtype.str, list(value.shape), value.tobytes()]}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, date | time):
            return value.isoformat()
        if isinstance(value, Decimal | UUID):
            return str(value)
        raise TypeError(f"it holds {type(value).__name__}")

    try:
        return bytes(msgpack.packb(dict(record), default=plain))
    except (TypeError, ValueError, OverflowError) as error:
        raise Broken("record", f"a record has no place in a file ({error})") from error


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
