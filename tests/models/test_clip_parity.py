"""CLIP against `transformers.CLIPModel` with the same weights, every one perturbed: outputs, loss, gradients."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from jmm.interop.clip import FAMILIES
from tests.arrays import assert_close
from tests.interop.theirs import assert_same_gradients, imported, perturbed_model

CLIP = {family.model_type: family for family in FAMILIES}["clip"]
END = 98
CASES = {
    # vision: width, depth, heads, image, patch · text: width, depth, heads, length · activations · id of the end · size
    "quick_gelu": ((48, 3, 4, 32, 8), (32, 2, 4, 12), ("quick_gelu", "quick_gelu"), END, (32, 32)),
    "odd heads, gelu, interpolated": ((30, 2, 3, 24, 6), (40, 3, 5, 9), ("gelu", "gelu"), END, (18, 30)),
    "published before 4.31": ((32, 1, 2, 28, 14), (48, 2, 3, 16), ("gelu", "quick_gelu"), 2, (28, 28)),
}


@cache
def reference(case):
    """Their model, and our config and variables from it."""
    vision, text, activations, end, _ = CASES[case]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    config = CLIPConfig(
        vision_config={
            **dict(zip((*names, "image_size", "patch_size"), vision, strict=True)),
            "intermediate_size": 2 * vision[0],
            "hidden_act": activations[0],
        },
        text_config={
            **dict(zip((*names, "max_position_embeddings"), text, strict=True)),
            "intermediate_size": 2 * text[0],
            "hidden_act": activations[1],
            "vocab_size": END + 1,
            "bos_token_id": 97,
            "eos_token_id": end,
            "pad_token_id": 0,
        },
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = perturbed_model(CLIPModel(config))
    return model, *imported(CLIP, model)


def batch_of(case):
    """Texts that end at different places; what follows is the end again, as in published tokenizers."""
    rng, length = np.random.default_rng(1), CASES[case][1][3]
    text = rng.integers(1, 97, (3, length)).astype(np.int32)
    text[0, 5:], text[1, 8:], text[2, -1] = END, END, END
    mask = np.arange(length) <= np.argmax(text == END, axis=1)[:, None]
    image = rng.standard_normal((3, *CASES[case][4], 3)).astype(np.float32)
    return {"image": image, "text": text, "text_mask": mask}


@pytest.mark.parametrize(("case", "scan"), [*((case, True) for case in CASES), ("quick_gelu", False)])
def test_clip_equals_transformers(case, scan):
    model, config, variables = reference(case)
    towers = (config.image, config.text)
    towers = [replace(tower, encoder=replace(tower.encoder, scan=scan)) for tower in towers]
    config, batch = replace(config, image=towers[0], text=towers[1]), batch_of(case)
    model.zero_grad()
    out = model(
        input_ids=torch.tensor(batch["text"]).long(),
        pixel_values=torch.tensor(batch["image"]).permute(0, 3, 1, 2),
        interpolate_pos_encoding=True,
        return_loss=True,
    )
    out.loss.backward()
    module, batch = config.build(), jax.tree.map(jnp.asarray, batch)

    @jax.jit
    def run(variables):
        loss = jax.value_and_grad(lambda variables: config.loss(module, variables, batch, {}).value)
        return module.apply(variables, **batch), loss(variables)

    outputs, (loss, gradient) = run(variables)
    assert_close(outputs["image_embedding"], out.image_embeds.detach(), what="image_embedding")
    assert_close(outputs["text_embedding"], out.text_embeds.detach(), what="text_embedding")
    assert_close(outputs["image_features"][:, 0], post_norm(model, out), what="image_features")
    assert_close(outputs["text_features"], out.text_model_output.last_hidden_state.detach(), what="text_features")
    logits = outputs["logit_scale"] * outputs["image_embedding"] @ outputs["text_embedding"].T
    assert_close(logits, out.logits_per_image.detach(), what="logits")
    assert_close(loss, out.loss.detach(), what="loss")
    assert_same_gradients(CLIP, config, gradient, model)


def post_norm(model, out):
    """Their tower norms the class token alone."""
    return model.vision_model.post_layernorm(out.vision_model_output.last_hidden_state[:, 0]).detach()


@pytest.mark.parametrize("case", CASES)
def test_a_text_without_a_mask_ends_at_its_first_end(case):
    _, config, variables = reference(case)
    text = {name: jnp.asarray(each) for name, each in batch_of(case).items() if name != "image"}
    assert config.text.end_token == END
    embed = jax.jit(lambda variables, **text: config.build().apply(variables, **text)["text_embedding"])
    expected = embed(variables, **text)
    np.testing.assert_array_equal(embed(variables, text=text["text"]), expected)
