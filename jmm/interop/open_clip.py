"""CLIP as open_clip names it, with a ViT or a residual network as image tower (OpenAI's own names are the same).

A directory holds open_clip_config.json, {"model_cfg": …, "preprocess_cfg": …}, and open_clip_model.safetensors.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from jmm.errors import UserError
from jmm.interop.family import Family
from jmm.interop.fields import Fields
from jmm.interop.table import LAYER, Row, linear_rows, norm_rows, transformer_rows
from jmm.models.clip import RESNET_STRIDE, Config, ResNetTower, TextTower
from jmm.models.vit import ImageTower
from jmm.parts.transformer import TransformerConfig

FILE = "open_clip_config.json"

READ = re.compile(
    r"embed_dim|quick_gelu|init_logit_bias"
    r"|vision_cfg\.(layers|width|head_width|mlp_ratio|patch_size|image_size)"
    r"|text_cfg\.(context_length|vocab_size|width|heads|layers|mlp_ratio)"
)
"""Fields of model_cfg that are ours too."""

ONLY: dict[str, Any] = {
    "vision_cfg.timm_model_name": None,
    "vision_cfg.pool_type": "tok",
    "vision_cfg.pos_embed_type": "learnable",
    "text_cfg.hf_model_name": None,
    "text_cfg.pool_type": "argmax",
    "text_cfg.proj_type": "linear",
}
"""Fields of which one value is supported."""

NO_MATTER = re.compile(
    r"init_logit_scale|vision_cfg\.(patch_dropout|output_tokens|attn_pooler_.*|timm_.*)"
    r"|text_cfg\.(pad_id|eos_id|output_tokens|hf_.*|tokenizer_.*)"
)
"""Fields that say nothing about the outputs: of training, of tokens, or of parts that others have refused."""

BLOCK = {
    "attention/out": "attn.out_proj",
    "attention_norm": "ln_1",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
    "mlp_norm": "ln_2",
}


def read(fields: Fields, names: Collection[str]) -> Config:
    """Our config from open_clip_config.json. Whatever is set there and not known here is refused by its name."""
    model_cfg = fields.get("model_cfg", {})
    if not isinstance(model_cfg, Mapping):
        raise UserError(f"model_cfg in {FILE} is {model_cfg!r}; it must be an object")
    flat = Fields(dict(_flat(model_cfg)), FILE)
    for name, only in ONLY.items():
        flat.only(name, only)
    for name, value in flat.values.items():
        if value and not (name in ONLY or READ.fullmatch(name) or NO_MATTER.fullmatch(name)):
            raise UserError(f"{name} in {FILE} is {value!r}, which is not supported")
    width, heads = flat.size("text_cfg.width", 512), flat.size("text_cfg.heads", 8)
    flat.divides("text_cfg.heads", heads, "text_cfg.width", width)
    vocab_size = flat.size("text_cfg.vocab_size", 49_408)
    text = TextTower(
        _encoder(flat, "text_cfg", width, heads),
        vocab_size,
        flat.size("text_cfg.context_length", 77),
        end_token=vocab_size - 1,  # theirs reads the position of the highest id
    )
    image = _resnet(flat) if isinstance(flat.get("vision_cfg.layers"), list) else _vit(flat)
    objective: Literal["softmax", "sigmoid"] = "softmax" if flat.get("init_logit_bias") is None else "sigmoid"
    projected = isinstance(image, ImageTower)
    return Config(image, text, flat.size("embed_dim"), image_projection=projected, objective=objective)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all fields, with their values."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _encoder(flat: Fields, tower: str, width: int, heads: int) -> TransformerConfig:
    return TransformerConfig(
        width,
        flat.size(f"{tower}.layers", 12),
        heads,
        int(width * flat.number(f"{tower}.mlp_ratio", 4.0)),
        activation="quick_gelu" if flat.flag("quick_gelu", False) else "gelu",
        norm_eps=1e-5,  # torch's own: theirs has no field for it
    )


def _vit(flat: Fields) -> ImageTower:
    width, head_width = flat.size("vision_cfg.width", 768), flat.size("vision_cfg.head_width", 64)
    flat.divides("vision_cfg.head_width", head_width, "vision_cfg.width", width)
    patch_size = flat.size("vision_cfg.patch_size", 16)
    encoder = _encoder(flat, "vision_cfg", width, width // head_width)
    image_size = _image_size(flat, "vision_cfg.patch_size", patch_size)
    return ImageTower(encoder, image_size, patch_size, patch_bias=False, pre_norm=True)


def _resnet(flat: Fields) -> ResNetTower:
    layers = flat.get("vision_cfg.layers")
    if len(layers) != 4 or not all(isinstance(depth, int) and depth > 0 for depth in layers):
        raise UserError(
            f"vision_cfg.layers in {FILE} is {layers}; a residual network has four positive whole numbers there"
        )
    width, head_width = flat.size("vision_cfg.width", 64), flat.size("vision_cfg.head_width", 64)
    flat.divides("vision_cfg.head_width", head_width, "32 times vision_cfg.width", 32 * width)
    image_size = _image_size(flat, "the stride of a residual network", RESNET_STRIDE)
    return ResNetTower((layers[0], layers[1], layers[2], layers[3]), width, 32 * width // head_width, image_size)


def _image_size(flat: Fields, what: str, stride: int) -> tuple[int, int]:
    """Height and width, which theirs gives as one number if they are equal."""
    size = flat.get("vision_cfg.image_size", 224)
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 and side % stride == 0 for side in sides):
        raise UserError(
            f"vision_cfg.image_size in {FILE} is {size!r}; "
            f"it must be one or two positive whole numbers that {what}, {stride}, divides"
        )
    return sides[0], sides[1]


def write(config: Config) -> dict[str, Any]:
    """Their open_clip_config.json; `preprocess_cfg` is not the model's to say."""
    text, image = config.text, config.image
    height, width = image.image_size
    vision_cfg: dict[str, Any] = {"image_size": height if height == width else [height, width]}
    if isinstance(image, ResNetTower):
        head_width = 32 * image.width // image.num_heads
        vision_cfg |= {"layers": list(image.layers), "width": image.width, "head_width": head_width, "patch_size": None}
    else:
        encoder = image.encoder
        vision_cfg |= {
            "layers": encoder.depth,
            "width": encoder.width,
            "head_width": encoder.width // encoder.num_heads,
            "mlp_ratio": _ratio(encoder),
            "patch_size": image.patch_size,
        }
    model_cfg: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "quick_gelu": text.encoder.activation == "quick_gelu",
        "vision_cfg": vision_cfg,
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.encoder.width,
            "heads": text.encoder.num_heads,
            "layers": text.encoder.depth,
            "mlp_ratio": _ratio(text.encoder),
        },
    }
    if config.objective == "sigmoid":
        model_cfg["init_logit_bias"] = -10
    return {"model_cfg": model_cfg, "preprocess_cfg": {}}


def _ratio(encoder: TransformerConfig) -> float:
    """The least number of which theirs makes our width: it is cut off, so rounding must not fall below."""
    ratio = encoder.mlp_dim / encoder.width
    return ratio if int(encoder.width * ratio) == encoder.mlp_dim else math.nextafter(ratio, math.inf)


def table(config: Config) -> list[Row]:
    """The rows of both towers."""
    return [
        *(_resnet_rows(config.image) if isinstance(config.image, ResNetTower) else _vit_rows()),
        Row("text/embedding/embedding", "token_embedding.weight"),
        Row("text/positions/table", "positional_embedding"),
        *_block_rows("text/encoder", "transformer.resblocks"),
        *norm_rows("text/encoder/norm", "ln_final"),
        Row("text_projection/kernel", "text_projection", "dense"),
        Row("logit_scale", "logit_scale"),
        Row("logit_bias", "logit_bias"),
    ]


def _vit_rows() -> list[Row]:
    return [
        Row("image/class_token", "visual.class_embedding", "flat"),
        Row("image/positions/table", "visual.positional_embedding"),
        Row("image/patches/projection/kernel", "visual.conv1.weight", "conv"),
        *norm_rows("image/pre_norm", "visual.ln_pre"),
        *_block_rows("image/encoder", "visual.transformer.resblocks"),
        *norm_rows("image/encoder/norm", "visual.ln_post"),
        Row("image_projection/kernel", "visual.proj", "dense"),
    ]


def _block_rows(ours: str, theirs: str) -> list[Row]:
    """Queries, keys and values are one projection there."""
    rows = transformer_rows(ours, theirs, BLOCK)
    for index, name in enumerate(("query", "key", "value")):
        path, fused = f"{ours}/blocks/attention/{name}", f"{theirs}.{LAYER}.attn.in_proj"
        rows.append(Row(f"{path}/kernel", f"{fused}_weight", "linear", (index, 3)))
        rows.append(Row(f"{path}/bias", f"{fused}_bias", "flat", (index, 3)))
    return rows


def _resnet_rows(tower: ResNetTower) -> list[Row]:
    """The blocks of a stage are not alike, and so they are not stacked: each has rows of its own."""
    rows = _convolution_rows("image/trunk/stem", "visual", 3)
    for stage, depth in enumerate(tower.layers, 1):
        for block in range(depth):
            ours, theirs = f"image/trunk/stage{stage}/block{block}", f"visual.layer{stage}.{block}"
            rows += _convolution_rows(ours, theirs, 3)
            if block == 0:
                rows.append(Row(f"{ours}/shortcut_conv/kernel", f"{theirs}.downsample.0.weight", "conv"))
                rows += _batch_norm_rows(f"{ours}/shortcut_norm", f"{theirs}.downsample.1")
    ours, theirs = "image/pool", "visual.attnpool"
    rows.append(Row(f"{ours}/positions/table", f"{theirs}.positional_embedding"))
    for name in ("query", "key", "value"):
        rows += linear_rows(f"{ours}/attention/{name}", f"{theirs}.{name[0]}_proj")
    return rows + linear_rows(f"{ours}/attention/out", f"{theirs}.c_proj", "linear2")


def _convolution_rows(ours: str, theirs: str, count: int) -> list[Row]:
    rows = []
    for index in range(1, count + 1):
        rows.append(Row(f"{ours}/conv{index}/kernel", f"{theirs}.conv{index}.weight", "conv"))
        rows += _batch_norm_rows(f"{ours}/norm{index}", f"{theirs}.bn{index}")
    return rows


def _batch_norm_rows(ours: str, theirs: str) -> list[Row]:
    statistics = {"mean": "running_mean", "var": "running_var", "count": "num_batches_tracked"}
    moving = [Row(f"batch_stats/{ours}/{name}", f"{theirs}.{buffer}") for name, buffer in statistics.items()]
    return [*norm_rows(ours, theirs), *moving]


FAMILIES = (
    Family(
        "open_clip",
        architectures=(),
        config=Config,
        read=read,
        write=write,
        table=table,
        renames=((r"^module\.", ""),),  # of a model that was trained on several devices
        ignored="attn_mask|input_resolution|context_length|vocab_size",
        config_file=FILE,
        stem="open_clip_model",
        pickle="open_clip_pytorch_model.bin",
    ),
)
