"""Batches that are read before they are wanted, by threads, into memory that is used again.

Memory that is new for every batch comes from the system one page at a time, which for pictures takes longer than to
normalise them; and a picture that is written into its batch at once is still in the processor's cache. Which examples a
batch has is decided before anyone reads it, and so is the same with any number of threads or workers.
"""

import mmap
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np

from data_pipelines.careful import Skipped
from data_pipelines.order import ordered
from data_pipelines.preprocess import Arrays
from data_pipelines.protocol import Dataset

AHEAD = 3
"""Batches that are asked for before they are wanted."""
HELD = 4
"""Batches that whoever trains may hold while others are written; of more than these it gets copies."""
ALIGNED = 64
"""Bytes; arrays begin at multiples of it, which lets JAX take them as they are."""


@dataclass(frozen=True)
class Runs:
    """Which examples of the global list are read: `count` from `first` on, then as many `stride` further on, ..."""

    first: int
    count: int
    stride: int


@dataclass(frozen=True)
class Field:
    """Where an array of a batch lies in memory."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def view(self, memory: np.ndarray) -> np.ndarray:
        """The array; `memory` are bytes."""
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        return memory[self.start : self.start + size].view(self.dtype).reshape(self.shape)


def layout(batch: Arrays) -> tuple[list[Field], int]:
    """Places for the arrays of such batches, and the bytes of all."""
    fields, end = [], 0
    for name, array in batch.items():
        fields.append(Field(name, array.dtype, array.shape, end))
        end += -(-array.nbytes // ALIGNED) * ALIGNED
    return fields, end


def arrays(memory: Any, fields: Sequence[Field], rows: slice = slice(None)) -> Arrays:
    """Some rows of the batch that lies in a buffer."""
    whole = np.frombuffer(memory, np.uint8)
    return {field.name: field.view(whole)[rows] for field in fields}


def parts(count: int, among: int) -> list[slice]:
    """Rows of a batch for each of so many, or fewer where there are not enough."""
    bounds = np.linspace(0, count, min(among, count) + 1).round().astype(int).tolist()
    return list(map(slice, bounds[:-1], bounds[1:]))


class Reader:
    """Reads examples of the global list."""

    def __init__(self, dataset: Dataset, seed: int, skipped: Skipped):
        self._examples = ordered(dataset, seed, skipped)
        self._preprocess = dataset.preprocessor()
        self.ended = Event()
        """Nobody wants them any more."""

    def batch(self, places: range) -> Arrays:
        """The examples at these places."""
        return self._preprocess.batch([self._examples[place] for place in places])

    def write(self, places: range, out: Arrays) -> None:
        """The examples at these places into the rows of `out`."""
        for row, place in enumerate(places):
            if self.ended.is_set():
                return
            self._preprocess.write(self._examples[place], out, row)


class Ahead(Iterator[Arrays]):
    """The batches of a run.

    A batch lies in memory that is written again once none of its arrays, nor anything that was made of one without a
    copy, is left.
    """

    ahead = AHEAD

    def __init__(self, reader: Reader, runs: Runs):
        self._reader, self._runs, self._next = reader, runs, runs.first
        self._fields: list[Field] = []
        self._memory: list[Any] = []
        self._free, self._asked = deque[int](), deque[int]()

    @abstractmethod
    def _begin(self, size: int) -> list[Any]:
        """Buffers of so many bytes, and who writes into them."""

    @abstractmethod
    def _ask(self, first: int, number: int) -> None:
        """For the batch that begins with this example, in buffer `number`."""

    @abstractmethod
    def _answer(self, number: int) -> None:
        """Waits until it is there."""

    @abstractmethod
    def close(self) -> None:
        """Ends whoever reads."""

    def _fill(self) -> None:
        while self._free and len(self._asked) < self.ahead:
            number = self._free.popleft()
            self._ask(self._next, number)
            self._asked.append(number)
            self._next += self._runs.stride

    def __next__(self) -> Arrays:
        if not self._fields:  # what they are shows when there is one
            batch = self._reader.batch(range(self._next, self._next + self._runs.count))
            self._fields, size = layout(batch)
            self._next += self._runs.stride
            self._memory = self._begin(max(size, 1))
            self._free.extend(range(len(self._memory)))
        else:
            self._fill()
            number = self._asked.popleft()
            self._answer(number)
            batch = self._lent(number)
        self._fill()
        return batch

    def _lent(self, number: int) -> Arrays:
        """The batch in a buffer, which is free again when nobody has any of it."""
        memory = np.frombuffer(self._memory[number], np.uint8)
        batch = {field.name: field.view(memory) for field in self._fields}
        if self._free:
            # All of the arrays have it as their base, as its own is none of NumPy's.
            weakref.finalize(memory, self._free.append, number).atexit = False
            return batch
        self._free.append(number)
        return {name: array.copy() for name, array in batch.items()}


class Threads(Ahead):
    """Read by threads of this process; with none of them when they are asked for."""

    def __init__(self, reader: Reader, runs: Runs, threads: int):
        super().__init__(reader, runs)
        self._parts = parts(runs.count, threads or 1)
        self._pool = ThreadPoolExecutor(threads, "jmm-data") if threads else None
        self.ahead = AHEAD if threads else 1
        self._begun: dict[int, list[Future[None]]] = {}
        self._places: dict[int, range] = {}
        self._outs: list[list[Arrays]] = []

    def _begin(self, size: int) -> list[Any]:
        memory = [mmap.mmap(-1, size) for _ in range(self.ahead + HELD)]
        self._outs = [[arrays(each, self._fields, rows) for rows in self._parts] for each in memory]
        return memory

    def _ask(self, first: int, number: int) -> None:
        places = [range(first + rows.start, first + rows.stop) for rows in self._parts]
        if self._pool:
            pairs = zip(places, self._outs[number], strict=True)
            self._begun[number] = [self._pool.submit(self._reader.write, *pair) for pair in pairs]
        else:
            self._places[number] = places[0]

    def _answer(self, number: int) -> None:
        if self._pool:
            for future in self._begun.pop(number):
                future.result()
        else:
            self._reader.write(self._places.pop(number), self._outs[number][0])

    def close(self) -> None:
        """Ends the threads."""
        self._reader.ended.set()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def examples_of(batch: Arrays) -> list[Arrays]:
    """The rows of a batch."""
    count = len(next(iter(batch.values())))
    return [{name: array[row, ...] for name, array in batch.items()} for row in range(count)]
