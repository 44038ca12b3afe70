"""The contrastive loss that never builds its matrix, against the loss of open_clip and against the plain JAX form.

    python -m tests.benchmarks.contrastive --json figures.json

Value and gradients by both embeddings and the scale; width 512, float32. Each contestant is a process of its own with
one thread on one core. Time is the CPU time of that process, which waiting for a busy core does not lengthen; the
contestants take turns, the first of a round being another one each time, and a figure is the median of the rounds'
ratios. Memory is the largest resident set of a first evaluation over what was resident before: inputs, libraries,
compiled code, and whatever an evaluation of 64 rows leaves behind.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.report import Row, run
from tests.benchmarks.tpu_compiler import ask

ROOT = Path(__file__).parents[2]
WIDTH, SCALE = 512, 14.3
ROWS, MORE_ROWS = 16_384, 32_768
ROUNDS = 4
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}

Evaluation = Callable[[], tuple[float, float]]
"""Gives the loss and its gradient by the scale; the gradients by the embeddings exist by then."""


# --- contestants, each in its own process ---


def embeddings(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors; a text resembles its image."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((rows, WIDTH), np.float32)
    text = image + 2 * rng.standard_normal((rows, WIDTH), np.float32)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))


def jax_loss(name: str) -> Callable[[int], Evaluation]:
    """`tiled` or `plain`."""
    import jax
    import jax.numpy as jnp

    from jmm.objectives.contrastive import dense_softmax, softmax_contrastive

    loss = {"tiled": softmax_contrastive, "plain": dense_softmax}[name]

    def prepare(rows: int) -> Evaluation:
        inputs = (*map(jnp.asarray, embeddings(rows)), jnp.float32(SCALE))
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile()

        def evaluate() -> tuple[float, float]:
            value, gradients = jax.block_until_ready(compiled(*inputs))
            return float(value), float(gradients[2])

        return evaluate

    return prepare


def open_clip_loss() -> Callable[[int], Evaluation]:
    """ClipLoss of open_clip on one device, in its own words."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)

    def prepare(rows: int) -> Evaluation:
        image, text = (torch.tensor(x, requires_grad=True) for x in embeddings(rows))
        scale, labels = torch.tensor(SCALE, requires_grad=True), torch.arange(rows)

        def forward() -> torch.Tensor:
            logits_per_image = scale * image @ text.T
            logits_per_text = scale * text @ image.T
            return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels)) / 2

        def evaluate() -> tuple[float, float]:
            image.grad = text.grad = scale.grad = None
            loss = forward()
            loss.backward()
            return loss.item(), scale.grad.item()

        return evaluate

    return prepare


def resident(what: str) -> float:
    """MiB; `what` is VmRSS, now, or VmHWM, the most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def contest(name: str, rows: int) -> None:
    """The process: evaluates once for every line on standard input, and tells what it found."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    prepare = open_clip_loss() if name == "open_clip" else jax_loss(name)
    prepare(64)()
    evaluate = prepare(rows)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is resident now
    for _ in sys.stdin:
        start = time.process_time()
        found = evaluate()
        seconds = time.process_time() - start
        print(json.dumps({"found": found, "seconds": seconds, "mib": resident("VmHWM") - before}), flush=True)


class Contestant:
    """The other end of `contest`."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        code = f"from tests.benchmarks.contrastive import contest; contest({name!r}, {ROWS})"
        pipe = subprocess.PIPE
        environment = {**os.environ, **ENVIRONMENT}
        command = [sys.executable, "-c", code]
        self.process = stack.enter_context(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        )
        stack.callback(self.process.stdin.close)  # at the end of its input it stops

    def evaluate(self) -> dict[str, Any]:
        """One evaluation."""
        print(file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} stopped with exit code {self.process.wait()}")
        return json.loads(line)


def others() -> list[str]:
    """Whom there is to compare with."""
    return ["plain", *(["open_clip"] if find_spec("torch") else [])]


def ratio_row(what: str, other: str, found: list[float], at_least: float) -> Row:
    """How many times less than another contestant; open_clip's row needs torch."""
    if not found:
        return Row(f"{what} {other}: not measured, torch is not installed", 0.0, "×", f"≥ {at_least}", False)
    value = statistics.median(found)
    return Row(f"{what} {other}", value, "×", f"≥ {at_least}", value >= at_least)


# --- measurements ---


def speed() -> list[Row]:
    """CPU time, in turns; and that all compute the same."""
    names = ["tiled", *others()]
    seconds: dict[str, list[float]] = {"tiled": [], "plain": [], "open_clip": []}
    with ExitStack() as stack:
        processes = {name: Contestant(name, stack) for name in names}
        results = {name: process.evaluate()["found"] for name, process in processes.items()}  # warms up
        for turn in range(ROUNDS):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                seconds[name].append(processes[name].evaluate()["seconds"])
    for name in names:
        print(f"{name}: " + ", ".join(f"{each:.2f}" for each in seconds[name]) + " s of CPU")
    ratios = {
        name: [other / ours for other, ours in zip(seconds[name], seconds["tiled"], strict=False)] for name in seconds
    }
    exact, tiled = np.array(results[names[-1]]), np.array(results["tiled"])
    worst = float(np.max(np.abs(tiled - exact) / np.abs(exact)))
    what = f"{ROWS:,} rows, CPU time: times as fast as"
    return [
        ratio_row(what, "open_clip", ratios["open_clip"], 1.4),
        ratio_row(what, "plain JAX", ratios["plain"], 1.0),
        Row(f"loss and its gradient by the scale against {names[-1]}", worst, "relative", "≤ 1e-5", worst <= 1e-5),
    ]


def memory() -> list[Row]:
    """Peak of a first evaluation, one process after another."""
    peaks = {}
    for name in ("tiled", *others()):
        with ExitStack() as stack:
            peaks[name] = Contestant(name, stack).evaluate()["mib"]
        print(f"{name}: {peaks[name]:,.0f} MiB")
    ratios = {name: [peaks[name] / peaks["tiled"]] if name in peaks else [] for name in ("plain", "open_clip")}
    what = f"{ROWS:,} rows, peak memory: times less than"
    return [
        ratio_row(what, "open_clip", ratios["open_clip"], 25),
        ratio_row(what, "plain JAX", ratios["plain"], 18),
    ]


def temporary_memory() -> list[Row]:
    """What XLA sets aside beside inputs and outputs, of a batch that is compiled and not run."""
    code = "from tests.benchmarks.contrastive import temporary; temporary()"
    environment = {**os.environ, **ENVIRONMENT}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    mib = json.loads(printed)
    print(", ".join(f"{name}: {each:,.0f} MiB" for name, each in mib.items()))
    what = f"{MORE_ROWS:,} rows, XLA temporary memory: times less than"
    return [ratio_row(what, "plain JAX", [mib["plain"] / mib["tiled"]], 60)]


def temporary() -> None:
    """Prints MiB of both forms."""
    import jax
    import jax.numpy as jnp

    from jmm.objectives.contrastive import dense_softmax, softmax_contrastive

    vectors = jax.ShapeDtypeStruct((MORE_ROWS, WIDTH), jnp.float32)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    mib = {}
    for name, loss in (("tiled", softmax_contrastive), ("plain", dense_softmax)):
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(vectors, vectors, scale).compile()
        mib[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(json.dumps(mib))


SLICE_ROWS = 131_072
CHIP_GIB = 15.75
"""What the compiler lets a program take of a v5e chip."""


def on_a_slice() -> list[Row]:
    """Compiled for v5e:16x16 (data 16 × fsdp 16), which needs the `tpu` extra but no TPU; takes some minutes."""
    loss, step = (ask(name, batch=SLICE_ROWS) for name in ("contrastive_loss", "contrastive_step"))
    if errors := [answer["error"] for answer in (loss, step) if "error" in answer]:
        return [Row(f"v5e:16x16: {errors[0]}", float("nan"), "MiB", "compiles", False)]
    whole = (step["temporary"] + step["arguments"]) / 2**30
    what = f"v5e:16x16, {SLICE_ROWS:,} rows"
    return [
        Row(f"{what}: the loss alone, temporary memory a chip", loss["bytes"] / 2**20, "MiB", "printed", True),
        Row(f"{what}: the step of CLIP with ViT-L/16, temporary", step["temporary"] / 2**30, "GiB", "printed", True),
        Row(f"{what}: the same and its state", whole, "GiB", f"≤ {CHIP_GIB}", whole <= CHIP_GIB),
    ]


MEASUREMENTS = {
    "temporary_memory": temporary_memory,
    "memory": memory,
    "speed": speed,
    "slice": on_a_slice,
}

if __name__ == "__main__":
    sys.exit(run(MEASUREMENTS, "The contrastive loss: speed and memory."))
