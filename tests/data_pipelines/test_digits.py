"""The handwritten digits: their split, their captions, and what augmentation may do."""

import re
from collections import Counter

import numpy as np
import pytest

from data_pipelines.digits import NAMES, TEMPLATES, Digits, load_digits
from data_pipelines.pipeline import held_out


def scans(split):
    return [(example["image"].tobytes(), example["label"]) for example in Digits().source(split)]


def test_split_is_disjoint_and_complete():
    train, held = scans("train"), scans("held_out")
    assert (len(train), len(held)) == (1437, 360)
    # No two scans are alike, so that 1,797 different ones are all of them, each on one side.
    assert len(set(train + held)) == 1797
    assert Counter(label for _, label in train + held) == Counter(load_digits()[1].tolist())


def test_split_is_the_same_every_time():
    assert scans("held_out") == scans("held_out")


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_all_classes_on_both_sides(split):
    counts = Counter(label for _, label in scans(split))
    assert counts.keys() == set(range(10))
    assert min(counts.values()) >= 0.07 * sum(counts.values())


def test_dark_on_white():
    images, _ = load_digits()
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) == 255
    assert images.mean() > 128


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_captions_say_the_label(split):
    for example in Digits().source(split):
        assert example["caption"] == TEMPLATES[0].format(NAMES[example["label"]])


def test_augmented_captions_say_the_label():
    data = Digits()
    seen = set()
    for i, example in enumerate(data.source("train")[:200]):
        caption = data.augment(example, np.random.default_rng(i))["caption"]
        assert [word for word in re.findall(r"\w+", caption) if word in NAMES] == [NAMES[example["label"]]]
        seen.add(caption.replace(NAMES[example["label"]], "{}"))
    assert seen == set(TEMPLATES)


def test_augment_depends_on_the_generator_alone():
    data = Digits()
    example = data.source("train")[0]
    before = example["image"].copy()
    first, again, other = (data.augment(example, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert first["caption"] == again["caption"]
    assert np.abs(first["image"] - other["image"]).max() > 0
    np.testing.assert_array_equal(example["image"], before)


def test_no_augmentation_changes_nothing():
    data = Digits(rotate=0.0, scale=0.0, shift=0.0, templates=TEMPLATES[:1])
    example = data.source("train")[3]
    after = data.augment(example, np.random.default_rng(0))
    np.testing.assert_array_equal(after["image"], example["image"])
    assert after["caption"] == example["caption"]


def test_arrays_are_what_a_model_reads():
    _, arrays = held_out(Digits())
    assert {name: (each.shape, each.dtype) for name, each in arrays.items()} == {
        "image": ((360, 16, 16, 1), np.float32),
        "text": ((360, 48), np.int32),
        "text_mask": ((360, 48), np.bool_),
        "label": ((360,), np.int32),
    }
    assert (arrays["image"].min(), arrays["image"].max()) == (-1, 1)


def test_captions_are_not_cut():
    longest = max(len(template.format(name).encode()) for template in TEMPLATES for name in NAMES)
    assert longest + 2 <= Digits().text_length
