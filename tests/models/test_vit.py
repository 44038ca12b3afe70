"""What ViT promises beyond parity: with and without head and pooler, pixels that no patch takes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.errors import UserError
from jmm.models import vit
from jmm.parts.transformer import TransformerConfig
from tests.arrays import abstract_params, assert_close, perturbed

ENCODER = TransformerConfig(width=12, depth=1, num_heads=3, mlp_dim=20)
CONFIG = vit.Config(vit.ImageTower(ENCODER, (8, 12), 4), num_classes=5)
IMAGE = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 12, 3)), jnp.float32)


def params_of(config):
    return perturbed(jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_params(config)), std=0.3)


def outputs_of(config, image=IMAGE):
    return jax.jit(config.build().apply)({"params": params_of(config)}, image=image)


def test_without_a_head_there_are_neither_logits_nor_labels():
    config = replace(CONFIG, num_classes=None)
    assert outputs_of(config).keys() == {"image_features", "image_pooled"}
    assert params_of(config).keys() == {"image"}
    assert config.batch_spec(3).keys() == {"image"}
    assert CONFIG.batch_spec(3).keys() == {"image", "label"}


def test_without_a_head_there_is_no_loss():
    config = replace(CONFIG, num_classes=None)
    with pytest.raises(UserError, match=r"model.num_classes is None, so there is no head to train"):
        config.loss(config.build(), {"params": params_of(config)}, {"image": IMAGE}, {})


def test_the_head_reads_what_the_pooler_gives():
    config = replace(CONFIG, pooler=True)
    outputs, params = outputs_of(config), params_of(config)
    layer = params["pooler"]
    pooled = np.tanh(outputs["image_features"][:, 0] @ layer["kernel"] + layer["bias"])
    assert_close(outputs["image_pooled"], pooled, 1e-5)
    assert_close(outputs["logits"], pooled @ params["head"]["kernel"] + params["head"]["bias"], 1e-5)


def test_pixels_that_no_patch_takes_are_not_read():
    larger = jnp.pad(IMAGE, ((0, 0), (0, 2), (0, 3), (0, 0)), constant_values=7.0)
    config = replace(CONFIG, image=replace(CONFIG.image, image_size=larger.shape[1:3], crop=True))
    expected = outputs_of(CONFIG)
    for name, value in outputs_of(config, larger).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    with pytest.raises(ValueError, match="an image of 10×15 does not divide into patches of 4×4"):
        jax.eval_shape(lambda: CONFIG.build().init(jax.random.key(0), image=larger))
