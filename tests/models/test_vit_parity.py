"""ViT against `transformers.ViTForImageClassification` with the same weights, every one perturbed.

Theirs runs in float64, so that the bounds are on our float32 alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from jmm.interop.table import export_tensors, import_tensors
from jmm.interop.vit import TABLE
from jmm.models import vit
from jmm.parts.transformer import TransformerConfig
from tests.arrays import abstract_params, assert_close

CLASSES = 7
CASES = [
    # width, depth, heads, image, patch, activation
    (32, 2, 4, (16, 16), 4, "gelu"),
    (30, 2, 3, (12, 12), 6, "gelu_tanh"),
    (24, 1, 2, (8, 20), 4, "gelu"),
]
THEIR_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def reference(width, depth, heads, size, patch, activation):
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        image_size=list(size),
        patch_size=patch,
        hidden_act=THEIR_NAMES[activation],
        layer_norm_eps=1e-12,
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def ours(width, depth, heads, size, patch, activation, scan=True):
    encoder = TransformerConfig(width, depth, heads, 2 * width, activation=activation, norm_eps=1e-12, scan=scan)
    return vit.Config(vit.ImageTower(encoder, size, patch), CLASSES)


def state_of(theirs):
    return {name: tensor.detach().float().numpy() for name, tensor in theirs.named_parameters()}


def images(*size):
    return np.random.default_rng(1).standard_normal((3, *size, 3)).astype(np.float32)


def to_torch(image):
    return torch.tensor(image).double().permute(0, 3, 1, 2)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_vit_equals_transformers(case, scan):
    theirs, config = reference(*case), ours(*case, scan=scan)
    image, label = images(*case[3]), np.array([2, 0, 6], np.int32)
    out = theirs(to_torch(image), labels=torch.tensor(label).long())
    out.loss.backward()
    features = theirs.vit(to_torch(image)).last_hidden_state

    module, state = config.build(), state_of(theirs)
    params = import_tensors(TABLE, state, {"params": abstract_params(config)})["params"]

    @jax.jit
    def run(params, batch):
        def loss(params):
            return config.loss(module, {"params": params}, batch, {})

        value, pull, metrics = jax.vjp(lambda params: loss(params)[:2], params, has_aux=True)
        outputs = module.apply({"params": params}, image=batch["image"])
        return outputs, value, metrics, pull(jnp.ones(()))[0]

    outputs, loss, metrics, gradient = run(params, {"image": jnp.asarray(image), "label": jnp.asarray(label)})
    assert_close(outputs["image_features"], features.detach(), what="image_features")
    assert_close(outputs["image_pooled"], features[:, 0].detach(), what="image_pooled")
    assert_close(outputs["logits"], out.logits.detach(), what="logits")
    assert_close(loss, out.loss.detach(), what="loss")
    assert metrics["loss"] == loss
    assert_close(metrics["accuracy"], np.mean(out.logits.argmax(dim=1).numpy() == label))

    exported = export_tensors(TABLE, gradient, {name: tensor.shape for name, tensor in state.items()})
    for name, parameter in theirs.named_parameters():
        if name.endswith("k_proj.bias"):
            # A bias of the keys moves all logits of a query alike: its gradient is zero but for rounding.
            assert np.abs(exported[name]).max() < 1e-6, name
        else:
            assert_close(exported[name], parameter.grad, what=name)


@pytest.mark.parametrize("case", CASES[:2])
def test_hidden_state_after_each_layer_equals_transformers(case):
    """The first layers alone, under the last norm."""
    width, depth, *rest = case
    theirs = reference(*case)
    params = import_tensors(TABLE, state_of(theirs), abstract_params(ours(*case)))
    image = images(*case[3])
    hidden = theirs.vit(to_torch(image), output_hidden_states=True).hidden_states
    for layers in range(1, depth + 1):
        encoder = params["image"]["encoder"]
        first = {
            **encoder,
            "blocks": jax.tree.map(lambda stacked, layers=layers: stacked[:layers], encoder["blocks"]),
        }
        module = ours(width, layers, *rest).build()
        outputs = jax.jit(module.apply)(
            {"params": {**params, "image": {**params["image"], "encoder": first}}}, image=jnp.asarray(image)
        )
        assert_close(outputs["image_features"], theirs.vit.layernorm(hidden[layers]).detach(), what=f"layer {layers}")


@pytest.mark.parametrize("size", [(24, 24), (8, 8), (8, 28)])
def test_another_resolution_equals_transformers(size):
    case = CASES[0]
    theirs, config = reference(*case), ours(*case)
    params = import_tensors(TABLE, state_of(theirs), abstract_params(config))
    image = images(*size)
    logits = jax.jit(lambda params, image: config.build().apply({"params": params}, image=image)["logits"])
    expected = theirs(to_torch(image), interpolate_pos_encoding=True).logits
    assert_close(logits(params, jnp.asarray(image)), expected.detach())


def test_export_undoes_import():
    state = state_of(reference(*CASES[1]))
    params = import_tensors(TABLE, state, abstract_params(ours(*CASES[1])))
    back = export_tensors(TABLE, {"params": params}, state)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
