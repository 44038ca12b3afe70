"""How the Pallas kernels for GPUs cut their work: sizes of blocks, and lists of the blocks to visit.

A program keeps one *major* block and visits the *minor* blocks that contribute to it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jmm.kernels.blocks import Truth
from jmm.kernels.placement import target


class Tile(NamedTuple):
    """Tokens of one block of queries and of keys, and how Triton compiles it. Blocks are powers of two from 16 on."""

    q: int
    k: int
    warps: int = 4
    stages: int = 2


class Tiles(NamedTuple):
    """One tile for each kernel."""

    forward: Tile
    dq: Tile
    dkv: Tile
    dbias: Tile


# By the type of device, then by the largest head width that an entry is for. Starting guesses: each entry was compiled
# by Triton 3.9 for its type of device, fits its shared memory also with a bias of float32, and spills at most a few
# registers; none was measured.
# Hopper, 227 KiB of shared memory. Groups of 4 warps make products of 64 rows.
HOPPER = {
    64: Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 4, 3), Tile(64, 128, 8, 3), Tile(64, 64, 8, 2)),
    128: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    256: Tiles(Tile(64, 64, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 8, 1)),
}
# A100, 163 KiB.
AMPERE = {
    64: Tiles(Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(64, 32, 4, 3), Tile(64, 32, 4, 2)),
    128: Tiles(Tile(128, 32, 8, 3), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2), Tile(32, 64, 8, 2)),
    256: Tiles(Tile(64, 32, 8, 2), Tile(64, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 64, 8, 1)),
}
# 99 KiB, as consumer cards have.
DEFAULT = {
    64: Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2)),
    128: Tiles(Tile(64, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 1)),
    256: Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 64, 8, 1)),
}
# Whole float32 products do without tensor cores, each thread with its operands in registers: small blocks everywhere.
FLOAT32 = {
    64: Tiles(*[Tile(32, 32, 8, 1)] * 4),
    128: Tiles(Tile(32, 32, 8, 1), Tile(32, 16, 8, 1), Tile(16, 32, 8, 1), Tile(32, 32, 8, 1)),
    256: Tiles(Tile(16, 32, 8, 1), Tile(16, 32, 8, 1), Tile(16, 16, 8, 1), Tile(16, 32, 8, 1)),
}

DEVICES = {"H100": HOPPER, "H200": HOPPER, "A100": AMPERE}


def tiles(width: int, itemsize: int) -> Tiles:
    """The table's entry for heads of this width and bytes a number on the device that is traced for."""
    kind = target().kind
    table = next((entry for name, entry in DEVICES.items() if name in kind), DEFAULT) if itemsize <= 2 else FLOAT32
    return next(entry for widest, entry in table.items() if width <= widest)


class Kinds(NamedTuple):
    """What is known of a kernel's blocks when tracing."""

    full: bool
    """Some may be wholly visible."""
    partial: bool
    """Some may be visible in part."""
    running: bool
    """The wholly visible ones of each list follow one another, so their numbers need not be fetched."""


class Visits(NamedTuple):
    """For each major block the list of its minor blocks: first those of which all is visible, then the others.

    So two loops without a branch do the work, and only the second looks at the predicate.
    """

    index: Any
    """int32 [1 or B, majors, minors]: the lists."""
    count: Any
    """int32 [1 or B, majors, 2]: how many are wholly visible, and how many are listed."""
    kinds: Kinds


def visits(truth: Truth, *, by_keys: bool) -> Visits:
    """Lists the blocks that must be computed, for each block of queries or each block of keys."""
    kind = work(truth)
    if by_keys:
        kind = kind.swapaxes(1, 2)
    static = isinstance(kind, np.ndarray)
    xp: Any = np if static else jnp
    index = xp.argsort(-kind, axis=-1, stable=True).astype(np.int32)
    count = xp.stack([(kind == 2).sum(-1), (kind > 0).sum(-1)], axis=-1).astype(np.int32)
    if not static:
        return Visits(index, count, Kinds(full=True, partial=True, running=False))
    whole, listed = count[..., 0], count[..., 1]
    steps = np.arange(index.shape[-1])
    running = (index == index[..., :1] + steps) | (steps >= whole[..., None])
    index = index[..., : max(1, int(listed.max()))]
    return Visits(index, count, Kinds(bool(whole.any()), bool((listed > whole).any()), bool(running.all())))


def work(truth: Truth) -> Any:
    """0: nothing to compute; 1: the predicate must be looked at; 2: every pair is visible. int32 [1 or B, Q, K]."""
    return truth.some.astype(np.int32) + (truth.some & truth.all)
