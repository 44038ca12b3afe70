"""Processes that read for one that trains, each some rows of every batch, straight into memory that both see.

Python runs one thread of a process at a time wherever it is not in a library's code, a sixth of what a JPEG costs, so
that threads alone keep no more than a handful of a host's processors busy. Which examples a batch has is decided before
anyone reads it, and so is the same with any number of workers.
"""

import contextlib
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pickle import PicklingError
from typing import Any

import numpy as np

from data_pipelines.careful import Skipped
from data_pipelines.order import ordered
from data_pipelines.preprocess import Arrays
from data_pipelines.protocol import Dataset
from jmm.errors import UserError

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
    """Where an array of a batch lies in shared memory."""

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


class Reader:
    """Reads examples of the global list, and stacks them."""

    def __init__(self, dataset: Dataset, seed: int, threads: int, skipped: Skipped):
        self._examples = ordered(dataset, seed, skipped)
        self._stack = dataset.preprocessor().batch
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self, places: range, out: Arrays | None = None) -> Arrays:
        """Arrays of the examples at these places, in `out` where that is given."""
        run = self._pool.map if self._pool else map
        return self._stack(list(run(self._examples.__getitem__, places)), out)

    def close(self) -> None:
        """Ends its threads."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


class Workers(Iterator[Arrays]):
    """The batches of a run, read by processes.

    Each worker imports what the dataset's classes come from; a script that trains needs `if __name__ == "__main__":`.

    Args:
      dataset: whose classes other processes can import.
      seed: of order and augmentation.
      runs: the examples of each batch.
      workers: processes; at most one an example of a batch is started.
      threads: of each.
      skipped: where broken records are counted.

    Raises:
      UserError: the dataset cannot be sent to other processes; on the way, as they do, or one of them has died.
    """

    def __init__(self, dataset: Dataset, seed: int, runs: Runs, workers: int, threads: int, skipped: Skipped):
        self._runs, self._skipped = runs, skipped
        with contextlib.closing(Reader(dataset, seed, threads, skipped)) as reader:
            self._first: Arrays | None = reader(range(runs.first, runs.first + runs.count))
        self._next = runs.first + runs.stride
        self._fields, size = layout(self._first)
        context = get_context("spawn")
        memory = [context.RawArray("B", size) for _ in range(AHEAD + HELD)]
        self._memory = memory
        self._free, self._asked = deque(range(len(memory))), deque[int]()
        self._processes: list[tuple[Any, Connection]] = []
        bounds = np.linspace(0, runs.count, min(workers, runs.count) + 1).round().astype(int).tolist()
        try:
            for rows in map(slice, bounds[:-1], bounds[1:]):
                ours, theirs = context.Pipe()
                arguments = (theirs, dataset, seed, threads, rows, self._fields, memory)
                process = context.Process(target=serve, args=arguments, daemon=True)
                self._processes.append((process, ours))
                with theirs:
                    process.start()
        except (PicklingError, AttributeError, TypeError) as error:
            self._processes.pop()[1].close()
            self.close()
            raise UserError(
                f"{type(dataset).__name__} cannot be read by other processes ({error}): "
                "data_workers need datasets whose classes can be imported"
            ) from error
        self._ask()

    def _ask(self) -> None:
        """For as many batches as are to be ahead."""
        while self._free and len(self._asked) < AHEAD:
            number = self._free.popleft()
            for process, connection in self._processes:
                try:
                    connection.send((self._next, number))
                except OSError:
                    raise died(process) from None
            self._asked.append(number)
            self._next += self._runs.stride

    def __next__(self) -> Arrays:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        self._ask()
        number = self._asked.popleft()
        for process, connection in self._processes:
            try:
                error, news = connection.recv()
            except (EOFError, OSError):
                raise died(process) from None
            if error is not None:
                raise error
            self._skipped.put(*news)
        memory = np.frombuffer(self._memory[number], np.uint8)
        batch = {field.name: field.view(memory) for field in self._fields}
        if not self._free:
            batch = {name: array.copy() for name, array in batch.items()}
            self._free.append(number)
        else:
            # Every array of the batch, and whatever is made of one without a copy, keeps this one alive.
            weakref.finalize(memory, self._free.append, number).atexit = False
        self._ask()
        return batch

    def close(self) -> None:
        """Ends the processes."""
        for _, connection in self._processes:
            connection.close()
        for process, _ in self._processes:
            process.join(10)
            if process.is_alive():
                process.terminate()
                process.join()
            process.close()
        self._processes.clear()


def died(process: Any) -> UserError:
    """What is said of a worker that no longer answers."""
    process.join(1)
    killed = "perhaps for want of memory, of which fewer data_workers take less"
    why = killed if (process.exitcode or 0) < 0 else "what it said stands above"
    return UserError(f"a process that reads data has ended with code {process.exitcode}: {why}")


def serve(
    connection: Connection,
    dataset: Dataset,
    seed: int,
    threads: int,
    rows: slice,
    fields: Sequence[Field],
    memory: Sequence[Any],
) -> None:
    """A worker: writes its rows of each batch that is asked for, until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains; it ends this one
    skipped = Skipped(share=1.0)
    outs = []
    for each in memory:
        whole = np.frombuffer(each, np.uint8)
        outs.append({field.name: field.view(whole)[rows] for field in fields})
    with contextlib.closing(Reader(dataset, seed, threads, skipped)) as read, contextlib.suppress(EOFError, OSError):
        while True:
            first, number = connection.recv()
            error: Exception | None = None
            try:
                read(range(first + rows.start, first + rows.stop), outs[number])
            except UserError as wrong:
                error = UserError(str(wrong), wrong.code)
            except Exception:
                error = RuntimeError(f"a process that reads data has failed:\n{traceback.format_exc()}")
            connection.send((error, skipped.take()))


def examples_of(batch: Arrays) -> list[Arrays]:
    """The rows of a batch."""
    count = len(next(iter(batch.values())))
    return [{name: array[row, ...] for name, array in batch.items()} for row in range(count)]
