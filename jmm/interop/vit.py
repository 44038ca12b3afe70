"""ViT as `transformers.ViTForImageClassification` names it (version 5)."""

from jmm.interop.table import Row, transformer_rows

TABLE = [
    Row("image/class_token", "vit.embeddings.cls_token"),
    Row("image/positions/table", "vit.embeddings.position_embeddings", "first"),
    Row("image/patches/projection/kernel", "vit.embeddings.patch_embeddings.projection.weight", "conv"),
    Row("image/patches/projection/bias", "vit.embeddings.patch_embeddings.projection.bias"),
    *transformer_rows(
        "image/encoder",
        "vit.layers",
        {
            "attention/query": "attention.q_proj",
            "attention/key": "attention.k_proj",
            "attention/value": "attention.v_proj",
            "attention/out": "attention.o_proj",
            "attention_norm": "layernorm_before",
            "mlp/up": "mlp.fc1",
            "mlp/down": "mlp.fc2",
            "mlp_norm": "layernorm_after",
        },
    ),
    Row("image/encoder/norm/scale", "vit.layernorm.weight"),
    Row("image/encoder/norm/bias", "vit.layernorm.bias"),
    Row("head/kernel", "classifier.weight", "linear"),
    Row("head/bias", "classifier.bias"),
]
