"""PaLI (Chen et al. 2022, PaLI: A Jointly-Scaled Multilingual Language-Image Model).

    image [B,H,W,C] ─► ViT, not pooled ─► image_features [B,N,E] ─► (projection) ─┐
                                                                                  ├─► encoder ─► features [B,N+L,D]
    text [B,L] ─► embed ──────────────────────────────────────────────────────────┘     cross-attention ┆
                    ┆ one embedding                                                                     ┆
    start, target ─► embed ─► causal decoder ◄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┘
    [B,M]                            └─► logits [B,M,V]

Every task is a prompt and the text that answers it: captions, questions, what is written in the picture, spans left out
of a text. The visual tokens stand before those of the prompt, and the encoder–decoder (mT5, Xue et al. 2021) reads both
in one sequence, its relative positions counted through. `optimizer.freeze=("^image/",)` leaves the image encoder as it
is, as the paper does at its first resolution.

Inputs: image float32 [B,H,W,C], image_mask bool [B], false for a row without a picture; text int32 [B,L], what is
asked, and target int32 [B,M], what is to be written; text_mask bool [B,L] and target_mask bool [B,M], padding on either
side. Without a mask everything is real; without image no row has a picture.
Outputs: image_features [B,N,E], every token of the image encoder; features [B,N+L,D], the visual tokens and those of
the text after the encoder; logits [B,M,V] of each token of the target given all that and the tokens before it. Those of
padding mean nothing.
Checked: transformers.ViTModel and MT5ForConditionalGeneration composed over joined embeddings, outputs, loss and
gradients (tests/models/test_pali_parity.py).
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jmm.models import encoder_decoder
from jmm.models.encoder_decoder import EncoderDecoder, shift_right
from jmm.models.vit import ImageEncoder, ImageTower
from jmm.parts.transformer import TransformerConfig
from jmm.protocol import Batch, Loss, Outputs, Variables


@dataclass(frozen=True)
class Config:
    """An encoder of images and a language model that reads its tokens before those of a text."""

    image: ImageTower
    """The image encoder; all its tokens are read, and its pooled vector is not."""
    language: encoder_decoder.Config
    """The encoder–decoder."""
    text_length: int = 128
    """The longest prompt in tokens."""
    target_length: int = 128
    """The longest target in tokens."""
    image_optional: bool = False
    """Batches come with image_mask, since some rows have no picture."""
    image_projection: bool = True
    """A linear layer from the width of the image encoder to that of the language model; without it they must be one."""

    def build(self, dtype: DTypeLike = jnp.float32) -> "PaLI":
        """The module, computing in `dtype`."""
        return PaLI(self, dtype)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image float32 [B,H,W,C], text int32 and text_mask bool [B,L], target int32 and target_mask bool [B,M];
        image_mask bool [B] where the configuration asks for it."""
        size = (batch_size, *self.image.image_size, self.image.channels)
        spec = {"image": jax.ShapeDtypeStruct(size, jnp.float32)}
        if self.image_optional:
            spec["image_mask"] = jax.ShapeDtypeStruct((batch_size,), jnp.bool_)
        for name, length in (("text", self.text_length), ("target", self.target_length)):
            spec[name] = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
            spec[f"{name}_mask"] = jax.ShapeDtypeStruct((batch_size, length), jnp.bool_)
        return spec

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """That of the language model: the cross-entropy of the target, over all its real tokens in the batch."""
        return self.language.loss(module, variables, batch, rngs)


class PaLI(nn.Module):
    """The image encoder, the projection and the language model."""

    config: Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        cfg, width = self.config, self.config.language.encoder.width
        if not cfg.image_projection and cfg.image.encoder.width != width:
            raise ValueError(
                f"without image_projection the image encoder must be as wide as the language model, {width}, not "
                f"{cfg.image.encoder.width}"
            )
        self.image = ImageEncoder(cfg.image, self.dtype)
        if cfg.image_projection:
            self.image_projection = nn.Dense(width, dtype=self.dtype)
        self.language = EncoderDecoder(cfg.language, self.dtype)

    def __call__(
        self,
        *,
        image: Float[Array, "B H W C"] | None = None,
        image_mask: Bool[Array, "B"] | None = None,
        text: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"] | None = None,
        target: Int[Array, "B M"],
        target_mask: Bool[Array, "B M"] | None = None,
        train: bool = False,
    ) -> Outputs:
        """Gives image_features [B,N,E] of images, features [B,N+L,D] and logits [B,M,V]."""
        language = self.language
        seen = None if image is None else self.image(image, train, image_mask)[0]
        encoded, real = self._read(seen, image_mask, text, text_mask, train)
        before = shift_right(target, target_mask, self.config.language.start_id)
        decoded = language.decode(language.embed_target(before), encoded, target_mask, real, train=train)
        outputs = {"features": encoded, "logits": language.logits(decoded)}
        return outputs if seen is None else outputs | {"image_features": seen}

    def _read(
        self,
        seen: Float[Array, "B N E"] | None,
        image_mask: Bool[Array, "B"] | None,
        text: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"] | None,
        train: bool = False,
    ) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"] | None]:
        """Visual tokens and text after the encoder, and which of them are real; None: all."""
        x, real = self.language.embed(text), text_mask
        if seen is not None:
            visual = self.image_projection(seen) if self.config.image_projection else seen
            x = jnp.concatenate([visual, x], axis=1)
            real = _joined(image_mask, text_mask, seen.shape[1], text.shape)
        return self.language.encode(x, real, train=train), real

    @property
    def max_tokens(self) -> int | None:
        """As many as the language model holds."""
        language = self.config.language
        return None if language.first_position is None else language.context_length

    @property
    def continues(self) -> bool:
        """It reads one text and writes another."""
        return False

    def prefill(
        self,
        *,
        image: Float[Array, "B H W C"] | None = None,
        image_mask: Bool[Array, "B"] | None = None,
        text: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"] | None = None,
    ) -> tuple[Float[Array, "B V"], Int[Array, "B"]]:
        """Reads images and prompts, and into the cache the token before each target: the logits of the target's first
        token, and the one token of each row in the cache."""
        seen = None if image is None else self.image(image)[0]
        return self.language.start(*self._read(seen, image_mask, text, text_mask))

    def step(self, token: Int[Array, "B"], position: Int[Array, "B"]) -> Float[Array, "B V"]:
        """Reads one more token of each target into the cache, and gives the logits of the next."""
        return self.language.step(token, position)


def _joined(
    image_mask: Bool[Array, "B"] | None, text_mask: Bool[Array, "B L"] | None, tokens: int, text: tuple[int, ...]
) -> Bool[Array, "B S"] | None:
    """Which of `tokens` visual tokens and of the text's behind them are real; None: all."""
    if image_mask is None and text_mask is None:
        return None
    images = jnp.ones(text[:1], bool) if image_mask is None else image_mask
    texts = jnp.ones(text, bool) if text_mask is None else text_mask
    return jnp.concatenate([jnp.repeat(images[:, None], tokens, axis=1), texts], axis=1)


def pali(vision: ImageTower, width: int, num_heads: int, mlp_dim: int) -> Config:
    """A PaLI with an mT5 of 24 layers (section 3.1)."""
    return Config(vision, encoder_decoder.t5_v1_1(width, 24, num_heads, mlp_dim, 250_112))


def vit_giant(image_size: int = 224) -> ImageTower:
    """ViT-G/14 (Zhai et al. 2022, table 2): 1.8 G parameters."""
    return _tower(TransformerConfig(1664, 48, 16, 8192, activation="gelu_tanh"), image_size)


def vit_enormous(image_size: int = 224) -> ImageTower:
    """ViT-e/14, which the paper scaled up (section 3.1): 3.8 G parameters without its head."""
    return _tower(TransformerConfig(1792, 56, 16, 15_360, activation="gelu_tanh"), image_size)


def _tower(encoder: TransformerConfig, image_size: int) -> ImageTower:
    # Pooled by attention for its own pre-training, it has no class token; PaLI reads it before the pool.
    return ImageTower(encoder, (image_size, image_size), 14, pool="none")


VARIANTS = {
    "pali_3b": pali(vit_giant(), 1024, 16, 2816),
    "pali_15b": pali(vit_giant(), 4096, 64, 10_240),
    "pali_17b": pali(vit_enormous(), 4096, 64, 10_240),
}
