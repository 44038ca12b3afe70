"""Folders of classes: their labels, and what training sees of an image."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.augmentations import color_jitter, random_box
from data_pipelines.classes import ClassFolder
from data_pipelines.pipeline import held_out, training_batches
from data_pipelines.preprocess import Preprocess
from data_pipelines.rand_augment import rand_augment
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


def test_a_part_of_the_image_is_seen(folder):
    """Each pixel of the picture says where it lies: the part is the box that the same numbers draw."""
    image = np.stack(np.broadcast_arrays(np.arange(90)[:, None], np.arange(120), 7), -1).astype(np.uint8)
    made = data(folder, area=(0.2, 0.5), aspect=(0.5, 2.0), mirror=False)
    for seed in range(20):
        top, left, height, width = random_box((90, 120), np.random.default_rng(seed), (0.2, 0.5), (0.5, 2.0))
        seen = made.augment({"image": image, "label": 0}, np.random.default_rng(seed))["image"].astype(float)
        middle = (top + (height - 1) / 2, left + (width - 1) / 2)
        np.testing.assert_allclose(seen.mean((0, 1))[:2], middle, atol=1)
        np.testing.assert_allclose(np.ptp(seen, (0, 1))[:2], (height * 15 / 16, width * 15 / 16), atol=2)


def test_half_are_mirrored(folder):
    ramp = np.repeat(np.arange(16, dtype=np.uint8)[None, :, None] * 16, 16, 0).repeat(3, 2)
    made, kept = data(folder, area=(1.0, 1.0), aspect=(1.0, 1.0)), []
    for seed in range(100):
        image = made.augment({"image": ramp, "label": 0}, np.random.default_rng(seed))["image"]
        assert image.shape == (16, 16, 3)
        kept.append(image[0, 0, 0] < image[0, -1, 0])
    assert 30 < sum(kept) < 70


NONE = (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("magnitude, jitter", [(9, NONE), (0, (0.4, 0.4, 0.2, 0.1)), (9, (0.4, 0.0, 0.0, 0.0))])
def test_what_is_seen_is_changed_by_the_same_numbers(folder, magnitude, jitter):
    """RandAugment, then colors: as the functions themselves with what the box and the mirror left of the numbers."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    plain, made = data(folder), data(folder, rand_augment=magnitude, jitter=jitter)
    differ = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        expected = np.ascontiguousarray(plain.augment({"image": image, "label": 0}, rng)["image"])
        seen = made.augment({"image": image, "label": 0}, np.random.default_rng(seed))["image"]
        differ += not np.array_equal(seen, expected)
        if magnitude:
            expected = rand_augment(expected, rng, 2, magnitude)
        if jitter != NONE:
            expected = color_jitter(expected, rng, *jitter)
        np.testing.assert_array_equal(seen, expected)
    assert differ >= 8


def test_grey_images_have_no_colors_to_change(folder):
    grey = ClassFolder(str(folder), preprocess=Preprocess((16, 16), channels=1), rand_augment=9)
    with pytest.raises(UserError, match=r"data\.rand_augment and data\.jitter need images of 3 channels, not 1"):
        grey.augment({"image": np.zeros((20, 20, 3), np.uint8), "label": 0}, np.random.default_rng(0))


def test_bad_folders_get_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match=r"there is no .*nowhere/train with a folder of images for each class"):
        data(tmp_path / "nowhere").source("train")
    (folder / "val" / "n3").mkdir()
    with pytest.raises(UserError, match=r"train and val in .* must have the same classes; one lacks n3"):
        data(folder).source("held_out")
