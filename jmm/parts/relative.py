"""Relative positions: a bias of the attention's logits that depends on the distance between query and key."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


class RelativePositionBias(nn.Module):
    """A learned scalar for each head and each bucket of distances, shared by all layers (Raffel et al. 2020, T5,
    section 2.1).

    Short distances have a bucket each and longer ones share buckets that widen with the logarithm, up to
    `max_distance`, beyond which all are alike. Half of the buckets are for keys behind the query where the attention is
    `bidirectional`; where it is not, all such keys share the bucket of distance 0, and a causal mask hides them.
    """

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, q_positions: Int[Array, "#B Q"], k_positions: Int[Array, "#B K"]) -> Float[Array, "#B H Q K"]:
        """The bias of every pair; positions are places in the sequence, so that a single query anywhere in it can be
        asked for.

        Raises ValueError for buckets that do not fit the distance.
        """
        buckets = relative_buckets(self.num_buckets, self.max_distance, self.bidirectional)
        shape = (self.num_buckets, self.num_heads)
        table = jnp.asarray(self.param("table", nn.initializers.normal(0.02), shape, jnp.float32), self.dtype)
        distance = k_positions[:, None, :] - q_positions[:, :, None]
        index = jnp.clip(distance, -self.max_distance, self.max_distance) + self.max_distance
        return jnp.moveaxis(table[buckets][index], -1, 1)


def relative_buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> Int[np.ndarray, "{2*max_distance+1}"]:
    """The bucket of each distance (key − query) from −`max_distance` to `max_distance`.

    In one direction, with n buckets of which e = ⌊n/2⌋ are exact, the distance d < e has bucket d and any other
    e + ⌊(n − e) log(d/e) / log(max_distance/e)⌋, and at most n − 1.

    Raises:
      ValueError: too few buckets for an exact one in each direction, or so many that none is left to share.
    """
    count = num_buckets // 2 if bidirectional else num_buckets
    exact = count // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"{num_buckets} buckets do not fit relative positions up to a distance of {max_distance}:"
            f" {exact} of them would stand for one distance each"
        )
    far = np.arange(exact, max_distance + 1)
    # Rounded before the floor: at a power of the ratio the quotient is whole, and must not fall just short of it.
    shared = np.floor(np.round((count - exact) * np.log(far / exact) / math.log(max_distance / exact), 6))
    before = np.concatenate([np.arange(exact), np.minimum(exact + shared.astype(int), count - 1)])
    after = before[1:] + count if bidirectional else np.zeros(max_distance, int)
    return np.concatenate([before[::-1], after])
