"""Losses over pairs: what belongs together should be closer than what does not."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def softmax_contrastive(
    image: Float[Array, "B D"], text: Float[Array, "B D"], scale: Float[Array, ""]
) -> Float[Array, ""]:
    """The symmetric cross-entropy of CLIP (Radford et al. 2021, figure 3).

    Row i of `image` belongs to row i of `text`, and to no other row. Both are unit vectors; `scale` is the
    inverse temperature.

        ½ mean_i [ CE(scale · image_i · textᵀ, i) + CE(scale · text_i · imageᵀ, i) ]
    """
    logits = _similarity(image, text) * scale
    own = jnp.diagonal(logits)
    rows, columns = jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
    return jnp.mean((rows + columns) / 2 - own)


def sigmoid_contrastive(
    image: Float[Array, "B D"], text: Float[Array, "B D"], scale: Float[Array, ""], bias: Float[Array, ""]
) -> Float[Array, ""]:
    """Every pair is a yes–no question (Zhai et al. 2023, SigLIP, equation 2).

    −1/B Σ_i Σ_j log σ( z_ij (scale · image_i · text_j + bias) ),   z_ij = 1 where i = j, else −1
    """
    logits = _similarity(image, text) * scale + bias
    signs = 2 * jnp.eye(logits.shape[0]) - 1
    return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / logits.shape[0]


def nt_xent(first: Float[Array, "B D"], second: Float[Array, "B D"], temperature: float) -> Float[Array, ""]:
    """The loss of SimCLR (Chen et al. 2020, equation 1) between two views of B examples.

    Each of the 2B unit vectors must find its other view among the 2B − 1 others.
    """
    both = jnp.concatenate([first, second])
    logits = _similarity(both, both) / temperature
    logits = jnp.where(jnp.eye(logits.shape[0], dtype=bool), -jnp.inf, logits)
    partner = jnp.roll(jnp.arange(logits.shape[0]), first.shape[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, partner).mean()


def _similarity(rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("id,jd->ij", rows, columns, preferred_element_type=jnp.float32)
