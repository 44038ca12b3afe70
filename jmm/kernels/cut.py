"""A call of attention cut into blocks, for the core in plain JAX: where each block is, what it sees, which to visit."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jmm.kernels.blocks import block_map
from jmm.kernels.core import MASKED, Operands, Problem

At = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Where a block of pairs lies: row of the batch, group of heads, block of queries, block of keys."""
Table = tuple[jax.Array, jax.Array, bool]
"""For each block of one side (major), how many blocks of the other to visit [1 or B, majors] and, first in
[1 or B, majors, minors], which; and whether the predicate must be looked at, because some of their pairs are hidden."""


class Cut:
    """A call cut into blocks. Heads that share keys count as more blocks of queries: head 0's, then head 1's, …"""

    def __init__(
        self,
        problem: Problem,
        operands: Operands,
        offsets: Sequence[Any],
        dtype: Any,
        sizes: tuple[int, int],
        open_sizes: tuple[int, int],
    ):
        """`sizes` are about those of a block; `open_sizes` where every pair is known to be visible when tracing."""
        self.formula, self.offsets, self.dtype = problem.formula, (offsets[0], offsets[1]), dtype
        (self.rows, heads, q_length, _), (_, self.groups, k_length, _) = operands.q.shape, operands.k.shape
        self.group, self.lengths = heads // self.groups, (q_length, k_length)
        labels = operands.q_labels, operands.k_labels
        every = block_map(self.formula, *labels, self.lengths, self.lengths, self.offsets).all
        most = open_sizes if isinstance(every, np.ndarray) and every.all() else sizes
        (q_count, q_size), (k_count, k_size) = (_division(*each) for each in zip(self.lengths, most, strict=True))
        self.counts, self.sizes = (q_count, k_count), (q_size, k_size)
        self.truth = block_map(self.formula, *labels, self.lengths, self.sizes, self.offsets)
        self.padding = q_count * q_size - q_length, k_count * k_size - k_length
        self.labels = [
            [jnp.pad(label, ((0, 0), (0, more))) for label in side]
            for side, more in zip(labels, self.padding, strict=True)
        ]
        self.bias = operands.bias
        if self.bias is not None and any(self.padding):
            self.bias = jnp.pad(self.bias, ((0, 0), (0, 0), *((0, more) for more in self.padding)))

    def tables(self, *, by_keys: bool) -> list[Table]:
        """Blocks without hidden pairs, then those with; a kind that is known to be empty when tracing is left out."""
        some, every = self.truth
        if self.padding[1]:
            every = every & (np.arange(self.counts[1]) < self.counts[1] - 1)
        found = []
        for partial, kept in ((False, some & every), (True, some & ~every)):
            kept = kept.swapaxes(1, 2) if by_keys else kept
            xp: Any = np if isinstance(kept, np.ndarray) else jnp
            if xp is jnp or kept.any():
                order = xp.argsort(~kept, axis=-1, stable=True)
                found.append((jnp.asarray(kept.sum(-1), jnp.int32), jnp.asarray(order, jnp.int32), partial))
        return found

    def blocks(self, x: Float[Array, "B L H D"], b: jax.Array, g: jax.Array, side: int) -> Float[Array, "N size D"]:
        """The blocks of queries (side 0) or keys (side 1) of one row and group of heads."""
        n = x.shape[2] // self.groups
        x = lax.dynamic_slice(x, (b, 0, g * n, 0), (1, x.shape[1], n, x.shape[3]))[0].swapaxes(0, 1)
        x = jnp.pad(x, ((0, 0), (0, self.padding[side]), (0, 0)))
        return x.reshape(-1, self.sizes[side], x.shape[2]).astype(jnp.promote_types(x.dtype, self.dtype))

    def joined(self, x: Float[Array, "N size D"], side: int) -> Float[Array, "L H D"]:
        """The tokens of a group of heads, from their blocks."""
        x = x.reshape(-1, self.counts[side] * self.sizes[side], x.shape[2])
        return x[:, : self.lengths[side]].swapaxes(0, 1)

    def shown(self, s: Float[Array, "M N"], at: At, partial: bool, *, turned: bool = False) -> Float[Array, "M N"]:
        """The logits [Q, K] of a block, or turned [K, Q], with bias and mask."""
        if self.bias is not None:
            bias = lax.dynamic_slice(self.bias, self._corner(at), (1, 1, *self.sizes))[0, 0]
            s = s + (bias.T if turned else bias)
        if partial:
            seen = self._seen(at)
            s = jnp.where(seen.T if turned else seen, s, MASKED)
        return s

    def added(self, d_bias: Any, ds: Float[Array, "K Q"], at: At) -> Any:
        """The bias's gradient with that of one more block, turned."""
        if d_bias is None:
            return None
        block = lax.dynamic_slice(d_bias, self._corner(at), (1, 1, *self.sizes))
        return lax.dynamic_update_slice(d_bias, block + ds.T, self._corner(at))

    def _corner(self, at: At) -> tuple[Any, ...]:
        b, g, i, j = at
        head = 0 if self.bias is None or self.bias.shape[1] == 1 else g * self.group + i // self.counts[0]
        return _row(self.bias, b), head, i % self.counts[0] * self.sizes[0], j * self.sizes[1]

    def _seen(self, at: At) -> Bool[Array, "Q K"]:
        blocks = at[2] % self.counts[0], at[3]
        tokens = [i * size + jnp.arange(size) for i, size in zip(blocks, self.sizes, strict=True)]
        labels = (
            tuple(lax.dynamic_slice(label, (_row(label, at[0]), of[0]), (1, len(of))) for label in side)
            for side, of in zip(self.labels, tokens, strict=True)
        )
        positions = (first + of for first, of in zip(self.offsets, tokens, strict=True))
        seen = self.formula.block(*positions, *labels)[0]
        return seen & (tokens[1] < self.lengths[1]) if self.padding[1] else seen


def visit(
    tables: list[Table],
    b: jax.Array,
    major: jax.Array,
    step: Callable[[jax.Array, bool, Any], Any],
    carry: Any,
    repeats: int = 1,
    stride: int = 0,
) -> Any:
    """Runs `step(block, partial, carry)` for each block to visit, and again `stride` blocks on, so many times."""
    for number, order, partial in tables:
        count, minors = number[_row(number, b), major], order[_row(order, b), major]

        def body(n: jax.Array, carry: Any, count: Any = count, minors: Any = minors, partial: bool = partial) -> Any:
            return step(minors[n] if repeats == 1 else n // count * stride + minors[n % count], partial, carry)

        carry = lax.fori_loop(0, count * repeats, body, carry)
    return carry


def _division(length: int, most: int) -> tuple[int, int]:
    """How many blocks, and tokens in each: a multiple of 8, unless one block is all there is."""
    count = max(1, round(length / most))
    size = length if count == 1 else -(-length // (8 * count)) * 8
    return -(-length // size), size


def _row(x: Any, b: jax.Array) -> Any:
    return b if x.shape[0] > 1 else 0
