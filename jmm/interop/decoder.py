"""Decoder-only language models as transformers names them: GPT-2, OPT, LLaMA (Vicuna is one) and Qwen2."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmm.errors import UserError
from jmm.interop.fields import Fields
from jmm.interop.table import Row, Shape, Tensors, export_tensors, import_tensors, transformer_rows
from jmm.models.decoder import Config
from jmm.parts.transformer import TransformerConfig

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Family:
    """One naming of the weights, and the config.json that goes with it."""

    config: Callable[[Fields], Config]
    """Reads the config.json."""
    prefix: str
    """What stands before every name but the head's where the file is of the model with its head, and does not where it
    is of the body alone; both are published."""
    embedding: str
    """Their name of the embedding."""
    rows: tuple[Row, ...]
    """All other rows but the head's, names without the prefix."""
    ignored: str
    """Names, without the prefix, that old files hold and that are no weights."""


def decoder_config(config_json: Mapping[str, Any]) -> Config:
    """Our config from a parsed config.json. Rates of dropout are not read: they are a matter of training alone.

    Raises:
      UserError: naming the field that is missing or not supported.
    """
    return _family(config_json.get("model_type")).config(Fields(config_json))


def decoder_table(model_type: str, config: Config, names: Iterable[str]) -> list[Row]:
    """The rows for a file that holds these names, with their prefix or without.

    A tied head is the embedding, under one of the names or under both.
    """
    family = _family(model_type)
    prefix = _prefix(family, names)
    embedding = Row("embedding/embedding", prefix + family.embedding, copies=(HEAD,) if config.tied_head else ())
    rows = [replace(row, theirs=prefix + row.theirs) for row in family.rows]
    return [embedding, *rows] if config.tied_head else [embedding, *rows, Row("head/kernel", HEAD, "linear")]


def import_decoder(model_type: str, config: Config, tensors: Tensors) -> Any:
    """Our parameters from their tensors.

    Raises:
      UserError: listing every tensor that is missing, left over or of a wrong size.
    """
    module = config.build()
    init = jax.eval_shape(lambda: module.init(jax.random.key(0), text=jnp.zeros((1, 1), jnp.int32)))
    family = _family(model_type)
    table = decoder_table(model_type, config, tensors)
    return import_tensors(table, tensors, init["params"], f"({re.escape(family.prefix)})?({family.ignored})")


def export_decoder(model_type: str, params: Any, config: Config, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Their tensors, of these names and shapes, from our parameters: undoes `import_decoder`.

    Raises:
      UserError: listing every tensor that has no row or no shape.
    """
    return export_tensors(decoder_table(model_type, config, shapes), params, shapes)


def _family(model_type: object) -> Family:
    if str(model_type) not in FAMILIES:
        raise UserError(
            f"model_type in config.json is {model_type!r}, which is not supported; {', '.join(FAMILIES)} are"
        )
    return FAMILIES[str(model_type)]


def _prefix(family: Family, names: Iterable[str]) -> str:
    return family.prefix if any(name.startswith(family.prefix) for name in names) else ""


def _gpt2(fields: Fields) -> Config:
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.only("add_cross_attention", False)
    width, heads = fields.size("n_embd"), fields.size("n_head")
    fields.divides("n_head", heads, "n_embd", width)
    decoder = TransformerConfig(
        width,
        fields.size("n_layer"),
        heads,
        fields.size("n_inner", 4 * width),
        activation=fields.activation("activation_function", "gelu_new"),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
    )
    return Config(
        decoder,
        fields.size("vocab_size"),
        fields.size("n_positions"),
        tied_head=fields.flag("tie_word_embeddings", True),
    )


def _opt(fields: Fields) -> Config:
    pre_norm = fields.flag("do_layer_norm_before", True)
    fields.only("layer_norm_elementwise_affine", True)
    if pre_norm:  # after the other order there is none to remove
        fields.only("_remove_final_layer_norm", False)
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    fields.divides("num_attention_heads", heads, "hidden_size", width)
    embed_dim = fields.size("word_embed_proj_dim", width)
    decoder = TransformerConfig(
        width,
        fields.size("num_hidden_layers"),
        heads,
        fields.size("ffn_dim"),
        activation=fields.activation("activation_function", "relu"),
        norm_order="pre" if pre_norm else "post",
        norm_eps=1e-5,  # torch's own: config.json has no field for it
        use_bias=fields.flag("enable_bias", True),
    )
    return Config(
        decoder,
        fields.size("vocab_size"),
        fields.size("max_position_embeddings"),
        first_position=2,
        tied_head=fields.flag("tie_word_embeddings", True),
        embed_dim=None if embed_dim == width else embed_dim,
    )


def _llama(fields: Fields) -> Config:
    attention_bias = fields.flag("attention_bias", False)
    return _rotary(fields, attention_bias, attention_bias, fields.flag("mlp_bias", False))


def _qwen2(fields: Fields) -> Config:
    fields.only("use_sliding_window", False)
    for kind in fields.get("layer_types", []):
        if kind != "full_attention":
            raise UserError(f"layer_types in config.json has {kind!r}, which is not supported; 'full_attention' is")
    return _rotary(fields, qkv_bias=True, out_bias=False, mlp_bias=False)


def _rotary(fields: Fields, qkv_bias: bool, out_bias: bool, mlp_bias: bool) -> Config:
    """LLaMA and its descendants."""
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", heads)
    fields.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    if fields.get("head_dim") is None:
        fields.divides("num_attention_heads", heads, "hidden_size", width)
    head_dim = fields.size("head_dim", width // heads)
    if head_dim % 2:
        raise UserError(f"head_dim in config.json is {head_dim}; rotary positions need an even width")
    # What is as usual is left to its default, so that equal models have equal configs.
    decoder = TransformerConfig(
        width,
        fields.size("num_hidden_layers"),
        heads,
        fields.size("intermediate_size"),
        num_kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if head_dim * heads == width else head_dim,
        activation=fields.activation("hidden_act", "silu"),
        gated=True,
        norm="rms",
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        use_bias=mlp_bias,
        qkv_bias=None if qkv_bias == mlp_bias else qkv_bias,
        out_bias=None if out_bias == mlp_bias else out_bias,
        rotary_base=_rotary_base(fields),
    )
    return Config(
        decoder,
        fields.size("vocab_size"),
        fields.size("max_position_embeddings"),
        first_position=None,
        tied_head=fields.flag("tie_word_embeddings", False),
    )


def _rotary_base(fields: Fields) -> float:
    """`rope_theta`, at the top (transformers 4) or within `rope_parameters` (5); frequencies of other kinds than the
    paper's are refused."""
    base = fields.number("rope_theta", 10_000.0)
    for name in ("rope_scaling", "rope_parameters"):
        inner = fields.get(name, {})
        if not isinstance(inner, Mapping):
            raise UserError(f"{name} in config.json is {inner!r}; it must be an object or null")
        kind = inner.get("rope_type", inner.get("type", "default"))
        if kind != "default":
            raise UserError(f"{name} in config.json is of type {kind!r}, which is not supported; 'default' is")
        Fields(inner).only("partial_rotary_factor", 1.0)
        base = Fields(inner).number("rope_theta", base)
    fields.only("partial_rotary_factor", 1.0)
    return base


def _norm(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def _gpt2_rows() -> tuple[Row, ...]:
    """GPT-2's `Conv1D` holds its weights [in, out], and one of them queries, keys and values."""
    names = {
        "attention/out": "attn.c_proj",
        "attention_norm": "ln_1",
        "mlp/up": "mlp.c_fc",
        "mlp/down": "mlp.c_proj",
        "mlp_norm": "ln_2",
    }
    fused = [
        replace(row, part=(index, 3))
        for index, name in enumerate(("query", "key", "value"))
        for row in transformer_rows("decoder", "h", {f"attention/{name}": "attn.c_attn"}, "same")
    ]
    blocks = transformer_rows("decoder", "h", names, "same")
    return (Row("positions/table", "wpe.weight"), *fused, *blocks, *_norm("decoder/norm", "ln_f"))


OPT = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "mlp/up": "fc1",
    "mlp/down": "fc2",
    "mlp_norm": "final_layer_norm",
}

LLAMA = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
    "mlp_norm": "post_attention_layernorm",
}

OPT_ROWS = (
    Row("positions/table", "decoder.embed_positions.weight"),
    Row("input_projection/kernel", "decoder.project_in.weight", "linear"),
    Row("output_projection/kernel", "decoder.project_out.weight", "linear"),
    *transformer_rows("decoder", "decoder.layers", OPT),
    *_norm("decoder/norm", "decoder.final_layer_norm"),
)
LLAMA_ROWS = (*transformer_rows("decoder", "layers", LLAMA), *_norm("decoder/norm", "norm"))

FREQUENCIES = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
"""Of the rotary positions, which old files store."""

FAMILIES = {
    "gpt2": Family(_gpt2, "transformer.", "wte.weight", _gpt2_rows(), r"h\.\d+\.attn\.(bias|masked_bias)"),
    "opt": Family(_opt, "model.", "decoder.embed_tokens.weight", OPT_ROWS, r"decoder\.version"),
    "llama": Family(_llama, "model.", "embed_tokens.weight", LLAMA_ROWS, FREQUENCIES),
    "qwen2": Family(_qwen2, "model.", "embed_tokens.weight", LLAMA_ROWS, FREQUENCIES),
}
"""By the `model_type` of their config.json."""
