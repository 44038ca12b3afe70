"""VQGAN and MoVQ as diffusers names them: its VQModel with either norm."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from jmm.errors import UserError
from jmm.interop.family import Family
from jmm.interop.fields import Fields
from jmm.interop.table import Row, linear_rows, norm_rows
from jmm.models.vqgan import Config, Following, GridConfig, Learned

READING, WRITING = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
"""Their levels of encoder and decoder, without and with attention."""


def _levels(fields: Fields, name: str, default: tuple[str, ...], known: tuple[str, str]) -> list[bool]:
    """Which levels have attention."""
    values = fields.get(name, default)
    if not isinstance(values, list | tuple) or not all(value in known for value in values):
        raise UserError(f"{name} in {fields.file} is {values!r}; its levels are {' or '.join(known)}")
    return [value == known[1] for value in values]


def _read(fields: Fields, names: Collection[str]) -> Config:
    widths = fields.get("block_out_channels", (64,))
    if not isinstance(widths, list | tuple) or not widths or not all(isinstance(w, int) and w > 0 for w in widths):
        raise UserError(f"block_out_channels in {fields.file} is {widths!r}; it must be a list of positive numbers")
    attention = _levels(fields, "down_block_types", READING[:1], READING)
    back = _levels(fields, "up_block_types", WRITING[:1], WRITING)
    if len(attention) != len(widths) or back != attention[::-1]:
        raise UserError(
            f"{fields.file} has {len(widths)} block_out_channels and levels {fields.get('down_block_types')} and "
            f"{fields.get('up_block_types')}; both networks must have as many, with attention on the same"
        )
    channels, groups = fields.size("in_channels", 3), fields.size("norm_num_groups", 32)
    for width in widths:
        fields.divides("the first of block_out_channels", widths[0], "another,", width)
        fields.divides("norm_num_groups", groups, "a width,", width)
    fields.only("out_channels", channels)
    fields.only("act_fn", "silu")
    fields.only("mid_block_add_attention", True)
    norm, latent = fields.get("norm_type", "group"), fields.size("latent_channels", 3)
    if norm not in ("group", "spatial"):
        raise UserError(f"norm_type in {fields.file} is {norm!r}, which is not supported; group and spatial are")
    if norm == "spatial":
        # Both are of their decoder's norms, whatever is said of the rest.
        fields.only("norm_num_groups", 32)
        fields.only("vq_embed_dim", latent)
    levels = GridConfig(
        widths[0],
        tuple(width // widths[0] for width in widths),
        fields.size("layers_per_block", 1),
        tuple(level for level, attends in enumerate(attention) if attends),
        latent,
        groups,
    )
    return Config(
        fields.sides("sample_size", 32),
        channels,
        levels,
        fields.size("num_vq_embeddings", 256),
        fields.size("vq_embed_dim", latent),
        Learned(weighted="codebook"),
        modulated=norm == "spatial",
        critic=None,
    )


def _write(config: Config) -> dict[str, Any]:
    (height, width), levels = config.image_size, config.levels
    attends = [level in levels.attention for level in range(len(levels.multipliers))]
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [levels.width * each for each in levels.multipliers],
        "down_block_types": [READING[each] for each in attends],
        "in_channels": config.channels,
        "latent_channels": levels.latent,
        "layers_per_block": levels.blocks,
        "mid_block_add_attention": True,
        "norm_num_groups": levels.groups,
        "norm_type": "spatial" if config.modulated else "group",
        "num_vq_embeddings": config.num_codes,
        "out_channels": config.channels,
        "sample_size": height if height == width else [height, width],
        "up_block_types": [WRITING[each] for each in reversed(attends)],
        "vq_embed_dim": config.code_width,
    }


def _conv(ours: str, theirs: str) -> list[Row]:
    return linear_rows(f"{ours}/conv", theirs, "conv")


def _norm(ours: str, theirs: str, modulated: bool) -> list[Row]:
    if not modulated:
        return norm_rows(f"{ours}/norm", theirs)
    norm = norm_rows(f"{ours}/norm", f"{theirs}.norm_layer")
    return [*norm, *_conv(f"{ours}/scale", f"{theirs}.conv_y"), *_conv(f"{ours}/shift", f"{theirs}.conv_b")]


def _block(ours: str, theirs: str, modulated: bool) -> list[Row]:
    norms = [row for i in (1, 2) for row in _norm(f"{ours}/norm{i}", f"{theirs}.norm{i}", modulated)]
    convolutions = [row for i in (1, 2) for row in _conv(f"{ours}/conv{i}", f"{theirs}.conv{i}")]
    return [*norms, *convolutions, *_conv(f"{ours}/shortcut", f"{theirs}.conv_shortcut")]


def _attention(ours: str, theirs: str, modulated: bool) -> list[Row]:
    rows = _norm(f"{ours}/norm", f"{theirs}.{'spatial_norm' if modulated else 'group_norm'}", modulated)
    for part, name in {"query": "to_q", "key": "to_k", "value": "to_v"}.items():
        rows += linear_rows(f"{ours}/attention/{part}", f"{theirs}.{name}")
    return [*rows, *linear_rows(f"{ours}/attention/out", f"{theirs}.to_out.0", "linear2")]


def _network(ours: str, levels: list[str], blocks: int, modulated: bool) -> list[Row]:
    """Of an encoder or decoder, whose `levels` are named in our order."""
    rows = _conv(f"{ours}/first", f"{ours}.conv_in")
    for level, theirs in enumerate(levels):
        for index in range(blocks):
            name = f"{ours}/level{level}_{index}"
            rows += _block(f"{name}_block", f"{theirs}.resnets.{index}", modulated)
            rows += _attention(f"{name}_attention", f"{theirs}.attentions.{index}", modulated)
        rows += _conv(f"{ours}/level{level}_halve", f"{theirs}.downsamplers.0.conv")
        rows += _conv(f"{ours}/level{level}_double", f"{theirs}.upsamplers.0.conv")
    for index in (0, 1):
        rows += _block(f"{ours}/middle{index + 1}_block", f"{ours}.mid_block.resnets.{index}", modulated)
    rows += _attention(f"{ours}/middle_attention", f"{ours}.mid_block.attentions.0", modulated)
    return [*rows, *_norm(f"{ours}/norm", f"{ours}.conv_norm_out", modulated)]


def _table(config: Config) -> list[Row]:
    depth, blocks = len(config.levels.multipliers), config.levels.blocks
    down = [f"encoder.down_blocks.{level}" for level in range(depth)]
    up = [f"decoder.up_blocks.{depth - 1 - level}" for level in range(depth)]
    return [
        *_network("encoder", down, blocks, False),
        *_conv("encoder/last", "encoder.conv_out"),
        *_conv("before", "quant_conv"),
        Row("quantizer/codes", "quantize.embedding.weight"),
        *_conv("after", "post_quant_conv"),
        *_network("decoder", up, blocks + 1, config.modulated),
        *_conv("last", "decoder.conv_out"),
    ]


def _used(config: Config, variables: Any) -> tuple[Config, Any]:
    """Without the other networks of its training; a codebook that followed the vectors is one as any other now."""
    params = {name: tree for name, tree in variables["params"].items() if name not in ("critic", "image")}
    config = replace(config, critic=None, perceptual=None)
    if isinstance(config.quantizer, Following):
        params["quantizer"] = {"codes": variables["codebook"]["quantizer"]["book"].codes}
        config = replace(config, quantizer=Learned(unit_length=config.quantizer.unit_length))
    return config, {"params": params, **{name: variables[name] for name in ("annealing",) if config.anneals}}


RENAMES = tuple(
    (rf"\.attentions\.(\d+)\.{older}\.", rf".attentions.\1.{name}.")
    for older, name in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items()
)
"""Attention as diffusers named it before 0.15."""

FAMILIES = (
    Family(
        "VQModel",
        ("VQModel",),
        Config,
        _read,
        _write,
        _table,
        RENAMES,
        stem="diffusion_pytorch_model",
        pickle="diffusion_pytorch_model.bin",
        used=_used,
    ),
)
