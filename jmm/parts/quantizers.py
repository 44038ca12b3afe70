"""Quantisers: vectors to ids of a codebook, and ids back to vectors.

What a quantiser does with its codes are pure functions of (vectors, codes), and so is how a codebook moves; the modules
below give them parameters, or the collection `codebook`, which must be mutable in training. All of it is in float32:
rounding would choose other codes.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jmm.parts.pooling import unit


class Quantized(NamedTuple):
    """Vectors and what stands for them."""

    vectors: Float[Array, "*B D"]
    """The code of each, by which no gradient comes back to x: `straight_through` lets it pass."""
    ids: Int[Array, "*B"]
    """Which code that is."""


class Codebook(NamedTuple):
    """Codes that follow the vectors for which they stand."""

    codes: Float[Array, "K D"]
    sizes: Float[Array, "K"]
    """How many vectors of a batch each stood for, as a moving average."""


def nearest(x: Float[Array, "*B D"], codes: Float[Array, "K D"]) -> Int[Array, "*B"]:
    """The code at the least Euclidean distance; of several, the first (van den Oord et al. 2017, equation 2)."""
    x, codes = x.astype(jnp.float32), codes.astype(jnp.float32)
    # Of |x − c|² = |x|² − 2 x·c + |c|² the first term is that of every code.
    products = jnp.einsum("...d,kd->...k", x, codes, precision="highest")
    return jnp.argmin(jnp.square(codes).sum(axis=1) - 2 * products, axis=-1).astype(jnp.int32)


def straight_through(x: Float[Array, "*B D"], vectors: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """The value of `vectors` with the gradient of x (section 3.2)."""
    return x + jax.lax.stop_gradient(vectors - x)


def follow(
    book: Codebook, x: Float[Array, "*B D"], ids: Int[Array, "*B"], decay: float, unit_length: bool = False
) -> Codebook:
    """The codebook after a batch: each code is the moving average of the vectors for which it stood,

        size ← decay · size + (1 − decay) · n,    size · code ← decay · size · code + (1 − decay) · Σ x

    (van den Oord et al. 2017, appendix A.1, without its smoothing, of which no code here is in need); codes and sizes
    that begin at size 0 are the first batch's own. A code that stood for nothing stays where it is.

    With `unit_length` the direction moves and the length stays 1 (VQ-KD, Peng et al. 2022, section 3.1):

        code ← unit(decay · code + (1 − decay) · unit(Σ x))
    """
    x, ids = jax.lax.stop_gradient(x.astype(jnp.float32)).reshape(-1, x.shape[-1]), ids.reshape(-1)
    counts = jax.ops.segment_sum(jnp.ones(ids.shape), ids, len(book.sizes))
    sums = jax.ops.segment_sum(x, ids, len(book.sizes))
    sizes = decay * book.sizes + (1 - decay) * counts
    used = (counts > 0)[:, None]
    if unit_length:
        towards = unit(jnp.where(used, sums, book.codes))
        return Codebook(unit(decay * book.codes + (1 - decay) * towards), sizes)
    moved = (decay * (book.sizes[:, None] * book.codes) + (1 - decay) * sums) / jnp.where(used, sizes[:, None], 1)
    return Codebook(jnp.where(used, moved, book.codes), sizes)


def restart(book: Codebook, x: Float[Array, "*B D"], key: PRNGKeyArray, below: float) -> Codebook:
    """Codes that stood for less than a share `below` of what would be even use are put on vectors of this batch, drawn
    at random, and may stay there for as long as a code of that share needs to fade (Dhariwal et al. 2020, section 3.1).
    """
    x = jax.lax.stop_gradient(x.astype(jnp.float32)).reshape(-1, x.shape[-1])
    least = below * len(x) / len(book.sizes)
    dead = book.sizes < least
    drawn = x[jax.random.randint(key, book.sizes.shape, 0, len(x))]
    return Codebook(jnp.where(dead[:, None], drawn, book.codes), jnp.where(dead, least, book.sizes))


def gumbel_softmax(
    logits: Float[Array, "*B K"], noise: Float[Array, "*B K"], temperature: float | Float[Array, ""], hard: bool = False
) -> Float[Array, "*B K"]:
    """A draw from the categorical distribution that gradients pass, softmax((logits + noise) / temperature), of noise
    from the standard Gumbel distribution (Jang et al. 2017, equation 2). A `hard` one is one code's alone, with the
    gradient of the soft one."""
    soft = jax.nn.softmax((logits.astype(jnp.float32) + noise) / temperature)
    if not hard:
        return soft
    return straight_through(soft, jax.nn.one_hot(soft.argmax(axis=-1), soft.shape[-1]))


class VectorQuantizer(nn.Module):
    """Nearest code of a codebook that learns by a loss (`objectives.quantization.nearest_code`)."""

    num_codes: int
    unit_length: bool = False
    """Vectors and codes are scaled so before they meet (Yu et al. 2022, section 3.2)."""

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Quantized:
        codes = self.param("codes", _even, (self.num_codes, x.shape[-1]))
        if self.unit_length:
            x, codes = unit(x), unit(codes)
        ids = nearest(x, codes)
        return Quantized(codes[ids], ids)

    def look_up(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """The codes of ids."""
        codes: jax.Array = self.get_variable("params", "codes")
        return unit(codes)[ids] if self.unit_length else codes[ids]


class MovingAverageQuantizer(nn.Module):
    """Nearest code of a codebook that follows the vectors; it learns nothing by gradients."""

    num_codes: int
    decay: float = 0.99
    unit_length: bool = False
    restart_below: float = 0.0
    """Codes of less than this share of even use start over, in training; it needs the random key `codes`."""

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"], train: bool = False) -> Quantized:
        """The codes as they were before this batch moved them."""
        book = self.variable("codebook", "book", self._start, (self.num_codes, x.shape[-1]))
        x, codes = unit(x) if self.unit_length else x.astype(jnp.float32), book.value.codes
        ids = nearest(x, codes)
        if train and not self.is_initializing():
            book.value = follow(book.value, x, ids, self.decay, self.unit_length)
            if self.restart_below:
                book.value = restart(book.value, x, self.make_rng("codes"), self.restart_below)
        return Quantized(codes[ids], ids)

    def look_up(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """The codes of ids."""
        book: Codebook = self.get_variable("codebook", "book")
        return book.codes[ids]

    def _start(self, shape: tuple[int, int]) -> Codebook:
        codes = jax.random.normal(self.make_rng("params"), shape)
        return Codebook(unit(codes) if self.unit_length else codes, jnp.zeros(shape[0]))


class GumbelQuantizer(nn.Module):
    """Codes drawn by logits of x instead of found by distances: one of each group, one behind the other (Baevski et al.
    2020, wav2vec 2.0, section 2); with one group, that of VQGAN's and DALL-E's Gumbel variants."""

    num_codes: int
    """Of a group."""
    width: int
    """Of the vectors of all groups together."""
    groups: int = 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B D"],
        noise: Float[Array, "*B G K"] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> tuple[Float[Array, "*B E"], Int[Array, "*B G"], Float[Array, "*B G K"]]:
        """Vectors, ids and logits: the most probable codes, or with Gumbel noise a draw that gradients pass.

        Raises:
          ValueError: the groups do not divide the width.
        """
        if self.width % self.groups:
            raise ValueError(f"vectors of {self.width} are not made of {self.groups} groups of one size")
        logits = nn.Dense(self.groups * self.num_codes, name="projection")(x.astype(jnp.float32))
        logits = logits.reshape(*x.shape[:-1], self.groups, self.num_codes)
        shape = (self.groups, self.num_codes, self.width // self.groups)
        codes = self.param("codes", nn.initializers.uniform(1.0), shape)
        drawn = logits if noise is None else logits + noise
        ids = drawn.argmax(axis=-1).astype(jnp.int32)
        if noise is None:
            weights = jax.nn.one_hot(ids, self.num_codes)
        else:
            weights = gumbel_softmax(logits, noise, temperature, hard=True)
        vectors = jnp.einsum("...gk,gkd->...gd", weights, codes)
        return vectors.reshape(*x.shape[:-1], self.width), ids, logits

    def look_up(self, ids: Int[Array, "*B G"]) -> Float[Array, "*B E"]:
        """The codes of ids."""
        codes: jax.Array = self.get_variable("params", "codes")
        return codes[jnp.arange(self.groups), ids].reshape(*ids.shape[:-1], self.width)


def _even(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "K D"]:
    """All about the origin, nearer than the codes are many: so the public ones begin."""
    return jax.random.uniform(key, shape, minval=-1 / shape[0], maxval=1 / shape[0])
