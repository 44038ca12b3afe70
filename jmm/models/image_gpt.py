"""Image GPT (Chen et al. 2020, Generative Pretraining from Pixels).

    image [B,H,W,C] ─► nearest colours ─► codes [B,H,W], row by row, behind a start
                                            └─► embed + positions ─► causal transformer ─► head ─► next code [B,N,K]

Inputs: image float32 [B,H,W,C] in [-1, 1].
Outputs: codes int32 [B,H,W]; logits [B,N,K] of each pixel given those before it; features [B,N,D].
Checked: transformers.ImageGPTForCausalImageModeling, logits, loss and gradients (tests/models/test_image_gpt.py).
"""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jmm.errors import UserError
from jmm.kernels import masks
from jmm.objectives.language import row_cross_entropy, token_cross_entropy
from jmm.parts.positions import LearnedPositions
from jmm.parts.quantizers import nearest
from jmm.parts.transformer import Transformer, TransformerConfig
from jmm.protocol import Batch, Loss, Outputs, Variables, training_forward


@dataclass(frozen=True)
class Config:
    """A palette and a causal transformer."""

    decoder: TransformerConfig
    """The transformer."""
    image_size: tuple[int, int] = (32, 32)
    """Height and width of the images, pixel by pixel a token."""
    channels: int = 3
    """Channels of the images."""
    num_codes: int = 512
    """Colours of the palette."""
    clusters: tuple[float, ...] = ()
    """The palette, colour after colour, each of `channels` values from -1 to 1 (`data_pipelines.colours`); empty:
    evenly spaced ones. It is part of the weights."""

    def __post_init__(self) -> None:
        """Raises UserError for a palette of another size."""
        wanted, colours = self.num_codes * self.channels, f"{self.num_codes} colours of {self.channels} channels"
        if self.clusters and len(self.clusters) != wanted:
            raise UserError(f"clusters has {len(self.clusters)} values; {colours} have {wanted}")
        if not self.clusters and round(self.num_codes ** (1 / self.channels)) ** self.channels != self.num_codes:
            raise UserError(f"{colours} cannot be evenly spaced; name them")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes: every pixel has one."""
        return self.image_size

    @property
    def length(self) -> int:
        """Pixels of an image."""
        return self.image_size[0] * self.image_size[1]

    @property
    def palette(self) -> Float[np.ndarray, "K C"]:
        """The colours before any weights are read."""
        if self.clusters:
            return np.asarray(self.clusters, np.float32).reshape(self.num_codes, self.channels)
        steps = np.linspace(-1, 1, round(self.num_codes ** (1 / self.channels)), dtype=np.float32)
        return np.stack(np.meshgrid(*[steps] * self.channels, indexing="ij"), axis=-1).reshape(-1, self.channels)

    def build(self, dtype: DTypeLike = jnp.float32) -> "ImageGPT":
        """The module, computing in `dtype`."""
        return ImageGPT(self, dtype)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image float32 [B,H,W,C]."""
        return {"image": jax.ShapeDtypeStruct((batch_size, *self.image_size, self.channels), jnp.float32)}

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """Cross-entropy of each pixel given those before it (section 2.1, equation 2), in bits too."""
        outputs, updates = training_forward(module, variables, batch, rngs)
        codes = outputs["codes"].reshape(-1, self.length)
        predicted = (outputs["logits"], codes, jnp.ones(codes.shape, bool))
        value, accuracy = token_cross_entropy(*predicted)
        metrics = {"loss": value, "bits_per_pixel": value / math.log(2), "accuracy": accuracy}
        return Loss(value, metrics, updates, row_cross_entropy(*predicted))


class ImageGPT(nn.Module):
    """Reads colours, and writes them."""

    config: Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        cfg, init = self.config, nn.initializers.normal(0.02)
        self.clusters = self.variable("buffers", "clusters", lambda: jnp.asarray(cfg.palette))
        self.embedding = nn.Embed(cfg.num_codes + 1, cfg.decoder.width, embedding_init=init, dtype=self.dtype)
        self.positions = LearnedPositions(cfg.length, dtype=self.dtype)
        self.decoder = Transformer(cfg.decoder, self.dtype)
        self.head = nn.Dense(cfg.num_codes, use_bias=False, dtype=self.dtype, kernel_init=init)

    def __call__(self, *, image: Float[Array, "B H W C"], train: bool = False) -> Outputs:
        """Gives codes, logits and features."""
        codes = self.encode(image)
        features = self.transform(self._behind_start(codes.reshape(codes.shape[0], -1))[:, :-1], train)
        return {"codes": codes, "features": features, "logits": self.head(features)}

    def encode(self, image: Float[Array, "B H W C"]) -> Int[Array, "B H W"]:
        """The nearest colour of the palette to each pixel."""
        return nearest(image, self.clusters.value)

    def decode(self, codes: Int[Array, "B H W"]) -> Float[Array, "B H W C"]:
        """The image of codes."""
        colours: jax.Array = self.clusters.value
        return colours[codes]

    def transform(self, ids: Int[Array, "B L"], train: bool = False) -> Float[Array, "B L D"]:
        """Features of ids, of which the start is the last of the vocabulary, each having seen those before it."""
        x = self.positions(self.embedding(ids))
        features: Float[Array, "B L D"] = self.decoder(x, mask=masks.causal(), train=train)
        return features

    @property
    def max_tokens(self) -> int:
        """The start and all pixels but the last."""
        return self.config.length

    @property
    def continues(self) -> bool:
        """It continues its image."""
        return True

    def prefill(self, *, codes: Int[Array, "B *P"]) -> tuple[Float[Array, "B K"], Int[Array, "B"]]:
        """Reads the first pixels of images, such as their upper halves, or none of them, [B, 0]."""
        ids = self._behind_start(codes.reshape(codes.shape[0], -1))
        features = self.decoder(self.positions(self.embedding(ids)), mask=masks.causal(), cached=True)
        return self.head(features[:, -1]), jnp.full(ids.shape[:1], ids.shape[1], jnp.int32)

    def step(self, token: Int[Array, "B"], position: Int[Array, "B"]) -> Float[Array, "B K"]:
        """Reads one more pixel of each row, and gives the logits of the next."""
        places = position[:, None]
        x = self.positions(self.embedding(token[:, None]), places)
        logits: Float[Array, "B K"] = self.head(self.decoder(x, positions=places, cached=True)[:, 0])
        return logits

    def _behind_start(self, codes: Int[Array, "B P"]) -> Int[Array, "B L"]:
        start = jnp.full((codes.shape[0], 1), self.config.num_codes, jnp.int32)
        return jnp.concatenate([start, codes], axis=1)


def image_gpt(width: int, depth: int, num_heads: int) -> Config:
    """The paper's (section 3.2): norms by the root mean square, before the sub-layers; 512 colours at 32×32."""
    decoder = TransformerConfig(width, depth, num_heads, 4 * width, activation="quick_gelu", norm="rms", norm_eps=1e-5)
    return Config(decoder)


VARIANTS = {
    "image_gpt_small": image_gpt(512, 24, 8),
    "image_gpt_medium": image_gpt(1024, 36, 8),
    "image_gpt_large": image_gpt(1536, 48, 16),
}
