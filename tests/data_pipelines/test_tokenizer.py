"""The byte tokenizer: nothing is lost, and what is cut is cut between characters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.preprocess import Preprocess
from data_pipelines.tokenizer import BEGIN, END, FIRST_BYTE, PAD, ByteTokenizer
from jmm.errors import UserError

TOKENIZER = ByteTokenizer()


@settings(deadline=None)
@given(st.text(max_size=40))
def test_a_text_that_fits_comes_back(text):
    ids = TOKENIZER.encode(text, len(text.encode()) + 2)
    assert TOKENIZER.decode(ids) == text


@settings(deadline=None)
@given(st.text(max_size=40), st.integers(2, 60))
def test_truncation_keeps_whole_characters_and_the_end_mark(text, length):
    ids = TOKENIZER.encode(text, length)
    assert len(ids) <= length
    assert (ids[0], ids[-1]) == (BEGIN, END)
    assert all(FIRST_BYTE <= i < TOKENIZER.vocab_size for i in ids[1:-1])
    kept = TOKENIZER.decode(ids)
    assert text.startswith(kept)
    following = text[len(kept) : len(kept) + 1]
    assert not following or len(ids) + len(following.encode()) > length, "a character that fits was cut"


def test_hand_worked():
    assert TOKENIZER.encode("é!", 8) == [BEGIN, 0xC3 + 3, 0xA9 + 3, ord("!") + 3, END]
    assert TOKENIZER.encode("é!", 4) == [BEGIN, 0xC3 + 3, 0xA9 + 3, END]
    assert TOKENIZER.encode("é!", 3) == [BEGIN, END]


@pytest.mark.parametrize("length", [0, 1])
def test_no_room_for_both_marks_is_an_error(length):
    with pytest.raises((UserError, ValueError)):
        TOKENIZER.encode("abc", length)


def test_half_a_surrogate_pair_is_text_too():
    # JSON can spell one ("\\ud83d"), and so can a command line that is not UTF-8.
    ids = TOKENIZER.encode("a\ud83db", 16)
    assert all(0 <= i < TOKENIZER.vocab_size for i in ids)


def test_padding_and_mask():
    ids, mask = Preprocess(text_length=6).text("ab")
    np.testing.assert_array_equal(ids, [BEGIN, ord("a") + 3, ord("b") + 3, END, PAD, PAD])
    np.testing.assert_array_equal(mask, [True] * 4 + [False] * 2)
    assert ids.dtype == np.int32
