"""PaLI takes the same steps on any mesh of devices, rows without pictures among them; what is frozen stays."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.mixture import Mixture, Part
from data_pipelines.scenes import Scenes, tokenizer
from jmm.experiment import MeshShape, Optimizer
from jmm.models import encoder_decoder, pali
from jmm.models.vit import ImageTower
from jmm.parts.transformer import TransformerConfig
from tests.training.runs import program, run_steps, tiny

SCENES = Scenes("question", text_length=24, target_length=8, image_optional=True)
DATA = Mixture((Part("question", SCENES, 3.0), Part("span", replace(SCENES, task="span"), 1.0)))
STACK = TransformerConfig(16, 1, 2, 32, dropout=0.1)
T5 = replace(STACK, activation="relu", norm="rms", use_bias=False, attention_scale=1.0)
MODEL = pali.Config(
    ImageTower(STACK, (64, 64), 16, stages=(1, 1, 1), stage_width=4, pool="none"),
    encoder_decoder.Config(
        T5,
        replace(T5, cross_attention=True),
        tokenizer().vocab_size,
        start_id=1,
        first_position=None,
        relative_buckets=8,
        embedding_norm=False,
    ),
    SCENES.text_length,
    8,
    image_optional=True,
)


@cache
def run(shape=MeshShape(), devices=1, freeze=()):  # noqa: B008
    optimizer = Optimizer(learning_rate=1e-3, warmup_steps=2, weight_decay=0.1, freeze=freeze)
    config = tiny(model=MODEL, data=DATA, evaluations=(), steps=10, optimizer=optimizer)
    made = program(config, shape, devices)
    return made, *run_steps(made, 10)


@pytest.mark.parametrize(
    "shape",
    [MeshShape(data=8), MeshShape(data=1, fsdp=2, tensor=2, sequence=2)],
    ids=["data", "fsdp, tensor and sequence"],
)
def test_any_mesh_gives_the_same_losses(shape):
    losses, alone = run(shape, 8)[2], run()[2]
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, alone, rtol=1e-5)


def test_a_frozen_image_encoder_stays_and_takes_no_optimizer_memory():
    made, state, _ = run(freeze=("^image/",))
    before = made.init().params
    for name in ("image", "image_projection", "language"):
        same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), before[name], state.params[name])
        assert all(jax.tree.leaves(same)) == (name == "image")
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    trained = sum(leaf.size for name, tree in state.params.items() if name != "image" for leaf in jax.tree.leaves(tree))
    assert moments == 2 * trained
