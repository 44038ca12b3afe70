"""Attention on a GPU: the kernels of `jmm.kernels.pallas_gpu` against cuDNN and against the public ways to do the same.

bfloat16, 4,096 tokens, through the public calls, which take [batch, length, heads, width].

python -m tests.benchmarks.attention_gpu --json figures.json
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmm.kernels import attention, masks
from tests.benchmarks.report import Measurement, Row, run

BATCH, LENGTH, HEADS, WIDTHS = 4, 4096, 12, (64, 128)
TURNS, CALLS = 15, 10
PREFIX = 256

Run = Callable[[], Any]


@functools.cache
def gpu() -> bool:
    """Whether there is an NVIDIA GPU; says so once if not."""
    found = "NVIDIA" in jax.devices()[0].device_kind
    if not found:
        print(
            f"No figure of this module is measured: all need an NVIDIA GPU, and here is {jax.devices()[0].device_kind}."
        )
    return found


def seconds(runs: dict[str, Run]) -> dict[str, float]:
    """The median time of each, all in turn, so that a slow moment falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(TURNS + 1):
        for name, each in runs.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                last = each()
            wait(last)
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - start) / CALLS)
    return {name: statistics.median(each) for name, each in times.items()}


def wait(result: Any) -> None:
    """Until the device has done all that it was given."""
    if isinstance(jax.tree.leaves(result)[0], jax.Array):
        jax.block_until_ready(result)
    else:
        import torch

        torch.cuda.synchronize()


def arrays(*shapes: Sequence[int], dtype: Any = jnp.bfloat16) -> list[jax.Array]:
    """Standard normal numbers."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def passes(function: Callable[..., jax.Array], *operands: jax.Array) -> dict[str, Run]:
    """The forward pass, and the backward pass alone; each was run once."""
    forward = jax.jit(function)
    out, pull = jax.jit(partial(jax.vjp, function))(*operands)
    backward = jax.jit(lambda pull, d_out: pull(d_out))
    jax.block_until_ready((forward(*operands), backward(pull, out)))
    return {"forward": lambda: forward(*operands), "backward": lambda: backward(pull, out)}


def against_cudnn() -> list[Row]:
    """Everything visible, and causal."""
    if not gpu():
        return []
    rows = []
    for width in WIDTHS:
        q, k, v = arrays(*[(BATCH, LENGTH, HEADS, width)] * 3)
        for name, mask in (("full", None), ("causal", masks.causal())):
            ours = passes(partial(attention, mask=mask, implementation="pallas_gpu"), q, k, v)
            theirs = passes(
                partial(jax.nn.dot_product_attention, is_causal=mask is not None, implementation="cudnn"), q, k, v
            )
            for what in ours:
                times = seconds({"ours": ours[what], "cudnn": theirs[what]})
                visible = LENGTH * (LENGTH + 1) / 2 if mask else LENGTH**2
                work = (4 if what == "forward" else 10) * BATCH * HEADS * visible * width
                label = f"{name}, width {width}, {what} ({work / times['ours'] / 1e12:.0f} TFLOP/s)"
                share = times["cudnn"] / times["ours"]
                rows.append(Row(label, share, "of cuDNN's rate", "≥ 0.6", share >= 0.6))
    return rows


def against_public_ways() -> list[Row]:
    """A prefix, packed texts and a bias with a gradient, at once."""
    if not gpu():
        return []
    rows = []
    for width in WIDTHS:
        q, k, v, bias = arrays(*[(BATCH, LENGTH, HEADS, width)] * 3, (1, HEADS, LENGTH, LENGTH))
        ids = jnp.repeat(jnp.arange(4, dtype=jnp.int32), LENGTH // 4)[None].repeat(BATCH, axis=0)
        mask = masks.prefix(PREFIX) & masks.segments(ids, ids)

        def ours(q: Any, k: Any, v: Any, bias: Any, mask: masks.Mask = mask) -> jax.Array:
            return attention(q, k, v, mask=mask, bias=bias, implementation="pallas_gpu")

        ways: dict[str, dict[str, Run]] = {"ours": passes(ours, q, k, v, bias)}
        for name in ("xla", "cudnn"):
            way = partial(dense, name, mask.dense(LENGTH, LENGTH)[:, None])
            try:
                ways[name] = passes(way, q, k, v, bias)
            except (ValueError, NotImplementedError, RuntimeError) as error:
                print(f"{name} does not do this at width {width}: {str(error).splitlines()[0]}")
        ways |= flex(q, k, v, bias, ids)
        for what in ("forward", "backward"):
            times = seconds({name: way[what] for name, way in ways.items()})
            for name in times.keys() - {"ours"}:
                faster = times[name] / times["ours"]
                label = f"prefix, segments and bias, width {width}, {what}: {name}'s time by ours"
                rows.append(Row(label, faster, "×", "> 1", faster > 1))
    return rows


def dense(name: Any, visible: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """With the mask as an array."""
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=visible, implementation=name)


def flex(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, ids: jax.Array) -> dict[str, dict[str, Run]]:
    """FlexAttention of PyTorch, if it is there with CUDA."""
    try:
        import torch
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}

    def tensor(x: jax.Array) -> Any:
        return torch.tensor(np.asarray(x.astype(jnp.float32)), dtype=torch.bfloat16, device="cuda")

    heads_first = [tensor(x).transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
    shared = tensor(bias)[0].requires_grad_()
    labels = torch.tensor(np.asarray(ids), device="cuda")

    def visible(b: Any, _: Any, i: Any, j: Any) -> Any:
        return ((j <= i) | (j < PREFIX)) & (labels[b, i] == labels[b, j])

    def biased(score: Any, _: Any, h: Any, i: Any, j: Any) -> Any:
        return score + shared[h, i, j]

    blocks = create_block_mask(visible, BATCH, None, LENGTH, LENGTH)
    compiled: Any = torch.compile(flex_attention)
    out = compiled(*heads_first, score_mod=biased, block_mask=blocks)

    def forward() -> Any:
        with torch.no_grad():
            return compiled(*heads_first, score_mod=biased, block_mask=blocks)

    def backward() -> Any:
        return torch.autograd.grad(out, (*heads_first, shared), out.detach(), retain_graph=True)

    return {"flex_attention": {"forward": forward, "backward": backward}}


def accuracy() -> list[Row]:
    """float32, every feature, on the device itself: against the reference with whole float32 products."""
    if not gpu():
        return []
    length, rng = 1000, np.random.default_rng(1)
    operands = arrays(*[(2, length, heads, 72) for heads in (4, 2, 2)], (1, 4, length, length), dtype=jnp.float32)
    ids = jnp.asarray(np.sort(rng.integers(0, 5, (2, length)), axis=1))
    mask = masks.prefix(jnp.asarray([10, 300])) & masks.segments(ids, ids)

    def both(implementation: Any) -> list[jax.Array]:
        def function(q: Any, k: Any, v: Any, bias: Any) -> jax.Array:
            return attention(q, k, v, mask=mask, bias=bias, implementation=implementation)

        with jax.default_matmul_precision("highest"):
            out, pull = jax.jit(partial(jax.vjp, function))(*operands)
            return [out, *pull(jnp.cos(out))]

    rows = []
    names = ("output", *(f"gradient of {name}" for name in ("q", "k", "v", "the bias")))
    for name, found, right in zip(names, both("pallas_gpu"), both("reference"), strict=True):
        worst, bar = float(jnp.abs(found - right).max() / jnp.abs(right).max()), 1e-5 if name == "output" else 1e-4
        rows.append(Row(f"float32, {name}", worst, "of the scale", f"≤ {bar:.0e}", worst <= bar))
    return rows


MEASUREMENTS: dict[str, Measurement] = {
    "accuracy": accuracy,
    "cudnn": against_cudnn,
    "public_ways": against_public_ways,
}

if __name__ == "__main__":
    sys.exit(run(MEASUREMENTS, "Attention on a GPU."))
