"""The choice of the next token from its logits."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    guidance: float = 1.0
    """Other than 1, the rows of the second half are those of the first without what conditions them; both get the same
    token, drawn from logits so many times as far from theirs as those of the first are (Ho & Salimans 2022)."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of its range, and for a choice among tokens that are not drawn."""
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not self.guidance >= 0:
            raise ValueError(f"guidance must be 0 or more, not {self.guidance}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and at most at 1, not {self.top_p}")
        if self.temperature == 0 and (self.top_k or self.top_p) is not None:
            raise ValueError("top_k and top_p need a temperature above 0: at 0 the most probable token is taken")


def choose(logits: Float[Array, "B V"], sampling: Sampling, key: Key[Array, ""]) -> Int[Array, "B"]:
    """The next token of each row."""
    if sampling.guidance != 1:
        with_it, without = jnp.split(logits.astype(jnp.float32), 2)
        # −∞, what cannot be drawn, stays so.
        guided = jnp.where(jnp.isinf(with_it), with_it, without + sampling.guidance * (with_it - without))
        tokens = choose(guided, replace(sampling, guidance=1.0), key)
        return jnp.concatenate([tokens, tokens])
    if sampling.temperature == 0:
        return _greatest(logits)
    # The greatest of logits with Gumbel noise is a draw from their softmax (Maddison et al. 2014, A* Sampling).
    return _greatest(changed(logits, sampling) + jax.random.gumbel(key, logits.shape))


def _greatest(logits: jax.Array) -> jax.Array:
    """The first place of the greatest logit: argmax in two passes, which XLA vectorises: 8 times as fast on a CPU."""
    places, last = jnp.arange(logits.shape[-1], dtype=jnp.int32), logits.shape[-1] - 1
    return jnp.where(logits == logits.max(axis=-1, keepdims=True), places, last).min(axis=-1)


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
    return _fewest(logits, lambda kept: kept.sum(axis=-1, keepdims=True) >= min(count, logits.shape[-1]))


def nucleus(logits: Float[Array, "B V"], probability: float) -> Float[Array, "B V"]:
    """The greatest logits whose tokens together are the fewest to reach a probability, and those equal to the least of
    them; −∞ in place of the others."""
    each = jax.nn.softmax(logits, axis=-1)

    def reaches(kept: jax.Array) -> jax.Array:
        # By what is left out: sums near 1 have fewer digits than the tail of a large vocabulary needs.
        left_out = jnp.where(kept, 0, each).sum(axis=-1, keepdims=True)
        return (left_out <= 1 - probability) & kept.any(axis=-1, keepdims=True)

    return _fewest(logits, reaches)


def _fewest(logits: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """As few of the greatest logits of each row as are enough, or all; −∞ in place of the others.

    The least of them is found by halving the range of float32, in 32 passes: sorting a vocabulary takes XLA longer than
    a small model takes for a token.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    order = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)  # integers in the order of the floats

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low & high) + ((low ^ high) >> 1)  # no overflow
        suffices = enough(order >= middle)
        return jnp.where(suffices, middle, low), jnp.where(suffices, high, middle)

    limits = jnp.iinfo(jnp.int32)
    rows = (*logits.shape[:-1], 1)
    low, _ = jax.lax.fori_loop(0, 32, halve, (jnp.full(rows, limits.min), jnp.full(rows, limits.max)))
    return jnp.where(order >= low, logits, -jnp.inf)
