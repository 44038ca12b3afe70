"""Packed texts: every text once, in rows that are the same for any processes, threads and starts."""

from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.mixture import Mixture, Part, part_of
from data_pipelines.order import ordered
from data_pipelines.packed import Packed
from data_pipelines.packing import unpack
from data_pipelines.pipeline import held_out, training_batches
from data_pipelines.preprocess import Preprocess
from jmm.errors import UserError


@dataclass(frozen=True)
class Letters:
    """Texts of one letter each, of 1 to 9 of them; augmentation adds up to 9 more."""

    size: int = 40
    letter: str = "a"
    field: str = "caption"

    def source(self, split):
        lengths = np.random.default_rng(self.size).integers(1, 10, self.size)
        if self.field == "label":
            return [{"label": int(length)} for length in lengths]
        return [{"caption": self.letter * int(length)} for length in lengths]

    def augment(self, example, rng):
        if "caption" not in example:
            return example
        return {**example, "caption": example["caption"] + chr(98 + rng.integers(20)) * int(rng.integers(10))}

    def preprocessor(self):
        return Preprocess(text_length=20)


PACKED = Packed(Letters(), 24, window=16)


def batches(data, batch_size, count, **where):
    with training_batches(data, batch_size, 3, threads=where.pop("threads", 0), **where) as iterator:
        return list(islice(iterator, count))


def texts(found):
    """The ids of every text, row after row."""
    return [tuple(each["text"].tolist()) for batch in found for each in unpack(batch)]


def in_order(data, count):
    """The ids of the first texts of the global list."""
    examples = ordered(data, 3)
    return [tuple(each["text"][each["text_mask"]].tolist()) for each in (examples[i] for i in range(count))]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() == {"text", "text_mask", "segment", "position", "next_example"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 30])
def test_every_window_is_seen_whole_and_once(batch_size):
    """Also where a batch takes several windows."""
    found = batches(PACKED, batch_size, 120 // batch_size)
    windows = int(found[-1]["next_example"]) // 16
    rows = texts(found)
    expected = in_order(PACKED, 16 * windows)
    for window in range(windows):
        mine = slice(16 * window, 16 * window + 16)
        assert sorted(rows[mine]) == sorted(expected[mine])
    assert windows > 5 and all(batch["text"].shape == (batch_size, 24) for batch in found)


def test_rows_are_full():
    found = batches(replace(PACKED, window=512), 16, 20)
    assert np.mean([batch["text_mask"].mean() for batch in found]) > 0.95


@settings(max_examples=25)
@given(st.data())
def test_any_processes_go_on_from_any_position(data):
    """Two runs with other batch sizes, processes and threads, the second from where the first stopped, read the rows
    that one process reads."""
    window = data.draw(st.integers(1, 20))
    packed = replace(PACKED, window=window)
    whole = batches(packed, 1, 130)
    at, position = 0, 0
    for _ in range(2):
        processes, share, steps = (data.draw(st.integers(1, high)) for high in (4, 5, 3))
        where = {"next_example": position, "processes": processes, "threads": data.draw(st.sampled_from([0, 2]))}
        parts = [batches(packed, processes * share, steps, process=p, **where) for p in range(processes)]
        for step in range(steps):
            assert len({int(part[step]["next_example"]) for part in parts}) == 1
            for part in parts:
                for name in ("text", "text_mask", "segment", "position"):
                    expected = np.concatenate([row[name] for row in whole[at : at + share]])
                    np.testing.assert_array_equal(part[step][name], expected, err_msg=name)
                at += share
            position = int(parts[0][step]["next_example"])
            assert position == whole[at - 1]["next_example"]


def test_a_position_is_a_window_and_a_row():
    found = batches(PACKED, 1, 60)
    positions = [0, *(int(batch["next_example"]) for batch in found)]
    assert positions == sorted(set(positions))
    for before, after in pairwise(positions):
        assert after == before + 1 or (after % 16 == 0 and after // 16 == before // 16 + 1)
    assert_same(batches(PACKED, 1, 20, next_example=positions[40]), found[40:])


def test_a_position_that_is_no_row_is_refused():
    with pytest.raises(UserError, match=r"window 2 of the data has \d+ rows and no row 15: the data has changed"):
        batches(PACKED, 4, 1, next_example=2 * 16 + 15)


def test_a_mixture_is_packed_as_one():
    mixed = Mixture((Part("a", Letters(30)), Part("b", Letters(20, "b"), 3.0)))
    packed = Packed(mixed, 24, window=16)
    found = batches(packed, 8, 10)
    done = int(found[-1]["next_example"]) // 16 * 16
    assert sorted(texts(found)[:done]) == sorted(in_order(packed, done))
    begins = [text[1] for text in texts(found)[:done]]
    assert abs(np.mean(np.array(begins) == 3 + ord("b")) - 0.75) < 0.02
    assert part_of(packed, "b") == Letters(20, "b")


def test_texts_without_tokens_are_left_out():
    @dataclass(frozen=True)
    class Gaps(Packed):
        def pack(self, examples):
            blank = [{**each, "text_mask": each["text_mask"] & (i % 3 > 0)} for i, each in enumerate(examples)]
            return super().pack(blank)

    data = Gaps(Letters(), 24, window=9)
    found = texts(batches(data, 1, 30))
    expected = in_order(data, 18)
    assert sorted(found[:6]) == sorted(text for i, text in enumerate(expected[:9]) if i % 3)
    assert sorted(found[6:12]) == sorted(text for i, text in enumerate(expected[9:18]) if i % 3)


def test_held_out_examples_have_a_row_each():
    _, arrays = held_out(PACKED)
    assert arrays.keys() == {"text", "text_mask"} and arrays["text"].shape == (40, 20)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: replace(PACKED, window=0), "a window needs at least 1 text, not 0"),
        (lambda: replace(PACKED, length=19), "rows of 19 tokens do not hold texts of 20"),
        (lambda: Mixture((Part("a", PACKED),)), "a is packed on its own; pack the mixture"),
        (
            lambda: batches(replace(PACKED, dataset=Letters(field="label")), 1, 1),
            "texts are packed, and an example of the data has only",
        ),
        (lambda: batches(replace(PACKED, dataset=Letters(0)), 1, 1), "Letters has no training examples"),
    ],
)
def test_what_cannot_be_packed_is_named(make, says):
    with pytest.raises(UserError, match=says):
        make()
