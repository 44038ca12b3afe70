"""Models at another resolution against transformers' `interpolate_pos_encoding`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, ViTConfig, ViTForImageClassification

from jmm.errors import UserError
from jmm.interop import clip, vit
from jmm.interop.family import abstract
from jmm.interop.resolution import at_resolution
from jmm.models import decoder
from jmm.models.clip import VARIANTS
from tests.arrays import assert_close
from tests.interop.theirs import imported, perturbed_model

FAMILIES = {family.model_type: family for family in (*vit.FAMILIES, *clip.FAMILIES)}
TOWER = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 12,
    "patch_size": 4,
}
TEXT = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
MAKE = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**TOWER, num_labels=5)),
    "clip": lambda: CLIPModel(CLIPConfig(vision_config=TOWER, text_config=TEXT)),
    "siglip": lambda: SiglipModel(SiglipConfig(vision_config=TOWER, text_config=TEXT)),
}


def model_of(kind):
    torch.manual_seed(0)
    model = perturbed_model(MAKE[kind]())
    return model, *imported(FAMILIES[kind], model)


@pytest.mark.parametrize("size", [(20, 20), (8, 24)], ids=str)
@pytest.mark.parametrize("kind", MAKE)
def test_equals_transformers_and_the_interpolation_of_each_image(kind, size):
    model, config, variables = model_of(kind)
    resized, resized_variables = at_resolution(config, variables, size)
    assert resized.image.image_size == size
    assert replace(resized, image=config.image) == config
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), resized_variables)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract(resized))
    image = np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)
    pixels = torch.tensor(image).permute(0, 3, 1, 2)
    with torch.no_grad():
        if kind == "vit":
            name, expected = "logits", model(pixels, interpolate_pos_encoding=True).logits
        else:
            embed = model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
            name, expected = "image_embedding", embed / embed.norm(dim=-1, keepdim=True)
    once = jax.jit(resized.build().apply)(resized_variables, image=jnp.asarray(image))[name]
    each = jax.jit(config.build().apply)(variables, image=jnp.asarray(image))[name]
    assert_close(once, expected, what="interpolated once")
    assert_close(once, each, 1e-5, what="interpolated for each image")


def test_nothing_else_changes():
    _, config, variables = model_of("clip")
    variables = {**variables, "moving": {"mean": np.ones(3)}}
    before = jax.tree.map(np.copy, variables)
    _, resized = at_resolution(config, variables, (16, 8))
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    table = resized["params"]["image"]["positions"].pop("table")
    assert table.shape == (1 + 4 * 2, 12)
    np.testing.assert_array_equal(table[0], variables["params"]["image"]["positions"].pop("table")[0])
    jax.tree.map(np.testing.assert_array_equal, resized, variables)


def test_the_same_size_changes_nothing():
    _, config, variables = model_of("siglip")
    same, same_variables = at_resolution(config, variables, (12, 12))
    assert same == config
    jax.tree.map(np.testing.assert_array_equal, same_variables, variables)


def test_a_size_of_its_own_that_does_not_divide_stays():
    config = VARIANTS["siglip_so400m"]
    assert at_resolution(config, {"params": {}}, (384, 384)) == (config, {"params": {}})


def test_half_precision_stays():
    _, config, variables = model_of("vit")
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), variables)
    _, resized = at_resolution(config, half, (8, 8))
    assert {leaf.dtype for leaf in jax.tree.leaves(resized)} == {jnp.dtype(jnp.bfloat16)}


def test_fixed_positions_have_no_table():
    config = replace(VARIANTS["clip_b32"], image=replace(VARIANTS["clip_b32"].image, positions="sincos"))
    resized, variables = at_resolution(config, {"params": {}}, (64, 96))
    assert resized.image.image_size == (64, 96)
    assert variables == {"params": {}}


@pytest.mark.parametrize("size", [(16, 10), (10, 16), (0, 16), (16, -4)])
def test_a_size_that_does_not_divide_is_refused(size):
    _, config, variables = model_of("vit")
    with pytest.raises(UserError, match=f"images of {size[0]}×{size[1]} do not divide into patches of 4 pixels"):
        at_resolution(config, variables, size)


def test_a_model_without_images_is_refused():
    with pytest.raises(UserError, match="the model has no vision transformer"):
        at_resolution(decoder.VARIANTS["gpt2"], {"params": {}}, (224, 224))
