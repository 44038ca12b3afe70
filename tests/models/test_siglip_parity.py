"""SigLIP against `transformers.SiglipModel` with the same weights, every one perturbed: outputs, loss, gradients."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from jmm.interop.clip import FAMILIES
from tests.arrays import assert_close
from tests.interop.theirs import assert_same_gradients, imported, perturbed_model

SIGLIP = {family.model_type: family for family in FAMILIES}["siglip"]
CASES = {
    # vision: width, depth, heads, image, patch · text: width, depth, heads, length · activation · size
    "published": ((32, 2, 4, 16, 4), (32, 2, 4, 12), "gelu_pytorch_tanh", (16, 16)),
    "odd heads, interpolated": ((30, 3, 3, 18, 6), (40, 2, 5, 9), "gelu", (12, 24)),
    "pixels that no patch takes": ((24, 1, 2, 30, 14), (28, 3, 7, 16), "gelu_pytorch_tanh", (30, 30)),
}


@cache
def reference(case):
    """Their model, and our config and variables from it."""
    vision, text, activation, _ = CASES[case]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    config = SiglipConfig(
        vision_config={
            **dict(zip((*names, "image_size", "patch_size"), vision, strict=True)),
            "intermediate_size": 2 * vision[0],
            "hidden_act": activation,
        },
        text_config={
            **dict(zip((*names, "max_position_embeddings"), text, strict=True)),
            "intermediate_size": 2 * text[0],
            "projection_size": vision[0],
            "hidden_act": activation,
            "vocab_size": 50,
        },
    )
    torch.manual_seed(0)
    model = perturbed_model(SiglipModel(config))
    with torch.no_grad():  # published models are beyond CLIP's bound of 100
        model.logit_scale += 5
    return model, *imported(SIGLIP, model)


def batch_of(case):
    """Two rows end with padding that the mask hides."""
    rng, length = np.random.default_rng(1), CASES[case][1][3]
    mask = np.arange(length) < np.array([[4], [length], [7]])
    text = np.where(mask, rng.integers(2, 50, mask.shape), 1).astype(np.int32)
    image = rng.standard_normal((3, *CASES[case][3], 3)).astype(np.float32)
    return {"image": image, "text": text, "text_mask": mask}


@pytest.mark.parametrize("case", CASES)
def test_siglip_equals_transformers(case):
    model, config, variables = reference(case)
    batch = batch_of(case)
    out = model(
        input_ids=torch.tensor(batch["text"]).long(),
        attention_mask=torch.tensor(batch["text_mask"]).long(),
        pixel_values=torch.tensor(batch["image"]).permute(0, 3, 1, 2),
        interpolate_pos_encoding=CASES[case][3] != config.image.image_size,
        return_loss=True,
    )
    out.loss.backward()
    module, batch = config.build(), jax.tree.map(jnp.asarray, batch)

    @jax.jit
    def run(variables):
        loss = jax.value_and_grad(lambda variables: config.loss(module, variables, batch, {}).value)
        return module.apply(variables, **batch), loss(variables)

    outputs, (loss, gradient) = run(variables)
    assert outputs["logit_scale"] > 100
    assert_close(outputs["image_embedding"], out.image_embeds.detach(), what="image_embedding")
    assert_close(outputs["text_embedding"], out.text_embeds.detach(), what="text_embedding")
    assert_close(outputs["image_features"], out.vision_model_output.last_hidden_state.detach(), what="image_features")
    assert_close(outputs["text_features"], out.text_model_output.last_hidden_state.detach(), what="text_features")
    logits = outputs["logit_scale"] * outputs["image_embedding"] @ outputs["text_embedding"].T + outputs["logit_bias"]
    assert_close(logits, out.logits_per_image.detach(), what="logits")
    assert_close(loss, out.loss.detach(), what="loss")
    assert_same_gradients(SIGLIP, config, gradient, model)


def test_without_a_mask_padding_is_read_as_words_are():
    model, config, variables = reference("published")
    batch = batch_of("published")
    text, mask = jnp.asarray(batch["text"]), jnp.asarray(batch["text_mask"])
    embed = jax.jit(lambda variables, **text: config.build().apply(variables, **text)["text_embedding"])
    read = embed(variables, text=text)
    theirs = model.get_text_features(input_ids=torch.tensor(batch["text"]).long()).pooler_output.detach().numpy()
    assert_close(read, theirs / np.linalg.norm(theirs, axis=1, keepdims=True))
    assert_close(embed(variables, text=text, text_mask=jnp.ones_like(mask)), read, 1e-6)
    hidden = embed(variables, text=text, text_mask=mask)
    assert np.abs(hidden - read).max(axis=1)[[0, 2]].min() > 1e-3
    assert_close(hidden[1], read[1], 1e-6)  # the row without padding
