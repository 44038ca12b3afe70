"""Losses of quantisers, and how well a codebook is used."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

Weighted = Literal["commitment", "codebook"]
"""Which of the two terms beta weighs."""


def nearest_code(
    x: Float[Array, "*B D"], vectors: Float[Array, "*B D"], beta: float = 0.25, weighted: Weighted = "commitment"
) -> Float[Array, ""]:
    """mean |sg(x) − e|² + beta · mean |x − sg(e)|²: codes move to the vectors for which they stand, and vectors stay
    near their codes (van den Oord et al. 2017, equation 3). The public code of VQGAN weighs the first term in place of
    the second, `weighted="codebook"`; the value is the same, the gradients are not."""
    x, vectors = x.astype(jnp.float32), vectors.astype(jnp.float32)
    codebook = jnp.square(stop_gradient(x) - vectors).mean()
    commitment = jnp.square(x - stop_gradient(vectors)).mean()
    return codebook + beta * commitment if weighted == "commitment" else beta * codebook + commitment


def divergence_from_uniform(logits: Float[Array, "*B K"]) -> Float[Array, ""]:
    """Mean Kullback–Leibler divergence of categorical distributions from the uniform one over K codes, in nats: the
    prior of a discrete variational autoencoder (Ramesh et al. 2021, section 2.1)."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32))
    # q log q is 0 where q is: a probability that underflowed counts for nothing.
    terms = jnp.exp(log_probability) * (log_probability + jnp.log(logits.shape[-1]))
    return terms.sum(axis=-1).mean()


def code_use(ids: Int[Array, "*B"], num_codes: int) -> dict[str, Float[Array, ""]]:
    """`usage`, the share of the codes that stand for anything in a batch, and `perplexity`, exp(entropy) of how often
    each does: from 1 to the number of codes."""
    counts = jax.ops.segment_sum(jnp.ones(ids.size), ids.reshape(-1), num_codes)
    share = counts / ids.size
    entropy = -(share * jnp.log(jnp.where(share > 0, share, 1))).sum()
    return {"usage": (counts > 0).mean(), "perplexity": jnp.exp(entropy)}


def logit_laplace(x: Float[Array, "*B"], mean: Float[Array, "*B"], log_scale: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """−ln of the density of a Laplace variable behind a sigmoid, for x in (0, 1) (Ramesh et al. 2021, appendix A.3):

    |logit(x) − μ| / b + ln(2 b x (1 − x))
    """
    distance = jnp.abs(jnp.log(x) - jnp.log1p(-x) - mean)
    return distance * jnp.exp(-log_scale) + log_scale + jnp.log(2 * x * (1 - x))


def half_cosine(steps: Int[Array, ""], whole: int) -> Float[Array, ""]:
    """From 0 to 1 in `whole` steps along half a cosine, and then 1: how temperatures and weights are annealed."""
    return (1 - jnp.cos(jnp.pi * jnp.clip(steps / whole, 0, 1))) / 2
