"""ViT and DINO's ViT against transformers with the same weights, every one perturbed: outputs, loss, gradients.

Theirs runs in float64, so that the bounds are on our float32 alone.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from jmm.interop.vit import FAMILIES
from tests.arrays import assert_close
from tests.interop.theirs import gradients, imported, perturbed_model

(VIT,) = FAMILIES
CLASSES = 7
CASES = {
    # width, depth, heads, image, patch, activation, qkv_bias, eps
    "square": (32, 2, 4, 16, 4, "gelu", True, 1e-12),
    "3 heads, tanh": (30, 2, 3, [12, 12], 6, "gelu_pytorch_tanh", True, 1e-6),
    "2 × 5 patches, no bias": (24, 1, 2, [8, 20], [4, 4], "gelu", False, 1e-12),
}
each_case = pytest.mark.parametrize("case", CASES)


@cache
def reference(case, kind):
    """Their model, and our config and variables from it."""
    width, depth, heads, size, patch, activation, qkv_bias, eps = CASES[case]
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        image_size=size,
        patch_size=patch,
        hidden_act=activation,
        qkv_bias=qkv_bias,
        layer_norm_eps=eps,
        num_labels=CLASSES,
        num_channels=1 if heads == 2 else 3,
    )
    torch.manual_seed(0)
    if kind == "classifier":
        config.architectures = ["ViTForImageClassification"]
        model = ViTForImageClassification(config)
    else:
        model = ViTModel(config, add_pooling_layer=kind == "pooler")
    model = perturbed_model(model)
    return model.double(), *imported(VIT, model)


def images(config, *size):
    shape = (3, *(size or config.image.image_size), config.image.channels)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def to_torch(image):
    return torch.tensor(image).double().permute(0, 3, 1, 2)


def assert_each_gradient(config, gradient, model):
    """Each within 1e-4 of its own scale."""
    for name, (ours, theirs) in gradients(VIT, config, gradient, model).items():
        if name.endswith("key.bias"):
            # A bias of the keys moves all logits of a query alike: its gradient is zero but for rounding.
            assert np.abs(ours).max() < 1e-4, name
        else:
            assert_close(ours, theirs, what=name)


@pytest.mark.parametrize(("case", "scan"), [*((case, True) for case in CASES), ("square", False)])
def test_classifier_equals_transformers(case, scan):
    model, config, variables = reference(case, "classifier")
    encoder = replace(config.image.encoder, scan=scan)
    config = replace(config, image=replace(config.image, encoder=encoder))
    image, label = images(config), np.array([2, 0, 6], np.int32)
    model.zero_grad()
    out = model(to_torch(image), labels=torch.tensor(label).long())
    out.loss.backward()
    features = model.vit(to_torch(image)).last_hidden_state.detach()
    module, batch = config.build(), {"image": jnp.asarray(image), "label": jnp.asarray(label)}

    @jax.jit
    def run(variables):
        value, pull, metrics = jax.vjp(lambda v: config.loss(module, v, batch, {})[:2], variables, has_aux=True)
        return module.apply(variables, image=batch["image"]), value, metrics, pull(jnp.ones(()))[0]

    outputs, loss, metrics, gradient = run(variables)
    assert_close(outputs["image_features"], features, what="image_features")
    assert_close(outputs["image_pooled"], features[:, 0], what="image_pooled")
    assert_close(outputs["logits"], out.logits.detach(), what="logits")
    assert_close(loss, out.loss.detach(), what="loss")
    assert metrics["loss"] == loss
    assert_close(metrics["accuracy"], np.mean(out.logits.argmax(dim=1).numpy() == label))
    assert_each_gradient(config, gradient, model)


@pytest.mark.parametrize("kind", ["dino", "pooler"])
@each_case
def test_body_equals_transformers(case, kind):
    """DINO's ViT has neither head nor pooler; the files of google/vit-*-in21k have a pooler."""
    model, config, variables = reference(case, kind)
    assert config.num_classes is None
    assert config.pooler == (kind == "pooler")
    module, image = config.build(), images(config)
    model.zero_grad()
    out = model(to_torch(image))
    pooled = out.pooler_output if config.pooler else out.last_hidden_state[:, 0]
    rng = np.random.default_rng(2)
    theirs = (out.last_hidden_state, pooled)
    weights = [rng.standard_normal(each.shape).astype(np.float32) for each in theirs]
    sum((torch.tensor(weight) * each).sum() for weight, each in zip(weights, theirs, strict=True)).backward()

    @jax.jit
    def run(variables):
        def outputs(variables):
            found = module.apply(variables, image=jnp.asarray(image))
            assert found.keys() == {"image_features", "image_pooled"}
            return found["image_features"], found["image_pooled"]

        found, pull = jax.vjp(outputs, variables)
        return found, pull(tuple(jnp.asarray(weight) for weight in weights))[0]

    found, gradient = run(variables)
    for what, ours, expected in zip(("image_features", "image_pooled"), found, theirs, strict=True):
        assert_close(ours, expected.detach(), what=what)
    assert_each_gradient(config, gradient, model)


@each_case
def test_hidden_state_after_each_layer_equals_transformers(case):
    """The first layers alone, under the last norm."""
    model, config, variables = reference(case, "dino")
    image, encoder = images(config), variables["params"]["image"]["encoder"]
    hidden = model(to_torch(image), output_hidden_states=True).hidden_states
    assert len(hidden) == config.image.encoder.depth + 1
    for layers in range(1, len(hidden)):
        shallow = replace(config.image, encoder=replace(config.image.encoder, depth=layers))
        blocks = jax.tree.map(lambda stacked, layers=layers: stacked[:layers], encoder["blocks"])
        params = {"image": {**variables["params"]["image"], "encoder": {**encoder, "blocks": blocks}}}
        module = replace(config, image=shallow).build()
        outputs = jax.jit(module.apply)({"params": params}, image=jnp.asarray(image))
        assert_close(outputs["image_features"], model.layernorm(hidden[layers]).detach(), what=f"layer {layers}")


@pytest.mark.parametrize("size", [(24, 24), (8, 8), (8, 28)])
def test_another_resolution_equals_transformers(size):
    model, config, variables = reference("square", "classifier")
    image = images(config, *size)
    logits = jax.jit(lambda variables, image: config.build().apply(variables, image=image)["logits"])
    expected = model(to_torch(image), interpolate_pos_encoding=True).logits
    assert_close(logits(variables, jnp.asarray(image)), expected.detach())
