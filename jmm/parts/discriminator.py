"""The critic of patches (Isola et al. 2017, section 3.2.2): each of its logits sees a window of the image."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jmm.parts.norms import BatchNorm

WIDEST = 8
"""Channels of the widest layer over those of the first."""


class PatchDiscriminator(nn.Module):
    """Convolutions of 4 × 4 with leaky relu; `layers` of them with stride 2, all but the first and the last with a norm
    of the batch."""

    width: int = 64
    layers: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w"]:
        """A logit for each window: high where the image seems real. H and W are at least 4 · 2^layers."""
        x = nn.leaky_relu(self._conv(image, self.width, 2, True, "conv0"), 0.2)
        for layer in range(1, self.layers + 1):
            width = self.width * min(2**layer, WIDEST)
            x = self._conv(x, width, 2 if layer < self.layers else 1, False, f"conv{layer}")
            x = nn.leaky_relu(BatchNorm(scale_init=_near_one, dtype=self.dtype, name=f"norm{layer}")(x, train), 0.2)
        x = self._conv(x, 1, 1, True, f"conv{self.layers + 1}")
        return x[..., 0].astype(jnp.float32)

    def _conv(self, x: jax.Array, width: int, stride: int, use_bias: bool, name: str) -> jax.Array:
        start = nn.initializers.normal(0.02)
        conv = nn.Conv(width, (4, 4), stride, 1, use_bias=use_bias, kernel_init=start, dtype=self.dtype, name=name)
        return nn.with_logical_constraint(conv(x), ("batch", None, None, None))


def _near_one(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    return 1 + nn.initializers.normal(0.02)(key, shape, dtype)
