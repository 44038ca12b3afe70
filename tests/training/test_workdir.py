"""A workdir: the experiment it holds comes back equal, and no other is let in."""

import json
import shutil
import sys
from dataclasses import fields, replace

import pytest

from data_pipelines.checkpoint import preprocessor_of
from data_pipelines.digits import Digits
from data_pipelines.folder import ImageFolder
from experiments.quickstart import experiment
from jmm.errors import UserError
from jmm.experiment import Checkpoint, MeshShape, Optimizer
from jmm.training.workdir import (
    EXPERIMENT_FILE,
    MAY_CHANGE,
    claim,
    from_json,
    read_experiment,
    recorded_experiment,
    self_contained,
    to_json,
)
from tests.data_pipelines.tokenizer_folders import make_folder

BASE = experiment()


@pytest.fixture
def workdir(tmp_path):
    claim(tmp_path / "run", BASE)
    return tmp_path / "run"


def test_round_trip(workdir):
    assert read_experiment(workdir) == BASE
    assert from_json(json.loads(json.dumps(to_json(BASE))), "experiment") == BASE


def test_the_same_experiment_may_come_again(workdir):
    before = (workdir / EXPERIMENT_FILE).read_text()
    claim(workdir, BASE)
    assert (workdir / EXPERIMENT_FILE).read_text() == before
    assert [path.name for path in workdir.iterdir()] == [EXPERIMENT_FILE]


def test_a_field_that_there_was_not_yet_has_its_default(workdir):
    """A run goes on with a jmm that has more fields."""
    path = workdir / EXPERIMENT_FILE
    recorded = json.loads(path.read_text())
    del recorded["initial"], recorded["model"]["image"]["encoder"]["attention_scale"]
    path.write_text(json.dumps(recorded))
    claim(workdir, BASE)
    path.write_text(json.dumps(recorded))
    with pytest.raises(UserError, match=r"attention_scale was None, now 1.0"):
        encoder = replace(BASE.model.image.encoder, attention_scale=1.0)
        claim(workdir, replace(BASE, model=replace(BASE.model, image=replace(BASE.model.image, encoder=encoder))))


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        (replace(BASE, seed=7), "seed was 0, now 7"),
        (replace(BASE, optimizer=replace(BASE.optimizer, b1=0.5)), r"optimizer\.b1 was 0\.9, now 0\.5"),
        (replace(BASE, data=replace(BASE.data, rotate=0.0)), r"data\.rotate was 12\.0, now 0\.0"),
        (replace(BASE, precision="bfloat16"), "precision was 'auto', now 'bfloat16'"),
        (replace(BASE, seed=1, steps=5), "seed was 0, now 1; steps|steps .*seed was 0, now 1"),
    ],
)
def test_another_experiment_is_refused_and_nothing_changes(workdir, other, shown):
    before = (workdir / EXPERIMENT_FILE).read_text()
    with pytest.raises(UserError, match=shown) as caught:
        claim(workdir, other)
    assert str(workdir) in str(caught.value)
    assert (workdir / EXPERIMENT_FILE).read_text() == before


CHANGED = {
    "mesh": MeshShape(fsdp=2),
    "checkpoint": Checkpoint(every=3),
    "evaluations": (),
    "evaluate_every": 9,
    "log_every": 1,
    "data_threads": 0,
    "data_workers": 2,
    "broken_share": 0.5,
}


@pytest.mark.parametrize("field", CHANGED)
def test_what_does_not_change_learning_may_change(workdir, field):
    other = replace(BASE, **{field: CHANGED[field]})
    claim(workdir, other)
    assert read_experiment(workdir) == other
    assert set(MAY_CHANGE) == set(CHANGED)


@pytest.mark.parametrize("kind", ["os:system", "subprocess:Popen", "planted:Thing", "jmmx:Thing", "builtins:dict"])
def test_foreign_kinds_are_refused_without_an_import(tmp_path, monkeypatch, kind):
    (tmp_path / "planted.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"experiment.data (is a|cannot be read back as) {kind}"):
        from_json({"_kind": "jmm.experiment:Experiment", "data": {"_kind": kind}}, "experiment")
    assert "planted" not in sys.modules
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        {"_kind": "jmm.experiment:Nothing"},
        {"_kind": "jmm.nothing:Optimizer"},
        {"_kind": "jmm.cli:main"},
        {"_kind": "jmm.__main__:main"},
        {"_kind": "jmm.experiment:Optimizer", "colour": "red"},
        {"_kind": "jmm.experiment:Experiment", "name": "no more"},
        {"_kind": 5},
        {"_kind": None},
    ],
    ids=lambda value: f"{value['_kind']}-{len(value)}",
)
def test_what_cannot_be_made_is_named(value):
    with pytest.raises(UserError, match="experiment"):
        from_json(value, "experiment")


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "[1, 2]", "{}", '"text"', '{"name": "x"}'])
def test_what_is_no_experiment_is_named(workdir, text):
    (workdir / EXPERIMENT_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"experiment\.json"):
        read_experiment(workdir)


def test_a_folder_without_an_experiment(tmp_path):
    with pytest.raises(UserError, match=r"is no workdir of jmm: it holds no experiment\.json"):
        read_experiment(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"holds checkpoints but no experiment\.json"):
        claim(tmp_path, BASE)
    (tmp_path / "checkpoints").rename(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"holds a tokenizer but no experiment\.json"):
        claim(tmp_path, BASE)


@pytest.fixture
def borrowed(tmp_path):
    """An experiment whose tokenizer came with a checkpoint."""
    source = make_folder("clip", tmp_path / "source")
    preprocess = preprocessor_of(source)
    data = ImageFolder("photos", preprocess=replace(preprocess, image_size=(16, 16)))
    return replace(BASE, data=data)


def test_the_tokenizer_is_copied_and_travels(borrowed, tmp_path):
    claim(tmp_path / "run", borrowed)
    shutil.rmtree(tmp_path / "source")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert recorded_experiment(moved) == borrowed
    found = read_experiment(moved)
    assert found == self_contained(borrowed, moved) != borrowed
    assert found.data.preprocess.tokenizer.directory == str(moved / "tokenizer")
    assert found.data.preprocess(texts=["a cat"])["text"].shape == (1, 77)
    claim(moved, borrowed)  # goes on, without the source
    with pytest.raises(UserError, match=r"data\.preprocess\.tokenizer\.directory was"):
        claim(moved, found)


def test_a_tokenizer_that_nothing_reads_is_not_copied(borrowed, tmp_path):
    class Pictures(type(BASE.model)):
        def batch_spec(self, batch_size):
            return {"image": super().batch_spec(batch_size)["image"]}

    model = Pictures(**{field.name: getattr(BASE.model, field.name) for field in fields(BASE.model)})
    claim(tmp_path / "run", replace(borrowed, model=model))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [EXPERIMENT_FILE]


@pytest.mark.parametrize("below", ["file", "file/run", "file/a/b"])
def test_a_workdir_that_cannot_be_written_is_named(tmp_path, below):
    (tmp_path / "file").write_text("I am in the way")
    with pytest.raises(UserError, match=r"workdir .*file.* is a file|cannot write to the workdir .*file/"):
        claim(tmp_path / below, BASE)
    assert (tmp_path / "file").read_text() == "I am in the way"


def test_every_value_of_a_field_comes_back():
    other = replace(
        BASE,
        data=Digits(templates=("{}", "größer als {}")),
        optimizer=Optimizer(learning_rate=1 / 3, clip_norm=None, freeze=("^image/", "b$"), average=0.1),
    )
    assert from_json(json.loads(json.dumps(to_json(other))), "experiment") == other
