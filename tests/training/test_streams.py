"""Streams of codes on eight emulated devices, however they share the work, against one."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from data_pipelines.digits import Digits
from data_pipelines.preprocess import Preprocess
from data_pipelines.tokenizer import ByteTokenizer
from jmm.experiment import MeshShape
from jmm.models import dalle, image_gpt
from tests.training.runs import program, tiny
from tests.training.test_captioners import STEPS, losses_of

GRID, CODES, LENGTH = (4, 4), 12, 8


@dataclass(frozen=True)
class Drawn:
    """Codes that go with a letter, as a tokenizer might give them."""

    def source(self, split):
        rng = np.random.default_rng(0)
        kinds = rng.integers(0, CODES, (4, *GRID))
        noise = rng.random((64, *GRID)) < 0.1
        return [
            {"caption": "abcd"[i % 4] * (1 + i % 3), "codes": np.where(noise[i], 0, kinds[i % 4])} for i in range(64)
        ]

    def augment(self, example, rng):
        return example

    def preprocessor(self):
        return Preprocess(text_length=LENGTH)


SYSTEMS = {
    "dalle": (
        dalle.Config(
            replace(dalle.sandwich(16, 2, 2), dropout=0.1),
            GRID,
            ByteTokenizer.vocab_size + LENGTH,
            CODES,
            LENGTH,
            last_kernel=3,
        ),
        Drawn(),
        MeshShape(data=1, fsdp=2, tensor=2, sequence=2),
    ),
    "image_gpt": (
        image_gpt.Config(replace(image_gpt.image_gpt(16, 2, 2).decoder, dropout=0.1), (8, 8), 1, 4),
        Digits(image_size=8),
        MeshShape(data=2, fsdp=2, sequence=2),
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_mesh_gives_the_same_losses(name):
    model, data, shape = SYSTEMS[name]
    config = tiny(model=model, data=data, steps=STEPS, evaluations=())
    alone = losses_of(program(config, MeshShape(), 1))
    assert alone[-1] < alone[0]
    np.testing.assert_allclose(losses_of(program(config, shape, 8)), alone, rtol=1e-5)
