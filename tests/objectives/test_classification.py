"""Cross-entropy with smoothed labels against torch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jmm.objectives.classification import classification
from tests.arrays import assert_close

LABEL = np.array([2, 0, 6, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_equals_torch(smoothing):
    logits = 3 * np.random.default_rng(0).standard_normal((4, 7))
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(LABEL), label_smoothing=smoothing)
    expected.backward()
    ours = jax.jit(jax.value_and_grad(lambda x: classification(x, jnp.asarray(LABEL), smoothing)))
    value, gradient = ours(jnp.asarray(logits, jnp.float32))
    assert_close(value, expected.detach(), 1e-5)
    assert_close(gradient, theirs.grad, 1e-4)


def test_by_hand():
    """Odds 1 : 3, a tenth of the target spread over both classes: 0.95 on the first, 0.05 on the second."""
    loss = classification(jnp.array([[0.0, math.log(3)]]), jnp.array([0]), 0.1)
    assert float(loss) == pytest.approx(-0.95 * math.log(1 / 4) - 0.05 * math.log(3 / 4), abs=1e-6)


def test_large_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    value, gradient = jax.value_and_grad(lambda x: classification(x, jnp.array([1, 0]), 0.1))(logits)
    assert np.isfinite(value) and value > 1e4
    assert np.isfinite(gradient).all()


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 7)), jnp.bfloat16)
    value = classification(logits, jnp.asarray(LABEL))
    assert value.dtype == jnp.float32
    assert_close(value, classification(logits.astype(jnp.float32), jnp.asarray(LABEL)), 1e-6)
