"""DALL-E (Ramesh et al. 2021, Zero-Shot Text-to-Image Generation), ruDALL-E and RuDOLPH: one stream of text and image.

    text [B,T] │ codes [B,h,w], row by row │ right text [B,R]
         └───────────┴──► ids of one vocabulary ─► embed + positions ─► causal transformer ─► head ─► next id [B,L,T+K]

Each layer sees the text before the image whole, and of the image either the latest codes, as many as a row has, or its
own column, or what is near (section 2.2). Text behind the image (RuDOLPH) sees all before it. Padding of the first text
is no padding: an id of its own for each place, at the end of the text's vocabulary, is read and predicted.

Inputs: text int32 [B,T], text_mask bool [B,T]; codes int32 [B,h,w] of an image tokenizer; of a stream with right text
target int32 [B,R], target_mask bool [B,R].
Outputs: features [B,L,D]; logits [B,L,V] of the next id: those of text first, then those of codes.
Checked: ai-forever/ru-dalle (three variants) and ai-forever/ru-dolph, masks, logits, losses and gradients
(tests/models/test_dalle.py).
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jmm.errors import UserError
from jmm.kernels import masks
from jmm.objectives.language import row_cross_entropy, token_cross_entropy
from jmm.parts.norms import make_norm
from jmm.parts.positions import Grid
from jmm.parts.transformer import Transformer, TransformerConfig
from jmm.protocol import Batch, Loss, Outputs, Variables, training_forward

FAR = 1 << 29
"""More than any place of a stream."""


@dataclass(frozen=True)
class Config:
    """What stands in the stream, and what each layer sees of its image."""

    decoder: TransformerConfig
    """The transformer."""
    grid: Grid = (32, 32)
    """Rows and columns of codes."""
    text_vocab: int = 16_640
    """Ids of text, the padding of each place among them, which are the last."""
    image_vocab: int = 8192
    """Codes of the tokenizer."""
    text_length: int = 256
    """Tokens of the text before the image."""
    right_length: int = 0
    """Tokens of the text behind it, whose first no image predicts; 0: the image ends the stream."""
    start_id: int | None = None
    """An id of text that stands before all, so that the first token is predicted too; None: nothing does."""
    first_code: Literal["image", "text"] = "image"
    """Which part of the head learns to predict the first code; text, as public code without a start has it: as the word
    of the same id."""
    kernel: int | None = None
    """Codes a side of what every fourth layer sees (RuDOLPH); None: the latest codes, as most layers do."""
    last_kernel: int = 11
    """Codes a side of what the last layer sees, unless columns are its turn."""
    wrapped: bool = False
    """What is near the edge of the image is so to the other edge too."""
    weights: tuple[float, float, float] = (1.0, 7.0, 1.0)
    """Of the losses of text, image and right text."""
    embedding_gradient: float = 0.1
    """Share of its gradient that an embedding follows (Ding et al. 2021, CogView)."""
    drop_text: float = 0.0
    """The share of training examples whose text is left out, so that guidance has something to lead away from (Ho &
    Salimans 2022, section 3.2); of those only without right text, which speaks of it."""
    draws_given: bool = True
    """Whether the picture before a right text is learned to be drawn too, as public code has it: mostly without a
    caption, which teaches a small model to draw what no caption says. If not, it is only read."""

    def __post_init__(self) -> None:
        """Raises UserError for fields that contradict each other."""
        if self.text_vocab <= self.text_length:
            raise UserError(
                f"text_vocab {self.text_vocab} has no room for {self.text_length} kinds of padding and words"
            )
        if not 0 <= self.drop_text < 1:
            raise UserError(f"drop_text is a share of the examples, at least 0 and below 1, not {self.drop_text}")
        if self.first_code == "text" and self.image_vocab > self.text_vocab:
            raise UserError(f"the text's part of the head cannot predict {self.image_vocab} codes")

    @property
    def num_codes(self) -> int:
        """Codes of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def first(self) -> int:
        """Place of the first code."""
        return self.text_length + (self.start_id is not None)

    @property
    def length(self) -> int:
        """Places of the whole stream."""
        return self.first + self.num_codes + self.right_length

    def build(self, dtype: DTypeLike = jnp.float32) -> "DALLE":
        """The module, computing in `dtype`."""
        return DALLE(self, dtype)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """text int32 [B,T], text_mask bool [B,T], codes int32 [B,h,w]; with right text target and target_mask [B,R]."""
        sides = {"text": self.text_length} | ({"target": self.right_length} if self.right_length else {})
        spec = {"codes": jax.ShapeDtypeStruct((batch_size, *self.grid), jnp.int32)}
        for name, length in sides.items():
            spec[name] = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
            spec[f"{name}_mask"] = jax.ShapeDtypeStruct((batch_size, length), jnp.bool_)
        return spec

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """The weighted mean of the cross-entropies of text, image and right text, each over its own part of the head
        (section 2.2)."""
        drawn = jnp.ones(batch["codes"].shape[:1], bool)
        if self.right_length:
            drawn = ~batch["target_mask"][:, 1:].any(axis=1)
        if self.drop_text:
            dropped = drawn & jax.random.bernoulli(rngs["dropout"], self.drop_text, drawn.shape)
            batch = {**batch, "text_mask": batch["text_mask"] & ~dropped[:, None]}
        outputs, updates = training_forward(module, variables, batch, rngs)
        logits, ids = outputs["logits"], self.ids(batch["text"], batch.get("text_mask"), batch["codes"])
        words, codes, start = self.text_vocab, ids[:, self.first :], self.first
        labels = ids[:, 1:start]
        if self.first_code == "text":
            labels = jnp.concatenate([labels, codes[:, :1] - words], axis=1)
        seen = labels.shape[1]
        parts = {"text": (logits[:, :seen, :words], labels, jnp.ones(labels.shape, bool))}
        end = self.first + self.num_codes
        labels = ids[:, seen + 1 : end] - words
        learned = jnp.broadcast_to(drawn[:, None] | self.draws_given, labels.shape)
        parts["image"] = (logits[:, seen : end - 1, words:], labels, learned)
        if self.right_length:
            target, mask = batch["target"], batch["target_mask"]
            parts["right"] = (logits[:, end : end + self.right_length - 1, :words], target[:, 1:], mask[:, 1:])
        losses = {name: token_cross_entropy(*part) for name, part in parts.items()}
        weights = dict(zip(parts, self.weights, strict=False))
        whole = sum(weights.values())
        value = sum((weights[name] / whole * each for name, (each, _) in losses.items()), jnp.zeros(()))
        rows = sum((weights[name] / whole * row_cross_entropy(*part) for name, part in parts.items()), jnp.zeros(()))
        metrics = {"loss": value, **{f"{name}_loss": each for name, (each, _) in losses.items()}}
        metrics |= {f"{name}_accuracy": each for name, (_, each) in losses.items()}
        return Loss(value, metrics, updates, rows)

    def ids(
        self, text: Int[Array, "B T"], text_mask: Bool[Array, "B T"] | None, codes: Int[Array, "B *P"] | None
    ) -> Int[Array, "B L"]:
        """The stream up to the last of these codes, row by row, in ids of the one vocabulary."""
        if text_mask is not None:
            padding = self.text_vocab - self.text_length + jnp.arange(self.text_length)
            text = jnp.where(text_mask, text, padding)
        pieces = [text] if codes is None else [text, codes.reshape(codes.shape[0], -1) + self.text_vocab]
        if self.start_id is not None:
            pieces.insert(0, jnp.full((text.shape[0], 1), self.start_id, text.dtype))
        return jnp.concatenate(pieces, axis=1)

    def layer_masks(self, length: int) -> masks.Mask:
        """What each layer sees of the first places of a stream, besides that it is causal. The place that predicts a
        code of an image with a start counts as that code's."""
        columns = self.grid[1]
        code = np.arange(length) - self.text_length
        inside, row, column = (code >= 0) & (code < self.num_codes), code // columns, code % columns
        first, reach, turns = [], [], []
        for layer in range(self.decoder.depth):
            kernel = self.last_kernel if layer == self.decoder.depth - 1 else self.kernel if layer % 4 == 3 else None
            if layer % 4 == 1:
                first.append((column, np.zeros(length, int)))
                reach.append((0, 0))
            elif kernel:
                first.append((row, column))
                reach.append((kernel // 2, kernel // 2))
            else:
                first.append((code, np.zeros(length, int)))
                reach.append((columns, 0))
            turns.append(self.grid if self.wrapped and kernel and layer % 4 != 1 else (FAR, FAR))
        near: list[masks.Mask] = []
        for axis in range(2):
            labels = _stacked([each[axis] for each in first])
            within = _stacked([np.where(inside, each[axis], 2 * FAR) for each in reach])
            turn = jnp.asarray([each[axis] for each in turns], jnp.int32)[:, None, None]
            near.append(masks.Near(labels, labels, within))
            if self.wrapped:
                near[axis] |= masks.Near(labels, labels + turn, within) | masks.Near(labels, labels - turn, within)
        return masks.First(self.text_length) | (near[0] & near[1])


def _stacked(labels: list[np.ndarray]) -> Int[Array, "layers 1 L"]:
    return jnp.asarray(np.stack(labels)[:, None], jnp.int32)


class DALLE(nn.Module):
    """The stream's transformer, which also draws what follows on the beginning of one."""

    config: Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        cfg, init = self.config, nn.initializers.normal(0.02)
        width, vocabulary = cfg.decoder.width, cfg.text_vocab + cfg.image_vocab
        self.embedding = nn.Embed(vocabulary, width, embedding_init=init, dtype=self.dtype)
        self.text_positions = self.param("text_positions", init, (cfg.first, width), jnp.float32)
        self.row_positions = self.param("row_positions", init, (cfg.grid[0], width), jnp.float32)
        self.column_positions = self.param("column_positions", init, (cfg.grid[1], width), jnp.float32)
        if cfg.right_length:
            self.right_positions = self.param("right_positions", init, (cfg.right_length, width), jnp.float32)
        self.decoder = Transformer(cfg.decoder, self.dtype)
        self.head_norm = make_norm(cfg.decoder.norm, cfg.decoder.norm_eps, self.dtype, "head_norm")
        self.head = nn.Dense(vocabulary, dtype=self.dtype, kernel_init=init)

    def __call__(
        self,
        *,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        codes: Int[Array, "B h w"],
        target: Int[Array, "B R"] | None = None,
        train: bool = False,
    ) -> Outputs:
        """Gives logits and features of every place but that of the last code, where a start stands before all: nothing
        is behind it. Without a mask all text is real."""
        ids = self.config.ids(text, text_mask, codes)
        ids = ids if target is None else jnp.concatenate([ids, target], axis=1)
        ids = ids if self.config.start_id is None else ids[:, :-1]
        x, length = self._embed(ids, self._positions()[: ids.shape[1]]), ids.shape[1]
        features = self.decoder(x, mask=masks.causal(), layer_masks=self.config.layer_masks(length), train=train)
        return {"features": features, "logits": self._logits(features)}

    @property
    def max_tokens(self) -> int:
        """The places of a stream but the last, behind which nothing is predicted."""
        return self.config.length - 1

    @property
    def continues(self) -> bool:
        """It continues its stream."""
        return True

    def prefill(
        self,
        *,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        codes: Int[Array, "B *P"] | None = None,
        target: Int[Array, "B P"] | None = None,
    ) -> tuple[Float[Array, "B V"], Int[Array, "B"]]:
        """Reads a text, the first codes of an image, such as its upper rows, and behind a whole image the first words
        of the right text, which needs one to begin with.

        Raises:
          UserError: a text or an image of another length than the stream's; right text behind no whole image.
        """
        cfg = self.config
        if text.shape[1] != cfg.text_length:
            raise UserError(
                f"the text before the image has {cfg.text_length} tokens, padding included, not {text.shape[1]}"
            )
        ids = cfg.ids(text, text_mask, codes)
        given = ids.shape[1] - cfg.first
        if given > cfg.num_codes or (target is not None and given < cfg.num_codes):
            raise UserError(f"{given} codes are given of an image of {cfg.num_codes}")
        ids = ids if target is None else jnp.concatenate([ids, target], axis=1)
        x, length = self._embed(ids, self._positions()[: ids.shape[1]]), ids.shape[1]
        features = self.decoder(x, mask=masks.causal(), layer_masks=cfg.layer_masks(length), cached=True)
        lengths = jnp.full(ids.shape[:1], length, jnp.int32)
        return self._next(features[:, -1], lengths), lengths

    def step(self, token: Int[Array, "B"], position: Int[Array, "B"]) -> Float[Array, "B V"]:
        """Reads one more id of each row, and gives the logits of those that may stand behind it."""
        slots = self.decoder.slots()
        of_layers: Any = self.config.layer_masks(self.config.length)
        seen = jax.vmap(lambda own: own.at(position, slots))(of_layers)
        x = self._embed(token[:, None], self._positions()[position][:, None])
        places = position[:, None]
        features = self.decoder(x, layer_masks=masks.Valid(seen), positions=places, cached=True)
        return self._next(features[:, 0], position + 1)

    def _positions(self) -> Float[Array, "L D"]:
        cfg = self.config
        image = self.row_positions[:, None] + self.column_positions[None]
        pieces = [self.text_positions, image.reshape(cfg.num_codes, -1)]
        return jnp.concatenate(pieces + ([self.right_positions] if cfg.right_length else []))

    def _embed(self, ids: Int[Array, "B L"], positions: Float[Array, "*B L D"]) -> Float[Array, "B L D"]:
        x, share = self.embedding(ids) + positions.astype(self.dtype), self.config.embedding_gradient
        return x if share == 1 else share * x + (1 - share) * stop_gradient(x)

    def _logits(self, features: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        logits: Float[Array, "*B V"] = self.head(self.head_norm(features))
        return logits

    def _next(self, features: Float[Array, "B D"], place: Int[Array, "B"]) -> Float[Array, "B V"]:
        """Logits of what may stand at a place: words, but no padding, or codes."""
        cfg = self.config
        ids = jnp.arange(cfg.text_vocab + cfg.image_vocab)
        drawn = (place >= cfg.first) & (place < cfg.first + cfg.num_codes)
        words = jnp.where((place < cfg.first), cfg.text_vocab, cfg.text_vocab - cfg.text_length)
        may = jnp.where(drawn[:, None], ids >= cfg.text_vocab, ids < words[:, None])
        return jnp.where(may, self._logits(features).astype(jnp.float32), -jnp.inf)


def sandwich(width: int, depth: int, num_heads: int) -> TransformerConfig:
    """The transformer of ruDALL-E and RuDOLPH: norms before and behind each sub-layer (CogView), GELU by tanh."""
    return TransformerConfig(
        width, depth, num_heads, 4 * width, activation="gelu_tanh", norm_order="sandwich", norm_eps=1e-5
    )


VARIANTS = {
    "dalle": Config(TransformerConfig(3968, 64, 62, 4 * 3968)),
    "rudalle_malevich": Config(sandwich(2048, 24, 16), text_vocab=16_512, text_length=128, first_code="text"),
    "rudolph_350m": Config(
        sandwich(1024, 24, 16),
        (16, 16),
        text_vocab=16_448,
        text_length=64,
        right_length=64,
        first_code="text",
        kernel=7,
        last_kernel=9,
    ),
}
