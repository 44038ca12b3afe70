"""LayerNorm and RMSNorm against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.parts.norms import make_norm
from tests.arrays import assert_close, perturbed


def inputs(mean):
    """Rows of standard deviations from 0.01 to 3, so that the epsilon counts."""
    rng = np.random.default_rng(0)
    return (mean + np.array([[0.01], [0.3], [3.0]]) * rng.standard_normal((2, 3, 32))).astype(np.float32)


def expected(kind, x, eps, scale, bias):
    x = x.astype(np.float64)
    if kind == "rms":
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * scale + bias


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize(("kind", "use_bias"), [("layer", True), ("layer", False), ("rms", False)])
def test_equals_numpy(kind, use_bias, eps):
    x = inputs(0.5)
    module = make_norm(kind, eps, jnp.float32, "norm", use_bias)
    params = perturbed(module.init(jax.random.key(0), jnp.asarray(x))["params"])
    assert params.keys() == ({"scale", "bias"} if use_bias else {"scale"})
    out = jax.jit(module.apply)({"params": params}, jnp.asarray(x))
    assert_close(out, expected(kind, x, eps, params["scale"], params.get("bias", 0)), 1e-5)


def test_a_large_mean_costs_no_digits():
    """E[x²] − E[x]² at a mean of 1000 and a deviation of 3 would leave one digit of the variance."""
    x = inputs(1000.0)[:, 2:]
    module = make_norm("layer", 1e-6, jnp.float32, "norm")
    params = perturbed(module.init(jax.random.key(0), jnp.asarray(x))["params"])
    out = jax.jit(module.apply)({"params": params}, jnp.asarray(x))
    # The mean itself is rounded to 1000 · 2⁻²⁴ = 6e-5, which is 2e-5 of the deviation.
    assert_close(out, expected("layer", x, 1e-6, params["scale"], params["bias"]), 2e-5)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_bfloat16_takes_its_statistics_in_float32(kind):
    """At a mean of 64 bfloat16 resolves 0.5, and a sum of 32 values 16."""
    x = jnp.asarray(inputs(64.0)[:, 2:], jnp.bfloat16)
    module = make_norm(kind, 1e-6, jnp.bfloat16, "norm")
    params = perturbed(module.init(jax.random.key(0), x)["params"])
    out = jax.jit(module.apply)({"params": params}, x)
    assert out.dtype == jnp.bfloat16
    # one rounding of the output to eight bits, and one of the scale and the bias
    assert_close(out, expected(kind, np.asarray(x), 1e-6, params["scale"], params.get("bias", 0)), 2**-7)
