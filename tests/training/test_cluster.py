"""Several processes that train as one and lose one; other numbers of them; with the script that starts them again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines.digits import Digits
from data_pipelines.pipeline import training_batches
from jmm.distributed.watchdog import LOST
from tests.training.runs import ROOT, TINY, command, finished
from tests.training.test_processes import until

MESH = ("--mesh.fsdp", "2", "--mesh.tensor", "2")
STEPS = ("--steps", "24", *MESH, "--evaluate-every", "0", "--checkpoint.every", "6")


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def pair(workdir, *arguments, file=TINY):
    """Two processes with four devices each."""
    address = f"localhost:{free_port()}"
    names = ("--coordinator", address, "--num-processes", "2", "--process-id")
    return [
        command("train", str(file), "--workdir", str(workdir), *arguments, *names, str(index), devices=4)
        for index in range(2)
    ]


def ends(processes):
    """Code and standard error of each."""
    try:
        return [(code, err) for code, _, err in map(finished, processes)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Losses of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    for code, err in ends(pair(folder, *STEPS)):
        assert code == 0, err
    assert '"eval/retrieval/text_to_image@1"' in (folder / "metrics.jsonl").read_text()
    return losses(folder)


class Worker:
    """tpu_scripts/worker.sh as one of two; Slurm's variables tell of the other."""

    def __init__(self, index, job, folder, workdir):
        self.log, self.home = folder / f"{index}.log", folder / str(index)
        self.home.mkdir()
        jmm = self.home / "jmm"
        jmm.write_text(f'#!/bin/sh\necho $$ > {self.home}/pid\nexec {sys.executable} -m jmm "$@"\n')
        jmm.chmod(0o755)
        slurm = {"JOB_ID": job, "STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": index, "LOCALID": 0}
        environment = {
            **os.environ,
            **{f"SLURM_{name}": str(value) for name, value in slurm.items()},
            **{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "JAX_LOCAL_DEVICE_IDS": "0,1,2,3"},
            **{"JMM": str(jmm), "TMPDIR": str(self.home), "PAUSE": "0"},
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(ROOT / "tpu_scripts/worker.sh"), "5", str(TINY), "--workdir", str(workdir), *STEPS],
                **{"cwd": ROOT, "env": environment, "stdout": log, "stderr": log},
            )

    def kill(self):
        os.kill(int((self.home / "pid").read_text()), signal.SIGKILL)

    def waits(self, text, seconds):
        """Until its log has a text."""
        end = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)


def test_a_killed_process_is_named_and_all_go_on_exactly(whole, tmp_path):
    workdir, job = tmp_path / "run", free_port()
    workers = [Worker(index, job, tmp_path, workdir) for index in range(2)]
    for turn, (lost, step) in enumerate([(1, 8), (0, 14)], start=1):
        until(workdir, step, workers[lost].process)
        workers[lost].kill()
        other = workers[1 - lost]
        other.waits(f"starting again ({turn} of", 30)
        said = other.log.read_text()
        assert f"process {lost} on {socket.gethostname()} is dead; it was at step" in said, said
        assert f"worker.sh: ended with {LOST}" in said
        assert "most recent call first" in said
    for worker in workers:
        assert worker.process.wait(300) == 0, worker.log.read_text()
    assert losses(workdir) == whole


def test_another_number_of_processes_goes_on_with_the_same_batches(whole, tmp_path):
    alone = ("train", str(TINY), "--workdir", str(tmp_path), *STEPS)
    for step, several in ((7, True), (14, False), (0, True)):
        processes = pair(tmp_path, *STEPS) if several else [command(*alone, devices=4)]
        if step:
            until(tmp_path, step, processes[0])
            processes[0].send_signal(signal.SIGTERM)  # the other hears of it
        for code, err in ends(processes):
            assert code == (143 if step else 0), err
    found = losses(tmp_path)
    assert found.keys() == whole.keys()
    np.testing.assert_allclose([found[step] for step in whole], list(whole.values()), rtol=1e-5)


def test_no_example_is_lost_or_seen_twice_when_the_processes_change():
    data = Digits(text_length=44)

    def batches(first, last, processes, threads):
        """Global batches, put together from the shares of all processes."""
        shares = []
        for process in range(processes):
            settings = {"next_example": 16 * first, "process": process, "processes": processes, "threads": threads}
            with training_batches(data, 16, 0, **settings) as found:
                shares.append([next(found)["image"] for _ in range(first, last)])
        return [np.concatenate(each) for each in zip(*shares, strict=True)]

    once = batches(0, 40, 1, 0)
    np.testing.assert_array_equal(batches(0, 13, 2, 1) + batches(13, 30, 1, 2) + batches(30, 40, 4, 0), once)


STUCK = '''
"""One process stops reading."""

import dataclasses
import itertools
import time

import jax

from data_pipelines.digits import Digits
from tests.training.tiny import experiment as tiny


@dataclasses.dataclass(frozen=True)
class Stuck(Digits):
    def augment(self, example, rng):
        if jax.process_index() == 1 and next(COUNT) > 300:
            time.sleep(1000)
        return super().augment(example, rng)


COUNT = itertools.count()


def experiment():
    return dataclasses.replace(tiny(), name="stuck", data=Stuck(text_length=44), steps=100_000, evaluate_every=0)
'''


def test_a_late_process_is_named(tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    for code, err in ends(pair(tmp_path / "run", "--patience", "30", file=tmp_path / "stuck.py")):
        assert code == LOST, err
        assert f"process 1 on {socket.gethostname()} has been at step" in err
        assert "phase 'data' for 3" in err and "the others wait for it" in err


def test_an_error_of_one_process_ends_the_other_with_the_same_code(tmp_path):
    text = STUCK.replace("time.sleep(1000)", 'raise UserError("the disk is gone", 3)').replace("> 300", ">= 0")
    text = text.replace("from data_pipelines.digits", "from jmm.errors import UserError\nfrom data_pipelines.digits")
    (tmp_path / "failing.py").write_text(text)
    for code, err in ends(pair(tmp_path / "run", file=tmp_path / "failing.py")):
        assert (code, "the disk is gone" in err) == (3, True), err


def test_a_stopped_process_is_lost(tmp_path):
    first, second = pair(tmp_path, *MESH, "--evaluate-every", "0", "--steps", "100000")
    until(tmp_path, 5, first)
    second.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    ((code, err),) = ends([first])
    assert time.monotonic() - start < 30
    second.kill()
    second.communicate()
    assert code == LOST and f"process 1 on {socket.gethostname()} has been silent for" in err, err
