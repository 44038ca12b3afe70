"""CoCa (Yu et al. 2022, CoCa: Contrastive Captioners are Image-Text Foundation Models).

    image [B,H,W,C] ─► ViT ─► image_features [B,N,D] ─► poolers ─┬─► projection ─► unit vector ─── image_embedding [B,E]
                                                                 └─► image_tokens [B,Q,D]                 ┆
                                                                             │ cross-attention      scale · cosine
    text [B,L], class token ─► embed + positions ─► causal transformer       ▼                            ┆
                                                     │    └─► tokens ─► causal transformer ─► head ─► logits [B,L,V]
                                                     │        text_features [B,L,D]                       ┆
                                                     └─► class token ─► projection ─► unit vector ─ text_embedding [B,E]

The lower half of the decoder reads the text alone, and a class token behind it gathers what the text says; the upper
half also looks at the image. One pass gives both losses: contrastive, and that of the next token (equation 4). The
poolers (section 3.2) are queries that attend to the image: one for the embedding and Q for the captioner. In cascade
the one query attends to what the others made; in parallel all attend to the image, in one pooler.

The module writes captions: `jmm.generation` gives it an image and the beginning of a text.

Inputs: image float32 [B,H,W,C]; text int32 [B,L], begin and end marks included, text_mask bool [B,L], padding on either
side; without it every token is real. One of the two is enough for its own outputs.
Outputs: image_embedding, text_embedding [B,E] (unit length), image_features [B,N,D], image_tokens [B,Q,D],
text_features [B,L,D], logit_scale; and of both together logits [B,L,V] of the token behind each of the text. Features
and logits of padding mean nothing.
Checked: open_clip's CoCa and torchmultimodal's with either pooling, outputs, losses and gradients
(tests/models/test_coca_parity.py).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jmm.kernels import masks
from jmm.models import vit
from jmm.models.clip import MAX_LOGIT_SCALE
from jmm.models.vit import ImageEncoder, ImageTower
from jmm.objectives.contrastive import softmax_contrastive
from jmm.objectives.language import following, token_cross_entropy
from jmm.parts.norms import make_norm
from jmm.parts.pooling import AttentionPooler, unit
from jmm.parts.positions import LearnedPositions, left_aligned
from jmm.parts.transformer import Transformer, TransformerConfig
from jmm.protocol import Batch, Loss, Outputs, Variables, training_forward


@dataclass(frozen=True)
class Config:
    """An image encoder, poolers, and a decoder in two halves."""

    image: ImageTower
    """The image encoder; the poolers read every token of it, so that its own `pool` is `none`."""
    unimodal: TransformerConfig
    """The lower half of the decoder."""
    multimodal: TransformerConfig
    """The upper half, with `cross_attention` or a `cross_layer`, and as wide as the lower."""
    vocab_size: int = 64_000
    """Size of the vocabulary."""
    context_length: int = 64
    """The longest text in tokens, without the class token."""
    embed_dim: int = 768
    """Width of the space that image and text share."""
    pooling: Literal["cascade", "parallel"] = "cascade"
    """Whether the image's embedding is pooled from the captioner's tokens, or beside them."""
    num_queries: int = 256
    """Tokens of the image that the captioner looks at."""
    pool_heads: int = 12
    """Heads of the poolers."""
    padding_seen: int | None = None
    """Id of the padding whose first token the class token sees behind a text, and then not itself: in the mask of
    open_clip and torchmultimodal the places are off by one, and their weights know it so. None: it sees the text and
    itself."""
    contrastive_weight: float = 1.0
    """Of the contrastive loss (section 4.1)."""
    captioning_weight: float = 2.0
    """Of the loss of the next token."""

    def build(self, dtype: DTypeLike = jnp.float32) -> "CoCa":
        """The module, computing in `dtype`."""
        return CoCa(self, dtype)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image float32 [B,H,W,C], text int32 [B,L], text_mask bool [B,L]."""
        tokens = (batch_size, self.context_length)
        return {
            "image": jax.ShapeDtypeStruct((batch_size, *self.image.image_size, self.image.channels), jnp.float32),
            "text": jax.ShapeDtypeStruct(tokens, jnp.int32),
            "text_mask": jax.ShapeDtypeStruct(tokens, jnp.bool_),
        }

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """The weighted sum of the contrastive loss over the whole batch and of the cross-entropy of the next token over
        all its texts."""
        out, updates = training_forward(module, variables, batch, rngs)
        contrastive = softmax_contrastive(out["image_embedding"], out["text_embedding"], out["logit_scale"])
        captioning, accuracy = token_cross_entropy(out["logits"], *following(batch["text"], batch["text_mask"]))
        value = self.contrastive_weight * contrastive + self.captioning_weight * captioning
        parts = {"contrastive": contrastive, "captioning": captioning, "accuracy": accuracy}
        return Loss(value, {"loss": value, **parts, "logit_scale": out["logit_scale"]}, updates)


class CoCa(nn.Module):
    """Both halves of the decoder and the image encoder; each runs only if what it reads is given."""

    config: Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        cfg, width = self.config, self.config.unimodal.width
        if cfg.image.pool != "none":
            raise ValueError(f"image.pool is {cfg.image.pool!r}; the poolers of a CoCa read all tokens: make it none")
        if cfg.multimodal.width != width:
            raise ValueError(f"halves of width {width} and {cfg.multimodal.width} make no decoder")
        if not (cfg.multimodal.cross_attention or cfg.multimodal.cross_layer):
            raise ValueError("the multimodal half looks at the image: set cross_attention")
        init = nn.initializers.normal(0.02)
        self.image = ImageEncoder(cfg.image, self.dtype)
        self.pool = self._pooler(cfg.num_queries + (cfg.pooling == "parallel"))
        if cfg.pooling == "cascade":
            self.contrastive_pool = self._pooler(1)
        self.image_projection = nn.Dense(cfg.embed_dim, use_bias=False, dtype=self.dtype)
        self.embedding = nn.Embed(cfg.vocab_size, width, embedding_init=init, dtype=self.dtype)
        self.class_token = self.param("class_token", init, (1, 1, width), jnp.float32)
        self.positions = LearnedPositions(cfg.context_length + 1, dtype=self.dtype)
        self.unimodal = Transformer(cfg.unimodal, self.dtype, final_norm=False)
        self.text_norm = make_norm(cfg.unimodal.norm, cfg.unimodal.norm_eps, self.dtype, "text_norm")
        self.text_projection = nn.Dense(cfg.embed_dim, use_bias=False, dtype=self.dtype)
        self.multimodal = Transformer(cfg.multimodal, self.dtype)
        self.head = nn.Dense(cfg.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=init)
        self.log_scale = self.param("logit_scale", nn.initializers.constant(math.log(1 / 0.07)), (), jnp.float32)

    def _pooler(self, num_queries: int) -> AttentionPooler:
        decoder = self.config.multimodal
        return AttentionPooler(num_queries, self.config.pool_heads, decoder.norm_eps, decoder.width, self.dtype)

    def __call__(
        self,
        *,
        image: Float[Array, "B H W C"] | None = None,
        text: Int[Array, "B L"] | None = None,
        text_mask: Bool[Array, "B L"] | None = None,
        train: bool = False,
    ) -> Outputs:
        """Gives logit_scale; of an image image_embedding [B,E], image_features [B,N,D] and image_tokens [B,Q,D]; of a
        text text_embedding [B,E] and text_features [B,L,D]; of both logits [B,L,V] too."""
        outputs: Outputs = {"logit_scale": jnp.exp(jnp.minimum(self.log_scale, MAX_LOGIT_SCALE))}
        if image is not None:
            features, tokens, pooled = self.look(image, train)
            outputs |= {"image_features": features, "image_tokens": tokens, "image_embedding": pooled}
        if text is not None:
            features, pooled = self.read(text, text_mask, train)
            outputs |= {"text_features": features, "text_embedding": pooled}
        if image is not None and text is not None:
            visible = masks.causal() if text_mask is None else masks.causal() & masks.valid(text_mask)
            decoded = self.multimodal(features, mask=visible, context=tokens, train=train)
            outputs["logits"] = self.head(decoded)
        return outputs

    def look(
        self, image: Float[Array, "B H W C"], train: bool = False
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B Q P"], Float[Array, "B E"]]:
        """The image's tokens, those that the captioner looks at, and its embedding."""
        features, _ = self.image(image, train)
        tokens = self.pool(features)
        if self.config.pooling == "cascade":
            pooled = self.contrastive_pool(tokens)[:, 0]
        else:
            pooled, tokens = tokens[:, 0], tokens[:, 1:]
        return features, tokens, unit(self.image_projection(pooled))

    def read(
        self, text: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None, train: bool = False
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B E"]]:
        """Every token of the text after the lower half of the decoder, and the text's embedding."""
        last, visible = jnp.array([[self.config.context_length]]), masks.causal()
        if mask is None:
            places = jnp.arange(text.shape[1])[None]
        else:
            # Padding stands where the next token would.
            places = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - mask
            visible &= masks.valid(self._seen(mask))
            if self.config.padding_seen is not None:
                text = jnp.where(mask, text, self.config.padding_seen)
        embedded = self.embedding(text)
        token = jnp.broadcast_to(self.class_token.astype(self.dtype), (text.shape[0], 1, embedded.shape[-1]))
        # The class token has the last position of all, however long the row is.
        places = jnp.concatenate([places, jnp.broadcast_to(last, (places.shape[0], 1))], axis=1)
        x = self.positions(jnp.concatenate([embedded, token], axis=1), places)
        x = self.unimodal(x, mask=visible, train=train)
        return x[:, :-1], unit(self.text_projection(self.text_norm(x[:, -1])))

    def _seen(self, mask: Bool[Array, "B L"]) -> Bool[Array, "B M"]:
        """What the class token sees of the text and itself."""
        alone = self.config.padding_seen is not None
        seen = jnp.pad(mask, ((0, 0), (0, 1)), constant_values=not alone)
        return seen | jnp.roll(seen, 1, axis=1) if alone else seen

    @property
    def max_tokens(self) -> int | None:
        """As many as there are learned positions, without that of the class token."""
        return self.config.context_length

    @property
    def continues(self) -> bool:
        """It continues its text."""
        return True

    def prefill(
        self,
        *,
        image: Float[Array, "B H W C"],
        text: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"] | None = None,
    ) -> tuple[Float[Array, "B V"], Int[Array, "B"]]:
        """Reads images and the beginnings of their texts into the cache: the logits of each one's next token, and the
        tokens of each in the cache. There is no class token: nothing behind it could see it."""
        text, lengths = left_aligned(text, text_mask)
        self.put_variable("cache", "context", self.look(image)[1])
        # What stands behind a prompt is seen by none of its tokens, and its slots are written anew.
        decoded = self._decode(text, masks.causal())
        last = jnp.take_along_axis(decoded, lengths[:, None, None] - 1, axis=1)
        return self.head(last)[:, 0], lengths

    def step(self, token: Int[Array, "B"], position: Int[Array, "B"]) -> Float[Array, "B V"]:
        """Reads one more token of each row into the cache, and gives the logits of the next."""
        logits: Float[Array, "B V"] = self.head(self._decode(token[:, None], None, position[:, None]))[:, 0]
        return logits

    def _decode(
        self, text: Int[Array, "B L"], mask: masks.Mask | None, places: Int[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        """Both halves of the decoder, for writing."""
        x = self.positions(self.embedding(text), places)
        x = self.unimodal(x, mask=mask, positions=places, cached=True)
        context: jax.Array = self.get_variable("cache", "context")
        decoded: Float[Array, "B L D"] = self.multimodal(x, mask=mask, positions=places, context=context, cached=True)
        return decoded


def probe(config: Config, num_classes: int) -> vit.Config:
    """A classifier of images by a new pooler with one query on the image encoder (section 4.2, frozen features): the
    encoder's parameters have the same names, and with `freeze` they stay what they were."""
    return vit.Config(replace(config.image, pool="query"), num_classes)


def coca(width: int, depth: int, num_heads: int, mlp_dim: int, text_mlp_dim: int, half_depth: int) -> Config:
    """A CoCa in the paper's form (table 1, section 4.1): images of 288 px in patches of 18, and a vocabulary of
    64,000."""
    image = ImageTower(TransformerConfig(width, depth, num_heads, mlp_dim), (288, 288), 18, pool="none")
    half = TransformerConfig(width, half_depth, num_heads, text_mlp_dim)
    return Config(image, half, replace(half, cross_attention=True), embed_dim=width, pool_heads=num_heads)


VARIANTS = {
    "coca_base": coca(768, 12, 12, 3072, 3072, 12),
    "coca_large": coca(1024, 24, 16, 4096, 4096, 12),
    "coca": coca(1408, 40, 16, 6144, 5632, 18),
}
