"""Multi-head attention: self, cross and grouped-query use of the one attention core."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jmm.kernels import attention, decode_attention
from jmm.kernels.decode import store
from jmm.kernels.masks import Mask, Valid
from jmm.parts.positions import rotary


class MultiHeadAttention(nn.Module):
    """Queries from `x`, keys and values from `context` (`x` itself unless given), joined by the attention core.

    `num_kv_heads` below `num_heads` shares each key head among a group of query heads (Ainslie et al. 2023).
    `rotary_base` turns queries and keys by their positions before they meet. `out_bias` is the bias of the projection
    that joins the heads, where it differs from that of the others (Qwen2 has none there). `scale` is that of the
    logits, 1/√(head width) unless given (T5 has 1); queries start as much smaller as it is larger, so that the softmax
    starts as flat. `out_features` is the width of the result, where it is not that of `x`. An `x` of one row asks every
    row of a context, and is projected once.

    `cached` is for writing token by token. The first call stores its keys and values in the Linen collection `cache`,
    [B, K, L, D], those of `x` as `key` and `value`, those of a context as `context_key` and `context_value`. In every
    call after it `x` is one new token: its keys and values are stored in the slot that its position names, and it sees
    the slots up to there, or of those what `masks.valid` says; a context is read as it was stored. Between the first
    call and the second the caller appends slots for the new tokens.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    use_bias: bool = True
    out_bias: bool | None = None
    rotary_base: float | None = None
    dtype: DTypeLike = jnp.float32
    scale: float | None = None
    out_features: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "#B Q D"],
        context: Float[Array, "B K E"] | None = None,
        *,
        mask: Mask | None = None,
        bias: Float[Array, "#B #H Q K"] | None = None,
        positions: Int[Array, "#B Q"] | None = None,
        cached: bool = False,
    ) -> Float[Array, "B Q O"]:
        """Raises ValueError for a width that does not divide into the heads, for rotary positions between two
        sequences (they say nothing about each other's places), and for a new token without a position or with
        another mask than `masks.valid`: formulas of places know one place of a query alone."""
        width = x.shape[-1]
        if self.num_heads < 1 or (self.head_dim is None and width % self.num_heads):
            raise ValueError(f"a width of {width} does not divide into {self.num_heads} heads")
        if self.rotary_base is not None and context is not None:
            raise ValueError("rotary positions are for self-attention; there is a context")
        writes = cached and context is None and self.has_variable("cache", "key")
        if writes and (positions is None or not isinstance(mask, Valid | None)):
            raise ValueError("a new token needs its position, and no mask but masks.valid over the slots")
        positions = jnp.arange(x.shape[1])[None] if positions is None else positions
        head_dim = self.head_dim or width // self.num_heads

        gain = 1.0 if self.scale is None else head_dim**-0.5 / self.scale
        q = self._project(self.num_heads, head_dim, "query", gain)(x)
        if context is not None:
            q = jnp.broadcast_to(q, (context.shape[0], *q.shape[1:]))
        q = nn.with_logical_constraint(self._turned(q, positions), ("batch", "length", "heads", "head_dim"))
        k, v = self._keys_and_values(x, context, head_dim, positions, cached)
        if writes:
            attended = self._write(q, k, v, positions, mask, bias)
        else:
            attended = attention(q, k, v, mask=mask, bias=bias, scale=self.scale)
        return nn.DenseGeneral(
            self.out_features or width,
            axis=(-2, -1),
            use_bias=self.use_bias if self.out_bias is None else self.out_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="out",
        )(attended)

    def _keys_and_values(
        self, x: jax.Array, context: jax.Array | None, head_dim: int, positions: jax.Array, cached: bool
    ) -> list[jax.Array]:
        """Those of `x`, or of the context, which are read where they are stored; with an empty cache, they fill it."""
        names = ("key", "value") if context is None else ("context_key", "context_value")
        stored = cached and self.has_variable("cache", names[0])
        if stored and context is not None:
            return [jnp.swapaxes(self.get_variable("cache", name), 1, 2) for name in names]
        source, heads = x if context is None else context, self.num_kv_heads or self.num_heads
        k, v = (self._project(heads, head_dim, name)(source) for name in ("key", "value"))
        k = self._turned(k, positions)
        if cached and not stored:
            for name, each in zip(names, (k, v), strict=True):
                self.put_variable("cache", name, jnp.swapaxes(each, 1, 2))
        return [k, v]

    def _write(
        self, q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, mask: Any, bias: jax.Array | None
    ) -> jax.Array:
        """Stores the new token's keys and values, and attends to the slots up to its own."""
        lengths = jnp.broadcast_to(positions[:, 0] + 1, q.shape[:1])
        keys = store(self.get_variable("cache", "key"), k[:, 0], lengths)
        values = store(self.get_variable("cache", "value"), v[:, 0], lengths)
        self.put_variable("cache", "key", keys)
        self.put_variable("cache", "value", values)
        of_slots = None if bias is None else bias[:, :, 0]
        return decode_attention(q[:, 0], keys, values, lengths, mask=mask, bias=of_slots, scale=self.scale)[:, None]

    def _turned(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        return x if self.rotary_base is None else rotary(x, positions, self.rotary_base)

    def _project(self, heads: int, head_dim: int, name: str, gain: float = 1.0) -> nn.Module:
        return nn.DenseGeneral(
            (heads, head_dim),
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform"),
            name=name,
        )
