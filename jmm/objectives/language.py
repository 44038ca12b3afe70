"""Losses over the tokens of a text."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def following(
    text: Int[Array, "B L"], mask: Bool[Array, "B L"], segment: Int[Array, "B L"] | None = None
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """The token after each, and where both are real by `mask`: the targets of a model of the next token (Bengio et al.
    2003). Where texts share a row both are of one `segment` too."""
    # Rolled and not cut: the length keeps dividing among devices. The last token would predict the first of its row.
    pair = (mask & jnp.roll(mask, -1, axis=1)).at[:, -1].set(False)
    if segment is not None:
        pair &= segment == jnp.roll(segment, -1, axis=1)
    return jnp.roll(text, -1, axis=1), pair


def masked_token(logits: Float[Array, "B L V"], target: Int[Array, "B L"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy −log p(target_t | the corrupted text) (Devlin et al. 2019, section 3.1) over all places of the
    batch where a target stands, and the share of them whose likeliest token is the right one. A negative target says
    that nothing is to be predicted there. Without a target both are 0.
    """
    return token_cross_entropy(logits, target, target >= 0)


def token_cross_entropy(
    logits: Float[Array, "B L V"], target: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy −log p(target_t) over the tokens that are real by `mask`, and the share of them whose
    likeliest token is the right one. Without a real token both are 0."""
    count = jnp.maximum(mask.sum(), 1)
    loss = _token_losses(logits, target, mask).sum() / count
    accuracy = jnp.where(mask, jnp.argmax(logits, axis=2) == target, False).sum() / count
    return loss, accuracy


def row_cross_entropy(
    logits: Float[Array, "B L V"], target: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float[Array, "B"]:
    """Mean cross-entropy −log p(target_t) of each row over its tokens that are real by `mask`; 0 without one."""
    return _token_losses(logits, target, mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


def _token_losses(logits: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """−log p(target_t) [B,L], 0 where no token is real."""
    target, logits = jnp.where(mask, target, 0), logits.astype(jnp.float32)
    own = jnp.take_along_axis(logits, target[:, :, None], axis=2)[:, :, 0]
    return jnp.where(mask, jax.nn.logsumexp(logits, axis=2) - own, 0)
