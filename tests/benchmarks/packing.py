"""How fast sequences are packed into rows, and how full the rows are, on one core.

python -m tests.benchmarks.packing --json figures.json

Lengths are log-normal, as those of texts are, and cut at the capacity of a row: captions with a median of 24 tokens and
a deviation of 0.6 of the logarithm, documents with a median of 300 and one of 1.0; images have 4 to 16 patches a side.
"""

import sys
import time

import numpy as np

from data_pipelines.packing import first_fit, pack
from tests.benchmarks.report import Row, run

FAST, FULL = 100_000, 0.95
"""Sequences a second, and real tokens among those of all rows."""

LENGTHS = {"captions": (24.0, 0.6), "documents": (300.0, 1.0)}
CAPACITIES = (512, 1024, 2048)
WINDOW = 4096
"""Sequences that are packed at once."""


def lengths(median: float, deviation: float, capacity: int, count: int) -> np.ndarray:
    """[count] from 1 to `capacity`."""
    drawn = np.random.default_rng(0).lognormal(np.log(median), deviation, count)
    return drawn.round().clip(1, capacity).astype(np.int64)


def best(job, repeats: int = 5) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        job()
        times.append(time.perf_counter() - before)
    return min(times)


def figures(what: str, table: np.ndarray, capacity: int | tuple[int, ...]) -> list[Row]:
    """Rate and fill for lengths [N] or [N,F]; of several features the fill of the fuller one."""
    rate = len(table) / best(lambda: first_fit(table, capacity))
    rows = first_fit(table, capacity).max() + 1
    fill = float((table.reshape(len(table), -1).sum(axis=0) / (rows * np.asarray(capacity))).max())
    return [
        Row(f"{what}: first fit", rate, "sequences/s", f"≥ {FAST:,}", rate >= FAST),
        Row(f"{what}: fill", fill, "of the tokens", f"≥ {FULL}", fill >= FULL),
    ]


def texts() -> list[Row]:
    """Windows of captions and of documents, for rows of several lengths, and one window of all."""
    rows = []
    for name, (median, deviation) in LENGTHS.items():
        for capacity in CAPACITIES:
            drawn = lengths(median, deviation, capacity, WINDOW)
            rows += figures(f"{WINDOW} {name} in rows of {capacity}", drawn, capacity)
        drawn = lengths(median, deviation, 2048, 200_000)
        rows += figures(f"200,000 {name} in rows of 2048", drawn, 2048)
    return rows


def pairs() -> list[Row]:
    """Captions and the patches of their images, packed jointly."""
    sides = np.random.default_rng(1).integers(4, 17, (WINDOW, 2))
    table = np.stack([lengths(*LENGTHS["captions"], 256, WINDOW), sides.prod(axis=1)], axis=1)
    return figures(f"{WINDOW} captions and images in rows of 256 and 1024", table, (256, 1024))


def packed() -> list[Row]:
    """All of `pack`: lengths, rows, and the fields of the batch."""
    rows = []
    for name, (median, deviation) in LENGTHS.items():
        drawn = lengths(median, deviation, 2048, WINDOW)
        examples = [{"text": np.ones(length, np.int32)} for length in drawn]
        seconds = best(lambda examples=examples: pack(examples, {"text": 2048}))
        what = f"{WINDOW} {name} packed into the fields of a batch"
        rows += [_plain(what, WINDOW / seconds, "sequences/s"), _plain(what, drawn.sum() / seconds, "tokens/s")]
    return rows


def _plain(what: str, rate: float, unit: str) -> Row:
    return Row(what, float(rate), unit, "", True)


MEASUREMENTS = {"texts": texts, "pairs": pairs, "packed": packed}

if __name__ == "__main__":
    sys.exit(run(MEASUREMENTS, __doc__ or ""))
