"""What a model moves besides its parameters: carried by the step, equal on any mesh, moved by every micro-batch."""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.digits import Digits
from jmm.experiment import MeshShape, Optimizer
from jmm.parts.resnet import Bottleneck
from jmm.protocol import Loss, training_forward
from tests.arrays import assert_close
from tests.training.runs import program, run_steps, tiny


@dataclass(frozen=True)
class Config:
    """One block of a residual network, and a classifier."""

    channels: int = 1

    def build(self, dtype=jnp.float32):
        return Network()

    def batch_spec(self, batch_size):
        return {
            "image": jax.ShapeDtypeStruct((batch_size, 16, 16, 1), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }

    def loss(self, module, variables, batch, rngs):
        outputs, updates = training_forward(module, variables, batch, rngs)
        value = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["label"]).mean()
        return Loss(value, {"loss": value}, updates)


class Network(nn.Module):
    @nn.compact
    def __call__(self, *, image, train=False):
        x = Bottleneck(8, stride=2, name="block")(image, train)
        return {"logits": nn.Dense(10, name="head")(x.mean(axis=(1, 2)))}


def trained(shape=MeshShape(), devices=1, **optimizer):  # noqa: B008
    config = tiny(model=Config(), data=Digits(), evaluations=(), steps=3)
    config = replace(config, optimizer=Optimizer(learning_rate=1e-4, **optimizer))
    return run_steps(program(config, shape, devices), 3)


def statistics(state):
    """Mean, variance and count of each of the four norms."""
    return [state.collections["batch_stats"]["block"][name] for name in ("norm1", "norm2", "norm3", "shortcut_norm")]


@pytest.fixture(scope="module")
def alone():
    return trained()


def test_the_step_carries_them(alone):
    state, _ = alone
    start = program(tiny(model=Config(), data=Digits(), evaluations=()), MeshShape(), 1).init()
    assert jax.tree.structure(state.collections) == jax.tree.structure(start.collections)
    for norm in statistics(state):
        assert norm["count"] == 3
        assert np.abs(norm["mean"]).min() > 0 and np.abs(norm["var"] - 1).min() > 0


@pytest.mark.parametrize("shape", [MeshShape(data=2, fsdp=2, tensor=2), MeshShape(data=1, fsdp=8)])
def test_they_are_of_the_whole_batch_on_any_mesh(alone, shape):
    """The rows of a batch lie on several devices, the kernels are cut, and the numbers stay."""
    state, losses = trained(shape, 8)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    for found, expected in zip(statistics(state), statistics(alone[0]), strict=True):
        for name in ("mean", "var", "count"):
            assert_close(found[name], expected[name], 1e-5, name)


def test_every_micro_batch_moves_them():
    state, _ = trained(accumulate=2)
    assert [norm["count"] for norm in statistics(state)] == [6] * 4
