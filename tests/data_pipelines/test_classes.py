"""Folders of classes: their labels, and what training sees of an image."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.classes import ClassFolder
from data_pipelines.pipeline import held_out, training_batches
from data_pipelines.preprocess import Preprocess
from jmm.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Two classes; one is red and wide, the other blue and high."""
    for split, count in (("train", 4), ("val", 2)):
        for name, colour, size in (("n1", (255, 0, 0), (60, 30)), ("n2", (0, 0, 255), (30, 60))):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", size, colour).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def data(folder, **changes):
    return ClassFolder(str(folder), preprocess=Preprocess(image_size=(16, 16)), **changes)


def test_labels_count_the_names_of_the_folders(folder):
    examples, arrays = held_out(data(folder))
    assert arrays["label"].tolist() == [0, 0, 1, 1] and arrays["image"].shape == (4, 16, 16, 3)
    assert [int(example["image"][0, 0].argmax()) for example in examples] == [0, 0, 2, 2]
    with training_batches(data(folder), 4, 0, threads=0) as batches:
        seen = [next(batches) for _ in range(2)]
    for batch in seen:
        assert (batch["image"].mean((1, 2)).argmax(-1) == 2 * batch["label"]).all()
    assert sorted(np.concatenate([batch["label"] for batch in seen])) == [0] * 4 + [1] * 4


def test_a_part_is_inside_and_as_large_as_asked(folder):
    made = data(folder, area=(0.2, 0.5), aspect=(0.5, 2.0))
    boxes = [made.box((90, 120), np.random.default_rng(seed)) for seed in range(200)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 90 - height and 0 <= left <= 120 - width
        assert 0.19 < height * width / (90 * 120) < 0.51 and 0.47 < width / height < 2.1
    assert len(set(boxes)) == 200
    # Nothing of that size fits a strip: all of it is taken.
    assert data(folder, area=(1.0, 1.0), aspect=(1.0, 1.0)).box((10, 1000), np.random.default_rng(0)) == (
        0,
        0,
        10,
        1000,
    )


def test_half_are_mirrored(folder):
    ramp = np.repeat(np.arange(16, dtype=np.uint8)[None, :, None] * 16, 16, 0).repeat(3, 2)
    made, kept = data(folder, area=(1.0, 1.0), aspect=(1.0, 1.0)), []
    for seed in range(100):
        image = made.augment({"image": ramp, "label": 0}, np.random.default_rng(seed))["image"]
        assert image.shape == (16, 16, 3)
        kept.append(image[0, 0, 0] < image[0, -1, 0])
    assert 30 < sum(kept) < 70


def test_bad_folders_get_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match=r"there is no .*nowhere/train with a folder of images for each class"):
        data(tmp_path / "nowhere").source("train")
    (folder / "val" / "n3").mkdir()
    with pytest.raises(UserError, match=r"train and val in .* must have the same classes; one lacks n3"):
        data(folder).source("held_out")
