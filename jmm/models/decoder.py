"""Decoder-only language model (Radford et al. 2019, Language Models are Unsupervised Multitask Learners).

    text [B,L] ─► embed ─► (projection) ─► + learned positions ─► causal transformer, rotary ─► features [B,L,D]
                    ┆                                                                               │
                    └┄┄┄┄┄┄┄┄┄┄┄┄┄┄ tied ┄┄┄┄┄┄┄┄┄┄┄┄┄┄► head ◄─────────── (projection) ◄───────────┘
                                                          └─► logits [B,L,V]

One configuration is GPT-2, another OPT (Zhang et al. 2022), LLaMA and Vicuna (Touvron et al. 2023), Qwen2 (Yang et al.
2024) or Gemma (Mesnard et al. 2024): they differ in positions, norms, biases, feed-forward, head and the scale of the
embedding, and in nothing else.

Inputs: text int32 [B,L]; text_mask bool [B,L], padding on either side; without it every token is real. Where several
texts are packed into a row (`data_pipelines.packing`), segment int32 [B,L], another id for each, and position int32
[B,L], counted anew in each: every text is then read, and its loss computed, as if it stood alone.
Outputs: logits [B,L,V], features [B,L,D] (after the final norm); those of padding mean nothing.
Checked: transformers.GPT2LMHeadModel, OPTForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM and GemmaForCausalLM, logits,
loss and gradients (tests/models/test_decoder_parity.py), and what they write (tests/generation/test_transformers.py).
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jmm.kernels import masks
from jmm.objectives.language import following, row_cross_entropy, token_cross_entropy
from jmm.parts.positions import LearnedPositions, count_positions, left_aligned, places_of
from jmm.parts.transformer import Transformer, TransformerConfig
from jmm.protocol import Batch, Loss, Outputs, Variables, forward


@dataclass(frozen=True)
class Config:
    """A causal transformer between an embedding and a head."""

    decoder: TransformerConfig
    """The transformer; rotary positions are its own."""
    vocab_size: int = 50_257
    """Size of the vocabulary."""
    context_length: int = 1024
    """The longest text in tokens; more than that only rotary positions can tell apart."""
    first_position: int | None = 0
    """Row of the table of learned positions that the first token reads (OPT: 2); None: there is no such table."""
    tied_head: bool = True
    """The head is the embedding, transposed."""
    embed_dim: int | None = None
    """Width of embedding and head where projections join them to the transformer (OPT-350M); None: as wide as it."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the root of their width (Gemma)."""

    def build(self, dtype: DTypeLike = jnp.float32) -> "Decoder":
        """The module, computing in `dtype`."""
        return Decoder(self, dtype)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """text int32 [B,L], text_mask bool [B,L]."""
        tokens = (batch_size, self.context_length)
        return {
            "text": jax.ShapeDtypeStruct(tokens, jnp.int32),
            "text_mask": jax.ShapeDtypeStruct(tokens, jnp.bool_),
        }

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """Cross-entropy of the next token, over all real tokens of the batch but the first of each text."""
        outputs = forward(module, variables, batch, train=True, rngs=rngs)
        predicted = (outputs["logits"], *following(batch["text"], batch["text_mask"], batch.get("segment")))
        value, accuracy = token_cross_entropy(*predicted)
        return Loss(value, {"loss": value, "accuracy": accuracy}, {}, row_cross_entropy(*predicted))


class Decoder(nn.Module):
    """The language model; `embed`, `decode` and `logits` stand apart, because captioners feed it more than text."""

    config: Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        cfg, init = self.config, nn.initializers.normal(0.02)
        embed_dim = cfg.embed_dim or cfg.decoder.width
        self.embedding = nn.Embed(cfg.vocab_size, embed_dim, embedding_init=init, dtype=self.dtype)
        if cfg.embed_dim is not None:
            self.input_projection = nn.Dense(cfg.decoder.width, use_bias=False, dtype=self.dtype)
            self.output_projection = nn.Dense(embed_dim, use_bias=False, dtype=self.dtype)
        if cfg.first_position is not None:
            self.positions = LearnedPositions(cfg.context_length, cfg.first_position, self.dtype)
        self.decoder = Transformer(cfg.decoder, self.dtype)
        if not cfg.tied_head:
            self.head = nn.Dense(cfg.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=init)

    def __call__(
        self,
        *,
        text: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"] | None = None,
        segment: Int[Array, "B L"] | None = None,
        position: Int[Array, "B L"] | None = None,
        train: bool = False,
    ) -> Outputs:
        """Gives logits [B,L,V] and features [B,L,D].

        Raises ValueError for a segment without a position or the other way about."""
        if (segment is None) != (position is None):
            raise ValueError("packed texts need both segment and position")
        features = self.decode(self.embed(text), text_mask, train, segment=segment, position=position)
        return {"features": features, "logits": self.logits(features)}

    def embed(self, text: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        """The vectors of the tokens, without their positions."""
        embedded: Float[Array, "B L E"] = self.embedding(text)
        return embedded * embedded.shape[-1] ** 0.5 if self.config.scaled_embedding else embedded

    @property
    def max_tokens(self) -> int | None:
        """As many as there are learned positions."""
        return None if self.config.first_position is None else self.config.context_length

    @property
    def continues(self) -> bool:
        """It continues its text."""
        return True

    def prefill(
        self, *, text: Int[Array, "B L"], text_mask: Bool[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "B V"], Int[Array, "B"]]:
        """Reads prompts into the cache: the logits of each one's next token, and the tokens of each in the cache."""
        text, lengths = left_aligned(text, text_mask)
        return self.start(self.embed(text), lengths, masks.causal())

    def start(
        self, x: Float[Array, "B L E"], lengths: Int[Array, "B"], mask: masks.Mask
    ) -> tuple[Float[Array, "B V"], Int[Array, "B"]]:
        """What `prefill` does, for prompts of embedded tokens that see what `mask` says; those of each are its first
        `lengths`, and none sees what stands behind."""
        # The slots of what stands behind a prompt are written anew.
        features = self._transform(x, mask, cached=True)
        last = jnp.take_along_axis(features, lengths[:, None, None] - 1, axis=1)
        return self.logits(last)[:, 0], lengths

    def step(self, token: Int[Array, "B"], position: Int[Array, "B"]) -> Float[Array, "B V"]:
        """Reads one more token of each row into the cache, and gives the logits of the next."""
        features = self._transform(self.embed(token[:, None]), positions=position[:, None], cached=True)
        return self.logits(features)[:, 0]

    def decode(
        self,
        x: Float[Array, "B L E"],
        mask: Bool[Array, "B L"] | None = None,
        train: bool = False,
        *,
        prefix_length: Int[Array, "B"] | None = None,
        segment: Int[Array, "B L"] | None = None,
        position: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Every token after the final norm, having seen itself, the real tokens before it and, of a prefix language
        model (Raffel et al. 2020, section 3.2.1), the first `prefix_length` real ones of its row; of packed texts those
        of its `segment` alone."""
        # Places are counted over real tokens, so that padding on the left moves no text to other positions.
        positions = count_positions(mask) if position is None and mask is not None else position
        visible = masks.causal() if prefix_length is None else masks.prefix(places_of(prefix_length, mask))
        visible = visible if mask is None else visible & masks.valid(mask)
        visible = visible if segment is None else visible & masks.segments(segment, segment)
        return self._transform(x, visible, positions, train=train)

    def _transform(
        self,
        x: jax.Array,
        mask: masks.Mask | None = None,
        positions: jax.Array | None = None,
        *,
        cached: bool = False,
        train: bool = False,
    ) -> jax.Array:
        if self.config.embed_dim is not None:
            x = self.input_projection(x)
        if self.config.first_position is not None:
            x = self.positions(x, positions)
        decoded: jax.Array = self.decoder(x, mask=mask, positions=positions, cached=cached, train=train)
        return decoded

    def logits(self, features: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """The logits of the next token."""
        x = features if self.config.embed_dim is None else self.output_projection(features)
        logits: Float[Array, "B L V"] = self.embedding.attend(x) if self.config.tied_head else self.head(x)
        return logits


def gpt2(width: int, depth: int, num_heads: int) -> Config:
    """GPT-2 (table 2): norms before the sub-layers, GELU by tanh, learned positions, tied head."""
    decoder = TransformerConfig(width, depth, num_heads, 4 * width, activation="gelu_tanh", norm_eps=1e-5)
    return Config(decoder)


def opt(width: int, depth: int, num_heads: int) -> Config:
    """OPT (table 1): GPT-2 with ReLU, another vocabulary, and positions from the third row of their table."""
    decoder = TransformerConfig(width, depth, num_heads, 4 * width, activation="relu", norm_eps=1e-5)
    return Config(decoder, vocab_size=50_272, context_length=2048, first_position=2)


def opt_350m() -> Config:
    """The odd one among OPT: norms after the sub-layers, none at the end, and an embedding half as wide."""
    decoder = TransformerConfig(1024, 24, 16, 4096, activation="relu", norm_order="post", norm_eps=1e-5)
    return Config(decoder, vocab_size=50_272, context_length=2048, first_position=2, embed_dim=512)


def llama(width: int, depth: int, num_heads: int, mlp_dim: int) -> Config:
    """LLaMA (section 2.2): RMSNorm, SwiGLU, rotary positions, no biases, a head of its own. Vicuna is the same."""
    decoder = TransformerConfig(
        width,
        depth,
        num_heads,
        mlp_dim,
        activation="silu",
        gated=True,
        norm="rms",
        norm_eps=1e-6,
        use_bias=False,
        rotary_base=10_000.0,
    )
    return Config(decoder, vocab_size=32_000, context_length=2048, first_position=None, tied_head=False)


def qwen2(
    width: int, depth: int, num_heads: int, num_kv_heads: int, mlp_dim: int, vocab_size: int, tied_head: bool
) -> Config:
    """Qwen2 (section 2.2.1, table 1): LLaMA with grouped queries and biases of queries, keys and values alone."""
    decoder = TransformerConfig(
        width,
        depth,
        num_heads,
        mlp_dim,
        num_kv_heads=num_kv_heads,
        activation="silu",
        gated=True,
        norm="rms",
        norm_eps=1e-6,
        use_bias=False,
        qkv_bias=True,
        rotary_base=1_000_000.0,
    )
    return Config(decoder, vocab_size, context_length=32_768, first_position=None, tied_head=tied_head)


def gemma(width: int, depth: int, num_heads: int, num_kv_heads: int, mlp_dim: int) -> Config:
    """Gemma (section 2, table 1): heads of 256, gated GELU by tanh, RMSNorm by 1 + scale, rotary positions, no biases,
    and a tied head of an embedding that is read times √D."""
    decoder = TransformerConfig(
        width,
        depth,
        num_heads,
        mlp_dim,
        num_kv_heads=None if num_kv_heads == num_heads else num_kv_heads,
        head_dim=None if num_heads * 256 == width else 256,
        activation="gelu_tanh",
        gated=True,
        norm="rms_plus_one",
        use_bias=False,
        rotary_base=10_000.0,
    )
    return Config(decoder, 256_000, context_length=8192, first_position=None, scaled_embedding=True)


VARIANTS = {
    "gpt2": gpt2(768, 12, 12),
    "gpt2_medium": gpt2(1024, 24, 16),
    "gpt2_large": gpt2(1280, 36, 20),
    "gpt2_xl": gpt2(1600, 48, 25),
    "opt_125m": opt(768, 12, 12),
    "opt_350m": opt_350m(),
    "opt_1_3b": opt(2048, 24, 32),
    "llama_7b": llama(4096, 32, 32, 11_008),
    "llama_13b": llama(5120, 40, 40, 13_824),
    "qwen2_0_5b": qwen2(896, 24, 14, 2, 4864, 151_936, tied_head=True),
    "qwen2_7b": qwen2(3584, 28, 28, 4, 18_944, 152_064, tied_head=False),
    "gemma_2b": gemma(2048, 18, 8, 1, 16_384),
    "gemma_7b": gemma(3072, 28, 16, 16, 24_576),
}
