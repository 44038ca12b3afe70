"""dVAE, the image tokenizer of DALL-E (Ramesh et al. 2021, Zero-Shot Text-to-Image Generation, section 2.1).

    image [B,H,W,C] ─► pixel mapping ─► encoder ─► code logits [B,h,w,K] ─┬─► argmax ─► codes [B,h,w]
                                                                           │
                          + Gumbel noise, softmax at a falling temperature ▼
    image ◄─ sigmoid, unmapped ◄─ logit-Laplace μ, ln b [B,H,W,2C] ◄─ decoder

Inputs: image float32 [B,H,W,C] in [-1, 1].
Outputs: code_logits [B,h,w,K]; codes int32 [B,h,w]; image float32 [B,H,W,C] in [-1, 1], from the codes alone.
Checked: openai/DALL-E, both networks (tests/models/test_dvae.py).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jmm.errors import UserError
from jmm.objectives.quantization import code_use, divergence_from_uniform, half_cosine, logit_laplace
from jmm.parts.autoencoder import Conv, doubled
from jmm.parts.quantizers import gumbel_softmax
from jmm.protocol import Batch, Loss, Outputs, Variables

EDGE = 0.1
"""Pixels from 0 to 1 are mapped into what is so far from either end: there the likelihood is finite (appendix A.3)."""


@dataclass(frozen=True)
class Config:
    """The networks and the annealing of what they learn by (appendix A.2)."""

    image_size: tuple[int, int] = (256, 256)
    """Height and width of the images of training."""
    channels: int = 3
    """Channels of the images."""
    num_codes: int = 8192
    """Codes of the vocabulary."""
    width: int = 256
    """Channels of the finest group of blocks; each other has twice as many as the one before."""
    groups: int = 4
    """Groups of blocks; each but the first works on a grid of half the size."""
    blocks: int = 2
    """Residual blocks of a group."""
    decoder_width: int = 128
    """Channels that the decoder makes of the codes at first."""
    kl_weight: float = 6.6
    """Weight of the divergence from even use, β, reached after `kl_steps`."""
    kl_steps: int = 5000
    """Steps in which that weight rises from 0, along half a cosine."""
    temperature: float = 1 / 16
    """Temperature of the relaxation, reached after `temperature_steps`."""
    temperature_steps: int = 150_000
    """Steps in which that temperature falls from 1, along half a cosine."""

    @property
    def stride(self) -> int:
        """Pixels of the image a code, along each side."""
        return int(2 ** (self.groups - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    def build(self, dtype: DTypeLike = jnp.float32) -> "DVAE":
        """The module, computing in `dtype`."""
        return DVAE(self, dtype)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image float32 [B,H,W,C]."""
        return {"image": jax.ShapeDtypeStruct((batch_size, *self.image_size, self.channels), jnp.float32)}

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """The negative evidence bound a pixel and channel, in nats: a draw of the relaxed codes, the likelihood of the
        image by them, and the divergence from even use of the codes by its weight (equation 1)."""
        apply: Any = module.apply
        steps = variables["annealing"]["steps"]
        image = mapped(batch["image"])
        logits = apply(variables, batch["image"], method="encode_logits")
        temperature = 1 + (self.temperature - 1) * half_cosine(steps, self.temperature_steps)
        noise = jax.random.gumbel(rngs["dropout"], logits.shape)
        stats = apply(variables, gumbel_softmax(logits, noise, temperature), method="decode_weights")
        mean, log_scale = jnp.split(stats, 2, axis=-1)
        reconstruction = logit_laplace(image, mean, log_scale).mean()
        divergence = divergence_from_uniform(logits)
        weight = self.kl_weight * half_cosine(steps, self.kl_steps) / (self.stride**2 * self.channels)
        value = reconstruction + weight * divergence
        metrics = {
            "loss": value,
            "reconstruction": reconstruction,
            "divergence": divergence,
            "temperature": temperature,
        }
        metrics |= code_use(logits.argmax(axis=-1), self.num_codes)
        return Loss(value, metrics, {"annealing": {"steps": steps + 1}})


def mapped(image: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Pixels from −1 to 1 into (0, 1), away from the ends."""
    return (1 - 2 * EDGE) * (image + 1) / 2 + EDGE


def unmapped(mean: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The image [-1, 1] that a mean of the likelihood says."""
    return 2 * jnp.clip((jax.nn.sigmoid(mean) - EDGE) / (1 - 2 * EDGE), 0, 1) - 1


class Block(nn.Module):
    """Four times relu and convolution, the narrow ones a quarter as wide, on a residual path whose gain is small."""

    width: int
    sizes: tuple[int, ...]
    gain: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        hidden = x
        for index, size in enumerate(self.sizes, 1):
            width = self.width if index == len(self.sizes) else self.width // 4
            hidden = Conv(width, size, self.dtype, name=f"conv{index}")(nn.relu(hidden))
        if x.shape[-1] != self.width:
            x = Conv(self.width, 1, self.dtype, name="shortcut")(x)
        return x + self.gain * hidden


class Encoder(nn.Module):
    """Images in (0, 1) to logits of the codes."""

    config: Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w K"]:
        config = self.config
        x = Conv(config.width, 7, self.dtype, name="first")(x)
        for group in range(config.groups):
            if group:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for index in range(config.blocks):
                x = _block(config, group, (3, 3, 3, 1), self.dtype, f"group{group}_{index}")(x)
        return Conv(config.num_codes, 1, self.dtype, name="last")(nn.relu(x))


class Decoder(nn.Module):
    """Weights of the codes to mean and logarithm of the scale of the likelihood."""

    config: Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, weights: Float[Array, "B h w K"]) -> Float[Array, "B H W _"]:
        config = self.config
        x = Conv(config.decoder_width, 1, self.dtype, name="first")(weights)
        for group in reversed(range(config.groups)):
            for index in range(config.blocks):
                x = _block(config, group, (1, 3, 3, 3), self.dtype, f"group{group}_{index}")(x)
            if group:
                x = doubled(x)
        return Conv(2 * config.channels, 1, self.dtype, name="last")(nn.relu(x))


def _block(config: Config, group: int, sizes: tuple[int, ...], dtype: DTypeLike, name: str) -> Block:
    return Block(config.width * 2**group, sizes, (config.groups * config.blocks) ** -2, dtype, name=name)


class DVAE(nn.Module):
    """The two networks."""

    config: Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.steps = self.variable("annealing", "steps", lambda: jnp.zeros((), jnp.int32))

    def __call__(self, *, image: Float[Array, "B H W C"], train: bool = False) -> Outputs:
        """Gives code_logits, codes and the image of the codes."""
        logits = self.encode_logits(image)
        codes = logits.argmax(axis=-1).astype(jnp.int32)
        return {"code_logits": logits, "codes": codes, "image": self.decode(codes)}

    def encode_logits(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w K"]:
        """Logits of the codes.

        Raises:
          UserError: the grid of codes does not divide the image.
        """
        stride = self.config.stride
        if image.shape[1] % stride or image.shape[2] % stride:
            raise UserError(
                f"an image of {image.shape[1]}×{image.shape[2]} does not divide into codes of {stride}×{stride} pixels"
            )
        return self.encoder(mapped(image.astype(jnp.float32))).astype(jnp.float32)

    def encode(self, image: Float[Array, "B H W C"]) -> Int[Array, "B h w"]:
        """The most probable codes."""
        return self.encode_logits(image).argmax(axis=-1).astype(jnp.int32)

    def decode(self, codes: Int[Array, "B h w"]) -> Float[Array, "B H W C"]:
        """The most probable image of codes."""
        stats = self.decode_weights(jax.nn.one_hot(codes, self.config.num_codes))
        return unmapped(jnp.split(stats, 2, axis=-1)[0])

    def decode_weights(self, weights: Float[Array, "B h w K"]) -> Float[Array, "B H W _"]:
        """Mean and logarithm of the scale of the likelihood."""
        return self.decoder(weights).astype(jnp.float32)


VARIANTS = {"dvae": Config()}
