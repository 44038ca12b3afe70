"""One vector from many tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jmm.kernels import masks
from jmm.parts.attention import MultiHeadAttention
from jmm.parts.feed_forward import Activation, FeedForward
from jmm.parts.norms import make_norm


def first_token(x: Float[Array, "B N D"]) -> Float[Array, "B D"]:
    """The class token, which stands first."""
    return x[:, 0]


def mean_token(x: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None = None) -> Float[Array, "B D"]:
    """The mean over all tokens, or over those that are real. A row without any gives zeros."""
    if mask is None:
        return x.mean(axis=1)
    weights = mask.astype(x.dtype)[:, :, None]
    return (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)


def last_token(x: Float[Array, "B N D"], mask: Bool[Array, "B N"]) -> Float[Array, "B D"]:
    """The last real token of each row (CLIP's end of text)."""
    last = jnp.max(jnp.where(mask, jnp.arange(x.shape[1]), 0), axis=1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]


def unit(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Vectors of length 1 in float32, for cosine similarities."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class AttentionPooling(nn.Module):
    """A learned probe attends to all tokens, then a residual feed-forward (Zhai et al. 2022, section 2.3)."""

    num_heads: int
    mlp_dim: int
    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None = None) -> Float[Array, "B D"]:
        width = x.shape[-1]
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, width), jnp.float32)
        probe = jnp.broadcast_to(probe.astype(self.dtype), (x.shape[0], 1, width))
        visible = None if mask is None else masks.valid(mask)
        pooled = MultiHeadAttention(self.num_heads, dtype=self.dtype, name="attention")(probe, x, mask=visible)
        mlp = FeedForward(self.mlp_dim, self.activation, dtype=self.dtype, name="mlp")
        hidden: jax.Array = make_norm("layer", self.norm_eps, self.dtype, "norm")(pooled)
        return (pooled + mlp(hidden))[:, 0]


class AttentionPooler(nn.Module):
    """Learned queries attend to all tokens, norms on either side and behind (Yu et al. 2022, section 3.2): of any
    number of tokens it makes as many as there are queries, as wide as `width` says, else as the tokens are."""

    num_queries: int
    num_heads: int
    norm_eps: float = 1e-5
    width: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B Q W"]:
        shape = (1, self.num_queries, self.width or x.shape[-1])
        queries = self.param("queries", nn.initializers.normal(1.0), shape[1:], jnp.float32)
        queries = self._norm("query_norm")(queries.astype(self.dtype).reshape(shape))
        # Or the compiler cuts the tokens' gradient by features, and gathers that of keys and values from all rows.
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        attention = MultiHeadAttention(self.num_heads, dtype=self.dtype, name="attention")
        pooled: jax.Array = self._norm("norm")(attention(queries, self._norm("context_norm")(x)))
        return pooled

    def _norm(self, name: str) -> nn.Module:
        return make_norm("layer", self.norm_eps, self.dtype, name)
