"""How fast a dataset can be read, by stage, and which stage limits it."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipelines.broken import Broken
from data_pipelines.careful import Skipped
from data_pipelines.order import fitted
from data_pipelines.own import OwnData
from data_pipelines.pipeline import training_batches
from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Example
from data_pipelines.sources.layouts import records
from data_pipelines.sources.records import Fields
from jmm.errors import UserError

STAGES = ("read", "decode", "transform", "batch")


@dataclass(frozen=True)
class Throughput:
    """Examples a second."""

    stages: dict[str, float]
    """Of each stage alone, on one thread."""
    whole: float
    """Of the pipeline as training runs it."""
    threads: int
    """That ran it: of this process, or of each worker."""
    workers: int

    @property
    def limit(self) -> str:
        """The slowest stage."""
        return min(self.stages, key=lambda stage: self.stages[stage])


def throughput(
    source: str,
    *,
    split: str = "train",
    image_size: int = 224,
    batch_size: int = 64,
    count: int = 512,
    threads: int = 2,
    workers: int = 0,
) -> Throughput:
    """Times `count` examples in random order through each stage, and through all of them.

    Raises:
      UserError: no such dataset, or fewer good examples than a batch.
    """
    data = OwnData(records(source, split), preprocess=Preprocess((image_size, image_size)))
    raw, rng = data.records.open(), np.random.default_rng(0)
    places = rng.permutation(len(raw))[:count]
    found, seconds = {}, {}
    found["read"], seconds["read"] = _timed(lambda place: raw[int(place)], places)
    decoded, seconds["decode"] = _timed(data.fields.example, found["read"])
    usual = _usual(decoded, source)
    found["decode"] = [{name: each[name] for name in usual} for each in decoded if each.keys() >= usual]
    # All of a batch have the same fields.
    without: dict[str, Any] = {name: () for each in decoded for name in each if name not in usual}
    fields = Fields(needed=tuple(usual), **without)
    lengths = {name: _length(found["decode"], name) for name in ("audio", "video")}
    how = replace(data.preprocess, audio_length=lengths["audio"], video_frames=lengths["video"])
    data = replace(data, fields=fields, preprocess=how)

    def transform(example: Any) -> Any:
        return data.preprocess.fields(fitted(data.augment(example, rng), data.preprocess))

    found["transform"], seconds["transform"] = _timed(transform, found["decode"])
    ready = found["transform"]
    if len(ready) < batch_size:
        raise UserError(f"{source} gave {len(ready)} good examples, less than a batch of {batch_size}")
    starts = range(0, len(ready) - batch_size + 1, batch_size)
    _, whole = _timed(lambda start: data.preprocess.batch(ready[start : start + batch_size]), starts)
    seconds["batch"] = whole / batch_size
    with training_batches(data, batch_size, 0, threads=threads, workers=workers, skipped=Skipped(1.0)) as batches:
        next(batches)  # the first one waits for the threads to begin
        rounds = max(len(starts), 4)
        start = time.perf_counter()
        for _ in range(rounds):
            next(batches)
        took = time.perf_counter() - start
    return Throughput({stage: 1 / seconds[stage] for stage in STAGES}, rounds * batch_size / took, threads, workers)


def _usual(examples: Sequence[Example], source: str) -> set[str]:
    """The fields that most examples have.

    Raises:
      UserError: there is none.
    """
    counts = Counter(name for example in examples for name in example)
    usual = {name for name, count in counts.items() if 2 * count > len(examples)}
    if not usual:
        raise UserError(f"{source} gives no field that training looks for; `jmm data inspect` lists what there is")
    return usual


def _length(examples: Sequence[Example], name: str) -> int:
    """Of a field in the middle one of the examples that have it; 0: none has."""
    lengths = [len(each[name]) for each in examples if name in each]
    return int(np.median(lengths)) if lengths else 0


def _timed(run: Callable[[Any], Any], inputs: Sequence[Any] | np.ndarray) -> tuple[list[Any], float]:
    """What comes of all that are not broken, and the mean seconds of one."""
    made = []
    start = time.perf_counter()
    for each in inputs:
        try:
            made.append(run(each))
        except Broken:
            continue
    return made, (time.perf_counter() - start) / max(len(inputs), 1)
