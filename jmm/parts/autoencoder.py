"""The convolutional encoder and decoder of VQGAN (Esser et al. 2021, appendix A, table 7): residual blocks with group
norms, levels that halve the grid, and attention on the coarse ones.

    image [B, H, W, C] → Encoder → [B, h, w, Z] → … → Decoder → [B, H, W, D] → Conv → image,    h = H / 2^(levels − 1)

A decoder may be shown the codes again in each of its norms (MoVQ, Zheng et al. 2022, section 3.2). The convolution that
makes the image of what it gives stands apart, because losses are balanced by their gradients at its kernel.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jmm.parts.attention import MultiHeadAttention

Codes = Float[Array, "B _ _ E"] | None
"""What modulates the norms of a decoder; None: nothing does."""


@dataclass(frozen=True)
class GridConfig:
    """The levels that an encoder and its decoder share."""

    width: int = 128
    """Channels of the finest level."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Each level's channels over `width`, the finest first; each but the last halves the grid."""
    blocks: int = 2
    """Residual blocks of a level of the encoder; the decoder has one more."""
    attention: tuple[int, ...] = (4,)
    """Levels whose blocks are each followed by attention; between encoder's last and decoder's first it always is."""
    latent: int = 256
    """Channels between encoder and decoder."""
    groups: int = 32
    """Of the group norms."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        odd = [each for each in self.multipliers if each * self.width % self.groups]
        if odd:
            raise ValueError(f"a level of {odd[0] * self.width} channels does not divide into {self.groups} groups")
        if self.attention and not 0 <= min(self.attention) <= max(self.attention) < len(self.multipliers):
            raise ValueError(f"attention names levels {self.attention} of {len(self.multipliers)}, from 0")

    @property
    def stride(self) -> int:
        """Pixels of the image a place of the grid, along each side."""
        return 2 ** (len(self.multipliers) - 1)


class Conv(nn.Module):
    """A square convolution with bias, padded alike on both sides so that the grid stays as it is."""

    width: int
    kernel_size: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        size = self.kernel_size
        x = nn.Conv(self.width, (size, size), padding=size // 2, dtype=self.dtype, name="conv")(x)
        return nn.with_logical_constraint(x, ("batch", None, None, None))


class Halve(nn.Module):
    """A convolution with stride 2, whose padding stands at the far ends alone."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        x = nn.Conv(x.shape[-1], (3, 3), 2, padding=((0, 1), (0, 1)), dtype=self.dtype, name="conv")(x)
        return nn.with_logical_constraint(x, ("batch", None, None, None))


class GridNorm(nn.Module):
    """Group norm (Wu & He 2018); given codes, their nearest ones scale and shift it (MoVQ, equation 4)."""

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], codes: Codes = None) -> Float[Array, "B H W C"]:
        norm = nn.GroupNorm(self.groups, epsilon=1e-6, use_fast_variance=False, dtype=self.dtype, name="norm")
        if codes is None:
            return norm(x)
        codes = jax.image.resize(codes, (*x.shape[:3], codes.shape[-1]), "nearest")
        scale, shift = (Conv(x.shape[-1], 1, self.dtype, name=name)(codes) for name in ("scale", "shift"))
        return norm(x) * scale + shift


class GridBlock(nn.Module):
    """Twice norm, swish and convolution, on a residual path."""

    width: int
    groups: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], codes: Codes = None, train: bool = False) -> Float[Array, "B H W D"]:
        hidden = nn.swish(GridNorm(self.groups, self.dtype, name="norm1")(x, codes))
        hidden = Conv(self.width, dtype=self.dtype, name="conv1")(hidden)
        hidden = nn.swish(GridNorm(self.groups, self.dtype, name="norm2")(hidden, codes))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        hidden = Conv(self.width, dtype=self.dtype, name="conv2")(hidden)
        if x.shape[-1] != self.width:
            x = Conv(self.width, 1, self.dtype, name="shortcut")(x)
        return x + hidden


class GridAttention(nn.Module):
    """Every place attends to all, with one head, on a residual path."""

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], codes: Codes = None) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        tokens = GridNorm(self.groups, self.dtype, name="norm")(x, codes).reshape(batch, height * width, channels)
        attended = MultiHeadAttention(1, dtype=self.dtype, name="attention")(tokens)
        return x + attended.reshape(x.shape)


class _Levels(nn.Module):
    """What encoder and decoder make their levels of."""

    config: GridConfig
    dtype: DTypeLike = jnp.float32

    def block(self, x: jax.Array, level: int, name: str, codes: Codes, train: bool) -> jax.Array:
        """A residual block of a level's width, and attention where the level has it."""
        config = self.config
        width = config.width * config.multipliers[level]
        x = GridBlock(width, config.groups, config.dropout, self.dtype, name=f"{name}_block")(x, codes, train)
        if level in config.attention:
            x = GridAttention(config.groups, self.dtype, name=f"{name}_attention")(x, codes)
        return x

    def middle(self, x: jax.Array, codes: Codes, train: bool) -> jax.Array:
        """Block, attention and block on the coarsest grid."""
        groups, width = self.config.groups, x.shape[-1]
        x = GridBlock(width, groups, self.config.dropout, self.dtype, name="middle1_block")(x, codes, train)
        x = GridAttention(groups, self.dtype, name="middle_attention")(x, codes)
        return GridBlock(width, groups, self.config.dropout, self.dtype, name="middle2_block")(x, codes, train)

    def normed(self, x: jax.Array, codes: Codes) -> jax.Array:
        """After the last norm."""
        return nn.swish(GridNorm(self.config.groups, self.dtype, name="norm")(x, codes))


class Encoder(_Levels):
    """Images to a grid of vectors."""

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w Z"]:
        config = self.config
        x = Conv(config.width, dtype=self.dtype, name="first")(image)
        for level in range(len(config.multipliers)):
            for index in range(config.blocks):
                x = self.block(x, level, f"level{level}_{index}", None, train)
            if level + 1 < len(config.multipliers):
                x = Halve(self.dtype, name=f"level{level}_halve")(x)
        x = self.normed(self.middle(x, None, train), None)
        return Conv(config.latent, dtype=self.dtype, name="last")(x)


class Decoder(_Levels):
    """A grid of vectors to the features of images."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w Z"], codes: Codes = None, train: bool = False) -> Float[Array, "B H W D"]:
        config = self.config
        x = Conv(config.width * config.multipliers[-1], dtype=self.dtype, name="first")(x)
        x = self.middle(x, codes, train)
        for level in reversed(range(len(config.multipliers))):
            for index in range(config.blocks + 1):
                x = self.block(x, level, f"level{level}_{index}", codes, train)
            if level:
                x = Conv(x.shape[-1], dtype=self.dtype, name=f"level{level}_double")(doubled(x))
        return self.normed(x, codes)


def doubled(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Each place four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
