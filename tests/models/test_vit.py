"""What ViT promises beyond parity: with and without head and pooler, pixels that no patch takes, hybrids."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.packing import pack, patches_of
from jmm.errors import UserError
from jmm.kernels import masks
from jmm.models import vit
from jmm.parts.positions import sincos_2d
from jmm.parts.resnet import ModifiedResNet
from jmm.parts.transformer import Transformer, TransformerConfig
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


# Most of the time is the compiler's.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
HYBRID = vit.ImageTower(ENCODER, (16, 24), 8, stages=(1, 1), stage_width=4, pool="mean")
IMAGES = jnp.asarray(np.random.default_rng(2).standard_normal((3, 16, 24, 3)), jnp.float32)


def hybrid_variables():
    variables = jit(vit.ImageEncoder(HYBRID).init)(jax.random.key(0), IMAGES)
    return {**variables, "params": perturbed(variables["params"], std=0.3)}


def test_the_stages_of_a_hybrid_make_its_tokens():
    variables = hybrid_variables()
    tokens, _ = jit(vit.ImageEncoder(HYBRID).apply)(variables, IMAGES)
    alone = vit.ImageEncoder(replace(HYBRID, stages=(), patch_size=1, image_size=(2, 3)))
    network = jit(ModifiedResNet((1, 1), 4).apply)(
        {kind: variables[kind]["stages"] for kind in ("params", "batch_stats")}, IMAGES
    )
    assert network.shape == (3, 2, 3, 32) and tokens.shape == (3, 6, 12)
    kept = {name: variables["params"][name] for name in ("encoder", "positions")}
    linear = {"kernel": variables["params"]["projection"]["kernel"][None, None]}
    linear["bias"] = variables["params"]["projection"]["bias"]
    expected, _ = jit(alone.apply)({"params": {**kept, "patches": {"projection": linear}}}, network)
    assert_close(tokens, expected, 1e-5)


def test_a_hybrid_learns_the_statistics_of_the_images_that_count():
    variables, module = hybrid_variables(), vit.ImageEncoder(HYBRID)
    learn = jit(lambda images, rows: module.apply(variables, images, train=True, rows=rows, mutable=["batch_stats"]))
    rows, changed = jnp.array([True, True, False]), IMAGES.at[2].multiply(9.0)
    (tokens, _), seen = learn(IMAGES, rows)
    (again, _), other = learn(changed, rows)
    np.testing.assert_array_equal(again[:2], tokens[:2])
    chex.assert_trees_all_close(other, seen)
    config = vit.Config(HYBRID, num_classes=5)
    start = jit(config.build().init)(jax.random.key(0), image=IMAGES)
    loss = jit(lambda batch: config.loss(config.build(), start, batch, {}))
    updates = loss({"image": IMAGES, "label": jnp.arange(3)}).updates
    assert updates["batch_stats"]["image"]["stages"]["stem"]["norm1"]["count"] == 1


@pytest.mark.parametrize(
    ("tower", "says"),
    [
        (replace(HYBRID, patch_size=4), "2 stages make patches of 8×8, not of patch_size 4"),
        (replace(HYBRID, image_size=(16, 20)), "an image of 16×20 does not divide into patches of 8×8"),
    ],
)
def test_a_hybrid_that_cannot_be(tower, says):
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(vit.ImageEncoder(tower).init, jax.random.key(0), IMAGES[:, :, : tower.image_size[1]])


# --- images of several sizes in one row ---


def test_packed_patches_give_the_features_of_every_image_alone():
    """Patch projection, positions of rows and columns, and a transformer whose mask tells segments apart (Dehghani et
    al. 2023, section 2.1): the parts there are, with the weights of the tower."""
    tower = vit.ImageTower(replace(ENCODER, depth=2), (8, 8), 4, positions="sincos", pool="none")
    rng = np.random.default_rng(3)
    images = [rng.standard_normal((4 * h, 4 * w, 3)).astype(np.float32) for h, w in ((2, 3), (1, 1), (3, 2), (1, 4))]
    encoder = vit.ImageEncoder(tower)
    params = perturbed(jit(encoder.init)(jax.random.key(0), images[0][None])["params"], std=0.3)
    batch = pack([patches_of(image, 4) for image in images], {"patches": 12}, np.array([0, 1, 0, 1]))
    projection, (row, column) = params["patches"]["projection"], np.moveaxis(batch["patch_position"], -1, 0)
    x = batch["patches"] @ projection["kernel"].reshape(-1, 12) + projection["bias"]
    x = x + sincos_2d((4, 4), 12).reshape(4, 4, 12)[row, column]
    segment = jnp.asarray(batch["patch_segment"])
    transformer, mask = Transformer(tower.encoder), masks.segments(segment, segment)
    packed = jit(lambda x: transformer.apply({"params": params["encoder"]}, x, mask=mask))(x)
    for image, place in zip(images, ((0, 1), (1, 1), (0, 2), (1, 2)), strict=True):
        alone, _ = jit(encoder.apply)({"params": params}, image[None])
        assert_close(packed[place[0]][batch["patch_segment"][place[0]] == place[1]], alone[0], 1e-5)
