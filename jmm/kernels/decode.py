"""Attention of one new token over a cache of keys and values, as generation takes it.

The cache has a fixed size, so one compiled step serves every length. Token t lies in slot t mod S: a cache as long as
the text never wraps, a shorter one is a ring buffer that holds the last S tokens. Heads stand in front of the slots:
so every head's slots lie together, and no step lays the cache out anew.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jmm.kernels import masks
from jmm.kernels.attention import attention
from jmm.kernels.choice import Implementation


def decode_attention(
    q: Float[Array, "B H D"],
    k_cache: Float[Array, "B G S D"],
    v_cache: Float[Array, "B G S D"],
    lengths: Int[Array, "B"],
    *,
    window: int | None = None,
    mask: masks.Valid | None = None,
    bias: Float[Array, "#B #H S"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B H D"]:
    """The newest token's attention over the tokens so far.

    The query heads of a group read the same keys, so they are taken as the queries of one head: the cache is read once.

    Args:
      q: the newest token's queries.
      k_cache, v_cache: keys and values, the newest token's among them (`store`); H is a multiple of G.
      lengths: tokens so far in each row, the newest included. A row of length 0 gives zeros.
      window: how many of the newest tokens are seen; None: all that the cache holds.
      mask: which slots the newest token sees at all, [B or 1, S]; None: all.
      bias: added to the scaled logits of each slot.
      scale: of the logits; 1/√D unless given.
      implementation: as of `attention`.

    Raises:
      ValueError: naming the shapes that disagree.
    """
    rows, heads, width = q.shape
    kv_heads, slots = k_cache.shape[1:3]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide into groups over {kv_heads} key heads")
    if window is not None and window < 1:
        raise ValueError(f"the window must hold at least the newest token, not {window}")
    group = heads // kv_heads
    grouped = q.reshape(rows, kv_heads, group, width).swapaxes(1, 2)
    if bias is not None:
        many = (bias.shape[0], kv_heads, group, slots)
        bias = bias.reshape(many) if bias.shape[1] == heads else jnp.broadcast_to(bias[:, :, None], many)
    seen = masks.valid(visible_slots(lengths, slots, window))
    seen = seen if mask is None else seen & mask
    k, v = (jnp.swapaxes(cache, 1, 2) for cache in (k_cache, v_cache))
    out = attention(grouped, k, v, mask=seen, bias=bias, scale=scale, implementation=implementation)
    return out.swapaxes(1, 2).reshape(rows, heads, width)


def visible_slots(lengths: Int[Array, "B"], slots: int, window: int | None = None) -> Bool[Array, "B S"]:
    """Which slots hold a token that the newest one sees."""
    newest = lengths[:, None] - 1
    age = (newest - jnp.arange(slots)) % slots
    return age < jnp.minimum(lengths[:, None], slots if window is None else window)


def store(
    cache: Float[Array, "B G S D"], new: Float[Array, "B G D"], lengths: Int[Array, "B"]
) -> Float[Array, "B G S D"]:
    """The cache with the newest token's keys or values in their slots; `lengths` includes that token."""
    slots = cache.shape[2]
    return cache.at[jnp.arange(cache.shape[0]), :, (lengths - 1) % slots].set(new.astype(cache.dtype))
