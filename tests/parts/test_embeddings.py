"""Patch embedding against a torch convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jmm.parts.embeddings import PatchEmbedding
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
