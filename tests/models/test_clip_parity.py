"""CLIP against `transformers.CLIPModel` with the same weights, every one perturbed: outputs, loss, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from jmm.interop.clip import TABLE
from jmm.interop.table import export_tensors, import_tensors
from jmm.models import clip, vit
from jmm.parts.transformer import TransformerConfig
from tests.arrays import abstract_params, assert_close

EOS = 98
CASES = [
    # vision: width, depth, heads, image, patch · text: width, depth, heads, length · activation
    ((48, 3, 4, 32, 8), (32, 2, 4, 12), "quick_gelu"),
    ((30, 2, 3, 24, 6), (40, 3, 5, 9), "gelu"),
    ((32, 1, 2, 28, 14), (48, 2, 3, 16), "quick_gelu"),
]


def reference(vision, text, activation):
    width, depth, heads, size, patch = vision
    text_width, text_depth, text_heads, length = text
    config = CLIPConfig(
        vision_config={
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": 2 * width,
            "image_size": size,
            "patch_size": patch,
            "hidden_act": activation,
        },
        text_config={
            "hidden_size": text_width,
            "num_hidden_layers": text_depth,
            "num_attention_heads": text_heads,
            "intermediate_size": 2 * text_width,
            "max_position_embeddings": length,
            "vocab_size": 99,
            "hidden_act": activation,
            "bos_token_id": 97,
            "eos_token_id": EOS,
            "pad_token_id": 0,
        },
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def ours(vision, text, activation, scan):
    def encoder(width, depth, heads):
        return TransformerConfig(width, depth, heads, 2 * width, activation=activation, norm_eps=1e-5, scan=scan)

    width, depth, heads, size, patch = vision
    image = vit.ImageTower(encoder(width, depth, heads), (size, size), patch, patch_bias=False, pre_norm=True)
    text_width, text_depth, text_heads, length = text
    tower = clip.TextTower(encoder(text_width, text_depth, text_heads), 99, length)
    return clip.Config(image, tower, 24)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(("vision", "text", "activation"), CASES)
def test_clip_equals_transformers(vision, text, activation, scan):
    theirs, config = reference(vision, text, activation), ours(vision, text, activation, scan)
    rng = np.random.default_rng(1)
    size, length = vision[3], text[3]
    image = rng.standard_normal((3, size, size, 3)).astype(np.float32)
    ids = rng.integers(1, 97, (3, length)).astype(np.int32)
    ids[0, 5:], ids[1, 8:], ids[2, -1] = EOS, EOS, EOS  # ends at different places
    mask = np.arange(length) <= np.argmax(ids == EOS, axis=1)[:, None]
    batch = {"image": image, "text": np.where(mask, ids, 0).astype(np.int32), "text_mask": mask}

    out = theirs(
        input_ids=torch.tensor(batch["text"]).long(),
        pixel_values=torch.tensor(image).permute(0, 3, 1, 2),
        return_loss=True,
    )
    out.loss.backward()
    state = {name: tensor.detach().numpy() for name, tensor in theirs.named_parameters()}
    module = config.build()
    params = import_tensors(TABLE, state, {"params": abstract_params(config)})["params"]

    batch = jax.tree.map(jnp.asarray, batch)
    outputs = jax.jit(module.apply)({"params": params}, **batch)
    assert_close(outputs["image_embedding"], out.image_embeds.detach(), what="image_embedding")
    assert_close(outputs["text_embedding"], out.text_embeds.detach(), what="text_embedding")
    assert_close(outputs["text_features"], out.text_model_output.last_hidden_state.detach(), what="text_features")
    logits = outputs["logit_scale"] * outputs["image_embedding"] @ outputs["text_embedding"].T
    assert_close(logits, out.logits_per_image.detach(), what="logits")

    loss, gradient = jax.jit(jax.value_and_grad(lambda p: config.loss(module, {"params": p}, batch, {}).value))(params)
    assert_close(loss, out.loss.detach(), what="loss")
    exported = export_tensors(TABLE, {"params": gradient}, state)
    scale = max(np.abs(p.grad.numpy()).max() for p in theirs.parameters())
    for name, parameter in theirs.named_parameters():
        # key biases have no gradient but rounding: the scale of a gradient is that of the whole
        worst = np.abs(exported[name] - parameter.grad.numpy()).max()
        assert worst <= 1e-4 * scale, f"{name}: gradient off by {worst:.3g} of {scale:.3g}"


def test_export_undoes_import():
    vision, text, activation = CASES[1]
    theirs, config = reference(vision, text, activation), ours(vision, text, activation, True)
    state = {name: tensor.detach().numpy() for name, tensor in theirs.named_parameters()}
    params = import_tensors(TABLE, state, {"params": abstract_params(config)})["params"]
    back = export_tensors(TABLE, {"params": params}, state)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
