"""A decoder trained on packed texts by the common loop."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from data_pipelines.packed import Packed
from data_pipelines.preprocess import Preprocess
from data_pipelines.tokenizer import ByteTokenizer
from jmm.errors import UserError
from jmm.experiment import Checkpoint, Experiment, MeshShape, Optimizer
from jmm.models import decoder, encoder
from jmm.parts.transformer import TransformerConfig
from jmm.training import loop
from jmm.training.loop import train

STACK = TransformerConfig(width=16, depth=1, num_heads=2, mlp_dim=32)


@dataclass(frozen=True)
class Counting:
    """Texts that count: soon learnt."""

    def source(self, split):
        return [{"caption": " ".join(map(str, range(first, first + first % 3 + 1)))} for first in range(60)]

    def augment(self, example, rng):
        return example

    def preprocessor(self):
        return Preprocess(text_length=16)


def experiment(**changes):
    model = decoder.Config(STACK, ByteTokenizer.vocab_size, context_length=32)
    made = Experiment(
        name="packed",
        model=model,
        data=Packed(Counting(), 32, window=20),
        steps=9,
        batch_size=8,
        optimizer=Optimizer(learning_rate=1e-2),
        checkpoint=Checkpoint(every=4),
        log_every=1,
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(experiment(), folder)


def test_it_learns(whole):
    losses = [json.loads(line)["train/loss"] for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 9
    assert abs(losses[0] - np.log(ByteTokenizer.vocab_size)) < 0.2
    assert losses[-1] < losses[0] - 1


def test_a_run_that_dies_goes_on_as_if_it_had_not(whole, tmp_path, monkeypatch):
    class Death(Exception):
        pass

    step = loop.Run.step

    def mortal(run, batch):
        if run.done == 6:
            raise Death
        step(run, batch)

    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(loop.Run, "step", mortal)
        train(experiment(), tmp_path)
    train(experiment(data_threads=0), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


def test_a_mesh_changes_nothing_but_rounding(whole, tmp_path):
    outcome = train(experiment(mesh=MeshShape(data=2, fsdp=2, tensor=2)), tmp_path)
    np.testing.assert_allclose(outcome.figures["train/loss"], whole[1].figures["train/loss"], rtol=1e-4)


def test_a_model_that_cannot_tell_texts_apart_is_refused(tmp_path):
    bert = encoder.Config(STACK, ByteTokenizer.vocab_size, context_length=32, pooler="none", masked_head=None)
    with pytest.raises(UserError, match="must tell apart by segment and position"):
        train(experiment(model=bert), tmp_path)


def test_rows_of_another_length_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"reads text as int32 \[32\], the data gives int32 \[24\]"):
        train(experiment(data=Packed(Counting(), 24, window=20)), tmp_path)
