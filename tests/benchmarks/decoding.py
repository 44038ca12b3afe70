"""Writing tokens on a CPU against transformers' `generate`, one thread each.

GPT-2 small and a small sister of it (2 layers, 128 wide) in float32 with random weights; 64 tokens of prompt, 64 new
ones, greedy. Every contestant is a process of its own; they run in turn, and a figure is the median over the turns of
the ratio of their processor times. Compilation comes before.

python -m tests.benchmarks.decoding --json figures.json
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
CONTESTANTS = ("jmm", "transformers")
SIZES = {"gpt2": (768, 12, 12, 50_257), "small": (128, 2, 2, 50_257)}
"""Width, layers, heads, vocabulary."""
PROMPT = NEW = 64
TURNS = {"gpt2": 7, "small": 21}

Once = Callable[[], object]


def prompts(rows: int) -> np.ndarray:
    """The same for both."""
    return np.random.default_rng(0).integers(1, 50_000, (rows, PROMPT)).astype(np.int32)


def with_jmm(size: str, rows: int) -> Once:
    """One batch written by `jmm.generation.generate`."""
    from dataclasses import replace

    import jax

    from data_pipelines.preprocess import Preprocess
    from jmm.distributed.mesh import MeshShape, make_mesh
    from jmm.generation import generate
    from jmm.model import Model
    from jmm.models.decoder import gpt2

    width, depth, heads, vocabulary = SIZES[size]
    config = replace(gpt2(width, depth, heads), vocab_size=vocabulary)
    module, text = config.build(), prompts(rows)
    variables = jax.jit(module.init)(jax.random.key(0), text=text)
    model = Model(config, module, variables, Preprocess(), make_mesh(MeshShape()))

    def once() -> None:
        ids, lengths = map(np.asarray, generate(model, {"text": text}, max_new_tokens=NEW))
        assert ids.shape == (rows, NEW) and (lengths == NEW).all()

    return once


def with_transformers(size: str, rows: int) -> Once:
    """One batch written by `generate` of transformers."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    width, depth, heads, vocabulary = SIZES[size]
    config = GPT2Config(vocab_size=vocabulary, n_embd=width, n_layer=depth, n_head=heads)
    model, text = GPT2LMHeadModel(config).eval(), torch.from_numpy(prompts(rows)).long()
    everything = torch.ones_like(text)

    def once() -> None:
        with torch.no_grad():
            ids = model.generate(
                text,
                attention_mask=everything,
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert ids.shape == (rows, PROMPT + NEW)

    return once


def serve(contestant: str) -> None:
    """Answers each line `size rows` with the seconds of one batch; what is new is compiled and tried before."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    make = functools.cache(with_jmm if contestant == "jmm" else with_transformers)
    known = set()
    for line in sys.stdin:
        size, rows = line.split()
        once = make(size, int(rows))
        if line not in known:
            once()
            known.add(line)
        start = time.process_time()
        once()
        print(time.process_time() - start, flush=True)


def seconds(size: str, rows: int) -> list[list[float]]:
    """Those of both, turn by turn."""
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
            for contestant in CONTESTANTS
        ]

        def ask(process: "subprocess.Popen[str]") -> float:
            print(size, rows, file=process.stdin, flush=True)
            return float(process.stdout.readline())

        return [[ask(process) for process in processes] for _ in range(TURNS[size])]


def speed(size: str, target: float) -> list[Row]:
    """How many times as fast as transformers, with one row and with eight."""
    rows = []
    for count in (1, 8):
        turns = seconds(size, count)
        ours, theirs = (statistics.median(each) for each in zip(*turns, strict=True))
        ratio = statistics.median(theirs / ours for ours, theirs in turns)
        what = f"{NEW} tokens by {size}, batch {count}, on one core, against transformers"
        times = f" ({ours * 1e3:,.0f} and {theirs * 1e3:,.0f} ms)"
        rows.append(Row(what + times, ratio, "times as fast", f"≥ {target}", ratio >= target))
    return rows


MEASUREMENTS: dict[str, Measurement] = {
    "gpt2": functools.partial(speed, "gpt2", 1.2),
    "small": functools.partial(speed, "small", 5.0),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        sys.exit(run(MEASUREMENTS, __doc__))
