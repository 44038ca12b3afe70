"""Where figures go: `metrics.jsonl` and TensorBoard events."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from jmm.distributed.processes import is_first

METRICS_FILE = "metrics.jsonl"
SKIPPED = "skipped"
"""The folder of a workdir that lists broken records, one file for each process that read some."""


class MetricsLog:
    """Appends figures of a run; a resumed run drops what an earlier one wrote beyond its checkpoint.

    `metrics.jsonl` holds nothing that depends on the clock, so that two runs of one experiment write the same
    file; speeds go to TensorBoard.
    """

    def __init__(self, workdir: Path, step: int):
        self._events: Any = None
        self._skipped = workdir / SKIPPED / f"process-{jax.process_index()}.jsonl"
        self.latest: dict[str, float] = {}
        """The last value of each figure that an earlier part of the run has written."""
        if not is_first():
            return
        from tensorboardX import SummaryWriter

        path = workdir / METRICS_FILE
        drop_after(path, step)
        for line in read_metrics(workdir):
            self.latest |= {name: value for name, value in line.items() if name != "step"}
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir), purge_step=step + 1, flush_secs=10)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """One line of `metrics.jsonl`, and an event each."""
        if self._events:
            self._file.write(json.dumps({"step": step, **figures}) + "\n")
            self._file.flush()
            self.write_events(step, figures)

    def write_events(self, step: int, figures: dict[str, float]) -> None:
        """Events alone."""
        if self._events:
            for name, value in figures.items():
                self._events.add_scalar(name, value, step)

    def skipped(self, records: list[dict[str, str | int]]) -> None:
        """Lists broken records, those of each process in a file of its own."""
        if records:
            self._skipped.parent.mkdir(exist_ok=True)
            # Names of files may hold halves of letters, which UTF-8 has not; so written they are JSON's.
            with self._skipped.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def sync(self) -> None:
        """Makes sure that all lines are on disk: a checkpoint must not be ahead of them."""
        if self._events:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes both."""
        if self._events:
            self._file.close()
            self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a torn last line is left out."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def drop_after(path: Path, step: int) -> None:
    """Removes lines beyond a step, atomically."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    beside.rename(path)
