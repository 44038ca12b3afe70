"""Figures on disk: a resumed run leaves one line a step, and TensorBoard shows the same."""

import itertools
import json
import time
from pathlib import Path

import pytest

from jmm.training.metrics import METRICS_FILE, MetricsLog, drop_after, read_metrics


def lines(*steps):
    return "".join(json.dumps({"step": step, "train/loss": 1 / step}) + "\n" for step in steps)


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / METRICS_FILE


def test_drop_after_removes_later_lines(metrics):
    metrics.write_text(lines(1, 2, 2, 3, 4))
    drop_after(metrics, 2)
    assert metrics.read_text() == lines(1, 2, 2)


@pytest.mark.parametrize("torn", ['{"step": 3, "train/lo', "{", '{"step": 3}'])
def test_drop_after_removes_a_torn_line(metrics, torn):
    metrics.write_text(lines(1, 2) + torn)
    assert [line["step"] for line in read_metrics(metrics.parent)] == [1, 2]
    drop_after(metrics, 9)
    assert metrics.read_text() == lines(1, 2)


def test_drop_after_is_atomic(metrics, monkeypatch):
    metrics.write_text(lines(1, 2, 3))

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        drop_after(metrics, 1)
    assert metrics.read_text() == lines(1, 2, 3)


def test_nothing_to_drop(metrics):
    drop_after(metrics, 5)
    assert not metrics.exists()
    assert read_metrics(metrics.parent) == []


def run(workdir, start, steps, value):
    log = MetricsLog(workdir, start)
    for step in steps:
        log.write(step, {"train/loss": value, "eval/accuracy": value / 2})
        log.write_events(step, {"speed/examples_per_second": 10.0})
    log.sync()
    log.close()


def test_a_resumed_run_leaves_one_line_a_step(tmp_path):
    run(tmp_path, 0, [1, 2, 3], 1.0)
    run(tmp_path, 1, [2, 3, 4], 2.0)
    found = [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path)]
    assert found == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert all(line.keys() == {"step", "train/loss", "eval/accuracy"} for line in read_metrics(tmp_path))


def test_tensorboard_shows_the_same(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Event files are named by the second; two runs in one second would share a file.
    now = itertools.count(int(time.time()), 2)
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    run(tmp_path, 0, [1, 2, 3, 4], 1.0)
    run(tmp_path, 2, [3], 2.0)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "eval/accuracy", "speed/examples_per_second"}
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 2.0)]
