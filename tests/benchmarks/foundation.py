"""The figures of the foundation: speed of the main job, accuracy, exactness of resume and of meshes.

python -m tests.benchmarks.foundation --json figures.json
"""

import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.report import Row, run

ROOT = Path(__file__).parents[2]
QUICKSTART = "experiments/quickstart.py"
TINY = "tests/training/tiny.py"


def jmm(*arguments: str, devices: int = 1) -> "subprocess.Popen[str]":
    """A `jmm` command on so many emulated devices."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "jmm", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def done(process: "subprocess.Popen[str]") -> str:
    """Waits; standard output of a command that must succeed."""
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(err)
    return out


def main_job() -> list[Row]:
    """The whole command, three seeds: seconds from start to the last line, and accuracy."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(3):
            start = time.perf_counter()
            workdir = f"{folder}/{seed}"
            printed = json.loads(done(jmm("train", QUICKSTART, "--workdir", workdir, "--seed", str(seed), "--json")))
            minutes = (time.perf_counter() - start) / 60
            accuracy = printed["figures"]["eval/zero_shot/accuracy"]
            rows.append(Row(f"main job, seed {seed}", minutes, "minutes", "≤ 4", minutes <= 4))
            rows.append(Row(f"zero-shot accuracy, seed {seed}", accuracy, "of 360", "≥ 0.96", accuracy >= 0.96))
    return rows


def loop_overhead() -> list[Row]:
    """The loop of the main job against its jitted step alone, in turn; reading data shares the same cores."""
    import jax
    from rich.console import Console

    from data_pipelines.pipeline import training_batches
    from jmm.distributed.sharding import on_mesh
    from jmm.distributed.watchdog import Watchdog
    from jmm.overrides import read_experiment_file
    from jmm.training.checkpoint import Checkpoints
    from jmm.training.loop import PATIENCE, Run, ahead
    from jmm.training.metrics import MetricsLog
    from jmm.training.step import build
    from jmm.training.terminal import Terminal

    experiment = replace(read_experiment_file(ROOT / QUICKSTART), evaluate_every=0)
    program, count, shares = build(experiment), 60, []
    with ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoints = Checkpoints(workdir / "checkpoints", experiment.checkpoint)
        metrics = MetricsLog(workdir, 0)
        terminal = Terminal(Console(quiet=True), experiment.steps, 0, experiment.batch_size)
        watch = stack.enter_context(Watchdog(PATIENCE))
        loop = Run(program, checkpoints, metrics, terminal, watch, program.init(), 0)
        batches = stack.enter_context(
            training_batches(experiment.data, experiment.batch_size, 0, threads=experiment.data_threads)
        )
        placed = ahead(program, batches, 0)
        fixed, _ = next(placed)
        for turn in range(9):
            start = time.perf_counter()
            for _ in range(count):
                loop.step(next(placed)[0])
            jax.block_until_ready(loop.state)
            whole = time.perf_counter() - start
            start = time.perf_counter()
            with on_mesh(program.mesh):
                for _ in range(count):
                    loop.state, _ = program.step(loop.state, fixed)
                jax.block_until_ready(loop.state)
            if turn:  # the first turn warms up
                shares.append(1 - (time.perf_counter() - start) / whole)
    share = statistics.median(shares)
    return [Row("time outside the jitted step (median of 8 turns)", share, "of the loop", "≤ 0.05", share <= 0.05)]


def meshes() -> list[Row]:
    """30 steps of the main job on 8 emulated devices (data 2 × fsdp 2 × tensor 2) against one."""
    code = (
        "import json, sys; from tests.benchmarks.foundation import losses; print(json.dumps(losses(int(sys.argv[1]))))"
    )
    found = []
    for devices in (1, 8):
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code, str(devices)]
        printed = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(printed.stdout.splitlines()[-1]))
    worst = largest_difference(*found)
    return [Row("loss on 8 devices against 1, 30 steps", worst, "relative", "≤ 1e-5", worst <= 1e-5)]


def losses(devices: int) -> list[float]:
    """30 losses of the main job in this process."""
    from data_pipelines.pipeline import training_batches
    from jmm.distributed.sharding import on_mesh
    from jmm.experiment import MeshShape
    from jmm.overrides import read_experiment_file
    from jmm.training.step import build

    shape = MeshShape() if devices == 1 else MeshShape(data=2, fsdp=2, tensor=2)
    experiment = replace(read_experiment_file(ROOT / QUICKSTART), mesh=shape)
    program, found = build(experiment), []
    state = program.init()
    with training_batches(experiment.data, experiment.batch_size, 0) as batches, on_mesh(program.mesh):
        for _ in range(30):
            batch = next(batches)
            fields = {name: batch[name] for name in experiment.model.batch_spec(1)}
            state, metrics = program.step(state, program.place(fields))
            found.append(float(metrics["loss"]))
    return found


def largest_difference(first: list[float], second: list[float]) -> float:
    """The largest relative difference of two series."""
    return max(abs(a - b) / abs(b) for a, b in zip(first, second, strict=True))


def sudden_death() -> list[Row]:
    """SIGKILL at a random step and the same command again, five times."""
    steps, equal = 60, 0
    settings = ("--steps", str(steps), "--checkpoint.every", "7", "--evaluate_every", "20")
    with tempfile.TemporaryDirectory() as folder:
        done(jmm("train", TINY, "--workdir", f"{folder}/whole", *settings))
        whole = Path(f"{folder}/whole/metrics.jsonl").read_text()
        for attempt in range(5):
            workdir = Path(folder, str(attempt))
            arguments = ("train", TINY, "--workdir", str(workdir), *settings)
            process, at = jmm(*arguments), random.randint(1, steps - 2)
            while process.poll() is None and lines(workdir) < at:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            died = lines(workdir)
            done(jmm(*arguments))
            same = (workdir / "metrics.jsonl").read_text() == whole
            print(f"killed with {died} lines written: {'equal' if same else 'DIFFERENT'}")
            equal += same
    return [Row("killed and resumed: metrics.jsonl equal to the last bit", equal, "of 5", "5", equal == 5)]


def lines(workdir: Path) -> int:
    """Lines of metrics so far."""
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def two_processes() -> list[Row]:
    """Two processes × 4 devices on this machine against one process."""
    from data_pipelines.digits import Digits
    from data_pipelines.pipeline import training_batches

    series = []
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
        free.close()
        short = ("--steps", "30", "--optimizer.warmup_steps", "10", "--log_every", "1", "--evaluate_every", "0")
        shared = ("train", QUICKSTART, *short)
        cluster = ("--workdir", f"{folder}/two", "--mesh.fsdp", "2", "--mesh.tensor", "2", "--coordinator", address)
        both = [jmm(*shared, *cluster, "--num-processes", "2", "--process-id", str(i), devices=4) for i in range(2)]
        for process in both:
            done(process)
        done(jmm(*shared, "--workdir", f"{folder}/one"))
        for name in ("two", "one"):
            written = map(json.loads, Path(folder, name, "metrics.jsonl").read_text().splitlines())
            series.append([line["train/loss"] for line in written if "train/loss" in line])
    seen = []
    for process in range(2):
        with training_batches(Digits(), 128, 0, process=process, processes=2, threads=0) as batches:
            for _ in range(1437 // 128):
                seen += [image.tobytes() for image in next(batches)["image"]]
    twice, worst = len(seen) - len(set(seen)), largest_difference(*series)
    return [
        Row("loss of 2 processes × 4 devices against 1, 30 steps", worst, "relative", "≤ 1e-5", worst <= 1e-5),
        Row("examples seen twice in an epoch by 2 processes", twice, "examples", "0", twice == 0),
    ]


def help_time() -> list[Row]:
    """`jmm --help`, the median of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done(jmm("--help"))
        times.append(time.perf_counter() - start)
    loaded = (
        "import sys, jmm.cli as c\ntry: c.main(['--help'])\n"
        "except SystemExit: print(sorted({'jax', 'flax'} & set(sys.modules)))"
    )
    listed = subprocess.run([sys.executable, "-c", loaded], stdout=subprocess.PIPE, text=True, check=True).stdout
    heavy = listed.splitlines()[-1] != "[]"
    median = statistics.median(times)
    return [
        Row("jmm --help", median, "seconds", "≤ 1.5", median <= 1.5),
        Row("of jax and flax imported by it", float(heavy), "modules", "0", not heavy),
    ]


def sizes() -> list[Row]:
    """Parameters of every paper-sized config, by `jax.eval_shape`."""
    import jax

    from jmm.models import clip, vit
    from tests.arrays import abstract_params

    published = {
        "vit_b32": 88_224_232,
        "vit_b16": 86_567_656,
        "vit_l32": 306_535_400,
        "vit_l16": 304_326_632,
        "vit_h14": 632_045_800,
        "dino_s16": 21_665_664,
        "dino_s8": 21_670_272,
        "dino_b16": 85_798_656,
        "dino_b8": 85_807_872,
        "clip_b32": 151_277_313,
        "clip_b16": 149_620_737,
        "clip_l14": 427_616_513,
        "clip_l14_336": 427_944_193,
        "clip_rn50": 102_007_137,
        "clip_rn101": 119_688_033,
        "clip_rn50x4": 178_300_601,
        "siglip_base": 203_155_970,
        "siglip_so400m": 877_960_498,
    }
    rows = []
    for name, config in {**vit.VARIANTS, **clip.VARIANTS}.items():
        count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
        ok = count == published[name]
        rows.append(Row(f"parameters of {name}", count, "", f"{published[name]:,}", ok))
    return rows


MEASUREMENTS = {
    "help_time": help_time,
    "sizes": sizes,
    "meshes": meshes,
    "two_processes": two_processes,
    "sudden_death": sudden_death,
    "loop_overhead": loop_overhead,
    "main_job": main_job,
}

if __name__ == "__main__":
    sys.exit(run(MEASUREMENTS, "The figures of the foundation."))
