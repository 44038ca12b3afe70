"""Decoding over a cache against attention over the whole text, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.kernels import attention, decode_attention, masks
from jmm.kernels.decode import store, visible_slots
from tests.arrays import assert_close

B, H, G, D, L = 3, 6, 2, 8, 11


def text(seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((B, L, heads, D)), jnp.float32) for heads in (H, G, G)]


@pytest.mark.parametrize(
    ("slots", "window"), [(L, None), (L, 4), (L + 5, 4), (4, 4), (4, None), (7, 3)], ids=lambda x: str(x)
)
def test_token_by_token_is_the_whole_text_at_once(slots, window):
    q, k, v = text()
    seen = min(slots, window or slots)
    whole = attention(q, k, v, mask=masks.causal() & masks.window(seen))

    @jax.jit
    def step(caches, t, alive):
        # A row that has ended keeps its length and its cache.
        lengths = jnp.minimum(t + 1, alive)
        now = lengths - 1
        rows = jnp.arange(B)
        caches = tuple(store(c, x[rows, now], lengths) for c, x in zip(caches, (k, v), strict=True))
        return caches, decode_attention(q[rows, now], *caches, lengths, window=window)

    caches = (jnp.full((B, G, slots, D), 1e4),) * 2
    alive = jnp.array([L, 5, 8])
    for t in range(L):
        caches, out = step(caches, t, alive)
        now = jnp.minimum(t, alive - 1)
        assert_close(out, whole[jnp.arange(B), now], 1e-5, f"token {t}")


@pytest.mark.parametrize("implementation", ["reference", "chunked", "pallas_tpu"])
@pytest.mark.parametrize("bias_shape", [(1, H, L), (B, 1, L), (B, H, L)])
def test_bias_and_implementations(implementation, bias_shape):
    q, k, v = text(1)
    bias = jnp.asarray(np.random.default_rng(2).standard_normal(bias_shape), jnp.float32)
    lengths = jnp.array([1, 7, 0])
    caches = (k.swapaxes(1, 2), v.swapaxes(1, 2))
    out = decode_attention(q[:, 0], *caches, lengths, bias=bias, scale=0.3, implementation=implementation)
    for row in range(B):
        n = int(lengths[row])
        if n == 0:
            np.testing.assert_array_equal(out[row], 0)
            continue
        one = attention(
            q[row : row + 1, :1],
            k[row : row + 1, :n],
            v[row : row + 1, :n],
            bias=jnp.broadcast_to(bias, (B, H, L))[row, None, :, None, :n],
            scale=0.3,
        )
        assert_close(out[row], one[0, 0], 1e-5, f"row {row}")


def test_slots_of_a_ring_that_has_wrapped():
    seen = visible_slots(jnp.array([2, 4, 6, 9]), 4, 3)
    expected = [[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 1]]
    np.testing.assert_array_equal(seen, np.array(expected, bool))


def test_bad_input_is_named():
    q, k, v = text()
    with pytest.raises(ValueError, match="6 query heads do not divide into groups over 4 key heads"):
        decode_attention(q[:, 0], jnp.ones((B, 4, L, D)), jnp.ones((B, 4, L, D)), jnp.ones(B, int))
    with pytest.raises(ValueError, match="at least the newest token, not 0"):
        decode_attention(q[:, 0], *(each.swapaxes(1, 2) for each in (k, v)), jnp.ones(B, int), window=0)
