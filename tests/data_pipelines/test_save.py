"""What stands beside exported weights, loaded by transformers."""

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPImageProcessorPil

from data_pipelines.checkpoint import preprocessor_of
from data_pipelines.preprocess import Preprocess
from data_pipelines.save import (
    MARKS,
    byte_tokenizer,
    copy_tokenizer,
    image_processor,
    save_preprocess,
    with_copied_tokenizer,
)
from data_pipelines.tokenizer import ByteTokenizer
from jmm.errors import UserError
from tests.data_pipelines.tokenizer_folders import make_folder

RNG = np.random.default_rng(0)
SHAPES = [(30, 40), (40, 30), (24, 24), (9, 5), (1, 20)]
EXPRESSIBLE = [
    Preprocess((24, 20), resize="squash", text_length=30),
    Preprocess((24, 20), resize=28, resample="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    Preprocess((24, 20), resize="none", scale=1 / 127.5, mean=(1.0,), std=(1.0,)),
    Preprocess((24, 20), channels=1, resize="squash"),
]


@pytest.mark.parametrize("preprocess", EXPRESSIBLE, ids=lambda each: f"{each.resize}, {each.channels} channels")
def test_pixels_come_out_the_same(tmp_path, preprocess):
    save_preprocess(preprocess, tmp_path, ["image"])
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    pictures = [RNG.integers(0, 256, (*shape, preprocess.channels), dtype=np.uint8) for shape in SHAPES]
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    given = [Image.fromarray(each.squeeze(2) if preprocess.channels == 1 else each) for each in pictures]
    expected = theirs(images=given, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(preprocess(images=pictures)["image"], expected, rtol=0, atol=1e-6)


def test_crop_is_exact_for_its_proportions_and_warns_of_others(tmp_path):
    preprocess = Preprocess((24, 24), resize="crop")
    with pytest.warns(UserWarning, match="less than a pixel off"):
        save_preprocess(preprocess, tmp_path, ["image"])
    pictures = [RNG.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (5, 24, 61)]
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    expected = theirs(images=[Image.fromarray(each) for each in pictures], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(preprocess(images=pictures)["image"], expected.transpose(0, 2, 3, 1), rtol=0, atol=1e-6)


def test_crop_to_a_rectangle_is_refused():
    with pytest.raises(UserError, match="cannot cut pictures to 24 × 20"):
        image_processor(Preprocess((24, 20), resize="crop"))


@given(st.text(max_size=60).filter(lambda text: not any(mark in text for mark, _ in MARKS.values())))
def test_bytes_have_the_same_ids(text):
    ids = byte_tokenizer().encode(text).ids
    assert ids == ByteTokenizer().encode(text, 1000)
    assert byte_tokenizer().decode(ids) == text


def test_transformers_loads_the_byte_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    save_preprocess(Preprocess(text_length=12), tmp_path, ["text"])
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    texts = ["a dog", "", "Zwölf Boxkämpfer 🦊", "x" * 40]
    found = theirs(texts, padding="max_length", truncation=True, return_tensors="np")
    ours = Preprocess(text_length=12)(texts=[texts[0], texts[1], "Zwölf Boxk", texts[3]])
    rows = [0, 1, 3]  # the third is cut within a letter
    np.testing.assert_array_equal(found["input_ids"][rows], ours["text"][rows])
    np.testing.assert_array_equal(found["attention_mask"][rows], ours["text_mask"][rows])
    assert theirs(texts[2])["input_ids"] == ByteTokenizer().encode(texts[2], 99)


def test_padding_that_counts_has_no_mask(tmp_path):
    save_preprocess(Preprocess(padding="counted"), tmp_path, ["text"])
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert list(AutoTokenizer.from_pretrained(tmp_path)("a dog")) == ["input_ids"]


@pytest.mark.parametrize("name", ["clip", "bert", "xlm_roberta", "llama", "siglip"])
def test_a_checkpoints_own_files_are_copied(tmp_path, name):
    source, target = make_folder(name, tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    preprocess = preprocessor_of(source)
    save_preprocess(preprocess, target, ["text"])
    assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()}
    expected = AutoTokenizer.from_pretrained(source)("hello wörld, a photo")["input_ids"]
    assert preprocessor_of(target).tokenizer.encode("hello wörld, a photo", 99) == expected
    save_preprocess(preprocess, source, ["text"])  # onto themselves
    assert preprocessor_of(source) == preprocess


def test_a_tokenizer_that_is_gone_is_named(tmp_path):
    source, target = make_folder("clip", tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    preprocess = preprocessor_of(source)
    shutil.rmtree(source)
    for write in (lambda: save_preprocess(preprocess, target, ["text"]), lambda: copy_tokenizer(preprocess, target)):
        with pytest.raises(UserError, match=f"the folder {source}, .* tokenizer of this model, is missing"):
            write()
    assert list(target.iterdir()) == []
    save_preprocess(preprocess, target, ["image"])  # nobody asks for it


def test_a_copied_tokenizer_reads_the_same_wherever_it_is(tmp_path):
    source, target = make_folder("clip", tmp_path / "source"), tmp_path / "target"
    preprocess = preprocessor_of(source)
    expected = preprocess(texts=["hello wörld"])["text"]
    target.mkdir()
    assert with_copied_tokenizer(preprocess, target) == preprocess
    copy_tokenizer(preprocess, target)
    shutil.rmtree(source)
    moved = target.rename(tmp_path / "moved")
    assert [path.name for path in moved.iterdir()] == ["tokenizer"]
    found = with_copied_tokenizer(preprocess, moved)
    assert found.tokenizer.directory == str(moved / "tokenizer")
    np.testing.assert_array_equal(found(texts=["hello wörld"])["text"], expected)
    assert with_copied_tokenizer(Preprocess(), moved) == Preprocess()


def test_an_image_processor_is_copied_until_it_is_another(tmp_path):
    source = tmp_path / "source"
    CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 24, "width": 24}).save_pretrained(source)
    (source / "config.json").write_text('{"model_type": "clip"}')
    preprocess = preprocessor_of(source)
    for name, each, same in (("same", preprocess, True), ("sized", preprocess.sized((48, 48)), False)):
        target = tmp_path / name
        target.mkdir()
        save_preprocess(each, target, ["image"])
        written = (target / "preprocessor_config.json").read_bytes()
        assert (written == (source / "preprocessor_config.json").read_bytes()) == same
        (target / "config.json").write_text('{"model_type": "clip"}')
        assert replace(preprocessor_of(target), tokenizer=each.tokenizer) == each
    assert json.loads(written)["size"] == {"shortest_edge": 60}


def test_nothing_warns_of_what_is_exact(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_preprocess(EXPRESSIBLE[0], tmp_path)


def test_a_tokenizer_of_ones_own_is_refused(tmp_path):
    class Letters(ByteTokenizer.__base__):
        vocab_size, pad_id, end_id = 9, 0, None

        def encode(self, text, length):
            return []

        def decode(self, ids):
            return ""

    with pytest.raises(UserError, match="a Letters cannot be written"):
        save_preprocess(Preprocess(tokenizer=Letters()), tmp_path, ["text"])
