"""The step: equal on any mesh, gradient accumulation, freezing, moving average, precision."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.digits import Digits
from jmm.errors import UserError
from jmm.experiment import MeshShape, Optimizer
from jmm.models import vit
from jmm.parts.transformer import TransformerConfig
from jmm.training.optimizer import merge, split
from tests.training.runs import program, run_steps, tiny


@pytest.fixture(scope="module")
def alone():
    return run_steps(program(tiny(steps=30), MeshShape(), 1), 30)


@pytest.mark.parametrize(
    ("shape", "devices"),
    [
        (MeshShape(data=2, fsdp=2, tensor=2), 8),
        (MeshShape(data=1, fsdp=4), 4),
        (MeshShape(data=2, sequence=2), 4),
    ],
)
def test_any_mesh_gives_the_same_losses(alone, shape, devices):
    _, losses = run_steps(program(tiny(steps=30), shape, devices), 30)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)


def test_the_loss_falls(alone):
    assert alone[1][-1] < alone[1][0]


def classifier(**optimizer):
    config = vit.Config(
        vit.ImageTower(TransformerConfig(16, 2, 2, 32), (16, 16), patch_size=8, channels=1), num_classes=10
    )
    return tiny(model=config, data=Digits(), evaluations=(), optimizer=Optimizer(**optimizer))


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    # Plain descent would do; AdamW's first steps turn rounding into signs, so the rate is kept small.
    (whole, first), (parts, second) = (
        run_steps(program(classifier(accumulate=n, learning_rate=1e-4), MeshShape(), 1), 4) for n in (1, 4)
    )
    np.testing.assert_allclose(first, second, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * 4)


def test_frozen_parameters_stay_and_take_no_optimizer_memory():
    frozen = program(classifier(freeze=("^image/",), average=0.9), MeshShape(), 1)
    before = frozen.init().params
    after, _ = run_steps(frozen, 3)
    for name in ("image", "head"):
        same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), before[name], after.params[name])
        assert all(jax.tree.leaves(same)) == (name == "image")
    moments = sum(leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim)
    head = sum(leaf.size for leaf in jax.tree.leaves(after.params["head"]))
    assert moments == 2 * head
    assert sum(leaf.size for leaf in jax.tree.leaves(after.average)) == head


def test_moving_average_by_hand():
    made = program(classifier(average=0.5), MeshShape(), 1)
    by_hand = made.init().params
    for steps in (1, 2, 3):
        state, _ = run_steps(made, steps)
        rate = min(0.5, steps / (9 + steps))
        by_hand = jax.tree.map(lambda a, p, r=rate: r * a + (1 - r) * p, by_hand, state.params)
    for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(by_hand), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    used = state.variables(())["params"]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), used, state.average))


def test_split_and_merge_are_inverse():
    params = program(classifier(), MeshShape(), 1).init().params
    merged = merge(*split(params, ("kernel$",)))
    assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    made = program(replace(classifier(), precision="bfloat16"), MeshShape(), 1)
    state, losses = run_steps(made, 2)
    _, exact = run_steps(program(classifier(), MeshShape(), 1), 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(losses, exact, rtol=2e-2)
    assert losses != exact


def test_batch_that_does_not_divide_names_both_numbers():
    with pytest.raises(UserError, match=r"batch of 18 does not divide over data 2 × fsdp 2 = 4"):
        program(tiny(batch_size=18), MeshShape(data=2, fsdp=2), 4)
    with pytest.raises(UserError, match=r"steps must be at least 1, not 0"):
        program(tiny(steps=0), MeshShape(), 1)
    with pytest.raises(UserError, match="broken_share is a share, from 0 to 1, not 2"):
        program(tiny(broken_share=2.0), MeshShape(), 1)
