"""Sizes of the blocks of the TPU kernels, a table for each generation of chips.

`python -m tests.benchmarks.tpu_blocks` finds them anew: from compile-time cycle estimates of the forward kernel on any
machine, from measured times on a TPU. Those of v5p and v6e come from estimates (causal, length 4,096, 2026-11-21), none
from measurement. v5e cannot be estimated; it has the sizes that were best next to the largest on v5p, for less padding.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jmm.kernels.core import Operands
from jmm.kernels.placement import target


class BlockSizes(NamedTuple):
    """Tokens in a block of queries and of keys."""

    q: int
    k: int


MAX_WIDTH = 256
"""Of a head."""

TABLE: dict[str, dict[int, BlockSizes]] = {
    "TPU v5 lite": {MAX_WIDTH: BlockSizes(512, 512)},
    "TPU v5": {128: BlockSizes(1024, 512), MAX_WIDTH: BlockSizes(1024, 1024)},
    "TPU v6 lite": {MAX_WIDTH: BlockSizes(1024, 1024)},
}
"""By kind of device, then by the head width up to which an entry holds."""
UNKNOWN = BlockSizes(256, 256)
"""For chips that the table does not have; those before v5 have 16 MiB of vector memory."""
FAST_MEMORY = 32 * 2**20
"""Half of the vector memory of the chip in the table that has least; the compiler gives 16 MiB unasked."""
TIGHT = BlockSizes(512, 512)
"""The most that fast memory holds beside a block of bias, or in float32."""


def fast_memory() -> int | None:
    """Bytes of vector memory that a kernel may take; None: what the compiler gives unasked, on an unknown chip."""
    return FAST_MEMORY if target().kind in TABLE else None


def block_sizes(operands: Operands) -> BlockSizes:
    """The sizes for a call on the device that is traced for."""
    entries = TABLE.get(target().kind, {MAX_WIDTH: UNKNOWN})
    width = operands.q.shape[-1]
    sizes = next(sizes for limit, sizes in sorted(entries.items()) if width <= limit)
    if operands.bias is None and operands.q.dtype != jnp.float32:
        return sizes
    return BlockSizes(min(sizes.q, TIGHT.q), min(sizes.k, TIGHT.k))
