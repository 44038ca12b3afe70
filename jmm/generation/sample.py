"""The choice of the next token from its logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; the changes to the logits are made in the order of these fields."""

    temperature: float = 0.0
    """What the logits are divided by; 0 takes the most probable token always."""
    top_k: int | None = None
    """Draw from this many most probable tokens alone (Fan et al. 2018)."""
    top_p: float | None = None
    """Draw from the fewest most probable tokens that hold this probability together (Holtzman et al. 2020, nucleus)."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of its range, and for a choice among tokens that are not drawn."""
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and at most at 1, not {self.top_p}")
        if self.temperature == 0 and (self.top_k or self.top_p) is not None:
            raise ValueError("top_k and top_p need a temperature above 0: at 0 the most probable token is taken")


def choose(logits: Float[Array, "B V"], sampling: Sampling, key: Key[Array, ""]) -> Int[Array, "B"]:
    """The next token of each row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    return jax.random.categorical(key, changed(logits, sampling))


def changed(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """The logits that tokens are drawn from, in float32; −∞ for those that are not to be drawn."""
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k is not None:
        logits = most_probable(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = nucleus(logits, sampling.top_p)
    return logits


def most_probable(logits: Float[Array, "B V"], count: int) -> Float[Array, "B V"]:
    """The `count` greatest logits, and those equal to the least of them; −∞ in place of the others."""
    least = jax.lax.top_k(logits, min(count, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def nucleus(logits: Float[Array, "B V"], probability: float) -> Float[Array, "B V"]:
    """The greatest logits whose tokens together are the fewest to reach a probability, and those equal to the least of
    them; −∞ in place of the others. The most probable token is always kept."""
    ordered = jnp.sort(logits, axis=-1)
    below = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)  # with all that are less probable
    kept = (below > 1 - probability).at[:, -1].set(True)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
