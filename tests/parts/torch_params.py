"""Weights of torch layers, every one perturbed, in the form of our parameters."""

import jax.numpy as jnp
import torch


def perturbed_layer(layer):
    """The same layer in float64 for evaluation, no weight of it zero or one."""
    torch.manual_seed(0)
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer


def linear(layer):
    return {
        "kernel": jnp.asarray(layer.weight.T.detach().float()),
        "bias": jnp.asarray(layer.bias.detach().float()),
    }


def norm(layer):
    return {
        "scale": jnp.asarray(layer.weight.detach().float()),
        "bias": jnp.asarray(layer.bias.detach().float()),
    }


def attention(layer):
    """Of `torch.nn.MultiheadAttention`, which keeps the three projections in one matrix."""
    width, heads = layer.embed_dim, layer.num_heads
    weights, biases = (
        layer.in_proj_weight.detach().float().chunk(3),
        layer.in_proj_bias.detach().float().chunk(3),
    )
    params = {}
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        kernel = weight.T.reshape(width, heads, -1)
        params[name] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias.reshape(heads, -1))}
    out = linear(layer.out_proj)
    return params | {"out": {"kernel": out["kernel"].reshape(heads, -1, width), "bias": out["bias"]}}
