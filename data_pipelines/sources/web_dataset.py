"""WebDataset's tar shards, read in any order.

    shard-000.tar
      000017.jpg        files of one name up to its first dot are one record: {"jpg": …, "txt": …}
      000017.txt
      000017.json       the object in it gives fields too

Files without an ending, and those whose names begin with a dot, are no part of a record, as for WebDataset.

A shard is indexed once; the index is kept beside it (shard-000.tar.1048576-89abcdef.index.npy: the shard's size in
bytes, and a checksum of its beginning) where that can be written, and in memory elsewhere.
"""

import json
import os
import tarfile
import threading
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_pipelines import files
from data_pipelines.broken import Broken, Unreadable
from data_pipelines.sources.records import Files, Raw, Record, opened

UNSAFE, CUT = "!name", "!record"
"""Columns of an index: a file of the record has a name that leads out of the archive; the archive ends within it."""

GZIP = b"\x1f\x8b"
"""How a compressed file begins."""

ENDINGS = 64
"""Different ones that the files of a shard may have; more, most of them in few records, are dots in keys."""

PADDING = 1 << 20
"""Bytes behind the end of an archive that are looked at."""


@dataclass(frozen=True)
class WebDataset:
    """Records of tar shards."""

    path: str
    """A shard, a folder of shards, or names with *, ? or {000..127}; also gs:// or s3://."""

    def open(self) -> Raw:
        """The records of all shards, in the order of their names.

        Raises:
          UserError: there is no shard, or none is a tar archive.
        """
        return Files(opened(files.shards(self.path, (".tar",)), _indexed_shard))


@dataclass(frozen=True)
class Shard:
    """One archive. Where its files lie is read when it is first asked."""

    path: str

    @cached_property
    def index(self) -> np.ndarray:
        """Of each record, [offset, size] of each of its files by ending; size 0 where it has none."""
        return indexed(self.path)

    def __len__(self) -> int:
        return len(self.index)

    def where(self, index: int) -> str:
        """Its number in the shard."""
        return f"record {index} of {self.path}"

    def __getitem__(self, index: int) -> Record:
        row = self.index[index]
        if row[UNSAFE][1]:
            raise Broken("name", "a file has a name that leads out of the archive")
        if row[CUT][1]:
            raise Broken("record", "the archive ends here, or is damaged")
        record: dict[str, Any] = {}
        for ending in self.index.dtype.names or ():
            offset, size = (int(each) for each in row[ending])
            if offset and ending not in (UNSAFE, CUT):
                record[ending] = files.read(self.path, offset, size)
        if "json" in record:
            record |= _object(record.pop("json"))
        return record


def _indexed_shard(path: str) -> Shard:
    shard = Shard(path)
    len(shard)
    return shard


def indexed(path: str) -> np.ndarray:
    """The index of a shard: the one kept beside it if it is younger than the shard, else a new one, which is kept."""
    if files.is_remote(path):
        with files.filesystem(path).open(path, "rb") as archive:
            return make_index(archive, path, files.size(path))
    shard = Path(path)
    about, begins = shard.stat(), zlib.crc32(files.read(path, 0, tarfile.BLOCKSIZE))
    kept = shard.with_name(f"{shard.name}.{about.st_size}-{begins:08x}{files.INDEX}")
    if kept.is_file() and kept.stat().st_mtime >= about.st_mtime:
        try:
            return np.load(kept, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError):
            pass  # a half-written one is made again
    with shard.open("rb") as archive:
        made = make_index(archive, path, about.st_size)
    beside = kept.with_name(f"{kept.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with beside.open("wb") as file:
            np.save(file, made, allow_pickle=False)
        beside.replace(kept)
    except OSError:
        beside.unlink(missing_ok=True)  # a folder that only others write: the index stays in memory
    return made


def make_index(archive: Any, path: str, size: int) -> np.ndarray:
    """Reads the headers of an archive.

    Raises:
      Unreadable: it is no tar archive.
    """
    records: list[dict[str, tuple[int, int]]] = []
    last = None
    try:
        with tarfile.open(fileobj=archive, mode="r:") as members:
            for member in members:
                if not member.isfile():
                    continue
                name = PurePosixPath(member.name)
                stem, _, ending = name.name.partition(".")
                if not stem or not ending:
                    continue
                if (key := (str(name.parent), stem)) != last:
                    records.append({})
                    last = key
                records[-1][ending.lower()] = member.offset_data, member.size
                if name.is_absolute() or ".." in name.parts:
                    records[-1][UNSAFE] = 0, 1
                if member.offset_data + member.size > size:
                    records[-1][CUT] = 0, 1
            # A header that is cut off or damaged ends the loop in silence; only an empty block ends an archive.
            archive.seek(members.offset)
            whole = archive.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
            # What follows is padding, or another archive that someone has put behind this one.
            whole = whole and not archive.read(PADDING).strip(b"\0")
    except tarfile.ReadError as error:
        if not records:
            archive.seek(0)
            packed = "; it is compressed: unpack it first" if archive.read(2) == GZIP else ""
            raise Unreadable(f"{path} is no tar archive ({error}){packed}") from error
        whole = False
    if not whole and not (records and CUT in records[-1]):
        records.append({CUT: (0, 1)})
    endings = sorted({ending for record in records for ending in record} | {UNSAFE, CUT})
    if len(endings) > ENDINGS + 2 and sum(map(len, records)) * 4 < len(records) * len(endings):
        raise Unreadable(
            f"the files of {path} have {len(endings) - 2} different endings ({endings[2]}, {endings[3]}, …): "
            "a name's first dot ends its key, so there is none to be in it"
        )
    index = np.zeros(len(records), [(ending, np.int64, (2,)) for ending in endings])
    for place, record in enumerate(records):
        for ending, where in record.items():
            index[ending][place] = where
    return index


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Broken("record", f"its JSON cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise Broken("record", "its JSON is no object")
    return found
