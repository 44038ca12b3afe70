"""One call of a TPU kernel: its blocks, how they lie in memory, and a block of logits under the mask."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jmm.kernels.blocks import Schedule, block_map
from jmm.kernels.core import MASKED, Operands, Problem
from jmm.kernels.masks import Labels, Side
from jmm.kernels.tpu_blocks import BlockSizes, block_sizes, fast_memory

LANES = 128
"""Numbers in a row of a vector register."""
LOG2E = math.log2(math.e)
"""Exponentials are taken to base 2, in which the hardware takes them."""

Index = Callable[..., tuple[Any, Any, Any]]
"""From a place in the grid (and the prefetched list) to a row of the batch, a head and a block of tokens."""


class Tiles(NamedTuple):
    """The blocks of one side of the attention."""

    length: int
    block: int
    labels: jax.Array | None
    """int32 [1 or B, labels, padded length]."""

    @property
    def number(self) -> int:
        """Blocks."""
        return pl.cdiv(self.length, self.block)

    @property
    def padded(self) -> int:
        """Tokens of whole blocks."""
        return self.number * self.block

    @staticmethod
    def of(length: int, most: int, labels: Labels) -> "Tiles":
        """Blocks of whole lanes, no longer than `most`, with as little padding as there can be."""
        lanes = min(LANES, most)
        block = pl.cdiv(pl.cdiv(length, pl.cdiv(length, most)), lanes) * lanes
        if not labels:
            return Tiles(length, block, None)
        rows = max(label.shape[0] for label in labels)
        stacked = jnp.stack([jnp.broadcast_to(label, (rows, length)) for label in labels], axis=1)
        return Tiles(length, block, jnp.pad(stacked, ((0, 0), (0, 0), (0, -length % block))))


class Blocks(NamedTuple):
    """What a kernel reads: one block of every array, or the arrays, or how they are cut into blocks."""

    q: Any
    k: Any
    v: Any
    bias: Any
    q_labels: Any
    k_labels: Any
    d_out: Any = None
    lse: Any = None
    delta: Any = None


class Call:
    """Everything about one call that its kernels share."""

    def __init__(self, problem: Problem, operands: Operands, offsets: Sequence[Any]):
        self.problem, self.operands = problem, operands
        self.rows, self.heads, q_length, self.width = operands.q.shape
        self.kv_heads, k_length = operands.k.shape[1:3]
        self.group = self.heads // self.kv_heads
        sizes: BlockSizes = problem.blocks or block_sizes(operands)
        self.q = Tiles.of(q_length, sizes.q, operands.q_labels)
        self.k = Tiles.of(k_length, sizes.k, operands.k_labels)
        lengths, blocks = (q_length, k_length), (self.q.block, self.k.block)
        truth = block_map(problem.formula, operands.q_labels, operands.k_labels, lengths, blocks, offsets)
        # The keys that fill up the last block are hidden. Queries that do are cut off, and their gradients are zero.
        whole = np.arange(1, self.k.number + 1) * self.k.block <= k_length
        self.truth = truth._replace(all=truth.all & whole)
        self.offsets = jnp.stack([jnp.asarray(each, jnp.int32) for each in offsets])
        # [B, H, D, L] in memory unless D fills whole lanes, to which [B, H, L, D] would be padded. So `d` and `t` are
        # the axes of a tile's head width and tokens.
        self.d, self.t = (1, 0) if self.width % LANES == 0 else (0, 1)
        self.precision = lax.Precision.HIGHEST if operands.q.dtype == jnp.float32 else lax.Precision.DEFAULT

    def stored(self, x: jax.Array, tiles: Tiles) -> jax.Array:
        """[B, H, L, D] filled up to whole blocks, as it lies in memory."""
        x = jnp.pad(x, ((0, 0), (0, 0), (0, tiles.padded - tiles.length), (0, 0)))
        return x if self.d else x.swapaxes(2, 3)

    def restored(self, x: jax.Array, tiles: Tiles) -> jax.Array:
        """The inverse of `stored`."""
        return (x if self.d else x.swapaxes(2, 3))[:, :, : tiles.length]

    def result(self, heads: int, tiles: Tiles, dtype: Any) -> jax.ShapeDtypeStruct:
        """Shape of an array as `stored`."""
        sizes = (tiles.padded, self.width) if self.d else (self.width, tiles.padded)
        return jax.ShapeDtypeStruct((self.rows, heads, *sizes), dtype)

    def spec(self, tiles: Tiles, index: Index) -> pl.BlockSpec:
        """A block of tokens of one head."""

        def place(*at: Any) -> tuple[Any, ...]:
            row, head, block = index(*at)
            return (row, head, block, 0) if self.d else (row, head, 0, block)

        return pl.BlockSpec((1, 1, tiles.block, self.width) if self.d else (1, 1, self.width, tiles.block), place)

    def inputs(self, at_q: Index, at_k: Index, backward: tuple[jax.Array, ...] = ()) -> tuple[Blocks, Blocks]:
        """The arrays that a kernel reads, and how they are cut, given which queries and keys it reads where.

        `backward` are d_out [B, H, Q, D], lse and delta [B, H, Q].
        """
        q, k, v, bias = self.operands[:4]
        of_q, of_k = self.spec(self.q, at_q), self.spec(self.k, at_k)
        labels = [tiles.labels for tiles in (self.q, self.k)]
        arrays = Blocks(self.stored(q, self.q), self.stored(k, self.k), self.stored(v, self.k), self._bias(), *labels)
        specs = Blocks(
            *(of_q, of_k, of_k, None if bias is None else self._bias_spec(bias.shape, at_q, at_k)),
            _label_spec(labels[0], self.q, at_q),
            _label_spec(labels[1], self.k, at_k),
        )
        if backward:
            edge = ((0, 0), (0, 0), (0, self.q.padded - self.q.length))
            d_out, *numbers = backward
            lse, delta = (jnp.pad(each, edge)[:, :, None] for each in numbers)
            arrays = arrays._replace(d_out=self.stored(d_out.astype(q.dtype), self.q), lse=lse, delta=delta)
            of_row = row_spec(self.q, at_q)
            specs = specs._replace(d_out=of_q, lse=of_row, delta=of_row)
        return arrays, specs

    def _bias(self) -> jax.Array | None:
        if self.operands.bias is None:
            return None
        edges = [(0, 0), (0, 0), *((0, tiles.padded - tiles.length) for tiles in (self.q, self.k))]
        return jnp.pad(self.operands.bias, edges)

    def _bias_spec(self, shape: tuple[int, ...], at_q: Index, at_k: Index) -> pl.BlockSpec:
        rows, heads = shape[:2]

        def place(*at: Any) -> tuple[Any, ...]:
            (row, head, i), (_, _, j) = at_q(*at), at_k(*at)
            return row if rows > 1 else 0, head if heads > 1 else 0, i, j

        return pl.BlockSpec((1, 1, self.q.block, self.k.block), place)

    def dot(self, a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
        """a · b over one axis of each, in float32."""
        dims = (((axes[0],), (axes[1],)), ((), ()))
        return lax.dot_general(a, b, dims, precision=self.precision, preferred_element_type=jnp.float32)

    def by_token(self, tile: jax.Array) -> jax.Array:
        """A stored tile as [tokens, D], and back."""
        return tile if self.d else tile.T

    def logits(
        self,
        rows: jax.Array,
        tile: jax.Array,
        blocks: Blocks,
        offsets: Any,
        place: tuple[Any, Any],
        *,
        partial: bool,
        by_keys: bool = False,
    ) -> jax.Array:
        """(q · k · scale + bias) log₂e of a block, `MASKED` where hidden: [queries, keys], or [keys, queries].

        Args:
          rows: the first side, [tokens, D].
          tile: the second side, as it is stored.
          blocks: bias and labels of the block.
          offsets: positions of the first query and the first key.
          place: index of the block of queries and of keys.
          partial: whether some pair may be hidden.
          by_keys: whether keys are the first side.
        """
        s = self.dot(rows, tile, (1, self.d)) * (self.problem.scale * LOG2E)
        if blocks.bias is not None:
            bias = blocks.bias[0, 0].astype(jnp.float32)
            s += (bias.T if by_keys else bias) * LOG2E
        if not partial:
            return s
        return jnp.where(self._visible(blocks, offsets, place, by_keys, s.shape), s, MASKED)

    def _visible(
        self, blocks: Blocks, offsets: Any, place: tuple[Any, Any], by_keys: bool, shape: tuple[int, ...]
    ) -> jax.Array:
        axes = (1, 0) if by_keys else (0, 1)
        local = [
            index * tiles.block + lax.broadcasted_iota(jnp.int32, shape, axis)
            for index, tiles, axis in zip(place, (self.q, self.k), axes, strict=True)
        ]
        sides = (
            Side(offsets[i] + local[i], _labels(labels, column=axes[i] == 0, shape=shape))
            for i, labels in enumerate((blocks.q_labels, blocks.k_labels))
        )
        visible = self.problem.formula.sees(*sides)
        return visible & (local[1] < self.k.length) if self.k.padded > self.k.length else visible

    def run(
        self,
        kernel: Callable[..., None],
        name: str,
        table: jax.Array,
        grid: tuple[int, ...],
        arrays: Blocks,
        specs: Blocks,
        outputs: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: Sequence[tuple[tuple[int, int], Any]],
        parallel: int,
        dots: int,
    ) -> Sequence[jax.Array]:
        """Calls a kernel as kernel(table, offsets, blocks, *outputs, *scratch); `parallel` leading axes of the grid
        may be divided among cores, and `dots` products of matrices are taken in every block."""
        shapes, out_specs = zip(*outputs, strict=True)
        flops = 2 * dots * self.rows * self.heads * self.q.padded * self.k.padded * self.width
        moved = sum(x.size * x.dtype.itemsize for x in (*jax.tree.leaves(arrays), *shapes))
        result: Sequence[jax.Array] = pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=grid,
                in_specs=[specs],
                out_specs=list(out_specs),
                scratch_shapes=[pltpu.VMEM(*each) for each in scratch],
            ),
            out_shape=list(shapes),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=[*[pltpu.PARALLEL] * parallel, *[pltpu.ARBITRARY] * (len(grid) - parallel)],
                vmem_limit_bytes=fast_memory(),
            ),
            cost_estimate=pl.CostEstimate(flops=flops, transcendentals=flops // (2 * self.width), bytes_accessed=moved),
            interpret=self.problem.interpret,
            name=name,
        )(table, self.offsets, arrays)
        return result


def row_spec(tiles: Tiles, index: Index) -> pl.BlockSpec:
    """A block of one number a token, stored as [B, H, 1, L]."""

    def place(*at: Any) -> tuple[Any, ...]:
        row, head, block = index(*at)
        return row, head, 0, block

    return pl.BlockSpec((1, 1, 1, tiles.block), place)


def _label_spec(labels: jax.Array | None, tiles: Tiles, index: Index) -> pl.BlockSpec | None:
    if labels is None:
        return None
    rows, kinds = labels.shape[:2]

    def place(*at: Any) -> tuple[Any, ...]:
        row, _, block = index(*at)
        return row if rows > 1 else 0, 0, block

    return pl.BlockSpec((1, kinds, tiles.block), place)


def _labels(labels: Any, *, column: bool, shape: tuple[int, ...]) -> list[jax.Array]:
    """The labels of a block as rows or columns that broadcast over it."""
    if labels is None:
        return []
    rows = (labels[0, i : i + 1] for i in range(labels.shape[1]))
    return [wide_column(row, shape[1]) if column else row for row in rows]


def wide_column(row: jax.Array, width: int) -> jax.Array:
    """[1, N] turned upright and repeated: [N, width]."""
    return spread(jnp.broadcast_to(row, (LANES, row.shape[1])).T, width)


def spread(column: jax.Array, width: int) -> jax.Array:
    """[N, LANES] of equal numbers in each row, made as wide as a tile."""
    return column[:, :width] if width < LANES else jnp.tile(column, (1, width // LANES))


class Step(NamedTuple):
    """One entry of a list of blocks."""

    major: Any
    minor: Any
    work: Any
    first: Any
    last: Any


MAX_BLOCKS = 1 << 13
"""Blocks of a side that one int32 can name beside the other fields of an entry, with its sign left alone."""


def packed(order: Schedule) -> jax.Array:
    """A list of blocks as one int32 each, [1 or B times steps]."""
    return jnp.asarray(order.major << 18 | order.minor << 4 | order.work << 2 | order.edge, jnp.int32).reshape(-1)


def unpacked(table: Any, order: Schedule, row: Any, step: Any) -> Step:
    """Entry `step` of a row of the batch."""
    entry = table[(row * order.steps if order.major.shape[0] > 1 else 0) + step]
    return Step(entry >> 18, (entry >> 4) & 0x3FFF, (entry >> 2) & 3, (entry & 1) == 1, (entry & 2) == 2)
