"""Attention on a CPU: the chunked core against XLA's and against PyTorch's, one thread each.

Forward and backward pass in float32, batch 1, 12 heads of width 64, operands [B, L, H, D]. Every contestant is a
process of its own, because XLA returns its pages after each call and PyTorch keeps them; they run in turn, and a figure
is the median over the turns of the ratio of their processor times.

python -m tests.benchmarks.attention_cpu --json figures.json
"""

import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tests.benchmarks.report import Measurement, Row, run

ROOT = Path(__file__).parents[2]
HEADS, WIDTH = 12, 64
LENGTHS = (1024, 4096)
TURNS = {1024: 15, 4096: 5}
PREFIX_PART = 4
"""The prefix is this part of the length."""

Pass = Callable[[], object]


def operands(length: int) -> list[np.ndarray]:
    """q, k, v and the gradient of the output."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, length, HEADS, WIDTH), np.float32) for _ in range(4)]


def compiled(contestant: str, length: int, mask: str):
    """Output and gradients by XLA, of `jmm` or of `jax.nn`."""
    import jax

    from jmm.kernels import attention, masks

    formula = {"full": None, "causal": masks.causal(), "prefix": masks.prefix(length // PREFIX_PART)}[mask]
    ours = functools.partial(attention, mask=formula, implementation="chunked")
    function = ours if contestant == "jmm" else jax.nn.dot_product_attention

    def passes(q, k, v, d_out):
        out, pull = jax.vjp(function, q, k, v)
        return out, pull(d_out)

    return jax.jit(passes).lower(*operands(length)).compile()


def with_xla(contestant: str, length: int, mask: str) -> Pass:
    """A forward and backward pass of `jmm` or of `jax.nn`."""
    import jax

    step, arrays = compiled(contestant, length, mask), jax.device_put(operands(length))
    return lambda: jax.block_until_ready(step(*arrays))


def with_torch(_: str, length: int, mask: str) -> Pass:
    """A forward and backward pass of PyTorch."""
    import torch

    torch.set_num_threads(1)
    *qkv, d_out = (torch.from_numpy(each) for each in operands(length))
    at = torch.arange(length)
    visible = (at <= at[:, None]) | (at < length // PREFIX_PART) if mask == "prefix" else None

    def passes() -> object:
        q, k, v = (each.detach().requires_grad_() for each in qkv)
        heads_first = (each.transpose(1, 2) for each in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            *heads_first, attn_mask=visible, is_causal=mask == "causal"
        )
        out.transpose(1, 2).backward(d_out)
        return q.grad, k.grad, v.grad

    return passes


def serve(contestant: str) -> None:
    """Answers each line `length mask` with the seconds of one pass; what is new is compiled and tried before."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    make = functools.cache(with_torch if contestant == "torch" else with_xla)
    known = set()
    for line in sys.stdin:
        length, mask = line.split()
        once = make(contestant, int(length), mask)
        if line not in known:
            once()
            known.add(line)
        start = time.process_time()
        once()
        print(time.process_time() - start, flush=True)


def seconds(contestants: tuple[str, ...], length: int, mask: str) -> list[list[float]]:
    """Those of every contestant, turn by turn."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", __spec__.name, "serve", contestant],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for contestant in contestants
        ]

        def ask(process: "subprocess.Popen[str]") -> float:
            print(length, mask, file=process.stdin, flush=True)
            return float(process.stdout.readline())

        return [[ask(process) for process in processes] for _ in range(TURNS[length])]


def speed(rival: str, length: int, mask: str, target: float) -> Row:
    """How many times as fast as the rival."""
    turns = seconds(("jmm", rival), length, mask)
    ours = statistics.median(each for each, _ in turns)
    ratio = statistics.median(theirs / each for each, theirs in turns)
    what = f"attention on one core, {mask}, {length:,} tokens, against {rival} ({ours * 1e3:.0f} ms)"
    return Row(what, ratio, "times as fast", f"≥ {target}", ratio >= target)


def against_xla() -> list[Row]:
    """Every pair visible, against `jax.nn.dot_product_attention`."""
    targets = dict(zip(LENGTHS, (3, 4), strict=True))
    return [speed("jax.nn", length, "full", target) for length, target in targets.items()]


def memory() -> list[Row]:
    """Temporary memory of the compiled passes at the greatest length."""
    ours, theirs = (
        compiled(contestant, LENGTHS[-1], "full").memory_analysis().temp_size_in_bytes
        for contestant in ("jmm", "jax.nn")
    )
    what = f"temporary memory of attention, {LENGTHS[-1]:,} tokens, against jax.nn ({ours / 2**20:.0f} MiB)"
    return [Row(what, ours / theirs, "of its bytes", "≤ 1/30", ours <= theirs / 30)]


def against_torch() -> list[Row]:
    """Against `torch.nn.functional.scaled_dot_product_attention`."""
    targets = {"full": 0.85, "causal": 1.2, "prefix": 1.2}
    return [speed("torch", length, mask, target) for length in LENGTHS for mask, target in targets.items()]


MEASUREMENTS: dict[str, Measurement] = {
    "cpu-xla": against_xla,
    "cpu-memory": memory,
    "cpu-torch": against_torch,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        sys.exit(run(MEASUREMENTS, __doc__))
