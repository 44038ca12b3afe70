"""config.json and names of CLIP and SigLIP in both directions, and what is refused of them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from jmm.errors import UserError
from jmm.interop.clip import FAMILIES
from jmm.interop.family import export_family, import_family, read_config, write_config
from jmm.models.clip import VARIANTS, TextTower
from tests.arrays import assert_close
from tests.interop.theirs import (
    assert_same_tensors,
    assert_same_variables,
    imported,
    our_checkpoint,
    perturbed_model,
    their_checkpoint,
)

CLIP, SIGLIP = FAMILIES
B32 = {
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 512,
    "text_config": {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 8,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "vocab_size": 49408,
    },
    "text_config_dict": None,
    "vision_config": {
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "image_size": 224,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "patch_size": 32,
    },
    "vision_config_dict": None,
}
"""openai/clip-vit-base-patch32."""
L14 = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "eos_token_id": 49407},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}
SIGLIP_BASE = {
    "architectures": ["SiglipModel"],
    "initializer_factor": 1.0,
    "model_type": "siglip",
    "text_config": {"model_type": "siglip_text_model"},
    "vision_config": {"model_type": "siglip_vision_model"},
}
"""google/siglip-base-patch16-224."""
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}
SIGLIP_SO400M = SIGLIP_BASE | {"text_config": SO400M, "vision_config": SO400M | {"image_size": 384, "patch_size": 14}}
SIGLIP_VARIANTS = {name for name in VARIANTS if name.startswith("siglip")}

# --- config.json ---


def with_part(config_json, part, **fields):
    return config_json | {part: config_json[part] | fields}


@pytest.mark.parametrize(
    ("family", "config_json", "variant"),
    [
        (CLIP, B32, "clip_b32"),
        (CLIP, {}, "clip_b32"),
        (CLIP, with_part(B32, "vision_config", patch_size=16), "clip_b16"),
        (CLIP, L14, "clip_l14"),
        (CLIP, with_part(L14, "vision_config", image_size=336), "clip_l14_336"),
        (CLIP, L14 | {"text_config": {}, "text_config_dict": L14["text_config"]}, "clip_l14"),
        (CLIP, B32 | {"text_config": L14["text_config"], "text_config_dict": {}}, "clip_b32"),
        (SIGLIP, SIGLIP_BASE, "siglip_base"),
        (SIGLIP, SIGLIP_SO400M, "siglip_so400m"),
    ],
)
def test_a_published_config_is_our_variant(family, config_json, variant):
    assert read_config(family, config_json) == VARIANTS[variant]
    if config_json.get("text_config_dict") != {}:
        return
    # transformers reads it so, too
    theirs = CLIPConfig(**{name: value for name, value in config_json.items() if name != "architectures"})
    assert read_config(family, theirs.to_dict()) == VARIANTS[variant]


RESNETS = {name for name in VARIANTS if name.startswith("clip_rn")}


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - RESNETS))
def test_what_is_written_is_read(name):
    family, make = (SIGLIP, SiglipConfig) if name in SIGLIP_VARIANTS else (CLIP, CLIPConfig)
    written = write_config(family, VARIANTS[name])
    assert read_config(family, make(**written).to_dict()) == VARIANTS[name]


@pytest.mark.parametrize(
    ("vocab_size", "end", "expected"),
    [(49_408, 2, 49_407), (49_410, 2, 49_407), (99, 2, 98), (99, 5, 5), (8, None, 49_407)],
)
def test_end_of_a_text(vocab_size, end, expected):
    """OpenAI's files say 2 and mean the highest id of their vocabulary; rows added to it since end no text."""
    config = read_config(CLIP, with_part(B32, "text_config", vocab_size=vocab_size, eos_token_id=end))
    assert config.text.end_token == expected
    assert write_config(CLIP, config)["text_config"]["eos_token_id"] == expected


@pytest.mark.parametrize(
    ("family", "config_json", "says"),
    [
        (CLIP, B32 | {"architectures": ["CLIPVisionModel"]}, "architectures in config.json has 'CLIPVisionModel'"),
        (CLIP, B32 | {"projection_dim": "512"}, "projection_dim in config.json is '512'"),
        (CLIP, B32 | {"text_config": "tiny"}, "text_config in config.json is 'tiny'; it must be an object"),
        (
            CLIP,
            with_part(B32, "text_config", num_attention_heads=7),
            "text_config: num_attention_heads in config.json is 7, which does not divide hidden_size 512",
        ),
        (
            CLIP,
            with_part(B32, "vision_config", image_size=[224, 160]),
            "vision_config: image_size in config.json is [224, 160], which is not supported; a square is",
        ),
        (
            CLIP,
            with_part(B32, "text_config", eos_token_id=[2, 3]),
            "text_config: eos_token_id in config.json is [2, 3]; it must be a positive whole number",
        ),
        (
            SIGLIP,
            with_part(SIGLIP_BASE, "vision_config", vision_use_head=False),
            "vision_config: vision_use_head in config.json is False, which is not supported; True is",
        ),
        (
            SIGLIP,
            with_part(SIGLIP_BASE, "text_config", hidden_size=384),
            "projection_size in config.json is 384; it must be the images' 768",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(family, config_json, says):
    with pytest.raises(UserError) as caught:
        read_config(family, config_json)
    message = str(caught.value)
    assert message.startswith(says)
    assert "\n" not in message and ". " not in message


B32_IMAGE, B32_TEXT = VARIANTS["clip_b32"].image, VARIANTS["clip_b32"].text


@pytest.mark.parametrize(
    ("family", "config", "says"),
    [
        (
            CLIP,
            VARIANTS["siglip_base"],
            "text.mask is 'full', they would have 'causal'; text.pool is 'last', they would",
        ),
        (CLIP, replace(VARIANTS["clip_b32"], text=replace(B32_TEXT, end_token=2)), "text.end_token is 2, they would"),
        (CLIP, replace(VARIANTS["clip_b32"], text=replace(B32_TEXT, pool="last")), "text.pool is 'last', they would"),
        (CLIP, replace(VARIANTS["clip_b32"], objective="sigmoid"), "objective is 'sigmoid', they would have 'softmax'"),
        (
            CLIP,
            replace(VARIANTS["clip_b32"], image=replace(B32_IMAGE, pool="mean")),
            "image.pool is 'mean', they would",
        ),
        (
            CLIP,
            replace(VARIANTS["clip_b32"], image=replace(B32_IMAGE, image_size=(224, 160))),
            "image.image_size is (224, 160), they",
        ),
        (
            SIGLIP,
            VARIANTS["clip_b32"],
            "embed_dim is 512, they would have 768; image_projection is True, they would have",
        ),
        (SIGLIP, VARIANTS["clip_b32"], "objective is 'softmax', they would have 'sigmoid'"),
        (
            SIGLIP,
            replace(VARIANTS["siglip_base"], image_projection=True),
            "image_projection is True, they would have F",
        ),
    ],
)
def test_what_they_cannot_express_is_refused_by_name(family, config, says):
    with pytest.raises(UserError) as caught:
        write_config(family, config)
    assert says in str(caught.value)


@pytest.mark.parametrize("family", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_residual_networks_are_refused(family):
    with pytest.raises(UserError, match="transformers has no CLIP with a residual network"):
        write_config(family, VARIANTS["clip_rn50"])


def test_what_the_loss_alone_reads_is_left_out():
    config = replace(VARIANTS["clip_b32"], equal_captions="positives")
    assert write_config(CLIP, config) == write_config(CLIP, VARIANTS["clip_b32"])


# --- names ---


def encoder(width, depth, heads):
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 2 * width,
    }


VISION = {**encoder(20, 2, 5), "image_size": 12, "patch_size": 4}
KINDS = {"clip": (CLIP, CLIPConfig, CLIPModel), "siglip": (SIGLIP, SiglipConfig, SiglipModel)}
each_kind = pytest.mark.parametrize("kind", KINDS)


def tiny(kind):
    _, make_config, make_model = KINDS[kind]
    text = encoder(12, 3, 3) | {"vocab_size": 30, "max_position_embeddings": 7, "eos_token_id": 29, "bos_token_id": 28}
    text |= {"projection_size": 20} if kind == "siglip" else {}
    more = {"projection_dim": 10} if kind == "clip" else {}
    torch.manual_seed(0)
    return perturbed_model(make_model(make_config(vision_config=VISION, text_config=text, **more)))


@each_kind
def test_files_of_either_era_and_back(kind, tmp_path):
    """The names have stayed; old files hold numbers of positions besides."""
    family, model = KINDS[kind][0], tiny(kind)
    config, variables = imported(family, model)
    config_json, tensors = their_checkpoint(model, tmp_path)
    assert read_config(family, config_json, tensors) == config
    assert_same_variables(import_family(family, config, tensors), variables)
    assert_same_tensors(export_family(family, config, variables), tensors)
    ids = {f"{tower}_model.embeddings.position_ids": np.arange(7)[None] for tower in ("text", "vision")}
    assert_same_variables(import_family(family, config, tensors | ids), variables)
    with pytest.raises(UserError, match=r": text_model.embeddings.position is left over$"):
        import_family(family, config, tensors | {"text_model.embeddings.position": np.ones(3)})


@each_kind
def test_transformers_loads_what_we_write(kind, tmp_path):
    family, _, make_model = KINDS[kind]
    config, variables = imported(family, tiny(kind))
    folder = our_checkpoint(family, config, variables, tmp_path)
    model, loading = make_model.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    rng = np.random.default_rng(1)
    image = rng.standard_normal((3, 12, 12, 3)).astype(np.float32)
    text = rng.integers(1, 28, (3, 7)).astype(np.int32)
    text[0, 3:], text[1, 6:], text[2, 5:] = 29, 29, 29
    mask = np.arange(7) <= np.array([[3], [6], [5]])
    batch = {"image": jnp.asarray(image), "text": jnp.asarray(text), "text_mask": jnp.asarray(mask)}
    outputs = jax.jit(config.build().apply)(variables, **batch)
    with torch.no_grad():
        out = model.eval()(
            input_ids=torch.tensor(text).long(),
            attention_mask=torch.tensor(mask).long(),
            pixel_values=torch.tensor(image).permute(0, 3, 1, 2),
        )
    assert_close(outputs["image_embedding"], out.image_embeds)
    assert_close(outputs["text_embedding"], out.text_embeds)
    logits = outputs["logit_scale"] * outputs["image_embedding"] @ outputs["text_embedding"].T
    assert_close(logits + outputs.get("logit_bias", 0), out.logits_per_image)


def test_parts_of_the_probe_lie_along_the_outputs():
    """Queries, keys and values of the attention that pools are one tensor there."""
    model = tiny("siglip")
    _, variables = imported(SIGLIP, model)
    fused = model.vision_model.head.attention.in_proj_weight.detach().numpy()
    for index, name in enumerate(("query", "key", "value")):
        ours = variables["params"]["image"]["pool"]["attention"][name]["kernel"]
        np.testing.assert_array_equal(ours.reshape(20, 20), fused[20 * index : 20 * index + 20].T)


def test_a_text_tower_of_our_own_needs_its_end():
    """The default knows of no id; masks say where texts end."""
    config = replace(VARIANTS["clip_b32"], text=TextTower(B32_TEXT.encoder))
    with pytest.raises(UserError, match=r"model: text.end_token is None, they would have 49407$"):
        write_config(CLIP, config)
