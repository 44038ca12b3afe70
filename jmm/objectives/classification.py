"""Losses over a fixed set of classes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def classification(logits: Float[Array, "B V"], label: Int[Array, "B"], smoothing: float = 0.0) -> Float[Array, ""]:
    """Mean cross-entropy, with a share `smoothing` of the target spread evenly over all V classes
    (Szegedy et al. 2016, section 7)."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_probability, label[:, None], axis=1)[:, 0]
    return -jnp.mean((1 - smoothing) * own + smoothing * log_probability.mean(axis=1))
