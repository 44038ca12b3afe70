"""Runs as commands: signals, sudden death. Several processes are in test_cluster.py."""

import json
import os
import signal
import time

import pytest

from data_pipelines.pipeline import training_batches
from tests.training.runs import TINY, command, finished, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The metrics of an uninterrupted run, its log and its JSON."""
    folder = tmp_path_factory.mktemp("whole")
    code, out, err = finished(command("train", str(TINY), "--workdir", str(folder), "--json"))
    assert code == 0, err
    return (folder / "metrics.jsonl").read_text(), json.loads(out), err


def test_json_is_all_that_is_printed(whole):
    _, printed, err = whole
    assert printed["step"] == 12
    assert printed["checkpoint"].endswith("checkpoints/12")
    assert len(printed["pictures"]) == 4
    assert err == ""


def until(folder, step, process):
    """Waits until the run has written a step."""
    for _ in range(2400):
        path = folder / "metrics.jsonl"
        if path.exists() and any(json.loads(line)["step"] >= step for line in path.read_text().splitlines()):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("the run did not get there")


def test_a_stopped_run_goes_on_exactly(whole, tmp_path):
    arguments = ("train", str(TINY), "--workdir", str(tmp_path))
    for step, name, code in ((2, "SIGTERM", 143), (5, "SIGINT", 130), (8, "SIGKILL", -9)):
        process = command(*arguments)
        until(tmp_path, step, process)
        os.kill(process.pid, getattr(signal, name))
        returned, _, err = finished(process)
        assert returned == code, err
        if name != "SIGKILL":
            assert f"stopped by {name} after step" in err.splitlines()[-1]
    code, out, err = finished(command(*arguments))
    assert code == 0, err
    assert "zero_shot/accuracy" in out
    assert "jmm classify" in out.splitlines()[-1]
    assert (tmp_path / "metrics.jsonl").read_text() == whole[0]


def test_no_example_is_seen_twice_in_an_epoch():
    data, seen = tiny().data, []
    for process in range(2):
        with training_batches(data, 16, 0, process=process, processes=2, threads=0) as batches:
            for _ in range(len(data.source("train")) // 16):
                seen += [image.tobytes() for image in next(batches)["image"]]
    assert len(set(seen)) == len(seen)
