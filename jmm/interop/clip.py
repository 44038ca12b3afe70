"""CLIP with a ViT tower as `transformers.CLIPModel` names it."""

from jmm.interop.table import Row, transformer_rows

BLOCK = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
    "mlp_norm": "layer_norm2",
}

TABLE = [
    Row("image/class_token", "vision_model.embeddings.class_embedding", "flat"),
    Row("image/positions/table", "vision_model.embeddings.position_embedding.weight"),
    Row("image/patches/projection/kernel", "vision_model.embeddings.patch_embedding.weight", "conv"),
    Row("image/pre_norm/scale", "vision_model.pre_layrnorm.weight"),
    Row("image/pre_norm/bias", "vision_model.pre_layrnorm.bias"),
    *transformer_rows("image/encoder", "vision_model.encoder.layers", BLOCK),
    Row("image/encoder/norm/scale", "vision_model.post_layernorm.weight"),
    Row("image/encoder/norm/bias", "vision_model.post_layernorm.bias"),
    Row("image_projection/kernel", "visual_projection.weight", "linear"),
    Row("text/embedding/embedding", "text_model.embeddings.token_embedding.weight"),
    Row("text/positions/table", "text_model.embeddings.position_embedding.weight"),
    *transformer_rows("text/encoder", "text_model.encoder.layers", BLOCK),
    Row("text/encoder/norm/scale", "text_model.final_layer_norm.weight"),
    Row("text/encoder/norm/bias", "text_model.final_layer_norm.bias"),
    Row("text_projection/kernel", "text_projection.weight", "linear"),
    Row("logit_scale", "logit_scale"),
]
