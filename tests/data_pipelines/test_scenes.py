"""Scenes as a dataset: examples of every task, the same everywhere, batched, mixed, written down and shown."""

import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from data_pipelines.mixture import Mixture, Part
from data_pipelines.pipeline import held_out, training_batches
from data_pipelines.protocol import Dataset, Source
from data_pipelines.scene_checker import said
from data_pipelines.scene_grammar import caption
from data_pipelines.scene_sheet import contact_sheet
from data_pipelines.scene_tasks import WITHOUT_IMAGE, Task
from data_pipelines.scene_world import word_kept_out
from data_pipelines.scenes import Scenes, main, tokenizer
from jmm.errors import UserError
from jmm.training.workdir import from_json, to_json

TASKS = get_args(Task)
SMALL = Scenes(held_out=20)


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name == "image":
            np.testing.assert_array_equal(value, second[name])
        else:
            assert value == second[name], name


def test_it_keeps_the_protocol():
    assert isinstance(SMALL, Dataset)
    assert isinstance(SMALL.source("train"), Source)
    assert len(SMALL.source("train")) == 1 << 20
    assert len(SMALL.source("held_out")) == 20
    for index in (-1, 20):
        with pytest.raises(IndexError):
            SMALL.source("held_out")[index]
    example = SMALL.source("train")[0]
    assert SMALL.augment(example, np.random.default_rng(0)) is example


@pytest.mark.parametrize("task", TASKS)
def test_examples_of_a_task(task):
    data = replace(SMALL, task=task, image_size=80)
    for split in ("train", "held_out"):
        example = data.source(split)[3]
        same(example, data.source(split)[3])
        assert ("image" in example) == (task not in WITHOUT_IMAGE)
        if "image" in example:
            assert example["image"].shape == (80, 80, 3)
            boxes = [each.box for each in example["scene"].things]
            boxes += [example["scene"].word.box] if example["scene"].word else []
            assert [box for _, box in example["box"]] == boxes
        assert example["caption"] == caption(example["scene"], data.language)


def test_tasks_languages_and_sizes_share_their_scenes():
    first = SMALL.source("train")[5]["scene"]
    for other in (
        replace(SMALL, language="ru"),
        replace(SMALL, task="question"),
        replace(SMALL, task="text_alone"),
        replace(SMALL, image_size=100),
        replace(SMALL, task="alt_text", language="de", text_length=20),
    ):
        scene = other.source("train")[5]["scene"]
        assert [replace(each, box=None) for each in scene.things] == [replace(each, box=None) for each in first.things]


def test_splits_seeds_and_indices_differ():
    sources = [SMALL.source("train"), SMALL.source("held_out"), replace(SMALL, seed=1).source("train")]
    images = [source[i]["image"].tobytes() for source in sources for i in range(20)]
    assert len(set(images)) == 60


def test_share_of_words():
    def count(data):
        return sum(data.source("train")[i]["scene"].word is not None for i in range(300))

    assert count(replace(SMALL, words=0.0)) == 0
    assert count(replace(SMALL, words=1.0)) == count(replace(SMALL, words=0.0, task="read")) == 300
    assert 45 < count(SMALL) < 105
    for example in (replace(SMALL, task="read").source("held_out")[i] for i in range(20)):
        assert word_kept_out(example["answer"])


def test_kinds_of_questions():
    source = replace(SMALL, task="question", kinds=("colour", "size")).source("train")
    kinds = Counter(source[i]["kind"] for i in range(200))
    assert set(kinds) <= {"colour", "size", "exist"}
    assert min(kinds["colour"], kinds["size"]) > 60
    assert kinds["exist"] < 12, "only of scenes that allow neither"


def test_plain_scenes_of_two():
    data = replace(SMALL, plain=True, counts=(2,), words=0.0)
    for split in ("train", "held_out"):
        for i in range(20):
            example = data.source(split)[i]
            assert [each.material for each in example["scene"].things] == ["matte"] * 2
            claim = said(example["caption"])
            assert len(claim.things) == 2 and claim.how
            assert not re.search("matte|shiny|striped", example["caption"])
    with pytest.raises(UserError, match="questions of other kinds than material, not question"):
        replace(data, task="question")
    with pytest.raises(UserError, match="questions of other kinds than material, not alt_text"):
        replace(data, task="alt_text")
    asked = replace(data, task="question", kinds=("colour", "size", "relation")).source("train")
    for i in range(20):
        assert asked[i]["caption"] == data.source("train")[i]["caption"]
        assert not re.search("matte|shiny|striped", asked[i]["prompt"])
    german = replace(data, language="de", counts=(3,)).source("train")[0]
    assert len(german["scene"].things) == 3 and german["caption"].count("ein") >= 3


def test_arrays_are_what_a_model_reads():
    _, arrays = held_out(SMALL)
    assert {name: (each.shape, each.dtype) for name, each in arrays.items()} == {
        "image": ((20, 64, 64, 3), np.float32),
        "text": ((20, 48), np.int32),
        "text_mask": ((20, 48), np.bool_),
    }
    assert -1 <= arrays["image"].min() < -0.5
    assert 0.5 < arrays["image"].max() <= 1
    _, arrays = held_out(replace(SMALL, task="question", target_length=8))
    assert arrays["target"].shape == (20, 8)
    decoded = tokenizer().decode(arrays["target"][0].tolist())
    assert decoded == replace(SMALL, task="question").source("held_out")[0]["answer"]


@pytest.mark.parametrize("language", ["en", "de", "ru"])
@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_cut_at_the_default_length(task, language):
    data = replace(SMALL, task=task, language=language, words=1.0)
    preprocess, ours = data.preprocessor(), tokenizer()
    for i in range(60):
        example = data.source("train")[i]
        arrays = preprocess.arrays(example)
        if "prompt" not in example:
            assert ours.decode(arrays["text"].tolist()) == example["caption"]
        else:
            ids, start = arrays["text"].tolist(), int(arrays["prefix_length"])
            assert ours.decode(ids[:start]) == example["prompt"]
            assert ours.decode(ids[start:]) == example["answer"]


def test_a_caption_of_two_objects_is_short():
    example = next(e for e in map(SMALL.source("train").__getitem__, range(50)) if len(e["scene"].things) == 2)
    ids = tokenizer().encode(re.sub(", with.*", "", example["caption"]), 99)
    assert len(ids) <= 15


def test_tasks_of_all_languages_and_text_alone_are_mixed():
    base = replace(SMALL, target_length=40, image_optional=True)
    chosen = [("alt_text", "en"), ("alt_text", "ru"), ("span", "de"), ("read", "en"), ("question", "de")]
    parts = tuple(Part(f"{task}_{lang}", replace(base, task=task, language=lang)) for task, lang in chosen)
    with training_batches(Mixture(parts), 10, 0, threads=0) as batches:
        batch = next(batches)
    np.testing.assert_array_equal(batch["image_mask"], batch["task"] != 2)
    assert batch["image"].shape == (10, 64, 64, 3)
    pair = Mixture((Part("pictures", SMALL), Part("text", replace(SMALL, task="text_alone"))))
    assert pair.preprocessor() == SMALL.preprocessor()


def test_an_experiment_can_hold_it():
    data = replace(SMALL, task="objects", language="ru", target_length=9)
    read = from_json(json.loads(json.dumps(to_json(data))), "data")
    assert read == data
    assert read.preprocessor() == data.preprocessor()


def test_the_vocabulary_of_trained_models():
    """The ids of a trained model: words may be added at the end, and then these numbers are others for a reason."""
    words = tokenizer().words
    assert (len(words), zlib.crc32(" ".join(words).encode())) == (432, 191737366)


def test_another_process_makes_the_same_examples():
    code = (
        "from data_pipelines.scenes import Scenes; s = Scenes(task='question', language='de').source('held_out');"
        "print([(e['prompt'], e['answer'], e['image'].sum()) for e in map(s.__getitem__, range(20))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    source = Scenes(task="question", language="de").source("held_out")
    expected = [(e["prompt"], e["answer"], e["image"].sum()) for e in map(source.__getitem__, range(20))]
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("task", "dance", "dance"),
        ("language", "fr", "'fr'"),
        ("image_size", 32, "image_size of scenes with printed words must be at least 48, not 32"),
        ("words", 1.5, "from 0 to 1, not 1.5"),
        ("kinds", ("colour", "taste"), "kinds of questions about scenes are exist, count, colour"),
        ("kinds", (), "kinds of questions"),
        ("counts", (2, 5), r"from 2 to 4 objects, not \(2, 5\)"),
        ("counts", (), "from 2 to 4 objects"),
        ("seed", -1, "at least 0"),
        ("held_out", -1, "at least 0"),
    ],
)
def test_values_out_of_range_are_named(field, value, says):
    with pytest.raises((UserError, TypeError), match=says):
        replace(SMALL, **{field: value})


def test_contact_sheet(tmp_path):
    path = tmp_path / "sheet.png"
    for arguments in (
        ["--count", "7", "--image_size", "224", "--split", "held_out"],
        ["--count", "2", "--task", "span", "--language", "ru"],
    ):
        main(["--png", str(path), *arguments])
        pixels = np.asarray(Image.open(path))
        rows, columns = (2, 6) if "7" in arguments else (1, 2)
        assert pixels.shape[0] > rows * 230
        assert pixels.shape[1] == columns * 248
        frames = (pixels == (255, 0, 160)).all(-1).sum()
        assert frames > 1000 if "7" in arguments else frames == 0
        assert (pixels == 0).all(-1).any(), "no text"
    with pytest.raises(UserError, match="at least one example"):
        contact_sheet(path, [])
    with pytest.raises(UserError, match="cannot be written"):
        contact_sheet(tmp_path / "missing" / "sheet.png", [SMALL.source("train")[0]])
