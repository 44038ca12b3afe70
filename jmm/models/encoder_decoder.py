"""Encoder–decoder language model (Raffel et al. 2020, T5: Exploring the Limits of Transfer Learning).

    text [B,L] ─► embed ─► (+ positions, norm) ─► transformer ─► text_features [B,L,D]
                    ┆                                                   │ cross-attention
    start, target ─► embed ─► (+ positions, norm) ─► causal transformer ◄┘ ─► features [B,M,D]
    [B,M]           ┆                                                            │
                    └┄┄┄┄┄┄┄┄┄┄┄┄┄┄ tied ┄┄┄┄┄┄┄┄┄┄┄┄┄┄► head ◄──────────────────┘
                                                          └─► logits [B,M,V]

Text and target may have an embedding each, and a vocabulary each; a tied head is then the embedding of the target.

One configuration is BART (Lewis et al. 2020), with learned positions and norms after the sub-layers; another Marian
(Junczys-Dowmunt et al. 2018), with sinusoidal positions; another T5, Flan-T5 (Chung et al. 2022) or mT5 (Xue et al.
2021), with a bias of relative positions and norms before the sub-layers.

Inputs: text int32 [B,L], what is read, and target int32 [B,M], what is to be written; text_mask bool [B,L] and
target_mask bool [B,M], padding on either side; without them every token is real.
Outputs: text_features [B,L,D], and logits [B,M,V] of each token of the target given the text and the tokens before it;
those of padding mean nothing.
Checked: transformers.BartForConditionalGeneration, MarianMTModel, T5ForConditionalGeneration and
MT5ForConditionalGeneration, logits, features, loss and gradients (tests/models/test_encoder_decoder_parity.py), and
what they write (tests/generation/test_transformers.py).
"""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jmm.kernels import masks
from jmm.objectives.language import row_cross_entropy, token_cross_entropy
from jmm.parts.norms import make_norm
from jmm.parts.positions import LearnedPositions, count_positions, sincos_1d
from jmm.parts.relative import RelativePositionBias
from jmm.parts.transformer import Transformer, TransformerConfig
from jmm.protocol import Batch, Loss, Outputs, Variables, training_forward


@dataclass(frozen=True)
class Config:
    """Two transformers between an embedding, shared or one for each, and a head."""

    encoder: TransformerConfig
    """The transformer that reads."""
    decoder: TransformerConfig
    """The transformer that writes; with cross-attention, and as wide as the other."""
    vocab_size: int = 50_265
    """Size of the vocabulary."""
    context_length: int = 1024
    """The longest text, and the longest target, in tokens; relative and sinusoidal positions take longer ones too."""
    start_id: int = 2
    """The token before the first of the target."""
    first_position: int | None = 2
    """Row of the tables of learned positions that the first token reads; None: there are no such tables."""
    sinusoidal: bool = False
    """Fixed sinusoidal positions (Vaswani et al. 2017, section 3.5) are added to the embedding."""
    relative_buckets: int | None = None
    """Buckets of the relative position bias of self-attention, in each transformer; None: there is no such bias."""
    relative_distance: int = 128
    """The distance in tokens from which on all share a bucket."""
    embedding_norm: bool = True
    """A norm between embedding, with its positions, and transformer."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by √D."""
    tied_head: bool = True
    """The head is the embedding of the target, transposed."""
    scaled_head: bool = False
    """Features are divided by √D before the head."""
    logits_bias: bool = False
    """A bias of the logits that training leaves as it is (BART's summarisers have one, of zeros unless set by hand)."""
    target_vocab_size: int | None = None
    """Size of the target's vocabulary, whose tokens then have an embedding apart from that of the text, even if both
    vocabularies are one; None: vocabulary and embedding are shared."""

    def build(self, dtype: DTypeLike = jnp.float32) -> "EncoderDecoder":
        """The module, computing in `dtype`."""
        return EncoderDecoder(self, dtype)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """text and target int32 [B,L], text_mask and target_mask bool [B,L]."""
        tokens = (batch_size, self.context_length)
        ids, mask = jax.ShapeDtypeStruct(tokens, jnp.int32), jax.ShapeDtypeStruct(tokens, jnp.bool_)
        return {"text": ids, "text_mask": mask, "target": ids, "target_mask": mask}

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """Cross-entropy of the target, over all its real tokens in the batch."""
        outputs, updates = training_forward(module, variables, batch, rngs)
        written = (outputs["logits"], batch["target"], batch["target_mask"])
        value, accuracy = token_cross_entropy(*written)
        return Loss(value, {"loss": value, "accuracy": accuracy}, updates, row_cross_entropy(*written))


class EncoderDecoder(nn.Module):
    """The language model; `embed`, `embed_target`, `encode`, `decode` and `logits` stand apart, because it writes token
    by token, and because others feed it more than text."""

    config: Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        cfg, width = self.config, self.config.encoder.width
        if cfg.decoder.width != width:
            raise ValueError(f"an encoder of width {width} and a decoder of {cfg.decoder.width} share no embedding")
        target_vocab_size = cfg.vocab_size if cfg.target_vocab_size is None else cfg.target_vocab_size
        # A head divided by √D wants an embedding that much larger (T5's own initialisation).
        init = nn.initializers.normal(1.0 if cfg.scaled_head else 0.02)
        self.embedding = nn.Embed(cfg.vocab_size, width, embedding_init=init, dtype=self.dtype)
        self.target_embedding = (
            self.embedding
            if cfg.target_vocab_size is None
            else nn.Embed(target_vocab_size, width, embedding_init=init, dtype=self.dtype)
        )
        if cfg.first_position is not None:
            self.encoder_positions = LearnedPositions(cfg.context_length, cfg.first_position, self.dtype)
            self.decoder_positions = LearnedPositions(cfg.context_length, cfg.first_position, self.dtype)
        if cfg.relative_buckets is not None:
            self.encoder_bias = self._relative(cfg.encoder, cfg.relative_buckets, bidirectional=True)
            self.decoder_bias = self._relative(cfg.decoder, cfg.relative_buckets, bidirectional=False)
        if cfg.embedding_norm:
            self.encoder_norm = make_norm(cfg.encoder.norm, cfg.encoder.norm_eps, self.dtype, "encoder_norm")
            self.decoder_norm = make_norm(cfg.decoder.norm, cfg.decoder.norm_eps, self.dtype, "decoder_norm")
        self.encoder = Transformer(cfg.encoder, self.dtype)
        self.decoder = Transformer(cfg.decoder, self.dtype)
        if not cfg.tied_head:
            self.head = nn.Dense(target_vocab_size, use_bias=False, dtype=self.dtype, kernel_init=init)
        # Buffers are no parameters: the optimizer neither trains nor decays them.
        if cfg.logits_bias:
            self.logits_bias = self.variable("buffers", "logits_bias", jnp.zeros, (target_vocab_size,), jnp.float32)
        if cfg.target_vocab_size is not None and not cfg.tied_head:
            # Published models have a third embedding beside those, which nothing reads; it goes where they go.
            self.variable("buffers", "unused_embedding", jnp.zeros, (cfg.vocab_size, width), jnp.float32)

    def _relative(self, stack: TransformerConfig, buckets: int, bidirectional: bool) -> RelativePositionBias:
        return RelativePositionBias(stack.num_heads, buckets, self.config.relative_distance, bidirectional, self.dtype)

    def __call__(
        self,
        *,
        text: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"] | None = None,
        target: Int[Array, "B M"],
        target_mask: Bool[Array, "B M"] | None = None,
        train: bool = False,
    ) -> Outputs:
        """Gives text_features [B,L,D] and logits [B,M,V]."""
        encoded = self.encode(self.embed(text), text_mask, train=train)
        before = shift_right(target, target_mask, self.config.start_id)
        features = self.decode(self.embed_target(before), encoded, target_mask, text_mask, train=train)
        return {"text_features": encoded, "logits": self.logits(features)}

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The vectors of tokens of the text, without their positions."""
        return self._scaled(self.embedding(tokens))

    def embed_target(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M D"]:
        """The vectors of tokens of the target, without their positions."""
        return self._scaled(self.target_embedding(tokens))

    def _scaled(self, embedded: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return embedded * self.config.encoder.width**0.5 if self.config.scaled_embedding else embedded

    def encode(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"] | None = None, *, train: bool = False
    ) -> Float[Array, "B L D"]:
        """Every embedded token of the text after the encoder, having seen all that are real."""
        cfg, bias = self.config, None
        counted = None if mask is None else count_positions(mask)
        if cfg.first_position is not None:
            x = self.encoder_positions(x, counted)
        if cfg.sinusoidal:
            x = _add_sinusoids(x, counted)
        if cfg.relative_buckets is not None:
            # Distances are the same wherever the padding stands, so that one bias serves all rows.
            places = jnp.arange(x.shape[1])[None]
            bias = self.encoder_bias(places, places)
        if cfg.embedding_norm:
            x = self.encoder_norm(x)
        visible = None if mask is None else masks.valid(mask)
        encoded: Float[Array, "B L D"] = self.encoder(x, mask=visible, bias=bias, train=train)
        return encoded

    def decode(
        self,
        x: Float[Array, "B M D"],
        context: Float[Array, "B L E"],
        mask: Bool[Array, "B M"] | None = None,
        context_mask: Bool[Array, "B L"] | None = None,
        *,
        positions: Int[Array, "#B M"] | None = None,
        cached: bool = False,
        train: bool = False,
    ) -> Float[Array, "B M D"]:
        """Every embedded token of the target after the decoder, having seen itself, the real ones before it, and what
        is real of `context`, the encoder's output. `positions` are the places of the tokens where they are not those
        of the real ones, from 0. `cached` is that of `MultiHeadAttention`."""
        cfg, bias = self.config, None
        slots = self.decoder.slots() if cached else None
        counted = count_positions(mask) if positions is None and mask is not None else positions
        if cfg.first_position is not None:
            x = self.decoder_positions(x, counted)
        if cfg.sinusoidal:
            x = _add_sinusoids(x, counted)
        if cfg.relative_buckets is not None:
            places = jnp.arange(x.shape[1])[None] if positions is None else positions
            bias = self.decoder_bias(places, places if slots is None else jnp.arange(slots)[None])
        if cfg.embedding_norm:
            x = self.decoder_norm(x)
        visible = masks.causal() if mask is None else masks.causal() & masks.valid(mask)
        decoded: Float[Array, "B M D"] = self.decoder(
            x,
            mask=visible if slots is None else None,
            bias=bias,
            context=context,
            context_mask=None if context_mask is None else masks.valid(context_mask),
            positions=positions,
            cached=cached,
            train=train,
        )
        return decoded

    @property
    def max_tokens(self) -> int | None:
        """As many as there are learned positions."""
        return None if self.config.first_position is None else self.config.context_length

    @property
    def continues(self) -> bool:
        """It reads one text and writes another."""
        return False

    def prefill(
        self, *, text: Int[Array, "B L"], text_mask: Bool[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "B V"], Int[Array, "B"]]:
        """Reads texts, and into the cache the token before each target: the logits of the target's first token, and the
        one token of each row in the cache."""
        return self.start(self.encode(self.embed(text), text_mask), text_mask)

    def start(
        self, context: Float[Array, "B L D"], context_mask: Bool[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "B V"], Int[Array, "B"]]:
        """Keeps what has been encoded for all the steps that follow, and takes the first: `prefill` of what is more
        than text."""
        real = jnp.ones(context.shape[:2], bool) if context_mask is None else context_mask
        self.put_variable("cache", "context", context)
        self.put_variable("cache", "context_mask", real)
        start = jnp.full(context.shape[:1], self.config.start_id, jnp.int32)
        return self.step(start, jnp.zeros_like(start)), jnp.ones_like(start)

    def step(self, token: Int[Array, "B"], position: Int[Array, "B"]) -> Float[Array, "B V"]:
        """Reads one more token of each target into the cache, and gives the logits of the next."""
        context: jax.Array = self.get_variable("cache", "context")
        real: jax.Array = self.get_variable("cache", "context_mask")
        x, places = self.embed_target(token[:, None]), position[:, None]
        return self.logits(self.decode(x, context, None, real, positions=places, cached=True))[:, 0]

    def logits(self, features: Float[Array, "B M D"]) -> Float[Array, "B M V"]:
        """The logits of the next token."""
        cfg = self.config
        x = features * cfg.decoder.width**-0.5 if cfg.scaled_head else features
        logits: Float[Array, "B M V"] = self.target_embedding.attend(x) if cfg.tied_head else self.head(x)
        return logits + self.logits_bias.value.astype(self.dtype) if cfg.logits_bias else logits


def _add_sinusoids(x: Float[Array, "B L D"], positions: Int[Array, "#B L"] | None) -> Float[Array, "B L D"]:
    """Where each token stands, added; without `positions` they are in their order from 0."""
    places = jnp.arange(x.shape[1])[None] if positions is None else positions
    return x + sincos_1d(places, x.shape[-1]).astype(x.dtype)


def shift_right(target: Int[Array, "B M"], mask: Bool[Array, "B M"] | None, start_id: int) -> Int[Array, "B M"]:
    """The token before each of the target; before the first real one of a row stands `start_id`."""
    # Rolled and not cut: the length keeps dividing among devices.
    follows = jnp.ones(target.shape, bool) if mask is None else jnp.roll(mask, 1, axis=1)
    return jnp.where(follows.at[:, 0].set(False), jnp.roll(target, 1, axis=1), start_id)


def bart(width: int, depth: int, num_heads: int) -> Config:
    """BART (section 2.1): learned positions, a norm of the embedding and norms after the sub-layers, GELU."""
    stack = TransformerConfig(width, depth, num_heads, 4 * width, norm_order="post", norm_eps=1e-5)
    return Config(stack, replace(stack, cross_attention=True))


def marian(width: int, depth: int, num_heads: int, mlp_dim: int, vocab_size: int = 58_101) -> Config:
    """Marian (Junczys-Dowmunt et al. 2018) as OPUS-MT trains it (Tiedemann and Thottingal 2020): sinusoidal positions
    on an embedding times √D, norms after the sub-layers, SiLU; the last token is padding, and starts every target."""
    stack = TransformerConfig(width, depth, num_heads, mlp_dim, activation="silu", norm_order="post", norm_eps=1e-5)
    return Config(
        stack,
        replace(stack, cross_attention=True),
        vocab_size,
        context_length=512,
        start_id=vocab_size - 1,
        first_position=None,
        sinusoidal=True,
        embedding_norm=False,
        scaled_embedding=True,
    )


def t5(width: int, depth: int, num_heads: int, mlp_dim: int) -> Config:
    """T5 (section 2.1): relative positions, RMSNorm before the sub-layers, no biases, logits of attention not scaled;
    ReLU, and a tied head behind a division by √D."""
    stack = TransformerConfig(
        width,
        depth,
        num_heads,
        mlp_dim,
        head_dim=None if num_heads * 64 == width else 64,
        activation="relu",
        norm="rms",
        use_bias=False,
        attention_scale=1.0,
    )
    return Config(
        stack,
        replace(stack, cross_attention=True),
        vocab_size=32_128,
        context_length=512,
        start_id=0,
        first_position=None,
        relative_buckets=32,
        embedding_norm=False,
        scaled_head=True,
    )


def t5_v1_1(width: int, depth: int, num_heads: int, mlp_dim: int, vocab_size: int = 32_128) -> Config:
    """T5 v1.1 (Shazeer 2020): GELU by tanh, gated, and a head of its own. Flan-T5 is the same, and mT5 with another
    vocabulary."""
    config = t5(width, depth, num_heads, mlp_dim)
    encoder, decoder = (
        replace(stack, activation="gelu_tanh", gated=True) for stack in (config.encoder, config.decoder)
    )
    return replace(config, encoder=encoder, decoder=decoder, vocab_size=vocab_size, tied_head=False, scaled_head=False)


VARIANTS = {
    "bart_base": bart(768, 6, 12),
    "bart_large": bart(1024, 12, 16),
    "marian_base": marian(512, 6, 8, 2048),
    "t5_small": t5(512, 6, 8, 2048),
    "t5_base": t5(768, 12, 12, 3072),
    "t5_v1_1_small": t5_v1_1(512, 8, 6, 1024),
    "t5_v1_1_base": t5_v1_1(768, 12, 12, 2048),
    "mt5_small": t5_v1_1(512, 8, 6, 1024, 250_112),
    "mt5_base": t5_v1_1(768, 12, 12, 2048, 250_112),
}
