"""DINO's ViT against what facebookresearch/dino itself computed, at two resolutions (golden files)."""

import jax
import jax.numpy as jnp
import pytest

from jmm.interop.family import abstract
from jmm.interop.resolution import at_resolution
from jmm.interop.table import import_tensors
from jmm.interop.vit import original_table
from jmm.models.vit import Config, ImageTower
from jmm.parts.transformer import TransformerConfig
from tests.arrays import assert_close
from tests.goldens import golden_files, read_golden

each_file = pytest.mark.parametrize("path", golden_files("dino"), ids=lambda path: path.stem)


def model_of(path):
    """Config, variables, inputs and outputs."""
    golden = read_golden(path)
    size, prefix = golden.config["vit"], "vit."
    width = size["embed_dim"]
    encoder = TransformerConfig(
        width,
        size["depth"],
        size["num_heads"],
        int(size["mlp_ratio"] * width),
        norm_eps=1e-6,
        qkv_bias=None if size["qkv_bias"] else False,
    )
    config = Config(ImageTower(encoder, (size["img_size"][0],) * 2, size["patch_size"]), num_classes=None)
    weights = {name.removeprefix(prefix): each for name, each in golden.weights.items() if name.startswith(prefix)}
    variables = import_tensors(original_table(), weights, abstract(config))
    return config, variables, golden.inputs, golden.outputs


def outputs_of(config, variables, image):
    return jax.jit(config.build().apply)(variables, image=jnp.asarray(image.transpose(0, 2, 3, 1)))


@each_file
def test_tokens_and_class_token(path):
    config, variables, inputs, outputs = model_of(path)
    ours = outputs_of(config, variables, inputs["image"])
    assert_close(ours["image_features"], outputs["tokens"], what="tokens")
    assert_close(ours["image_pooled"], outputs["cls"], what="cls")


@each_file
def test_larger_images(path):
    """DINO's interpolation adds 0.1 to the new grid; without that the class token is off by a thousandth and more."""
    config, variables, inputs, outputs = model_of(path)
    image, expected = inputs["image_big"], outputs["cls_big"]
    larger = at_resolution(config, variables, image.shape[2:], offset=0.1)
    assert_close(outputs_of(*larger, image)["image_pooled"], expected, what="cls_big")
    with pytest.raises(AssertionError, match="without the offset: off by"):
        assert_close(outputs_of(config, variables, image)["image_pooled"], expected, 1e-3, "without the offset")
