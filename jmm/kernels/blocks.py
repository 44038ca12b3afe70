"""Which blocks of a formula must be computed: its comparison read on ranges instead of numbers.

A block of queries meets a block of keys. From the ranges of their positions and labels follows whether some pair of
them may be visible, and whether all pairs are. `some` false: the block is skipped. `all` true: it is computed
without looking at the predicate. Positions are known when tracing, so a formula without labels gives NumPy arrays and
costs nothing at run time; labels give small traced arrays.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jmm.kernels.masks import Labels, Mask, Side


class Truth(NamedTuple):
    """What is known of a comparison over all pairs of two blocks."""

    some: Any
    """May be true of some pair."""
    all: Any
    """Is true of every pair."""

    def __and__(self, other: "Truth") -> "Truth":
        return Truth(self.some & other.some, self.all & other.all)

    def __or__(self, other: "Truth") -> "Truth":
        return Truth(self.some | other.some, self.all | other.all)


class Span:
    """The lowest and the highest number of a block and, for labels, the set of its numbers modulo 32 as bits.

    The range alone calls a block whose labels are {0, 7} (a text, then padding) related to all others.
    """

    def __init__(self, low: Any, high: Any, bits: Any = None):
        self.low, self.high, self.bits = low, high, bits

    def __sub__(self, other: "Span") -> "Span":
        return Span(self.low - other.high, self.high - other.low)

    def __lt__(self, other: "Span | int") -> Truth:
        low, high = _ends(other)
        return Truth(self.low < high, self.high < low)

    def __le__(self, other: "Span | int") -> Truth:
        low, high = _ends(other)
        return Truth(self.low <= high, self.high <= low)

    def __gt__(self, other: "Span | int") -> Truth:
        low, high = _ends(other)
        return Truth(self.high > low, self.low > high)

    def __eq__(self, other: object) -> Truth:  # type: ignore[override]
        low, high = _ends(other)
        some = (self.low <= high) & (low <= self.high)
        if isinstance(other, Span) and self.bits is not None and other.bits is not None:
            some &= (self.bits & other.bits) != 0
        return Truth(some, (self.low == high) & (self.high == low))

    __hash__ = None  # type: ignore[assignment]


def _ends(other: Any) -> tuple[Any, Any]:
    return (other.low, other.high) if isinstance(other, Span) else (other, other)


def block_map(
    formula: Mask,
    q_labels: Labels,
    k_labels: Labels,
    lengths: tuple[int, int],
    blocks: tuple[int, int],
    offsets: Sequence[Any] = (0, 0),
) -> Truth:
    """Which blocks hold some visible pair and which hold nothing else, each [1 or B, Q / q block, K / k block].

    Args:
      formula: a mask without its labels.
      q_labels, k_labels: the labels it takes, each [1 or B, length].
      lengths: of queries and keys; a last block that is not full is cut short.
      blocks: tokens in a block of queries and of keys.
      offsets: positions of the first query and the first key.
    """
    (q_length, k_length), (q_block, k_block), (q_first, k_first) = lengths, blocks, offsets
    # Keys that bear labels are asked one by one: what two labels say of a range need not be true of one key in it.
    step = 1 if k_labels else k_block
    q_low, q_high = _ranges(q_length, q_block)
    k_low, k_high = _ranges(k_length, step)
    queries = Side(
        Span(q_first + q_low[None, :, None], q_first + q_high[None, :, None]),
        (_label_span(label, q_block, 2) for label in q_labels),
    )
    keys = Side(
        Span(k_first + k_low[None, None, :], k_first + k_high[None, None, :]),
        (_label_span(label, step, 1) for label in k_labels),
    )
    some, every = formula.sees(queries, keys)
    # A formula over keys alone says the same of all queries.
    shape = (some.shape[0], len(q_low), len(k_low))
    xp: Any = np if isinstance(some, np.ndarray) else jnp
    truth = Truth(xp.broadcast_to(some, shape), xp.broadcast_to(every, shape))
    return _gathered(truth, k_block) if step == 1 else truth


def _gathered(truth: Truth, block: int) -> Truth:
    """What is known of single keys, as of blocks of them."""
    rows, majors, keys = truth.some.shape
    edge = ((0, 0), (0, 0), (0, -keys % block))
    some, every = (
        jnp.pad(each, edge, constant_values=fill).reshape(rows, majors, -1, block)
        for each, fill in zip(truth, (False, True), strict=True)
    )
    return Truth(some.any(-1), every.all(-1))


def _ranges(length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    low = np.arange(0, length, block, dtype=np.int32)
    return low, np.minimum(low + block, length).astype(np.int32) - 1


def _label_span(label: Int[Array, "B L"], block: int, axis: int) -> Span:
    rows, length = label.shape
    whole = jnp.pad(label, ((0, 0), (0, -length % block)), mode="edge").reshape(rows, -1, block)
    members = jnp.uint32(1) << (whole & 31).astype(jnp.uint32)
    bits = jax.lax.reduce(members, np.uint32(0), jax.lax.bitwise_or, (2,))
    return Span(*(jnp.expand_dims(each, axis) for each in (whole.min(-1), whole.max(-1), bits)))


class Schedule(NamedTuple):
    """The order in which a kernel visits blocks; each field int32 [1 or B, steps].

    A block that must be skipped is not in the list. Rows with fewer blocks than others stay at their last block
    with `work` 0, where nothing is fetched and nothing computed.
    """

    major: Any
    """The block whose result is accumulated."""
    minor: Any
    """The block that contributes to it."""
    work: Any
    """0: nothing to compute; 1: the predicate must be looked at; 2: every pair is visible."""
    edge: Any
    """1: the first visit of this major block; 2: the last; 3: both; 0: neither."""

    @property
    def steps(self) -> int:
        """Visits of the row that needs most."""
        return int(self.major.shape[1])


def schedule(truth: Truth, *, by_keys: bool) -> Schedule:
    """Lists the blocks that must be computed: all of one block of queries together, or of keys.

    A major block with no visible pair is visited once, with `work` 0, so that its zeros are written.
    """
    some, every = truth
    if by_keys:
        some, every = some.swapaxes(1, 2), every.swapaxes(1, 2)
    static = isinstance(some, np.ndarray)
    xp: Any = np if static else jnp
    rows, majors, minors = some.shape
    work = some.astype(np.int32) + (some & every)
    lonely = ~some.any(-1, keepdims=True)
    kept = some | (lonely & (xp.arange(minors) == 0))
    first = kept & (xp.cumsum(kept, -1) == 1)
    last = kept & (xp.cumsum(kept[..., ::-1], -1)[..., ::-1] == 1)
    edge = first.astype(np.int32) + 2 * last.astype(np.int32)

    kept, work, edge = (each.reshape(rows, majors * minors) for each in (kept, work, edge))
    count = kept.sum(-1, keepdims=True)
    steps = int(count.max()) if static else majors * minors
    order = xp.argsort(~kept, axis=-1, stable=True)[:, :steps]
    step = xp.arange(steps)[None]
    # Behind its end a row waits at the block that it had last.
    waiting = step >= count
    at = xp.take_along_axis(order, xp.minimum(step, count - 1), axis=-1)
    work, edge = (xp.where(waiting, 0, xp.take_along_axis(each, at, axis=-1)) for each in (work, edge))
    return Schedule(*(each.astype(np.int32) for each in (at // minors, at % minors, work, edge)))
