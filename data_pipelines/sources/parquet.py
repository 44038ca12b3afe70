"""Parquet files, read in any order; a row is a record."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from data_pipelines import files
from data_pipelines.broken import Broken, Unreadable
from data_pipelines.sources.extra import needed
from data_pipelines.sources.records import Files, Raw, Record, opened
from jmm.errors import UserError

GROUPS = 4
"""Row groups that are kept decoded for each file: neighbours are often asked for together."""


@dataclass(frozen=True)
class Parquet:
    """Rows of Parquet files. A row group is read whole: with groups of more than about a thousand pictures, reading in
    any order is slow (`jmm data convert` makes something better of them)."""

    path: str
    """A file, a folder of *.parquet, or names with *, ? or {000..127}; also gs:// or s3://."""
    columns: tuple[str, ...] = ()
    """Which columns are read; empty: all."""

    def open(self) -> Raw:
        """The rows of all files, in the order of their names.

        Raises:
          UserError: there is no file, none is a Parquet file, one lacks a column, or pyarrow is not installed.
        """
        paths = files.shards(self.path, (".parquet",))
        return Files(opened(paths, lambda path: ParquetFile(path, self.columns)))


class ParquetFile:
    """One file."""

    def __init__(self, path: str, columns: tuple[str, ...]):
        pyarrow, parquet = needed("pyarrow", "data", path), needed("pyarrow.parquet", "data", path)
        self._path, self._columns, self._lock = path, list(columns) or None, threading.Lock()
        try:
            where = files.filesystem(path).open(path, "rb") if files.is_remote(path) else path
            self._file = parquet.ParquetFile(where)
        except (pyarrow.ArrowException, OSError) as error:
            # In a bucket it may be the network, which is no reason to go on without the file.
            kind = UserError if files.is_remote(path) and isinstance(error, OSError) else Unreadable
            raise kind(f"{path} is no readable Parquet file ({error})") from error
        about = self._file.metadata
        self._ends = np.array(list(accumulate(about.row_group(i).num_rows for i in range(about.num_row_groups))), int)
        names = self._file.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise UserError(f"{path} has no column {missing[0]}; it has {', '.join(names)}")
        self._errors = (pyarrow.ArrowException, OSError)
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def where(self, index: int) -> str:
        """Its row."""
        return f"row {index} of {self._path}"

    def __getitem__(self, index: int) -> Record:
        group = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        # A reader is not made for several threads at once.
        with self._lock:
            try:
                rows = self._group(group)
            except self._errors as error:
                raise Broken("record", f"row group {group} cannot be read ({error})") from error
        row: Record = rows.slice(index - start, 1).to_pylist()[0]
        return row

    def _group(self, group: int) -> Any:
        if group not in self._groups:
            self._groups[group] = self._file.read_row_group(group, columns=self._columns)
            if len(self._groups) > GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]
