"""From pictures and strings to arrays: one way for training, evaluation and a user's own files."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from data_pipelines.images import resize
from data_pipelines.pipeline import held_out, training_batches
from data_pipelines.preprocess import Preprocess
from data_pipelines.tokenizer import ByteTokenizer
from jmm.errors import UserError

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


def test_normalise_of_any_strides():
    """Mirrored and turned views, of which NumPy would keep the order in memory."""
    image = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    how = Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    expected = (image / 255 - how.mean) / how.std
    np.testing.assert_allclose(how.normalise(image[:, ::-1]), expected[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(how.normalise(image.transpose(1, 0, 2)), expected.transpose(1, 0, 2), atol=1e-5)


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


def test_padding_that_counts():
    batch = Preprocess(text_length=6, padding="counted")(texts=["ab", ""])
    assert batch["text_mask"].all() and batch["text"].shape == (2, 6)
    np.testing.assert_array_equal(batch["text"], Preprocess(text_length=6)(texts=["ab", ""])["text"])


@pytest.mark.parametrize(
    ("texts", "length"), [(["", "a"], 4), (["ab", "a"], 4), (["abc", ""], 8), (["abcdefg"], 12), (["x" * 99], 12)]
)
def test_padding_to_the_longest(texts, length):
    whole, found = (Preprocess(text_length=12, padding=each)(texts=texts) for each in ("masked", "longest"))
    assert found["text"].shape == found["text_mask"].shape == (len(texts), length)
    for name, each in found.items():
        np.testing.assert_array_equal(each, whole[name][:, :length])
        assert not whole["text_mask"][:, length:].any()


def test_examples_have_one_length_however_lists_are_padded():
    arrays = Preprocess(text_length=12, padding="longest").arrays({"caption": "ab"})
    assert arrays["text"].shape == (12,) and arrays["text_mask"].sum() == 4


def test_bytes_are_scaled():
    pixels = np.array([[[0], [51], [255]]], np.uint8)
    found = Preprocess(scale=1.0, mean=(51.0,), std=(2.0,)).normalise(pixels)
    np.testing.assert_allclose(found, [[[-25.5], [0], [102]]], atol=1e-5)


def test_another_size_cuts_off_as_much():
    preprocess = Preprocess((24, 30), resize=32).sized((48, 60))
    assert (preprocess.image_size, preprocess.resize) == ((48, 60), 64)
    assert Preprocess((24, 30), resize="squash").sized((8, 8)).resize == "squash"


def test_a_fitted_picture_is_still_brought_to_its_edge():
    # Its size is the model's, but transformers enlarges it first all the same.
    picture = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    found = Preprocess((8, 8), resize=10).fit(picture)
    np.testing.assert_array_equal(found, resize(picture, (10, 10), "squash")[1:9, 1:9])


def words(ids):
    """What the byte tokenizer reads in ids, its marks shown."""
    return "".join({0: "_", 1: "<", 2: ">"}.get(int(i)) or chr(int(i) - 3) for i in ids)


def test_a_prompt_and_its_answer_in_one_text():
    found = Preprocess(text_length=10).arrays({"prompt": "ab?", "answer": "cd", "task": 3})
    assert words(found["text"]) == "<ab?cd>___"
    assert found["prefix_length"] == 4 and found["text_mask"].tolist() == [True] * 7 + [False] * 3
    assert found["task"] == 3 and {found[name].dtype.name for name in ("task", "prefix_length")} == {"int32"}


@pytest.mark.parametrize(
    ("prompt", "answer", "text", "prefix"),
    [
        ("", "cd", "<cd>____", 1),
        ("abcdef", "xyz", "<abcxyz>", 4),
        ("abc", "uvwxyz", "<uvwxyz>", 1),
        ("abc", "uvwxyz!", "<uvwxyz>", 1),
    ],
)
def test_where_both_are_too_long_the_end_of_the_prompt_goes_first(prompt, answer, text, prefix):
    found = Preprocess(text_length=8).arrays({"prompt": prompt, "answer": answer})
    assert words(found["text"]) == text and found["prefix_length"] == prefix


def test_a_prompt_and_its_answer_apart():
    found = Preprocess(text_length=6, target_length=4).arrays({"prompt": "ab", "answer": "cd"})
    assert words(found["text"]) == "<ab>__" and words(found["target"]) == "cd>_"
    assert found["target_mask"].tolist() == [True] * 3 + [False]
    assert (
        words(Preprocess(text_length=6, target_length=4).arrays({"prompt": "", "answer": "uvwxyz"})["target"]) == "uvw>"
    )


def test_what_stands_around_every_prompt():
    """Around what is asked, and around no answer."""
    asking = Preprocess(text_length=12, prompt="[{}]")
    found = asking.arrays({"prompt": "ab", "answer": "{}"})
    assert words(found["text"]) == "<[ab]{}>____" and found["prefix_length"] == 5
    assert words(asking(texts=["cd"])["text"][0]) == "<[cd]>______"
    apart = Preprocess(text_length=8, target_length=4, prompt="[{}]").arrays({"prompt": "{}", "answer": "cd"})
    assert words(apart["text"]) == "<[{}]>__" and words(apart["target"]) == "cd>_"


class Endless(ByteTokenizer):
    """Puts no mark behind a text, as decoders' tokenizers do."""

    def encode(self, text, length):
        return super().encode(text, length + 1)[:-1]


def test_an_answer_ends_whatever_the_tokenizer_does():
    joined = Preprocess(text_length=8, tokenizer=Endless())
    assert [words(joined.pair("ab", answer)["text"]) for answer in ("cd", "uvwxyzuvw")] == ["<abcd>__", "<uvwxyz>"]
    apart = replace(joined, target_length=4)
    assert [words(apart.pair("ab", answer)["target"]) for answer in ("cd", "uvwxyzuvw")] == ["cd>_", "uvw>"]
    assert words(apart.pair("ab", "cd")["text"]) == "<ab_____"


def test_an_example_without_a_picture():
    optional = Preprocess((2, 3), channels=1, image_optional=True)
    without, with_one = (optional.arrays(example) for example in ({}, {"image": np.zeros((2, 3, 1), np.uint8)}))
    assert not without["image_mask"] and not without["image"].any() and without["image"].shape == (2, 3, 1)
    assert with_one["image_mask"] and (with_one["image"] == -1).all()


def test_a_batch_has_all_examples_fields():
    how = Preprocess((2, 3), channels=1, image_optional=True)
    examples = [{"image": np.full((2, 3, 1), 255, np.uint8), "label": 1}, {"label": 2}]
    found = how.batch([how.fields(example) for example in examples])
    assert found["image"].dtype == np.float32 and found["image"][:, 0, 0, 0].tolist() == [1, 0]
    assert found["image_mask"].tolist() == [True, False] and found["label"].tolist() == [1, 2]
    for other in ({"label": 2, "caption": "a"}, {"image": examples[0]["image"]}):
        with pytest.raises(UserError, match="must have the fields image, image_mask, label"):
            how.batch([how.fields(example) for example in (examples[0], other)])
