"""The loop: what a run leaves behind, exact resume, clear stops."""

import json
import os
import shutil
import signal
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import jmm
from data_pipelines.digits import Digits
from jmm.errors import UserError
from jmm.experiment import Checkpoint, MeshShape, Optimizer
from jmm.training import loop
from jmm.training.loop import train
from tests.training.runs import program, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(tiny(), folder)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_workdir_holds_what_is_promised(whole):
    folder, outcome = whole
    assert json.loads((folder / "experiment.json").read_text())["name"] == "tiny"
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["12", "8"]
    assert list(folder.glob("events.out.tfevents.*"))
    written = lines(folder)
    assert [line["step"] for line in written if "train/loss" in line] == list(range(1, 13))
    assert [line["step"] for line in written if "eval/zero_shot/accuracy" in line] == [6, 12]
    assert {"train/grad_norm", "train/learning_rate", "train/logit_scale"} <= written[0].keys()
    assert outcome.step == 12
    assert outcome.figures["train/loss"] == written[-2]["train/loss"]


def test_a_run_that_dies_goes_on_as_if_it_had_not(whole, tmp_path, monkeypatch):
    class Death(Exception):
        pass

    step = loop.Run.step
    for at, workers in ((1, 0), (7, 2), (10, 0)):

        def mortal(run, batch, at=at):
            if run.done == at:
                raise Death
            step(run, batch)

        with monkeypatch.context() as patch, pytest.raises(Death):
            patch.setattr(loop.Run, "step", mortal)
            train(tiny(data_workers=workers), tmp_path)
    train(tiny(data_workers=1), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


def test_a_finished_run_trains_no_further(whole, tmp_path):
    again = shutil.copytree(whole[0], tmp_path / "again")
    before = (again / "metrics.jsonl").read_text()
    outcome = train(tiny(), again)
    assert outcome.step == 12
    assert outcome.figures == whole[1].figures
    assert (again / "metrics.jsonl").read_text() == before


def test_it_goes_on_with_another_mesh(whole, tmp_path):
    first = train(tiny(checkpoint=Checkpoint(every=6)), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    resumed = train(tiny(mesh=MeshShape(data=2, fsdp=2, tensor=2)), tmp_path)
    np.testing.assert_allclose(resumed.figures["train/loss"], first.figures["train/loss"], rtol=1e-5)


def test_load_gives_what_training_evaluated(whole):
    folder, outcome = whole
    model = jmm.load(folder)
    batch = model.preprocess(images=[np.full((20, 30, 3), 200, np.uint8)], texts=["a handwritten six"])
    for name, value in outcome.model(**batch).items():
        np.testing.assert_allclose(model(**batch)[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    figures = loop.evaluate(tiny(), model)
    assert figures == {name: outcome.figures[name] for name in figures}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    wild = Optimizer(learning_rate=1e20, clip_norm=None, schedule="constant", warmup_steps=4)
    calm = replace(wild, learning_rate=1e-3)
    train(tiny(steps=4, optimizer=calm, evaluations=()), tmp_path)
    file = tmp_path / "experiment.json"
    file.write_text(
        file.read_text()
        .replace('"learning_rate": 0.001', '"learning_rate": 1e+20')
        .replace('"steps": 4', '"steps": 12')
    )
    with pytest.raises(UserError, match=r"stopped at step [5-8], where train/.* is (nan|inf)") as error:
        train(tiny(optimizer=wild, evaluations=()), tmp_path)
    assert "the last good checkpoint is step 4" in str(error.value)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4"]


def test_another_experiment_is_refused_with_its_fields(whole):
    with pytest.raises(UserError, match=r"seed was 0, now 5; optimizer.learning_rate was 0.001, now 0.01"):
        train(tiny(seed=5, optimizer=replace(tiny().optimizer, learning_rate=0.01)), whole[0])


def test_data_that_the_model_does_not_take_is_refused(tmp_path):
    data = replace(tiny().data, image_size=24)
    with pytest.raises(UserError, match=r"reads image as float32 \[16, 16, 1\], the data gives .*\[24, 24, 1\]"):
        train(tiny(data=data), tmp_path)


READ: list[int] = []


@dataclass(frozen=True)
class Counted(Digits):
    """Keeps the places of the held-out examples that are read."""

    def source(self, split):
        return Listened(super().source(split)) if split == "held_out" else super().source(split)


@dataclass(frozen=True)
class Listened:
    source: Any

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        READ.append(index)
        return self.source[index]


def test_a_few_held_out_examples_are_read_before_a_run():
    READ.clear()
    loop.check_data(program(tiny(data=Counted(text_length=44)), MeshShape(), 1))
    assert len(READ) == loop.FEW < len(Counted(text_length=44).source("held_out"))


@dataclass(frozen=True)
class Asks:
    """Asks for a trace as soon as something is evaluated."""

    def run(self, model, data):
        os.kill(os.getpid(), signal.SIGUSR2)
        return {}

    def draw(self, model, data, folder):
        return []


def test_a_signal_records_a_trace_of_a_run_under_way(tmp_path):
    train(tiny(evaluations=(Asks(),), evaluate_every=6, steps=8), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_profile_writes_a_trace(tmp_path):
    train(tiny(evaluations=(), log_every=5), tmp_path, profile=True)
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
