"""Random arrays and comparisons that the tests share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmm.protocol import inputs_of


def perturbed(tree: Any, seed: int = 0, std: float = 0.1) -> Any:
    """Gaussian noise on every array: zeros and ones at the start would hide errors."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x + std * rng.standard_normal(x.shape), np.float32), tree)


def assert_close(actual: Any, expected: Any, scale: float = 1e-4, what: str = "") -> None:
    """The largest difference is at most `scale` times the largest entry of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    largest = np.abs(expected).max()
    worst = np.abs(actual - expected).max()
    assert worst <= scale * largest, f"{what}: off by {worst:.3g}, {worst / largest:.3g} of the scale"


def abstract_params(config: Any) -> Any:
    """Shapes of a system's parameters, without computing them."""
    module = config.build()
    spec = {name: jnp.zeros(each.shape, each.dtype) for name, each in config.batch_spec(1).items()}
    return jax.eval_shape(lambda: module.init(jax.random.key(0), **inputs_of(module, spec)))["params"]
