"""What CLIP promises beyond parity: objectives, temperature, modalities, padding, poolings, bfloat16."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.models import clip, vit
from jmm.objectives.contrastive import sigmoid_contrastive, softmax_contrastive
from jmm.parts.pooling import AttentionPooling
from jmm.parts.positions import sincos_2d
from jmm.parts.transformer import TransformerConfig
from tests.arrays import abstract_params, assert_close, perturbed

ENCODER = TransformerConfig(width=16, depth=2, num_heads=2, mlp_dim=32)
CONFIG = clip.Config(vit.ImageTower(ENCODER, (8, 12), 4), clip.TextTower(ENCODER, 20, 6), embed_dim=10)
SIGMOID = replace(CONFIG, objective="sigmoid")
IMAGE = jnp.asarray(np.random.default_rng(1).standard_normal((3, 8, 12, 3)), jnp.float32)
TEXT = jnp.array([[1, 5, 2, 0, 0, 0], [1, 6, 7, 8, 9, 2], [1, 5, 6, 2, 0, 0]])
ENDS = np.array([2, 5, 3])
IMAGES, TEXTS = {"image": IMAGE}, {"text": TEXT, "text_mask": TEXT > 0}
BATCH = IMAGES | TEXTS


def params_of(config):
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_params(config))
    return perturbed(zeros, std=0.3)


@cache
def forward_of(config, dtype=jnp.float32):
    module = config.build(dtype)
    return jax.jit(lambda params, **batch: module.apply({"params": params}, **batch))


def outputs_of(config, batch, dtype=jnp.float32):
    return forward_of(config, dtype)(params_of(config), **batch)


def tower(**changes):
    return replace(CONFIG, image=replace(CONFIG.image, **changes))


# --- objectives and temperature ---


@pytest.mark.parametrize("config", [CONFIG, SIGMOID], ids=["softmax", "sigmoid"])
def test_loss_is_the_objective(config):
    module = config.build()

    @jax.jit
    def run(params):
        return config.loss(module, {"params": params}, BATCH, {}), module.apply({"params": params}, **BATCH)

    loss, outputs = run(params_of(config))
    image, text, scale = (outputs[name] for name in ("image_embedding", "text_embedding", "logit_scale"))
    if config is SIGMOID:
        expected = sigmoid_contrastive(image, text, scale, outputs["logit_bias"])
    else:
        expected = softmax_contrastive(image, text, scale)
    assert_close(loss.value, expected, 1e-5)
    assert loss.metrics == {"loss": loss.value, "logit_scale": scale}
    assert loss.updates == {}


def test_only_the_sigmoid_objective_has_a_bias():
    assert "logit_bias" not in params_of(CONFIG)
    assert "logit_bias" not in outputs_of(CONFIG, TEXTS)
    assert outputs_of(SIGMOID, TEXTS)["logit_bias"] == params_of(SIGMOID)["logit_bias"]


@pytest.mark.parametrize(
    ("config", "scale", "bias"), [(CONFIG, 1 / 0.07, None), (SIGMOID, 10, -10)], ids=["softmax", "sigmoid"]
)
def test_temperature_starts_as_in_the_paper(config, scale, bias):
    @jax.jit
    def start():
        outputs, _ = config.build().init_with_output(jax.random.key(0), **BATCH)
        return outputs["logit_scale"], outputs.get("logit_bias")

    assert_close(start()[0], scale, 1e-6)
    assert start()[1] == bias


@pytest.mark.parametrize(
    ("learned", "scale"), [(math.log(50), 50), (math.log(100), 100), (math.log(101), 100), (9.0, 100)]
)
def test_logit_scale_is_at_most_100(learned, scale):
    params = params_of(CONFIG) | {"logit_scale": np.float32(learned)}
    assert_close(forward_of(CONFIG)(params, **TEXTS)["logit_scale"], scale, 1e-5)


# --- modalities ---


def test_one_modality_alone_gives_its_outputs_and_no_others():
    both, image, text = (outputs_of(CONFIG, batch) for batch in (BATCH, IMAGES, TEXTS))
    assert image.keys() == {"image_features", "image_embedding", "logit_scale"}
    assert text.keys() == {"text_features", "text_embedding", "logit_scale"}
    assert both.keys() == image.keys() | text.keys()
    for name, value in (image | text).items():
        assert_close(value, both[name], 1e-5, name)


def test_embeddings_have_unit_length():
    outputs = outputs_of(CONFIG, BATCH)
    for name in ("image_embedding", "text_embedding"):
        assert outputs[name].shape == (3, 10)
        assert_close(np.linalg.norm(outputs[name], axis=1), np.ones(3), 1e-6, name)


def test_what_follows_the_end_of_the_text_does_not_matter():
    expected = outputs_of(CONFIG, TEXTS)["text_embedding"]
    padded = TEXTS | {"text": jnp.where(TEXT > 0, TEXT, 13)}
    np.testing.assert_array_equal(outputs_of(CONFIG, padded)["text_embedding"], expected)
    other = outputs_of(CONFIG, TEXTS | {"text": TEXT.at[:, 1].set(13)})["text_embedding"]
    assert np.abs(other - expected).max(axis=1).min() > 1e-3


# --- poolings and positions ---


def projected(pooled, params):
    embedding = pooled @ params["image_projection"]["kernel"]
    return embedding / np.linalg.norm(embedding, axis=1, keepdims=True)


def test_class_pooling_reads_the_class_token():
    outputs = outputs_of(CONFIG, IMAGES)
    assert outputs["image_features"].shape == (3, 1 + 6, 16)
    assert_close(outputs["image_embedding"], projected(outputs["image_features"][:, 0], params_of(CONFIG)), 1e-5)


def test_mean_pooling_averages_the_patches():
    config = tower(pool="mean")
    outputs, params = outputs_of(config, IMAGES), params_of(config)
    assert "class_token" not in params["image"]
    assert outputs["image_features"].shape == (3, 6, 16)
    assert_close(outputs["image_embedding"], projected(outputs["image_features"].mean(axis=1), params), 1e-5)


def test_attention_pooling_asks_a_probe():
    config = tower(pool="attention")
    outputs, params = outputs_of(config, IMAGES), params_of(config)
    assert "class_token" not in params["image"]
    pool = AttentionPooling(num_heads=2, mlp_dim=32, activation="gelu", norm_eps=1e-6)
    pooled = jax.jit(pool.apply)({"params": params["image"]["pool"]}, outputs["image_features"])
    assert_close(outputs["image_embedding"], projected(pooled, params), 1e-5)


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_sincos_positions_are_a_fixed_table_of_the_patches(pool):
    """A class token has no position."""
    fixed, learned = tower(positions="sincos", pool=pool), tower(pool=pool)
    params, prefix = params_of(fixed), int(pool == "class")
    table = np.concatenate([np.zeros((prefix, 16)), sincos_2d((2, 3), 16)]).astype(np.float32)
    same = params | {"image": params["image"] | {"positions": {"table": table}}}
    expected = forward_of(learned)(same, image=IMAGE)
    assert_close(outputs_of(fixed, IMAGES)["image_features"], expected["image_features"], 1e-5)


# --- bfloat16 ---


@pytest.mark.parametrize("pool", ["class", "attention"])
def test_bfloat16_is_near_float32(pool):
    config = tower(pool=pool)
    exact, outputs = outputs_of(config, BATCH), outputs_of(config, BATCH, jnp.bfloat16)
    for name in ("image_embedding", "text_embedding", "logit_scale"):
        assert outputs[name].dtype == jnp.float32, name
    for name in ("image_features", "text_features"):
        assert outputs[name].dtype == jnp.bfloat16, name
    for name, value in outputs.items():
        # Some twenty roundings of 2⁻⁹ follow one another and add up as their root: 2⁻⁷, with a margin of 4.
        assert_close(value, exact[name], 2**-5, name)


# --- SigLIP's choices, each on its own ---


def text_tower(**changes):
    return replace(CONFIG, text=replace(CONFIG.text, **changes))


def test_a_full_mask_lets_every_token_see_every_other():
    for mask, sees in (("causal", False), ("full", True)):
        features = [outputs_of(text_tower(mask=mask), TEXTS | {"text": text})["text_features"] for text in LAST]
        assert (np.abs(features[0] - features[1])[:, :-1].max() > 1e-3) == sees


LAST = (TEXT, TEXT.at[:, -1].set(13))


@pytest.mark.parametrize("pool", ["end", "last"])
def test_the_pooled_token(pool):
    config = text_tower(pool=pool)
    outputs, params = outputs_of(config, TEXTS), params_of(config)
    at = ENDS if pool == "end" else 5
    expected = outputs["text_features"][np.arange(3), at] @ params["text_projection"]["kernel"]
    assert_close(outputs["text_embedding"], expected / np.linalg.norm(expected, axis=1, keepdims=True), 1e-5)


def test_the_bias_of_the_projection_of_texts():
    config = text_tower(projection_bias=True)
    outputs, params = outputs_of(config, TEXTS), params_of(config)
    assert "bias" not in params["image_projection"]
    pooled = outputs["text_features"][np.arange(3), ENDS]
    expected = pooled @ params["text_projection"]["kernel"] + params["text_projection"]["bias"]
    assert_close(outputs["text_embedding"], expected / np.linalg.norm(expected, axis=1, keepdims=True), 1e-5)


def test_without_a_projection_the_image_is_its_pooled_vector():
    config = replace(CONFIG, embed_dim=16, image_projection=False)
    outputs = outputs_of(config, IMAGES)
    assert "image_projection" not in params_of(config)
    pooled = outputs["image_features"][:, 0]
    assert_close(outputs["image_embedding"], pooled / np.linalg.norm(pooled, axis=1, keepdims=True), 1e-5)
    with pytest.raises(ValueError, match="without image_projection embed_dim must be the image's width, 16"):
        jax.eval_shape(lambda: replace(config, embed_dim=10).build().init(jax.random.key(0), **IMAGES))


def test_the_sigmoid_has_no_bound_of_its_scale():
    params = params_of(SIGMOID) | {"logit_scale": np.float32(math.log(117))}
    assert_close(forward_of(SIGMOID)(params, **TEXTS)["logit_scale"], 117, 1e-5)


# --- texts without masks ---


@pytest.mark.parametrize("end", [2, 13])
def test_a_text_without_a_mask_ends_at_its_first_end(end):
    """A row without an end is read to its last position."""
    text = jnp.array([[1, 5, end, end, 7, 0], [1, 6, 7, 8, 9, end], [1, 5, 6, 8, 0, 4]])
    mask = jnp.arange(6) <= jnp.array([[2], [5], [5]])
    expected = outputs_of(CONFIG, {"text": text, "text_mask": mask})["text_embedding"]
    np.testing.assert_array_equal(outputs_of(text_tower(end_token=end), {"text": text})["text_embedding"], expected)


def test_a_mask_goes_before_the_end():
    expected = outputs_of(CONFIG, TEXTS)["text_embedding"]
    np.testing.assert_array_equal(outputs_of(text_tower(end_token=5), TEXTS)["text_embedding"], expected)


def test_a_text_needs_a_mask_or_an_end():
    with pytest.raises(ValueError, match="text and text_mask go together"):
        jax.eval_shape(lambda: CONFIG.build().init(jax.random.key(0), text=TEXT))
