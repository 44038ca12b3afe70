"""What a Pallas kernel for GPUs is given, and how it reads and writes it.

Triton computes on blocks whose sides are powers of two. Arrays are not padded to them in memory: a block that sticks
out of its array is read and written through a mask. So lengths that divide no block, and head widths such as 72 or 96,
cost no copies.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jmm.kernels.blocks import Truth, block_map
from jmm.kernels.core import Operands, Problem
from jmm.kernels.gpu_blocks import Kinds, Tile, Tiles, tiles, visits


class Inputs(NamedTuple):
    """Arrays, and inside a kernel references to memory; None: not there."""

    q: Any
    k: Any
    v: Any
    bias: Any
    q_labels: Any
    k_labels: Any
    lse: Any = None
    delta: Any = None
    d_out: Any = None
    offsets: Any = None
    index: Any = None
    count: Any = None


AXES = Inputs("bhqd", "bgkd", "bgkd", "bhqk", "bq", "bk", "bhq", "bhq", "bhqd", "*", "b**", "b**")
"""Of the inputs; the letters say which part of each array a program is given."""


class Layout(NamedTuple):
    """What is known of one kernel when tracing. Each of its programs handles some rows and heads."""

    problem: Problem
    tile: Tile
    q_length: int
    k_length: int
    width: int
    group: int
    """Query heads to a key head."""
    rows: int
    """Of the batch, in one program."""
    heads: int
    """Of the queries, in one program."""
    first: tuple[int, int] | None
    """Positions of the first query and key; None: known at run time only."""
    kinds: Kinds

    @property
    def padded_width(self) -> int:
        """A power of two, and at least the 16 of a matrix product."""
        return max(16, pl.next_power_of_2(self.width))

    @property
    def q_blocks(self) -> int:
        """Blocks of queries."""
        return pl.cdiv(self.q_length, self.tile.q)

    @property
    def k_blocks(self) -> int:
        """Blocks of keys."""
        return pl.cdiv(self.k_length, self.tile.k)

    def call(
        self, kernel: Callable[..., None], grid: tuple[int, ...], inputs: Inputs, *outputs: tuple[Any, str]
    ) -> Any:
        """Runs a kernel.

        Args:
          kernel: takes this layout, the inputs and the outputs.
          grid: programs; its last two count heads and rows.
          inputs: arrays.
          outputs: shape and axes of each.
        """
        specs = [jax.tree.map(lambda x, a=a: self._spec(x, a), part) for a, part in zip(AXES, inputs, strict=True)]
        return pl.pallas_call(
            functools.partial(kernel, self),
            grid=grid,
            in_specs=[Inputs(*specs)],
            out_specs=[self._spec(*output) for output in outputs],
            out_shape=[shape for shape, _ in outputs],
            compiler_params=triton.CompilerParams(num_warps=self.tile.warps, num_stages=self.tile.stages),
            interpret=self.problem.interpret,
            name=kernel.__name__.strip("_"),
        )(inputs)

    def _spec(self, array: Any, axes: str) -> pl.BlockSpec:
        """A program's part of an array: its rows and heads, and all tokens in whole blocks."""
        key_heads = max(1, self.heads // self.group)
        whole = {"q": self.q_blocks * self.tile.q, "k": self.k_blocks * self.tile.k, "d": self.padded_width}
        part = {"b": self.rows, "h": self.heads, "g": key_heads}
        shape = [
            whole.get(axis, size if size == 1 else part.get(axis, size))
            for axis, size in zip(axes, array.shape, strict=True)
        ]

        def place(*program: Any) -> tuple[Any, ...]:
            head, row = program[-2:]
            at = {"b": row, "h": head, "g": jax.lax.div(head * self.heads, self.group * key_heads)}
            return tuple(0 if size == 1 else at.get(axis, 0) for axis, size in zip(axes, array.shape, strict=True))

        return pl.BlockSpec(tuple(shape), place)


def prepare(
    problem: Problem, operands: Operands, offsets: Sequence[Any], kernel: str, *, rows: int = 1, heads: int = 1
) -> tuple[Layout, Inputs, Truth]:
    """The layout and inputs of a kernel that is a field of `Tiles`, and what is known of its blocks."""
    q, k = operands.q, operands.k
    q_length, k_length, width = q.shape[2], k.shape[2], q.shape[3]
    chosen: Tiles = problem.blocks or tiles(width, q.dtype.itemsize)
    tile = getattr(chosen, kernel)
    q_first, k_first = offsets
    labels = operands.q_labels, operands.k_labels
    truth = block_map(problem.formula, *labels, (q_length, k_length), (tile.q, tile.k), (q_first, k_first))
    if k_length % tile.k:
        # Not all of the last block are keys, and the predicate has to say which.
        truth = truth._replace(all=truth.all & (np.arange(truth.all.shape[-1]) < k_length // tile.k))
    listed = visits(truth, by_keys=kernel == "dkv")
    inputs = Inputs(*operands, index=listed.index, count=listed.count)
    first = None
    if all(isinstance(each, int | np.integer) for each in (q_first, k_first)):
        first = int(q_first), int(k_first)
    else:
        inputs = inputs._replace(offsets=jnp.stack([jnp.asarray(each, jnp.int32) for each in (q_first, k_first)]))
    group = q.shape[1] // k.shape[1]
    return Layout(problem, tile, q_length, k_length, width, group, rows, heads, first, listed.kinds), inputs, truth


# What follows runs inside the kernels: `c` is their layout, `x` their inputs, `b` a row, `h` a head of their part.


class Tokens(NamedTuple):
    """One block of n queries or keys."""

    start: Any
    """Where it begins in its array."""
    inside: Any
    """[n]: whether the array holds them; None: it holds all."""
    position: Any
    """[n]."""
    labels: tuple[Any, ...]
    """Each [n]."""


class Rows(NamedTuple):
    """A block of queries, and in the backward pass what is known of them."""

    tokens: Tokens
    q: Any
    d_out: Any
    lse: Any
    delta: Any


class Columns(NamedTuple):
    """A block of keys."""

    tokens: Tokens
    k: Any
    v: Any


def queries(c: Layout, x: Inputs, b: Any, i: Any) -> Tokens:
    """Block i of the queries."""
    return _tokens(i, c.tile.q, c.q_length, c.first[0] if c.first else x.offsets[0], x.q_labels, b)


def keys(c: Layout, x: Inputs, b: Any, j: Any) -> Tokens:
    """Block j of the keys."""
    return _tokens(j, c.tile.k, c.k_length, c.first[1] if c.first else x.offsets[1], x.k_labels, b)


def read_rows(c: Layout, x: Inputs, b: Any, h: Any, i: Any) -> Rows:
    """Block i of the queries, with their arrays at a head."""
    tokens = queries(c, x, b, i)
    return Rows(
        tokens, *(None if ref is None else read(c, ref, b, h, tokens) for ref in (x.q, x.d_out, x.lse, x.delta))
    )


def read_columns(c: Layout, x: Inputs, b: Any, g: Any, j: Any) -> Columns:
    """Block j of the keys, with their arrays at a key head."""
    tokens = keys(c, x, b, j)
    return Columns(tokens, read(c, x.k, b, g, tokens), read(c, x.v, b, g, tokens))


def _tokens(block: Any, size: int, length: int, first: Any, labels: tuple[Any, ...], b: Any) -> Tokens:
    start = block * size
    at = start + jnp.arange(size)
    inside = at < length if length % size else None
    each = (_load(label.at[_only(label, 0, b), pl.ds(start, size)], inside) for label in labels)
    return Tokens(start, inside, first + at, tuple(each))


def read(c: Layout, ref: Any, b: Any, h: Any, tokens: Tokens, columns: Tokens | None = None) -> Any:
    """A block: [n], or [n, head width], or [n, columns] where these are tokens too."""
    place, inside = _place(c, ref, b, h, tokens, columns)
    return _load(ref.at[place], inside)


def write(c: Layout, ref: Any, tokens: Tokens, values: Any, columns: Tokens | None = None) -> None:
    """The result of this program, in the type of its array."""
    place, inside = _place(c, ref, 0, 0, tokens, columns)
    triton.store(ref.at[place], values.astype(ref.dtype), mask=inside)


def _load(ref: Any, inside: Any) -> Any:
    """Outside of the array is 0: such a query has no gradient, and such a key is masked."""
    return triton.load(ref) if inside is None else triton.load(ref, mask=inside, other=0)


def _place(c: Layout, ref: Any, b: Any, h: Any, tokens: Tokens, columns: Tokens | None) -> tuple[Any, Any]:
    """Where a block lies, and what of it the array holds."""
    place = (_only(ref, 0, b), _only(ref, 1, h), pl.ds(tokens.start, tokens.position.shape[0]))
    if len(ref.shape) == 3:
        return place, tokens.inside
    if columns is not None:
        across, inside = pl.ds(columns.start, columns.position.shape[0]), columns.inside
    else:
        across = slice(None)
        inside = jnp.arange(c.padded_width) < c.width if c.padded_width > c.width else None
    masks = [] if tokens.inside is None else [tokens.inside[:, None]]
    masks += [] if inside is None else [inside[None, :]]
    return (*place, across), functools.reduce(jnp.logical_and, masks) if masks else None


def _only(ref: Any, axis: int, i: Any) -> Any:
    """The row or head i, or the only one that there is for all."""
    return jnp.int32(0) if ref.shape[axis] == 1 else i
