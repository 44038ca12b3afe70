"""From pictures and strings to arrays: one way for training, evaluation and a user's own files."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from data_pipelines.pipeline import held_out, training_batches
from data_pipelines.preprocess import Preprocess

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, shape, dtype=np.uint8) for shape in [(9, 14, 3), (8, 8, 1), (30, 7, 3)]]
CAPTIONS = ["one", "a second caption", "zwölf"]


@dataclass(frozen=True)
class Album:
    """Pictures of three sizes, never changed."""

    preprocess: Preprocess

    def source(self, split):
        return [{"image": i, "caption": c} for i, c in zip(PICTURES, CAPTIONS, strict=True)]

    def augment(self, example, rng):
        return example

    def preprocessor(self):
        return self.preprocess


def test_normalise_range():
    pixels = np.array([[[0], [51], [255]]], np.uint8)
    found = Preprocess().normalise(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[[-1], [-0.6], [1]]], atol=1e-6)


def test_normalise_by_channel():
    three = Preprocess(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    found = three.normalise(np.full((1, 1, 3), 255, np.uint8))
    np.testing.assert_allclose(found, [[[1, 1, 0]]], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_pictures_of_many_sizes_make_one_batch(channels, resize):
    batch = Preprocess((6, 10), channels, resize, text_length=12)(images=PICTURES, texts=CAPTIONS)
    assert batch["image"].shape == (3, 6, 10, channels)
    assert batch["text"].shape == batch["text_mask"].shape == (3, 12)
    assert {name: each.dtype for name, each in batch.items()} == {
        "image": np.float32,
        "text": np.int32,
        "text_mask": np.bool_,
    }
    assert np.abs(batch["image"]).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_sees_what_a_user_gets(channels):
    preprocess = Preprocess((6, 10), channels, text_length=12)
    _, arrays = held_out(Album(preprocess))
    batch = preprocess(images=PICTURES, texts=CAPTIONS)
    assert arrays.keys() == batch.keys()
    for name, array in batch.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_training_without_augmentation_sees_what_a_user_gets():
    preprocess = Preprocess((6, 10), text_length=12)
    with training_batches(Album(preprocess), 3, seed=0, threads=0) as batches:
        found = next(batches)
    batch = preprocess(images=PICTURES, texts=CAPTIONS)
    order = [int(np.flatnonzero((batch["text"] == text).all(1))[0]) for text in found["text"]]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_array_equal(found["image"], batch["image"][order])


def test_only_what_is_given_is_made():
    assert Preprocess(text_length=5)(texts=["x"]).keys() == {"text", "text_mask"}
    assert Preprocess((4, 4))(images=PICTURES[:1]).keys() == {"image"}


def test_a_label_becomes_int32():
    assert Preprocess().arrays({"label": 3})["label"].dtype == np.int32


def test_one_string_is_not_a_list_of_letters():
    with pytest.raises((TypeError, ValueError)):
        replace(Preprocess(), text_length=8)(texts="seven")
