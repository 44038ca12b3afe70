"""Patch embedding against a torch convolution."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jmm.parts.embeddings import ConvolutionalPatches, PatchEmbedding
from tests.arrays import assert_close
from tests.parts.torch_params import perturbed_layer


@pytest.mark.parametrize(("shape", "patch"), [((2, 8, 12, 3), 4), ((1, 6, 6, 1), 3), ((3, 5, 10, 2), 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_a_convolution_whose_stride_is_its_size(shape, patch, bias):
    theirs = perturbed_layer(torch.nn.Conv2d(shape[3], 7, patch, stride=patch, bias=bias))
    params = {"kernel": jnp.asarray(theirs.weight.detach().float().permute(2, 3, 1, 0))}
    if bias:
        params["bias"] = jnp.asarray(theirs.bias.detach().float())
    image = np.random.default_rng(0).standard_normal(shape)
    module = PatchEmbedding(7, patch, use_bias=bias)
    out = jax.jit(module.apply)({"params": {"projection": params}}, jnp.asarray(image, jnp.float32))
    assert_close(out, theirs(torch.tensor(image).permute(0, 3, 1, 2)).detach().permute(0, 2, 3, 1), 1e-5)


@pytest.mark.parametrize("size", [(8, 10), (10, 8)])
def test_image_that_does_not_divide_into_patches_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}×{size[1]} does not divide into patches of 4×4"):
        PatchEmbedding(7, 4).init(jax.random.key(0), jnp.zeros((1, *size, 3)))


def test_convolutional_patches_overlap_and_keep_their_places():
    module, image = (
        ConvolutionalPatches(8, 4),
        np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32),
    )
    variables = module.init(jax.random.key(0), jnp.asarray(image))
    shapes = {name: each["kernel"].shape for name, each in variables["params"].items() if "kernel" in each}
    assert shapes == {"conv1": (3, 3, 3, 4), "conv2": (3, 3, 4, 8), "projection": (8, 8)}
    before = np.asarray(module.apply(variables, jnp.asarray(image)))
    image[0, 3, 4] += 1.0  # the last row of the upper patches, the first column of the second
    moved = np.abs(np.asarray(module.apply(variables, jnp.asarray(image))) - before).max(axis=-1) > 1e-6
    assert before.shape == (2, 2, 3, 8) and not moved[1].any()
    assert moved[0].tolist() == [[False, True, False], [False, True, False]], "3 of 4 pixels reach below, none left"


def test_between_the_first_and_the_last_halving_convolutions_come_in_pairs():
    variables = jax.eval_shape(ConvolutionalPatches(16, 16).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    kernels = [variables["params"][f"conv{number}"]["kernel"].shape[2:] for number in range(1, 7)]
    assert kernels == [(3, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16)] and "conv7" not in variables["params"]


def test_convolutional_patches_learn_the_statistics_of_the_images_that_count():
    module, rows = ConvolutionalPatches(8, 4), jnp.array([True, True, False])
    image = np.random.default_rng(0).standard_normal((3, 8, 12, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), jnp.asarray(image))
    alone, seen = module.apply(variables, jnp.asarray(image[:2]), train=True, mutable=["batch_stats"])
    beside, moved = module.apply(variables, jnp.asarray(image), train=True, rows=rows, mutable=["batch_stats"])
    assert_close(beside[:2], alone, 1e-6)
    chex.assert_trees_all_close(moved, seen, rtol=1e-6)
    assert seen["batch_stats"]["norm1"]["count"] == 1 and np.abs(seen["batch_stats"]["norm2"]["mean"]).max() > 0.01


@pytest.mark.parametrize(
    ("width", "patch", "says"),
    [(8, 6, "make no patches of 6×6"), (8, 1, "make no patches of 1×1"), (6, 8, "3 convolutions up to a width of 6")],
)
def test_convolutional_patches_that_cannot_be(width, patch, says):
    with pytest.raises(ValueError, match=says):
        ConvolutionalPatches(width, patch).init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))


def test_convolutional_patches_of_an_image_that_does_not_divide():
    with pytest.raises(ValueError, match="8×10 does not divide into patches of 4×4"):
        ConvolutionalPatches(8, 4).init(jax.random.key(0), jnp.zeros((1, 8, 10, 3)))
