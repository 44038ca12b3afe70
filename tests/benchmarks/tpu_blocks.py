"""Finds the block sizes of `jmm/kernels/tpu_blocks.py`: `python -m tests.benchmarks.tpu_blocks`.

On a TPU by measured time of forward and backward; elsewhere by the compiler's static estimate of the forward kernel
(v5p and v6e; the estimate of v5e aborts on the prefetched list). Prints every candidate and the best of each width.
"""

import itertools
import statistics
import time
from collections.abc import Iterator

from tests.benchmarks.tpu_compiler import ask

WIDTHS = (64, 128, 256)
SIZES = (256, 512, 1024)
LENGTH = 4096


def estimated() -> Iterator[tuple[str, int, tuple[int, int], float]]:
    """(chip, width, blocks, cycles) of every candidate that compiles."""
    for topology, width, blocks in itertools.product(("v5p", "v6e"), WIDTHS, itertools.product(SIZES, SIZES)):
        shape = {"topology": topology, "mask": "causal", "length": LENGTH, "blocks": blocks, "width": width}
        answer = ask("cycles", profile=True, contestant="ours", **shape)
        if "error" in answer:
            print(f"{topology} {width:>4} {blocks}: {answer['error']}")
        else:
            yield topology, width, blocks, answer["cycles"]


def measured() -> Iterator[tuple[str, int, tuple[int, int], float]]:
    """(chip, width, blocks, milliseconds) on the TPU at hand."""
    import jax
    import jax.numpy as jnp

    from jmm.kernels import masks, pallas_tpu, tpu_blocks
    from jmm.kernels.core import Operands, Problem, attend

    for width, blocks in itertools.product(WIDTHS, itertools.product(SIZES, SIZES)):
        q = jnp.ones((4, 16, LENGTH, width), jnp.bfloat16)
        problem = Problem(masks.causal(), width**-0.5, blocks=tpu_blocks.BlockSizes(*blocks))

        @jax.jit
        def step(q: jax.Array, problem: Problem = problem) -> jax.Array:
            return jax.grad(lambda q: attend(pallas_tpu, problem, Operands(q, q, q, None, (), ())).sum())(q)

        try:
            step(q).block_until_ready()
        except jax.errors.JaxRuntimeError as error:
            print(f"{width:>4} {blocks}: {str(error)[:200]}")
            continue
        times = []
        for _ in range(20):
            start = time.perf_counter()
            step(q).block_until_ready()
            times.append(1e3 * (time.perf_counter() - start))
        yield jax.devices()[0].device_kind, width, blocks, statistics.median(times)


def main() -> None:
    """Prints all candidates, then the best."""
    import jax

    best: dict[tuple[str, int], tuple[float, tuple[int, int]]] = {}
    for chip, width, blocks, cost in measured() if jax.default_backend() == "tpu" else estimated():
        print(f"{chip} {width:>4} {blocks}: {cost:,.6g}", flush=True)
        best[chip, width] = min(best.get((chip, width), (cost, blocks)), (cost, blocks))
    for (chip, width), (cost, blocks) in best.items():
        print(f"best on {chip} to width {width}: {blocks} ({cost:,.6g})")


if __name__ == "__main__":
    main()
