"""DINO's ViT against what facebookresearch/dino itself computed, at two resolutions (golden files)."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from safetensors import safe_open

from jmm.interop.family import abstract
from jmm.interop.resolution import at_resolution
from jmm.interop.table import import_tensors
from jmm.interop.vit import original_table
from jmm.models.vit import Config, ImageTower
from jmm.parts.transformer import TransformerConfig
from tests.arrays import assert_close

FOLDER = Path(os.environ.get("JMM_GOLDENS") or Path(__file__).parents[3] / "shared" / "goldens")
FILES = sorted(FOLDER.glob("dino*.safetensors"))


def test_there_is_a_golden_file():
    assert FILES, f"no file dino*.safetensors in {FOLDER}; JMM_GOLDENS names the folder"


def golden(path):
    """Config, variables, and all tensors of a file."""
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        size = json.loads(file.metadata()["config"])["vit"]
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
    prefix = "weights/vit."
    weights = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    return config, import_tensors(original_table(), weights, abstract(config)), tensors


def outputs_of(config, variables, image):
    return jax.jit(config.build().apply)(variables, image=jnp.asarray(image.transpose(0, 2, 3, 1)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tokens_and_class_token(path):
    config, variables, tensors = golden(path)
    outputs = outputs_of(config, variables, tensors["inputs/image"])
    assert_close(outputs["image_features"], tensors["outputs/tokens"], what="tokens")
    assert_close(outputs["image_pooled"], tensors["outputs/cls"], what="cls")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_larger_images(path):
    """DINO's interpolation adds 0.1 to the new grid; without that the class token is off by a thousandth and more."""
    config, variables, tensors = golden(path)
    image, expected = tensors["inputs/image_big"], tensors["outputs/cls_big"]
    larger = at_resolution(config, variables, image.shape[2:], offset=0.1)
    assert_close(outputs_of(*larger, image)["image_pooled"], expected, what="cls_big")
    with pytest.raises(AssertionError, match="without the offset: off by"):
        assert_close(outputs_of(config, variables, image)["image_pooled"], expected, 1e-3, "without the offset")
