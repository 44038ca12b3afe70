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
    # Heads in front, those of a group as one: XLA's products over leading batch dimensions lay nothing out anew.
    q, k, v = (jnp.swapaxes(each, 1, 2) for each in (q, k, v))
    q = q.reshape(batch, k.shape[1], -1, width)
    logits = jnp.einsum("bgqd,bgkd->bgqk", q, k, preferred_element_type=jnp.float32) * scale
    logits = logits.reshape(batch, heads, q_length, -1)
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask.dense(*logits.shape[-2:])[:, None], logits, -jnp.inf)
    top = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), FLOOR)
    weights = jnp.exp(logits - jax.lax.stop_gradient(top))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights /= jnp.where(total > 0, total, 1)
    out = jnp.einsum("bgqk,bgkd->bgqd", weights.reshape(*q.shape[:3], -1).astype(v.dtype), v)
    return jnp.swapaxes(out.reshape(batch, heads, q_length, width), 1, 2)
