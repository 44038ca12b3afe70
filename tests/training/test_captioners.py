"""Captioners on eight emulated devices, however they share the work, against one; Muon moves their matrices."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from data_pipelines.pipeline import training_batches
from data_pipelines.tokenizer import ByteTokenizer
from jmm.distributed.sharding import on_mesh
from jmm.experiment import MeshShape
from jmm.models import coca, vit
from jmm.parts.transformer import TransformerConfig
from tests.training.runs import program, tiny

# One layer: compiling is nearly all that this does.
STACK = TransformerConfig(16, 1, 2, 32, dropout=0.1)
SYSTEMS = {
    "coca": coca.Config(
        vit.ImageTower(STACK, (16, 16), patch_size=8, channels=1, stages=(1, 1), stage_width=4, pool="none"),
        STACK,
        replace(STACK, cross_attention=True),
        ByteTokenizer.vocab_size,
        context_length=44,
        embed_dim=16,
        num_queries=8,
        pool_heads=2,
    ),
}
STEPS = 10
COMPILER = {"xla_backend_optimization_level": 0}


def losses_of(made):
    """Of the first steps."""
    config, state = made.experiment, made.init()
    names = config.model.batch_spec(1)
    with training_batches(config.data, config.batch_size, config.seed, threads=0) as batches, on_mesh(made.mesh):
        fields = [made.place({name: batch[name] for name in names}) for batch in islice(batches, STEPS)]
        step, losses = made.step.lower(state, fields[0]).compile(compiler_options=COMPILER), []
        for batch in fields:
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("name", SYSTEMS)
def test_any_mesh_gives_the_same_losses(name):
    config = tiny(model=SYSTEMS[name], steps=STEPS, evaluations=())
    config = replace(config, optimizer=replace(config.optimizer, muon=("blocks/.*kernel$",)))
    alone = losses_of(program(config, MeshShape(), 1))
    assert alone[-1] < alone[0]
    for shape in (MeshShape(data=8), MeshShape(data=1, fsdp=2, tensor=2, sequence=2)):
        losses = losses_of(program(config, shape, 8))
        np.testing.assert_allclose(losses, alone, rtol=1e-5, err_msg=str(shape))
