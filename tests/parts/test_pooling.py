"""Every pooling against NumPy; the learned probe against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jmm.distributed.mesh import make_mesh
from jmm.distributed.sharding import on_mesh
from jmm.experiment import MeshShape
from jmm.parts.pooling import AttentionPooler, AttentionPooling, first_token, last_token, mean_token
from tests.arrays import assert_close
from tests.parts import torch_params

X = np.random.default_rng(0).standard_normal((3, 4, 6))
OURS = jnp.asarray(X, jnp.float32)
MASK = np.array([[True, True, False, False], [True, False, True, False], [True, True, True, True]])


def test_first_token():
    np.testing.assert_array_equal(first_token(OURS), OURS[:, 0])


def test_last_token_is_the_last_real_one():
    expected = [OURS[0, 1], OURS[1, 2], OURS[2, 3]]
    np.testing.assert_array_equal(last_token(OURS, jnp.asarray(MASK)), expected)


def test_mean_of_all_tokens():
    assert_close(mean_token(OURS), X.mean(axis=1), 1e-6)


def test_mean_of_real_tokens():
    expected = [(X[0, 0] + X[0, 1]) / 2, (X[1, 0] + X[1, 2]) / 2, X[2].mean(axis=0)]
    assert_close(mean_token(OURS, jnp.asarray(MASK)), expected, 1e-6)


def test_mean_of_no_token_is_zero():
    mask = jnp.asarray(MASK).at[1].set(False)
    mean = mean_token(OURS, mask)
    np.testing.assert_array_equal(mean[1], 0)
    assert_close(mean[2], X[2].mean(axis=0), 1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_pooling_equals_torch(masked):
    layers = {
        "attention": torch.nn.MultiheadAttention(6, 2, batch_first=True),
        "norm": torch.nn.LayerNorm(6, eps=1e-3),
        "up": torch.nn.Linear(6, 10),
        "down": torch.nn.Linear(10, 6),
    }
    layers = torch_params.perturbed_layer(torch.nn.ModuleDict(layers))
    probe = np.random.default_rng(1).standard_normal((1, 6))
    params = {
        "probe": jnp.asarray(probe, jnp.float32),
        "attention": torch_params.attention(layers["attention"]),
        "norm": torch_params.norm(layers["norm"]),
        "mlp": {part: torch_params.linear(layers[part]) for part in ("up", "down")},
    }
    module = AttentionPooling(2, 10, "gelu", norm_eps=1e-3)
    out = jax.jit(module.apply)({"params": params}, OURS, jnp.asarray(MASK) if masked else None)

    x, hidden = torch.tensor(X), torch.tensor(~MASK) if masked else None
    pooled, _ = layers["attention"](torch.tensor(probe).expand(3, 1, 6), x, x, key_padding_mask=hidden)
    mlp = layers["down"](torch.nn.functional.gelu(layers["up"](layers["norm"](pooled))))
    assert_close(out, (pooled + mlp)[:, 0].detach(), 1e-5)


def test_a_pooler_holds_its_tokens_and_their_gradient_by_rows():
    """Else XLA cuts them by features on a pod, and gathers keys and values of all rows: ten times the bytes of
    CoCa-Base's step. A small pooler on CPUs does not show it, so what is asked for is read."""
    pooler, x = AttentionPooler(2, 2), jnp.ones((4, 8, 16))
    variables = pooler.init(jax.random.key(0), x)
    with on_mesh(make_mesh(MeshShape(data=2, fsdp=2, tensor=2))):
        traced = str(jax.make_jaxpr(jax.grad(lambda tokens: pooler.apply(variables, tokens).sum()))(x))
    held = [line for line in traced.splitlines() if "f32[4,8,16] = sharding_constraint" in line]
    assert len(held) == 2, traced
