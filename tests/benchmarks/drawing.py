"""1,024 codes of an image on a CPU with a cache, against reading the stream again for each, one thread each.

A DALL-E of two layers, 128 wide, with random weights: eight texts of 16 words, 32×32 codes each, greedy. Without a
cache each code is one call of the forward pass over the text and the rows of codes begun so far, filled up to the next
four rows, so that eight programs are compiled; all stays on the device. Both contestants are processes of their own;
they run in turn, and the figure is the median over the turns of the ratio of their processor times. Compilation comes
before. Takes about twenty minutes. On an x86 core with AVX-512 (2026-11-22; jax 0.10.2, beside other work): the same
codes, 123 times as fast (1.97 against 262.9 s).

python -m tests.benchmarks.drawing --json figures.json
"""

import statistics
import sys
from functools import cache, partial
from typing import Any

import numpy as np

from tests.benchmarks.report import Measurement, Row, run
from tests.benchmarks.turns import Make, Once, serve, take_turns

SIDE, WORDS, TURNS, TOGETHER = 32, 16, 3, 4


@cache
def prepared(rows: int) -> tuple[Any, dict[str, np.ndarray]]:
    """The model, and texts, the same for all."""
    from data_pipelines.preprocess import Preprocess
    from jmm.distributed.mesh import MeshShape, make_mesh
    from jmm.model import Model
    from jmm.models import dalle
    from tests.generation.anew import perturbed_weights

    config = dalle.Config(dalle.sandwich(128, 2, 4), (SIDE, SIDE), 512, 256, WORDS, first_code="text")
    rng = np.random.default_rng(0)
    texts = {"text": rng.integers(3, 300, (rows, WORDS)).astype(np.int32), "text_mask": np.ones((rows, WORDS), bool)}
    return Model(config, config.build(), perturbed_weights(config), Preprocess(), make_mesh(MeshShape())), texts


def with_a_cache(case: str) -> Once:
    """By `jmm.generation.generate`."""
    from jmm.generation import generate

    model, texts = prepared(int(case))
    first = model.config.text_vocab
    return lambda: np.asarray(generate(model, texts, max_new_tokens=SIDE * SIDE).ids) - first


def anew(case: str) -> Once:
    """By the forward pass over the stream so far."""
    import jax
    import jax.numpy as jnp

    model, texts = prepared(int(case))
    words = model.config.text_vocab

    @partial(jax.jit, static_argnums=4, donate_argnums=2)
    def draw(variables: Any, texts: Any, drawn: jax.Array, number: jax.Array, rows: int) -> jax.Array:
        """The codes with one more."""
        logits = model.module.apply(variables, **texts, codes=drawn[:, :rows])["logits"][..., words:]
        code = jnp.argmax(logits[:, WORDS - 1 + number], axis=-1).astype(drawn.dtype)
        return drawn.at[:, number // SIDE, number % SIDE].set(code)

    def once() -> np.ndarray:
        drawn = jnp.zeros((int(case), SIDE, SIDE), jnp.int32)
        for number in range(SIDE * SIDE):
            rows = (number // SIDE // TOGETHER + 1) * TOGETHER
            drawn = draw(model.unstacked, texts, drawn, np.int32(number), rows)
        return np.asarray(drawn).reshape(len(drawn), -1)

    return once


CONTESTANTS: dict[str, Make] = {"cache": with_a_cache, "anew": anew}


def speed() -> list[Row]:
    """Same codes, and how many times as fast."""
    case = "8"
    ids = [make(case)() for make in CONTESTANTS.values()]
    same = float(np.mean(ids[0] == ids[1]))
    turns = take_turns("tests.benchmarks.drawing", CONTESTANTS, case, TURNS)
    cached, other = (statistics.median(each) for each in zip(*turns, strict=True))
    ratio = statistics.median(turn[1] / turn[0] for turn in turns)
    what = f"{SIDE * SIDE:,} codes of a small DALL-E, batch {case}, one core"
    against = f"against reading all before it anew ({cached:,.2f} and {other:,.1f} s)"
    return [
        Row(f"{what}: same codes with a cache and without", same, "of 1", "1", same == 1),
        Row(f"{what}, {against}", ratio, "times as fast", "≥ 8", ratio >= 8),
    ]


MEASUREMENTS: dict[str, Measurement] = {"speed": speed}

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(CONTESTANTS[sys.argv[2]])
    else:
        sys.exit(run(MEASUREMENTS, __doc__ or ""))
