"""The feed-forward and its activations against torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from jmm.parts.feed_forward import ACTIVATIONS, FeedForward
from tests.arrays import assert_close
from tests.parts import torch_params

THEIRS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": ACT2FN["quick_gelu"],
    "relu": F.relu,
    "silu": F.silu,
}


def test_every_activation_is_checked():
    assert ACTIVATIONS.keys() == THEIRS.keys()


@pytest.mark.parametrize("name", THEIRS)
def test_activation_equals_torch(name):
    # 0 is left out: relu has no derivative there
    x = np.linspace(-6, 6, 100)
    at = torch.tensor(x, requires_grad=True)
    theirs = THEIRS[name](at)
    theirs.sum().backward()
    ours, gradient = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(jnp.asarray(x, jnp.float32))
    assert_close(ours, theirs.detach(), 1e-5)
    assert_close(gradient, at.grad, 1e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_feed_forward_equals_torch(name, gated):
    layers = {"up": torch.nn.Linear(6, 10), "down": torch.nn.Linear(10, 6)}
    if gated:
        layers["gate"] = torch.nn.Linear(6, 10)
    layers = torch_params.perturbed_layer(torch.nn.ModuleDict(layers))
    x = np.random.default_rng(0).standard_normal((2, 3, 6))
    params = {part: torch_params.linear(layer) for part, layer in layers.items()}
    out = jax.jit(FeedForward(10, name, gated).apply)({"params": params}, jnp.asarray(x, jnp.float32))

    x = torch.tensor(x)
    hidden = THEIRS[name](layers["gate"](x)) * layers["up"](x) if gated else THEIRS[name](layers["up"](x))
    assert_close(out, layers["down"](hidden).detach(), 1e-5)
