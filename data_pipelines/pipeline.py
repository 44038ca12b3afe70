"""From a dataset to batches, in an order that depends on the seed alone.

The global order is one endless list of examples: epoch after epoch, each a new permutation. Step s trains on
examples s·B … (s+1)·B − 1 of that list, and process p of P takes the p-th of the P equal runs of each batch. So
the batches are the same on any number of processes, workers and threads, and one number, the global index of the next
example, is the position of the whole pipeline. Of packed texts a batch has B rows, and the position is the number of
the next row (`data_pipelines.packed`).
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

import numpy as np

from data_pipelines.ahead import Ahead, Reader, Runs, Threads, examples_of
from data_pipelines.broken import Broken
from data_pipelines.careful import Skipped
from data_pipelines.order import fitted
from data_pipelines.packed import Packed
from data_pipelines.preprocess import Arrays, Preprocess
from data_pipelines.protocol import Dataset, Example, Source
from jmm.errors import UserError


@contextmanager
def training_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    *,
    next_example: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    workers: int = 0,
    skipped: Skipped | None = None,
) -> Iterator[Iterator[Arrays]]:
    """This process's share of each global batch, from the example `next_example` on, read ahead.

    Args:
      dataset: what to read.
      batch_size: global, examples or, of packed texts, rows; divides by `processes`.
      seed: of order and augmentation.
      next_example: global index of the next example, a multiple of `batch_size`; of packed texts the `next_example` of
        the batch before.
      process: index of this process.
      processes: number of processes.
      threads: that read ahead, of this process or of each worker; without workers 0 reads when asked.
      workers: processes that read for this one, which Python's one lock keeps from using many processors.
      skipped: where broken records are counted, also those that were read ahead.

    Raises:
      UserError: on the way, where too many records are broken.
    """
    skipped, each, share, ours = skipped or Skipped(), batch_size, batch_size // processes, process
    if isinstance(dataset, Packed):
        # Every process packs whole windows: in which row a text stands depends on all others of its window.
        each, share, ours = dataset.window, dataset.window, 0
    runs = Runs(next_example // each * each + ours * share, share, each)
    batches: Ahead
    if workers:
        from data_pipelines.workers import Workers

        batches = Workers(dataset, seed, runs, workers, threads, skipped)
    else:
        batches = Threads(Reader(dataset, seed, skipped), runs, threads)
    with closing(batches):
        if isinstance(dataset, Packed):
            windows = map(dataset.pack, map(examples_of, batches))
            yield dataset.batches(windows, next_example, batch_size, process, processes)
        else:
            yield batches


def held_out(dataset: Dataset, count: int | None = None) -> tuple[list[Example], Arrays]:
    """Held-out examples: as they are (images fitted), and as one batch of arrays. Arguments and errors as of
    `held_out_examples`."""
    examples = held_out_examples(dataset, count)
    return examples, _batch(examples, dataset.preprocessor())


def training_arrays(dataset: Dataset) -> Arrays:
    """All training examples without augmentation as one batch of arrays, for what is fitted at once.

    Raises:
      UserError: a dataset without training examples.
    """
    source, preprocess = dataset.source("train"), dataset.preprocessor()
    if not len(source):
        raise UserError(f"{type(dataset).__name__} has no training examples")
    return _batch(_good(source, range(len(source)), preprocess), preprocess)


def _good(source: Source, places: Iterable[int], preprocess: Preprocess) -> list[Example]:
    """The examples that are not broken, their images fitted; warns of the others.

    Raises:
      UserError: there is none.
    """
    found, broken, last = [], 0, None
    for place in places:
        try:
            found.append(fitted(source[place], preprocess))
        except Broken as error:
            broken, last = broken + 1, error
    if last and not found:
        raise UserError(f"all of the examples are broken; the last: {last}")
    if last:
        warnings.warn(
            f"{broken} of {broken + len(found)} examples are broken and left out; the last: {last}", stacklevel=3
        )
    return found


def _batch(examples: list[Example], preprocess: Preprocess) -> Arrays:
    return preprocess.batch([preprocess.fields(example) for example in examples])


def held_out_examples(dataset: Dataset, count: int | None = None) -> list[Example]:
    """Held-out examples as they are, their images fitted; without those that are broken.

    Args:
      dataset: what to read.
      count: how many, drawn once for all and in their order; None, or where there are no more: all.

    Raises:
      UserError: a dataset without held-out examples, or a count below 1.
    """
    source, preprocess = dataset.source("held_out"), dataset.preprocessor()
    if not len(source):
        raise UserError(f"{type(dataset).__name__} has no held-out examples to evaluate on")
    if count is not None and count < 1:
        raise UserError(f"an evaluation needs a count of at least 1 example, not {count}")
    places = np.arange(len(source))
    if count is not None and count < len(source):
        # Not the first ones: those of a folder may be of one class.
        places = np.sort(np.random.default_rng(0).choice(len(source), count, replace=False))
    return _good(source, map(int, places), preprocess)
