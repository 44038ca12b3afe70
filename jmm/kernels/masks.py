"""Masks as formulas: predicates over the labels of two tokens.

A `Mask` is never a [Q, K] array that someone must build. It says, by comparing positions and labels, whether the
query token may look at the key token. The comparison is written once (`sees`) and read in three ways: on all pairs
at once by the reference attention, on one block of pairs by a kernel, and on the *ranges* of two blocks
(`jmm.kernels.blocks`) to learn which blocks need no look at all. Formulas are JAX pytrees, so their labels pass
through `jit`, `scan` and `remat`, and they join with `&` and `|`:

>>> prefix_lm = masks.prefix(length) & masks.valid(text_mask)      # SimVLM, padded
>>> packed = masks.causal() & masks.segments(ids, ids)             # several texts in one row
"""

import abc
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, Shaped

Size = int | Any
"""How many rows or tokens there are: an int, or a symbol while a program is exported that takes any number."""

Labels = tuple[Int[Array, "_ _"], ...]
"""Label vectors of one side, each [1 or B, L]."""


class Side:
    """The tokens of one side of the comparison: positions, and labels in the order in which a formula asks for them.

    Both are whatever can be compared: arrays that broadcast to [B, Q, K], or spans of a block.
    """

    def __init__(self, position: Any, labels: Iterable[Any] = ()):
        self.position = position
        self._labels = iter(labels)

    def label(self) -> Any:
        """The next label of these tokens."""
        return next(self._labels)


class Mask(abc.ABC):
    """A predicate over two tokens; true where the query may look at the key."""

    @abc.abstractmethod
    def sees(self, q: Side, k: Side) -> Any:
        """The comparison, made of <, ≤, ==, &, | and − alone; it takes each of its labels exactly once."""

    def labels(self, q_length: Size, k_length: Size) -> tuple[Labels, Labels]:
        """The labels of the queries, each [1 or B, Q], and of the keys, each [1 or B, K], in the order of `sees`."""
        return (), ()

    def check(self, batch: Size, q_length: Size, k_length: Size) -> None:
        """Raises ValueError if the labels are not as many as the tokens."""
        for name, side, length in zip(("queries", "keys"), self._sizes(), (q_length, k_length), strict=True):
            for rows, tokens in side:
                if tokens != length or rows not in (1, batch):
                    raise ValueError(
                        f"the mask {type(self).__name__.lower()} has labels for {name} of shape {(rows, tokens)}, "
                        f"but there are {name} of shape {(batch, length)}"
                    )

    def _sizes(self) -> tuple[list[tuple[Size, Size]], list[tuple[Size, Size]]]:
        """Shapes of the labels that the user gave, of queries and of keys."""
        return [], []

    def dense(self, q_length: Size, k_length: Size) -> Bool[Array, "#B Q K"]:
        """The whole [B or 1, Q, K] array, for the reference attention and for tests."""
        q_labels, k_labels = self.labels(q_length, k_length)
        return self.block(jnp.arange(q_length), jnp.arange(k_length), q_labels, k_labels)

    def block(
        self, q: Int[Array, "Q"], k: Int[Array, "K"], q_labels: Labels, k_labels: Labels
    ) -> Bool[Array, "#B Q K"]:
        """The predicate for every pair of these queries and keys, given their positions and labels."""
        queries = Side(q[None, :, None], (label[:, :, None] for label in q_labels))
        keys = Side(k[None, None, :], (label[:, None, :] for label in k_labels))
        seen = self.sees(queries, keys)
        return jnp.broadcast_to(seen, (seen.shape[0], q.shape[0], k.shape[0]))

    def at(self, position: Int[Array, "B"], slots: int) -> Bool[Array, "B S"]:
        """Which of the first `slots` keys one query of each row sees, that at its position. The labels are those of a
        sequence that is at least as long."""
        q_labels, k_labels = self.labels(slots, slots)
        rows = jnp.arange(position.shape[0])
        own = (label[rows if len(label) > 1 else 0, position] for label in q_labels)
        queries = Side(position[:, None], (label[:, None] for label in own))
        keys = Side(jnp.arange(slots)[None], (label[:, :slots] for label in k_labels))
        return jnp.broadcast_to(self.sees(queries, keys), (position.shape[0], slots))

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other)


@struct.dataclass
class _Pair(Mask):
    left: Any
    right: Any

    def labels(self, q_length: Size, k_length: Size) -> tuple[Labels, Labels]:
        left, right = self.left.labels(q_length, k_length), self.right.labels(q_length, k_length)
        return left[0] + right[0], left[1] + right[1]

    def check(self, batch: Size, q_length: Size, k_length: Size) -> None:
        self.left.check(batch, q_length, k_length)
        self.right.check(batch, q_length, k_length)


@struct.dataclass
class And(_Pair):
    """Both formulas allow the pair."""

    def sees(self, q: Side, k: Side) -> Any:
        return self.left.sees(q, k) & self.right.sees(q, k)


@struct.dataclass
class Or(_Pair):
    """Either formula allows the pair."""

    def sees(self, q: Side, k: Side) -> Any:
        return self.left.sees(q, k) | self.right.sees(q, k)


@struct.dataclass
class Causal(Mask):
    """k ≤ q."""

    def sees(self, q: Side, k: Side) -> Any:
        return k.position <= q.position


@struct.dataclass
class First(Mask):
    """k < count: the first keys, one number for all rows."""

    count: Size = struct.field(pytree_node=False)

    def sees(self, q: Side, k: Side) -> Any:
        return k.position < self.count


@struct.dataclass
class FirstOfRow(Mask):
    """k < count, a number for each row [B]."""

    count: Any

    def labels(self, q_length: Size, k_length: Size) -> tuple[Labels, Labels]:
        count = jnp.atleast_1d(jnp.asarray(self.count, jnp.int32))
        return (jnp.broadcast_to(count[:, None], (count.shape[0], q_length)),), ()

    def check(self, batch: Size, q_length: Size, k_length: Size) -> None:
        rows = jnp.shape(self.count)
        if rows not in ((), (1,), (batch,)):
            raise ValueError(f"the mask prefix has lengths of shape {rows}, but there are {batch} rows: ({batch},)")

    def sees(self, q: Side, k: Side) -> Any:
        return k.position < q.label()


@struct.dataclass
class Segments(Mask):
    """Both tokens bear the same segment id."""

    q_ids: Any
    k_ids: Any

    def labels(self, q_length: Size, k_length: Size) -> tuple[Labels, Labels]:
        return (_int32(self.q_ids),), (_int32(self.k_ids),)

    def _sizes(self) -> tuple[list[tuple[Size, Size]], list[tuple[Size, Size]]]:
        return [self.q_ids.shape], [self.k_ids.shape]

    def sees(self, q: Side, k: Side) -> Any:
        return q.label() == k.label()


@struct.dataclass
class Media(Mask):
    """A text token sees the tokens of the latest image before it (Flamingo, section 2.3).

    `q_media` counts the images before or at each text token (0: none yet), `k_media` is the 1-based image
    that each visual token belongs to (0: none).
    """

    q_media: Any
    k_media: Any

    def labels(self, q_length: Size, k_length: Size) -> tuple[Labels, Labels]:
        # No image is another number for keys, behind all images, so that labels in order stay in order.
        none = jnp.iinfo(jnp.int32).max
        return (_int32(self.q_media),), (jnp.where(self.k_media > 0, _int32(self.k_media), none),)

    def _sizes(self) -> tuple[list[tuple[Size, Size]], list[tuple[Size, Size]]]:
        return [self.q_media.shape], [self.k_media.shape]

    def sees(self, q: Side, k: Side) -> Any:
        return q.label() == k.label()


@struct.dataclass
class Window(Mask):
    """|q − k| < width."""

    width: int = struct.field(pytree_node=False)

    def sees(self, q: Side, k: Side) -> Any:
        return (q.position - k.position < self.width) & (k.position - q.position < self.width)


@struct.dataclass
class Near(Mask):
    """|q label − k label| ≤ reach, a number for each query."""

    q_labels: Any
    k_labels: Any
    reach: Any

    def labels(self, q_length: Size, k_length: Size) -> tuple[Labels, Labels]:
        return (_int32(self.q_labels), _int32(self.reach)), (_int32(self.k_labels),)

    def _sizes(self) -> tuple[list[tuple[Size, Size]], list[tuple[Size, Size]]]:
        return [self.q_labels.shape, self.reach.shape], [self.k_labels.shape]

    def sees(self, q: Side, k: Side) -> Any:
        own, reach, other = q.label(), q.label(), k.label()
        return (own - other <= reach) & (other - own <= reach)


@struct.dataclass
class Valid(Mask):
    """The key is a real token, not padding."""

    mask: Any

    def labels(self, q_length: Size, k_length: Size) -> tuple[Labels, Labels]:
        return (), (_int32(self.mask),)

    def _sizes(self) -> tuple[list[tuple[Size, Size]], list[tuple[Size, Size]]]:
        return [], [self.mask.shape]

    def sees(self, q: Side, k: Side) -> Any:
        return k.label() > 0


def _int32(labels: Shaped[Array, "B L"]) -> Int[Array, "B L"]:
    return jnp.asarray(labels).astype(jnp.int32)


def without_labels(mask: Mask) -> Mask:
    """The bare comparison: static and hashable, it sees through positions and labels that are handed to it."""
    stripped: Mask = jax.tree.map(lambda _: None, mask)
    return stripped


def causal() -> Mask:
    """k ≤ q."""
    return Causal()


def prefix(length: int | Int[jax.Array, "B"]) -> Mask:
    """k ≤ q or k < length: the prefix sees itself whole, the rest is causal; `length` is an int or one int a row."""
    try:
        return Causal() | First(operator.index(length))
    except TypeError:
        return Causal() | FirstOfRow(length)


def segments(q_ids: Int[Array, "B Q"], k_ids: Int[Array, "B K"]) -> Mask:
    """Ids equal; both [B, L]. Packed rows and images of variable resolution."""
    return Segments(q_ids, k_ids)


def media(q_media: Int[Array, "B Q"], k_media: Int[Array, "B K"]) -> Mask:
    """A text token sees the tokens of the latest image before it, and none if there is none."""
    return Media(q_media, k_media)


def window(width: int) -> Mask:
    """|q − k| < width."""
    return Window(width)


def near(q_labels: Int[Array, "B Q"], k_labels: Int[Array, "B K"], reach: Int[Array, "B Q"]) -> Mask:
    """|q label − k label| ≤ reach, each label and reach [1 or B, L]: the rows, or the columns, about a place of a
    grid."""
    return Near(q_labels, k_labels, reach)


def valid(mask: Bool[jax.Array, "B N"]) -> Mask:
    """True keys of a [B, L] padding mask."""
    return Valid(mask)
