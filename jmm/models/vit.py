"""Vision Transformer (Dosovitskiy et al. 2021, An Image is Worth 16×16 Words).

    image [B,H,W,C] ─► patches [B,h,w,D] ─► + class token, + positions ─► encoder ─► image_features [B,N,D]
                                                                                         │ pool, (dense, tanh)
                                                           logits [B,V] ◄── (head) ◄── image_pooled [B,D]

The image encoder stands apart from the classifier, because CLIP and others are built on it. Without a head it is the
network of DINO (Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers). With `stages` the
patches are places of a residual network: the hybrid of section 3.1.

Inputs: image float32 [B,H,W,C]; label int32 [B] for the loss.
Outputs: image_features [B,N,D], image_pooled [B,D], and of a classifier logits [B,V].
Checked: transformers.ViTForImageClassification and ViTModel, outputs and gradients (tests/models/test_vit_parity.py);
facebookresearch/dino, outputs at two resolutions (tests/models/test_dino_golden.py).
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jmm.errors import UserError
from jmm.objectives.classification import classification
from jmm.parts import pooling
from jmm.parts.embeddings import PatchEmbedding
from jmm.parts.norms import make_norm
from jmm.parts.positions import LearnedPositions2D, sincos_2d
from jmm.parts.resnet import ModifiedResNet
from jmm.parts.transformer import Transformer, TransformerConfig
from jmm.protocol import Batch, Loss, Outputs, Variables, training_forward


@dataclass(frozen=True)
class ImageTower:
    """The encoder of images."""

    encoder: TransformerConfig
    """The transformer."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width of the images the positions are learned for; others are interpolated."""
    patch_size: int = 16
    """Side of a patch."""
    channels: int = 3
    """Channels of the images."""
    positions: Literal["learned", "sincos"] = "learned"
    """Learned table, or fixed 2-D sine–cosine."""
    pool: Literal["class", "mean", "attention", "query", "none"] = "class"
    """How the tokens become one vector: as the class token that `class` adds, as their mean, by a probe with a
    feed-forward behind it (`attention`), by a query between norms (`query`); or not at all."""
    class_token: bool = False
    """A class token without `pool` asking for it."""
    patch_bias: bool = True
    """A bias in the patch projection."""
    pre_norm: bool = False
    """A norm on the embedded tokens before the first block (CLIP)."""
    final_norm: bool = True
    """A norm behind the last block; open_clip's CoCa leaves it to its pooler."""
    crop: bool = False
    """Leave out what is beyond the last whole patch, on the right and at the bottom (SigLIP at 384 with patches of 14);
    otherwise such images are refused."""
    stages: tuple[int, ...] = ()
    """Blocks of each stage of a residual network whose places become the tokens, where that is no linear map of each
    patch (the hybrid of section 3.1, with CLIP's network); a patch then has a side of 2^(1 + stages) pixels."""
    stage_width: int = 64
    """Channels after the stem of that network."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def prefix(self) -> int:
        """Tokens before the grid of patches."""
        return int(self.pool == "class" or self.class_token)


class ImageEncoder(nn.Module):
    """image [B,H,W,C] → every token after the final norm [B,N,D] and the pooled vector [B,D], if there is one."""

    config: ImageTower
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W C"], train: bool = False, rows: Bool[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B D"] | None]:
        """`rows` are the images that count where others fill the batch up, for the statistics of a batch."""
        cfg = self.config
        width = cfg.encoder.width
        if cfg.crop:
            bottom, right = (side // cfg.patch_size * cfg.patch_size for side in image.shape[1:3])
            image = image[:, :bottom, :right]
        patches: jax.Array
        if cfg.stages:
            patches = self._residual(image, train, rows)
        else:
            patches = PatchEmbedding(width, cfg.patch_size, cfg.patch_bias, self.dtype, name="patches")(image)
        batch, *grid, _ = patches.shape
        x = patches.reshape(batch, -1, width)
        if cfg.prefix:
            token = self.param("class_token", nn.initializers.normal(0.02), (1, 1, width), jnp.float32)
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, width)).astype(x.dtype), x], axis=1)
        if cfg.positions == "learned":
            positions = LearnedPositions2D(cfg.grid, cfg.prefix, self.dtype, name="positions")
            x = positions(x, (grid[0], grid[1]))
        else:
            x = x.at[:, cfg.prefix :].add(sincos_2d((grid[0], grid[1]), width).astype(self.dtype))
        if cfg.pre_norm:
            x = make_norm(cfg.encoder.norm, cfg.encoder.norm_eps, self.dtype, "pre_norm")(x)
        x = Transformer(cfg.encoder, self.dtype, cfg.final_norm, name="encoder")(x, train=train)
        return x, self._pool(x)

    def _residual(self, image: jax.Array, train: bool, rows: jax.Array | None) -> Float[Array, "B h w D"]:
        cfg, side = self.config, 2 ** (1 + len(self.config.stages))
        if cfg.patch_size != side:
            raise ValueError(
                f"{len(cfg.stages)} stages make patches of {side}×{side}, not of patch_size {cfg.patch_size}"
            )
        if image.shape[1] % side or image.shape[2] % side:
            raise ValueError(
                f"an image of {image.shape[1]}×{image.shape[2]} does not divide into patches of {side}×{side}"
            )
        x = ModifiedResNet(cfg.stages, cfg.stage_width, self.dtype, name="stages")(image, train, rows)
        return nn.Dense(cfg.encoder.width, dtype=self.dtype, name="projection")(x)

    def _pool(self, x: Float[Array, "B N D"]) -> Float[Array, "B D"] | None:
        encoder = self.config.encoder
        if self.config.pool == "none":
            return None
        if self.config.pool == "class":
            return pooling.first_token(x)
        if self.config.pool == "mean":
            return pooling.mean_token(x)
        if self.config.pool == "query":
            pool = pooling.AttentionPooler(1, encoder.num_heads, encoder.norm_eps, dtype=self.dtype, name="pool")
            return pooling.first_token(pool(x))
        return pooling.AttentionPooling(
            encoder.num_heads, encoder.mlp_dim, encoder.activation, encoder.norm_eps, self.dtype, name="pool"
        )(x)


@dataclass(frozen=True)
class Config:
    """A ViT, with a classification head or without."""

    image: ImageTower
    """The image encoder."""
    num_classes: int | None = 1000
    """Classes of the head; None: there is no head."""
    pooler: bool = False
    """A linear layer and tanh on the pooled vector: the hidden layer of the head in pre-training (section 3.1)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def build(self, dtype: DTypeLike = jnp.float32) -> "ViT":
        """The module, computing in `dtype`."""
        return ViT(self, dtype)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image float32 [B,H,W,C]; of a classifier also label int32 [B]."""
        size = (batch_size, *self.image.image_size, self.image.channels)
        spec = {"image": jax.ShapeDtypeStruct(size, jnp.float32)}
        if self.num_classes is not None:
            spec["label"] = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        return spec

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """Cross-entropy of the classes.

        Raises:
          UserError: there is no head.
        """
        if self.num_classes is None:
            raise UserError("model.num_classes is None, so there is no head to train; set the number of classes")
        outputs, updates = training_forward(module, variables, batch, rngs)
        value = classification(outputs["logits"], batch["label"], self.label_smoothing)
        accuracy = jnp.mean(jnp.argmax(outputs["logits"], axis=-1) == batch["label"])
        return Loss(value, {"loss": value, "accuracy": accuracy}, updates)


class ViT(nn.Module):
    """The image encoder, and a linear head for a classifier."""

    config: Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, *, image: Float[Array, "B H W C"], train: bool = False) -> Outputs:
        """Gives image_features [B,N,D], image_pooled [B,D] and, of a classifier, logits [B,V]."""
        cfg = self.config
        features, pooled = ImageEncoder(cfg.image, self.dtype, name="image")(image, train)
        if pooled is None:
            raise ValueError("a ViT makes one vector of an image; image.pool is 'none'")
        if cfg.pooler:
            pooled = jnp.tanh(nn.Dense(cfg.image.encoder.width, dtype=self.dtype, name="pooler")(pooled))
        outputs = {"image_features": features, "image_pooled": pooled}
        if cfg.num_classes is not None:
            head = nn.Dense(cfg.num_classes, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="head")
            outputs["logits"] = head(pooled)
        return outputs


def vit(
    width: int,
    depth: int,
    num_heads: int,
    mlp_dim: int,
    patch_size: int,
    image_size: int = 224,
    num_classes: int | None = 1000,
) -> Config:
    """A square ViT in the paper's form: class token, learned positions, exact GELU."""
    encoder = TransformerConfig(width, depth, num_heads, mlp_dim)
    return Config(ImageTower(encoder, (image_size, image_size), patch_size), num_classes)


def vit_b(patch_size: int, image_size: int = 224, num_classes: int = 1000) -> Config:
    """ViT-Base (table 1): 12 layers, width 768, 12 heads; B/16 has 86.6 M parameters."""
    return vit(768, 12, 12, 3072, patch_size, image_size, num_classes)


def vit_l(patch_size: int, image_size: int = 224, num_classes: int = 1000) -> Config:
    """ViT-Large (table 1): 24 layers, width 1024, 16 heads; L/16 has 304.3 M parameters, L/32 306.5 M."""
    return vit(1024, 24, 16, 4096, patch_size, image_size, num_classes)


def vit_h(patch_size: int = 14, image_size: int = 224, num_classes: int = 1000) -> Config:
    """ViT-Huge (table 1): 32 layers, width 1280, 16 heads; H/14 has 632.0 M parameters."""
    return vit(1280, 32, 16, 5120, patch_size, image_size, num_classes)


def dino_s(patch_size: int = 16) -> Config:
    """DINO's ViT-Small (section 3.2, table 1): 12 layers, width 384, 6 heads; S/16 has 21.7 M parameters."""
    return vit(384, 12, 6, 1536, patch_size, num_classes=None)


def dino_b(patch_size: int = 16) -> Config:
    """DINO's ViT-Base (table 1): the paper's without its head; B/16 has 85.8 M parameters."""
    return vit(768, 12, 12, 3072, patch_size, num_classes=None)


VARIANTS = {
    "vit_b32": vit_b(32),
    "vit_b16": vit_b(16),
    "vit_l32": vit_l(32),
    "vit_l16": vit_l(16),
    "vit_h14": vit_h(14),
    "dino_s16": dino_s(16),
    "dino_s8": dino_s(8),
    "dino_b16": dino_b(16),
    "dino_b8": dino_b(8),
}
