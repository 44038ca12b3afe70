"""Masks as formulas: predicates over the labels of two tokens.

A `Mask` is never a [Q, K] array that someone must build. It answers, for positions q and k, whether the
query token at q may look at the key token at k. The reference attention asks for all pairs at once; a blocked
kernel asks for one block of positions at a time. Formulas are JAX pytrees, so their labels pass through `jit`,
`scan` and `remat`, and they join with `&` and `|`:

>>> prefix_lm = masks.prefix(length) & masks.valid(text_mask)      # SimVLM, padded
>>> packed = masks.causal() & masks.segments(ids, ids)             # several texts in one row
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int


class Mask(abc.ABC):
    """A predicate over two tokens; true where the query may look at the key."""

    @abc.abstractmethod
    def visible(self, q: Int[Array, "Q"], k: Int[Array, "K"]) -> Bool[Array, "#B Q K"]:
        """The predicate for every pair of the query positions `q` and the key positions `k`."""

    def check(self, q_length: int, k_length: int) -> None:  # noqa: B027  a formula without labels has none to check
        """Raises ValueError if the labels are not as many as the tokens."""

    def dense(self, q_length: int, k_length: int) -> Bool[Array, "#B Q K"]:
        """The whole [B or 1, Q, K] array, for the reference attention and for tests."""
        return self.visible(jnp.arange(q_length), jnp.arange(k_length))

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other)


@struct.dataclass
class And(Mask):
    """Both formulas allow the pair."""

    left: Any
    right: Any

    def check(self, q_length: int, k_length: int) -> None:
        self.left.check(q_length, k_length)
        self.right.check(q_length, k_length)

    def visible(self, q: Int[Array, "Q"], k: Int[Array, "K"]) -> Bool[Array, "#B Q K"]:
        return self.left.visible(q, k) & self.right.visible(q, k)


@struct.dataclass
class Or(Mask):
    """Either formula allows the pair."""

    left: Any
    right: Any

    def check(self, q_length: int, k_length: int) -> None:
        self.left.check(q_length, k_length)
        self.right.check(q_length, k_length)

    def visible(self, q: Int[Array, "Q"], k: Int[Array, "K"]) -> Bool[Array, "#B Q K"]:
        return self.left.visible(q, k) | self.right.visible(q, k)


@struct.dataclass
class Causal(Mask):
    """k ≤ q."""

    def visible(self, q: Int[Array, "Q"], k: Int[Array, "K"]) -> Bool[Array, "1 Q K"]:
        return (k[None, :] <= q[:, None])[None]


@struct.dataclass
class Prefix(Mask):
    """k ≤ q or k < length: the prefix sees itself whole, the rest is causal."""

    length: Any

    def visible(self, q: Int[Array, "Q"], k: Int[Array, "K"]) -> Bool[Array, "#B Q K"]:
        length = jnp.atleast_1d(jnp.asarray(self.length))[:, None, None]
        return (k[None, None, :] <= q[None, :, None]) | (k[None, None, :] < length)


@struct.dataclass
class Segments(Mask):
    """Both tokens bear the same segment id."""

    q_ids: Any
    k_ids: Any

    def check(self, q_length: int, k_length: int) -> None:
        _check_labels("segments", (self.q_ids.shape[1], self.k_ids.shape[1]), (q_length, k_length))

    def visible(self, q: Int[Array, "Q"], k: Int[Array, "K"]) -> Bool[Array, "B Q K"]:
        return self.q_ids[:, q][:, :, None] == self.k_ids[:, k][:, None, :]


@struct.dataclass
class Media(Mask):
    """A text token sees the tokens of the latest image before it (Flamingo, section 2.3).

    `q_media` counts the images before or at each text token (0: none yet), `k_media` is the 1-based image
    that each visual token belongs to.
    """

    q_media: Any
    k_media: Any

    def check(self, q_length: int, k_length: int) -> None:
        _check_labels("media", (self.q_media.shape[1], self.k_media.shape[1]), (q_length, k_length))

    def visible(self, q: Int[Array, "Q"], k: Int[Array, "K"]) -> Bool[Array, "B Q K"]:
        latest = self.q_media[:, q][:, :, None]
        return (latest == self.k_media[:, k][:, None, :]) & (latest > 0)


@struct.dataclass
class Window(Mask):
    """|q − k| < width."""

    width: int = struct.field(pytree_node=False)

    def visible(self, q: Int[Array, "Q"], k: Int[Array, "K"]) -> Bool[Array, "1 Q K"]:
        return (jnp.abs(q[:, None] - k[None, :]) < self.width)[None]


@struct.dataclass
class Valid(Mask):
    """The key is a real token, not padding."""

    mask: Any

    def check(self, q_length: int, k_length: int) -> None:
        _check_labels("valid", (q_length, self.mask.shape[1]), (q_length, k_length))

    def visible(self, q: Int[Array, "Q"], k: Int[Array, "K"]) -> Bool[Array, "B Q K"]:
        return jnp.broadcast_to(self.mask[:, k][:, None, :], (self.mask.shape[0], q.shape[0], k.shape[0]))


def _check_labels(name: str, labels: tuple[int, int], tokens: tuple[int, int]) -> None:
    if labels != tokens:
        raise ValueError(
            f"the mask {name} has labels for {labels[0]} queries and {labels[1]} keys, "
            f"but there are {tokens[0]} queries and {tokens[1]} keys"
        )


def causal() -> Mask:
    """k ≤ q."""
    return Causal()


def prefix(length: int | Int[jax.Array, "B"]) -> Mask:
    """k ≤ q or k < length; `length` is an int or one int a row."""
    return Prefix(length)


def segments(q_ids: Int[Array, "B Q"], k_ids: Int[Array, "B K"]) -> Mask:
    """Ids equal; both [B, L]. Packed rows and images of variable resolution."""
    return Segments(q_ids, k_ids)


def media(q_media: Int[Array, "B Q"], k_media: Int[Array, "B K"]) -> Mask:
    """A text token sees the tokens of the latest image before it, and none if there is none."""
    return Media(q_media, k_media)


def window(width: int) -> Mask:
    """|q − k| < width."""
    return Window(width)


def valid(mask: Bool[jax.Array, "B N"]) -> Mask:
    """True keys of a [B, L] padding mask."""
    return Valid(mask)
