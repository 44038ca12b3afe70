"""The distance of images in the eyes of a network, against its formula."""

import jax
import jax.numpy as jnp
import numpy as np

from jmm.objectives.perceptual import perceptual
from tests.arrays import assert_close

RNG = np.random.default_rng(0)
MADE, TRUE = ([RNG.standard_normal(shape) for shape in ((2, 5, 3), (2, 4, 4, 6))] for _ in range(2))


def layers(arrays):
    return [jnp.asarray(each, jnp.float32) for each in arrays]


def test_equals_the_formula():
    expected = 0.0
    for made, true in zip(MADE, TRUE, strict=True):
        cosines = (made * true).sum(-1) / (np.linalg.norm(made, axis=-1) * np.linalg.norm(true, axis=-1))
        expected += (2 - 2 * cosines).mean()
    assert_close(perceptual(layers(MADE), layers(TRUE)), expected)
    assert_close(perceptual([3 * each for each in layers(MADE)], layers(TRUE)), expected)


def test_alike_is_zero_and_features_of_zero_have_a_gradient():
    assert float(perceptual(layers(TRUE), layers(TRUE))) == 0
    gradient = jax.grad(lambda x: perceptual([x], layers(TRUE)[:1]))(jnp.zeros(TRUE[0].shape))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
