"""Processes that read for one that trains, each some rows of every batch, straight into memory that both see.

Python runs one thread of a process at a time wherever it is not in a library's code, a sixth of what a JPEG costs, so
that threads alone keep no more than a handful of a host's processors busy.
"""

import atexit
import signal
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from data_pipelines.ahead import AHEAD, HELD, Ahead, Field, Reader, Runs, arrays, parts
from data_pipelines.careful import Skipped
from data_pipelines.protocol import Dataset
from jmm.errors import UserError


class Workers(Ahead):
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
      UserError: on the way: the dataset cannot be sent to other processes, one of them has died, or as they do.
    """

    def __init__(self, dataset: Dataset, seed: int, runs: Runs, workers: int, threads: int, skipped: Skipped):
        super().__init__(Reader(dataset, seed, skipped), runs)
        self._sent, self._threads, self._parts = (dataset, seed), threads, parts(runs.count, workers)
        self._skipped = skipped
        self._processes: list[tuple[Any, Connection]] = []
        # For who leaves without closing: at its end Python waits for processes, and they for that of their pipes.
        atexit.register(self.close)

    def _begin(self, size: int) -> list[Any]:
        context = get_context("spawn")
        memory = [context.RawArray("B", size) for _ in range(AHEAD + HELD)]
        for rows in self._parts:
            ours, theirs = context.Pipe()
            arguments = (theirs, *self._sent, self._threads, rows, self._fields, memory)
            process = context.Process(target=serve, args=arguments, daemon=True)
            try:
                with theirs:
                    process.start()
            except Exception as error:
                ours.close()
                if isinstance(error, OSError):
                    raise
                raise UserError(
                    f"{type(self._sent[0]).__name__} cannot be read by other processes ({error}): "
                    "data_workers need datasets whose classes can be imported"
                ) from error
            self._processes.append((process, ours))
        return memory

    def _ask(self, first: int, number: int) -> None:
        for process, connection in self._processes:
            try:
                connection.send((first, number))
            except OSError:
                raise died(process) from None

    def _answer(self, number: int) -> None:
        # All of them, whatever one says: what is left unread would be taken for the answer to the next question.
        answers = [received(process, connection) for process, connection in self._processes]
        for _, news in answers:
            self._skipped.put(*news)
        for error, _ in answers:
            if error is not None:
                raise error

    def close(self) -> None:
        """Ends the processes."""
        for _, connection in self._processes:
            connection.close()
        for process, _ in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes.clear()
        atexit.unregister(self.close)


def received(process: Any, connection: Connection) -> tuple[Exception | None, tuple[Any, ...]]:
    """What a worker says."""
    try:
        error, news = connection.recv()
    except (EOFError, OSError):
        raise died(process) from None
    return error, news


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
    for each in (signal.SIGINT, signal.SIGTERM):
        # They come to all of a group, and are for the process that trains: it has to save, and then ends this one.
        signal.signal(each, signal.SIG_IGN)
    skipped = Skipped(share=1.0)
    reader = Reader(dataset, seed, skipped)
    mine = parts(rows.stop - rows.start, threads or 1)
    outs = [
        [{name: array[part] for name, array in arrays(each, fields, rows).items()} for part in mine] for each in memory
    ]
    with ThreadPoolExecutor(threads or 1) as pool, suppress(EOFError, OSError):
        while True:
            first, number = connection.recv()
            start = first + rows.start
            places = [range(start + part.start, start + part.stop) for part in mine]
            error: Exception | None = None
            try:
                list(pool.map(reader.write, places, outs[number]))
            except UserError as wrong:
                error = UserError(str(wrong), wrong.code)
            except Exception:
                error = RuntimeError(f"a process that reads data has failed:\n{traceback.format_exc()}")
            connection.send((error, skipped.take()))
