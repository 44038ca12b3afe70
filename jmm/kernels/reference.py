"""Attention as the textbook writes it: the definition that every faster form is checked against."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jmm.kernels.core import FLOOR
from jmm.kernels.masks import Mask


def reference(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K G D"],
    v: Float[Array, "B K G D"],
    mask: Mask | None,
    bias: Float[Array, "#B #H Q K"] | None,
    scale: float,
) -> Float[Array, "B Q H D"]:
    """softmax(q·kᵀ·scale + bias) v over the keys that `mask` shows, dense, softmax in float32.

    H query heads share G key heads in equal groups. A query that sees no key gets zeros.
    """
    batch, q_length, heads, width = q.shape
    q = q.reshape(batch, q_length, k.shape[2], -1, width)
    logits = jnp.einsum("bqghd,bkgd->bghqk", q, k, preferred_element_type=jnp.float32) * scale
    logits = logits.reshape(batch, heads, q_length, -1)
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask.dense(*logits.shape[-2:])[:, None], logits, -jnp.inf)
    top = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), FLOOR)
    weights = jnp.exp(logits - jax.lax.stop_gradient(top))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights /= jnp.where(total > 0, total, 1)
    weights = weights.reshape(batch, k.shape[2], -1, *weights.shape[-2:]).astype(v.dtype)
    return jnp.einsum("bghqk,bkgd->bqghd", weights, v).reshape(batch, q_length, heads, width)
