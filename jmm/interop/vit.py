"""ViT and DINO's ViT as transformers names them, and as timm and DINO's own code do."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from jmm.errors import UserError
from jmm.interop.family import Family
from jmm.interop.fields import ACTIVATION_NAMES, Fields
from jmm.interop.table import Row, linear_rows, norm_rows, transformer_rows
from jmm.models.vit import Config, ImageTower
from jmm.parts.transformer import TransformerConfig

CLASSIFIER, BODY = "ViTForImageClassification", "ViTModel"


def read_encoder(
    fields: Fields, width: int, num_heads: int, mlp_dim: int, activation: str, norm_eps: float
) -> TransformerConfig:
    """A tower's transformer; a field that config.json lacks has the given default, and the depth 12."""
    width, num_heads = fields.size("hidden_size", width), fields.size("num_attention_heads", num_heads)
    fields.divides("num_attention_heads", num_heads, "hidden_size", width)
    return TransformerConfig(
        width,
        fields.size("num_hidden_layers", 12),
        num_heads,
        fields.size("intermediate_size", mlp_dim),
        activation=fields.activation("hidden_act", activation),
        norm_eps=fields.number("layer_norm_eps", norm_eps),
    )


def write_encoder(encoder: TransformerConfig) -> dict[str, Any]:
    """The fields of config.json that `read_encoder` reads."""
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.mlp_dim,
        "hidden_act": ACTIVATION_NAMES[encoder.activation],
        "layer_norm_eps": encoder.norm_eps,
    }


def read_tower(fields: Fields, encoder: TransformerConfig, patch_size: int, **more: Any) -> ImageTower:
    """An image tower of that transformer; `patch_size` is the default, and `more` its other fields."""
    size, patch_size = fields.sides("image_size", 224), fields.side("patch_size", patch_size)
    # Their patches are a convolution, which leaves out what does not fill one.
    crop = any(side % patch_size for side in size)
    return ImageTower(encoder, size, patch_size, fields.size("num_channels", 3), crop=crop, **more)


def _read(fields: Fields, names: Collection[str]) -> Config:
    """Only the tensors tell whether there is a pooler: DINO's files are of a `ViTModel` without one."""
    encoder = read_encoder(fields, 768, 12, 3072, "gelu", 1e-12)
    if not fields.flag("qkv_bias", True):
        encoder = replace(encoder, qkv_bias=False)
    image = read_tower(fields, encoder, 16)
    if CLASSIFIER in fields.get("architectures", ()) or "classifier.weight" in names:
        labels = fields.get("id2label")
        if not isinstance(labels, Mapping | None):
            raise UserError(f"id2label in config.json is {labels!r}; it must be an object")
        return Config(image, len(labels) if labels else fields.size("num_labels", 2))
    pooler = not {"pooler.dense.weight", "vit.pooler.dense.weight"}.isdisjoint(names)
    if pooler:
        fields.only("pooler_act", "tanh")
        fields.only("pooler_output_size", encoder.width)
    return Config(image, num_classes=None, pooler=pooler)


def _write(config: Config) -> dict[str, Any]:
    image, classes = config.image, range(config.num_classes or 0)
    height, width = image.image_size
    labels = {
        "id2label": {str(index): f"LABEL_{index}" for index in classes},
        "label2id": {f"LABEL_{index}": index for index in classes},
    }
    return {
        "model_type": "vit",
        "architectures": [BODY if config.num_classes is None else CLASSIFIER],
        **write_encoder(image.encoder),
        "qkv_bias": image.encoder.use_bias if image.encoder.qkv_bias is None else image.encoder.qkv_bias,
        "image_size": height if height == width else [height, width],
        "patch_size": image.patch_size,
        "num_channels": image.channels,
        **(labels if classes else {}),
    }


BLOCK = {
    "attention_norm": "layernorm_before",
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/out": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
}

ROWS = (
    Row("image/class_token", "embeddings.cls_token"),
    Row("image/positions/table", "embeddings.position_embeddings", "first"),
    *linear_rows("image/patches/projection", "embeddings.patch_embeddings.projection", "conv"),
    *transformer_rows("image/encoder", "encoder.layer", BLOCK),
    *norm_rows("image/encoder/norm", "layernorm"),
    *linear_rows("pooler", "pooler.dense"),
)

NEW_BLOCK = {
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Sub-layers as transformers 5 names them in memory, and as it writes them: like transformers 4."""

RENAMES = tuple(
    (rf"(^|\.)layers\.(\d+)\.{re.escape(new)}\.", rf"\1encoder.layer.\2.{old}.") for new, old in NEW_BLOCK.items()
)


def _table(config: Config) -> list[Row]:
    """A classifier's body stands behind `vit.`; files with and without the prefix are read for both."""
    own, other = ("", "vit.") if config.num_classes is None else ("vit.", "")
    body = [replace(row, theirs=own + row.theirs, copies=(other + row.theirs,)) for row in ROWS]
    return [*body, *linear_rows("head", "classifier")]


def original_table() -> list[Row]:
    """The rows for the names of timm and of DINO's own code, where one tensor holds queries, keys and values."""
    names = {
        "attention_norm": "norm1",
        "attention/out": "attn.proj",
        "mlp_norm": "norm2",
        "mlp/up": "mlp.fc1",
        "mlp/down": "mlp.fc2",
    }
    fused = [
        replace(row, part=(index, 3))
        for index, name in enumerate(("query", "key", "value"))
        for row in transformer_rows("image/encoder", "blocks", {f"attention/{name}": "attn.qkv"})
    ]
    return [
        Row("image/class_token", "cls_token"),
        Row("image/positions/table", "pos_embed", "first"),
        *linear_rows("image/patches/projection", "patch_embed.proj", "conv"),
        *fused,
        *transformer_rows("image/encoder", "blocks", names),
        *norm_rows("image/encoder/norm", "norm"),
        *linear_rows("head", "head"),
    ]


FAMILIES = (Family("vit", (CLASSIFIER, BODY), Config, _read, _write, _table, RENAMES),)
