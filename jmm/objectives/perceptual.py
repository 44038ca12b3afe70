"""How far images are apart in the eyes of a network."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def perceptual(
    made: Sequence[Float[Array, "_B ... _D"]], true: Sequence[Float[Array, "_B ... _D"]], eps: float = 1e-10
) -> Float[Array, ""]:
    """Σ over layers of the mean over images and places of |m/|m| − t/|t||², of the features m and t that a network's
    layers give of two images (Zhang et al. 2018, The Unreasonable Effectiveness of Deep Features, equation 1, every
    channel of weight 1); `eps` is added to the squares of lengths, since features may be zero."""

    def unit(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + eps)

    gaps = [jnp.square(unit(m) - unit(t)).sum(axis=-1).mean() for m, t in zip(made, true, strict=True)]
    return sum(gaps, jnp.zeros(()))
