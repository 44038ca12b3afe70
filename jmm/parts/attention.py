"""Multi-head attention: self, cross and grouped-query use of the one attention core."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jmm.kernels import attention
from jmm.kernels.masks import Mask
from jmm.parts.positions import rotary


class MultiHeadAttention(nn.Module):
    """Queries from `x`, keys and values from `context` (`x` itself unless given), joined by the attention core.

    `num_kv_heads` below `num_heads` shares each key head among a group of query heads (Ainslie et al. 2023).
    `rotary_base` turns queries and keys by their positions before they meet. `out_bias` is the bias of the projection
    that joins the heads, where it differs from that of the others (Qwen2 has none there). `scale` is that of the
    logits, 1/√(head width) unless given (T5 has 1); queries start as much smaller as it is larger, so that the softmax
    starts as flat.
    `out_features` is the width of the result, where it is not that of `x`.
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
        x: Float[Array, "B Q D"],
        context: Float[Array, "B K E"] | None = None,
        *,
        mask: Mask | None = None,
        bias: Float[Array, "#B #H Q K"] | None = None,
        positions: Int[Array, "#B Q"] | None = None,
    ) -> Float[Array, "B Q O"]:
        """Raises ValueError for a width that does not divide into the heads, and for rotary positions between two
        sequences: they say nothing about each other's places."""
        width = x.shape[-1]
        if self.num_heads < 1 or (self.head_dim is None and width % self.num_heads):
            raise ValueError(f"a width of {width} does not divide into {self.num_heads} heads")
        head_dim = self.head_dim or width // self.num_heads
        num_kv_heads = self.num_kv_heads or self.num_heads
        if self.rotary_base is not None and context is not None:
            raise ValueError("rotary positions are for self-attention; there is a context")
        context = x if context is None else context

        gain = 1.0 if self.scale is None else head_dim**-0.5 / self.scale
        q = self._project(self.num_heads, head_dim, "query", gain)(x)
        k = self._project(num_kv_heads, head_dim, "key")(context)
        v = self._project(num_kv_heads, head_dim, "value")(context)
        if self.rotary_base is not None:
            if positions is None:
                positions = jnp.arange(x.shape[1])[None]
            q, k = (rotary(each, positions, self.rotary_base) for each in (q, k))
        q = nn.with_logical_constraint(q, ("batch", "length", "heads", "head_dim"))
        attended = attention(q, k, v, mask=mask, bias=bias, scale=self.scale)
        return nn.DenseGeneral(
            self.out_features or width,
            axis=(-2, -1),
            use_bias=self.use_bias if self.out_bias is None else self.out_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="out",
        )(attended)

    def _project(self, heads: int, head_dim: int, name: str, gain: float = 1.0) -> nn.Module:
        return nn.DenseGeneral(
            (heads, head_dim),
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform"),
            name=name,
        )
