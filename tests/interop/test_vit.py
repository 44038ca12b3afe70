"""ViT's config.json and names in both directions, and what is refused of them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from jmm.errors import UserError
from jmm.interop.family import Renamed, export_family, import_family, read_config, write_config
from jmm.interop.vit import FAMILIES, NEW_BLOCK
from jmm.models.vit import VARIANTS
from tests.arrays import assert_close
from tests.interop.theirs import (
    assert_same_tensors,
    assert_same_variables,
    imported,
    our_checkpoint,
    perturbed_model,
    their_checkpoint,
)

(VIT,) = FAMILIES
BASE = {
    "architectures": ["ViTModel"],
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 224,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "model_type": "vit",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
}
"""The file of facebook/dino-vitb16; the others are published with these differences."""
GOOGLE = BASE | {
    "architectures": ["ViTForImageClassification"],
    "qkv_bias": True,
    "id2label": {str(index): f"class {index}" for index in range(1000)},
    "label2id": {f"class {index}": str(index) for index in range(1000)},
}
DINO_S16 = BASE | {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
POOLER = ("pooler.dense.weight", "pooler.dense.bias")

# --- config.json ---


def published(name, **changes):
    """A variant with the ε that transformers gave the files, which is not that of the papers' code."""
    config = VARIANTS[name]
    encoder = replace(config.image.encoder, norm_eps=1e-12)
    return replace(config, image=replace(config.image, encoder=encoder), **changes)


@pytest.mark.parametrize(
    ("config_json", "names", "expected"),
    [
        (GOOGLE, (), published("vit_b16")),
        (GOOGLE | {"patch_size": 32}, ("classifier.weight", "classifier.bias"), published("vit_b32")),
        (DINO_S16, (), published("dino_s16")),
        (DINO_S16 | {"patch_size": 8}, (), published("dino_s8")),
        (BASE, ("embeddings.cls_token",), published("dino_b16")),
        (BASE | {"patch_size": [8, 8], "image_size": [224, 224]}, (), published("dino_b8")),
        (BASE | {"qkv_bias": True}, POOLER, published("dino_b16", pooler=True)),
        (BASE | {"pooler_act": "tanh", "pooler_output_size": 768}, POOLER, published("dino_b16", pooler=True)),
        ({"model_type": "vit"}, (), published("dino_b16")),
        ({"model_type": "vit", "num_labels": 7}, ("classifier.weight",), published("vit_b16", num_classes=7)),
        ({"architectures": ["ViTForImageClassification"]}, (), published("vit_b16", num_classes=2)),
    ],
)
def test_a_published_config_is_our_variant(config_json, names, expected):
    assert read_config(VIT, config_json, names) == expected


B16 = VARIANTS["vit_b16"].image


@pytest.mark.parametrize(
    "config",
    [
        *VARIANTS.values(),
        replace(VARIANTS["vit_b16"], image=replace(B16, encoder=replace(B16.encoder, qkv_bias=False))),
        replace(VARIANTS["vit_b16"], image=replace(B16, image_size=(230, 224), crop=True)),
        published("dino_b16", pooler=True),
        published("vit_b16", num_classes=1),
        replace(VARIANTS["vit_b16"], image=replace(B16, image_size=(160, 96), channels=1)),
    ],
)
def test_what_is_written_is_read(config):
    written = write_config(VIT, config)
    theirs = ViTConfig(**written)
    assert written["architectures"] == ["ViTModel" if config.num_classes is None else "ViTForImageClassification"]
    assert config.num_classes in (None, theirs.num_labels)
    assert read_config(VIT, theirs.to_dict(), POOLER if config.pooler else ()) == config


@pytest.mark.parametrize(
    ("config_json", "names", "says"),
    [
        (BASE | {"architectures": ["ViTForMaskedImageModeling"]}, (), "architectures in config.json has 'ViTForMasked"),
        (BASE | {"hidden_act": "mish"}, (), "hidden_act in config.json is 'mish'"),
        (BASE | {"num_attention_heads": 7}, (), "num_attention_heads in config.json is 7, which does not divide"),
        (BASE | {"patch_size": [8, 16]}, (), "patch_size in config.json is [8, 16], which is not supported; a square"),
        (BASE | {"image_size": [224]}, (), "image_size in config.json is [224]; it must be a positive whole number or"),
        (BASE | {"image_size": [224, True]}, (), "image_size in config.json is [224, True]; it must be"),
        (BASE | {"image_size": 224.0}, (), "image_size in config.json is 224.0; it must be"),
        (BASE | {"image_size": True}, (), "image_size in config.json is True; it must be"),
        (BASE | {"image_size": 0}, (), "image_size in config.json is 0; it must be"),
        (BASE | {"qkv_bias": 1}, (), "qkv_bias in config.json is 1; it must be true or false"),
        (GOOGLE | {"id2label": ["cat"]}, (), "id2label in config.json is ['cat']; it must be an object"),
        (BASE | {"pooler_act": "gelu"}, POOLER, "pooler_act in config.json is 'gelu', which is not supported"),
        (BASE | {"pooler_output_size": 5}, POOLER, "pooler_output_size in config.json is 5, which is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config_json, names, says):
    with pytest.raises(UserError) as caught:
        read_config(VIT, config_json, names)
    message = str(caught.value)
    assert message.startswith(says)
    assert "\n" not in message and ". " not in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pooler": True}, "pooler is True, they would have False"),
        ({"image.pool": "mean"}, "image.pool is 'mean', they would have 'class'"),
        ({"image.positions": "sincos"}, "image.positions is 'sincos', they would have 'learned'"),
        ({"image.patch_bias": False}, "image.patch_bias is False, they would have True"),
        ({"image.pre_norm": True}, "image.pre_norm is True, they would have False"),
        ({"image.encoder.norm": "rms"}, "image.encoder.norm is 'rms', they would have 'layer'"),
        ({"image.encoder.gated": True}, "image.encoder.gated is True, they would have False"),
    ],
)
def test_what_they_cannot_express_is_refused_by_name(change, says):
    def changed(config, path, value):
        name, _, rest = path.partition(".")
        return replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})

    ((path, value),) = change.items()
    with pytest.raises(UserError, match=f"vit cannot express this model: {says}"):
        write_config(VIT, changed(VARIANTS["vit_b16"], path, value))


def test_a_crop_that_leaves_nothing_out_is_none():
    config = replace(VARIANTS["vit_b16"], image=replace(B16, crop=True))
    assert write_config(VIT, config) == write_config(VIT, VARIANTS["vit_b16"])


def test_what_the_loss_alone_reads_is_left_out():
    assert write_config(VIT, published("vit_b16", label_smoothing=0.1)) == write_config(VIT, published("vit_b16"))


# --- names ---

KINDS = {
    "classifier": ViTForImageClassification,
    "pooler": ViTModel,
    "dino": lambda config: ViTModel(config, add_pooling_layer=False),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def tiny(kind):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=[8, 12],
        patch_size=4,
        num_labels=3,
    )
    return perturbed_model(KINDS[kind](config))


def in_memory(tensors):
    """Published names turned to those of transformers 5."""
    new = {}
    for name, tensor in tensors.items():
        name = name.replace("encoder.layer.", "layers.")
        # Longest first: output.dense also ends attention.output.dense.
        for theirs, old in sorted(NEW_BLOCK.items(), key=lambda pair: -len(pair[1])):
            if f".{old}." in name and "layers." in name:
                name = name.replace(f".{old}.", f".{theirs}.")
                break
        new[name] = tensor
    return new


@each_kind
def test_files_of_either_era_and_back(kind, tmp_path):
    """What transformers 5 holds in memory and what it writes, which is as transformers 4 did, are one model; export
    writes the latter, whose names are then given again as they came."""
    model = tiny(kind)
    config, variables = imported(VIT, model)
    config_json, tensors = their_checkpoint(model, tmp_path)
    assert any("encoder.layer.1.attention.attention.query.weight" in name for name in tensors)
    assert in_memory(tensors).keys() == dict(model.named_parameters()).keys() != tensors.keys()
    assert read_config(VIT, config_json, tensors) == config
    assert_same_variables(import_family(VIT, config, tensors), variables)
    assert_same_variables(import_family(VIT, config, in_memory(tensors)), variables)
    assert_same_tensors(export_family(VIT, config, variables), tensors)
    assert_same_tensors(export_family(VIT, config, variables, tensors), tensors)


@each_kind
def test_a_body_with_and_without_its_prefix(kind, tmp_path):
    model = tiny(kind)
    config, variables = imported(VIT, model)
    _, tensors = their_checkpoint(model, tmp_path)
    head = {name: each for name, each in tensors.items() if name.startswith("classifier.")}
    body = {name.removeprefix("vit."): each for name, each in tensors.items() if name not in head}
    for prefix in ("", "vit."):
        file = {f"{prefix}{name}": each for name, each in body.items()} | head
        assert read_config(VIT, model.config.to_dict(), file) == config
        assert_same_variables(import_family(VIT, config, file), variables)
        assert_same_tensors(export_family(VIT, config, variables, file), file)


def test_a_classifier_without_its_head_is_refused():
    model = tiny("classifier")
    config, _ = imported(VIT, model)
    body = {name: np.zeros(each.shape) for name, each in model.vit.named_parameters()}
    architectures = {"architectures": ["ViTForImageClassification"]}
    assert read_config(VIT, model.config.to_dict() | architectures, Renamed(body, VIT.renames)) == config
    with pytest.raises(UserError, match=r": classifier.bias is missing; classifier.weight is missing$"):
        import_family(VIT, config, body)


@each_kind
def test_transformers_loads_what_we_write(kind, tmp_path):
    config, variables = imported(VIT, tiny(kind))
    folder = our_checkpoint(VIT, config, variables, tmp_path)
    options = {"add_pooling_layer": False} if kind == "dino" else {}
    cls = ViTForImageClassification if kind == "classifier" else ViTModel
    model, loading = cls.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(loading.values()), loading
    image = np.random.default_rng(1).standard_normal((2, 8, 12, 3)).astype(np.float32)
    outputs = jax.jit(config.build().apply)(variables, image=jnp.asarray(image))
    with torch.no_grad():
        out = model.eval()(torch.tensor(image).permute(0, 3, 1, 2))
    if kind == "classifier":
        assert_close(outputs["logits"], out.logits)
    else:
        assert_close(outputs["image_features"], out.last_hidden_state)
    if kind == "pooler":
        assert_close(outputs["image_pooled"], out.pooler_output)
