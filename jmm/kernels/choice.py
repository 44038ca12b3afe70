"""Which implementation of attention a call gets."""

import importlib
from typing import Literal, cast, get_args

import jax.numpy as jnp

from jmm.kernels.core import Operands, Problem
from jmm.kernels.masks import Causal, First
from jmm.kernels.placement import ANY, Target, free_axes, warn_once

Implementation = Literal["reference", "chunked", "pallas_tpu", "pallas_gpu", "cudnn"]

CHUNKED_FROM = {"cpu": 192 * 192, "tpu": 1024 * 1024, "gpu": 1024 * 1024}
"""Queries × keys from which `chunked` is preferred to `reference` where no kernel fits: on a CPU by time, elsewhere by
memory."""
KERNEL_FROM = 128 * 128
"""Queries × keys below which a TPU or GPU kernel has less than one block to do."""


def choose(at: Target, problem: Problem, operands: Operands, forced: str | None) -> Implementation:
    """The implementation for a call on a device.

    Raises:
      ValueError: a forced implementation is unknown or cannot do what is asked.
    """
    if forced is not None:
        if forced not in get_args(Implementation):
            raise ValueError(f"the implementation must be one of {', '.join(get_args(Implementation))}, not {forced!r}")
        name = cast(Implementation, forced)
        if why := obstacle(name, at, problem, operands):
            raise ValueError(f"{name} cannot do this: {why}")
        return name
    if at.platform == ANY:
        return "reference"  # the one that cuts no length into blocks, so that lengths may be symbols
    pairs = operands.q.shape[2] * operands.k.shape[2]
    plain: Implementation = "chunked" if pairs >= CHUNKED_FROM.get(at.platform, CHUNKED_FROM["tpu"]) else "reference"
    kernels: dict[str, tuple[Implementation, ...]] = {"tpu": ("pallas_tpu",), "gpu": ("cudnn", "pallas_gpu")}
    if at.platform not in kernels or pairs < KERNEL_FROM:
        return plain
    reasons = []
    for name in kernels[at.platform]:
        why = obstacle(name, at, problem, operands)
        if why is None:
            return name
        reasons.append(f"{name}: {why}")
    warn_once(f"attention: no kernel takes this call ({'; '.join(reasons)}), so {plain} does it, which is slower")
    return plain


def obstacle(name: Implementation, at: Target, problem: Problem, operands: Operands) -> str | None:
    """Why an implementation cannot take a call; None if it can."""
    if name in ("pallas_tpu", "pallas_gpu"):
        why: str | None = importlib.import_module(f"jmm.kernels.{name}").supports(problem, operands)
        return why
    return _cudnn_obstacle(at, problem, operands) if name == "cudnn" else None


def _cudnn_obstacle(at: Target, problem: Problem, operands: Operands) -> str | None:
    q, k = operands.q, operands.k
    if at.platform != "gpu" or "NVIDIA" not in at.kind:
        return f"it runs on NVIDIA GPUs, not on {at.kind}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 and float16, not {q.dtype}"
    if free_axes("length", q.shape[2]):
        return "it knows no ring, and the mesh cuts the sequence"
    if operands.bias is not None:
        return "its bias has no gradient that is summed over rows"
    causal = isinstance(problem.formula, Causal) and q.shape[2] == k.shape[2]
    if not causal and not _is_everything(problem, operands):
        return "it knows no mask formulas but causal"
    if q.shape[-1] > 128 or q.shape[-1] % 8:
        return f"it takes head widths to 128 in steps of 8, not {q.shape[-1]}"
    return None


def _is_everything(problem: Problem, operands: Operands) -> bool:
    """Whether the formula hides nothing."""
    return isinstance(problem.formula, First) and problem.formula.count >= operands.k.shape[2]
