"""Packing against plain first-fit in Python; every token once, in its place; the fill of realistic lengths."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.packing import first_fit, pack, patches_of, unpack
from jmm.errors import UserError


def plain_first_fit(lengths, capacity):
    """First-fit decreasing, one sequence after another, over all rows that are open."""
    share = [sum(Fraction(length, size) for length, size in zip(each, capacity, strict=True)) for each in lengths]
    order = sorted(range(len(lengths)), key=lambda i: -share[i])
    members = []
    for i in order:
        for row in members:
            used = [sum(lengths[j][f] for j in row) for f in range(len(capacity))]
            if all(u + length <= size for u, length, size in zip(used, lengths[i], capacity, strict=True)):
                row.append(i)
                break
        else:
            members.append([i])
    rows = np.zeros(len(lengths), int)
    for number, row in enumerate(sorted(members, key=lambda row: row[0])):
        rows[row] = number
    return rows


@st.composite
def problems(draw):
    """Lengths [N,F] of sequences that are not empty, and capacities [F]."""
    features = draw(st.integers(1, 3))
    capacity = tuple(draw(st.integers(1, high)) for high in (12, 40, 3)[:features])
    one = st.tuples(*[st.integers(0, size) for size in capacity]).filter(any)
    lengths = draw(st.lists(one, max_size=40))
    return np.array(lengths, np.int64).reshape(-1, features), capacity


@given(problems())
def test_it_is_first_fit_decreasing(problem):
    """The same row for each sequence, and so as many rows."""
    lengths, capacity = problem
    np.testing.assert_array_equal(first_fit(lengths, capacity), plain_first_fit(lengths.tolist(), capacity))


@given(problems())
def test_no_row_holds_more_than_its_capacity_and_none_is_empty(problem):
    lengths, capacity = problem
    rows = first_fit(lengths, capacity)
    count = rows.max(initial=-1) + 1
    assert set(rows.tolist()) == set(range(count))
    for feature, size in enumerate(capacity):
        assert np.bincount(rows, lengths[:, feature], count).max(initial=0) <= size
    np.testing.assert_array_equal(first_fit(lengths, capacity), rows)


@pytest.mark.parametrize(("median", "sigma"), [(24.0, 0.6), (300.0, 1.0)], ids=["captions", "documents"])
@pytest.mark.parametrize("capacity", [512, 1024, 2048])
def test_rows_of_log_normal_lengths_are_full(median, sigma, capacity):
    """4096 of them; as many rows as plain first-fit, which the best packing cannot undercut by more than 5%."""
    lengths = np.random.default_rng(0).lognormal(np.log(median), sigma, 4096).round().clip(1, capacity).astype(int)
    assert lengths.sum() / ((first_fit(lengths, capacity).max() + 1) * capacity) > 0.95


def test_rows_of_captions_and_images_are_full():
    """Those of the feature that fills them more."""
    rng = np.random.default_rng(0)
    captions = rng.lognormal(np.log(24), 0.6, 4096).round().clip(1, 256).astype(int)
    lengths = np.stack([captions, rng.integers(4, 17, (4096, 2)).prod(axis=1)], axis=1)
    fill = lengths.sum(axis=0) / (first_fit(lengths, (256, 1024)).max() + 1) / (256, 1024)
    assert fill.max() > 0.95


def test_rows_of_a_list_in_random_order_are_in_random_order():
    """Or the first batches of a window would be of long texts."""
    lengths = np.random.default_rng(0).integers(1, 65, 4000)
    rows = first_fit(lengths, 64)
    longest = np.zeros(rows.max() + 1)
    np.maximum.at(longest, rows, lengths)
    early, late = np.split(longest[: len(longest) // 2 * 2], 2)
    assert abs(early.mean() - late.mean()) < 2  # the standard error is 0.4; in order of length it were 17


def sequences(seed, count, high=9):
    rng = np.random.default_rng(seed)
    return [{"text": rng.integers(1, 50, rng.integers(1, high))} for _ in range(count)]


def test_the_fields_of_packed_texts():
    texts = [[7, 8, 9], [5], [3, 4], [6, 6, 6, 6]]
    batch = pack([{"text": np.array(each)} for each in texts], {"text": 5})
    expected = {
        "text": [[7, 8, 9, 3, 4], [5, 6, 6, 6, 6]],
        "segment": [[1, 1, 1, 2, 2], [1, 2, 2, 2, 2]],
        "position": [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]],
    }
    assert {name: batch[name].tolist() for name in expected} == expected
    assert {name: each.dtype.name for name, each in batch.items()} == {
        **dict.fromkeys(expected, "int32"),
        "text_mask": "bool",
    }
    padded = pack([{"text": np.array([7, 0])}], {"text": 4})
    assert padded["text_mask"].tolist() == [[True, True, False, False]], "an id of 0 in a text is no padding"
    assert padded["segment"].tolist() == [[1, 1, 0, 0]]


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(8, 40))
def test_unpacking_gives_every_text_once(seed, count, length):
    texts = sequences(seed, count)
    rows = first_fit(np.array([len(each["text"]) for each in texts]), length)
    found = unpack(pack(texts, {"text": length}))
    expected = [texts[index] for index in np.argsort(rows, kind="stable")]
    assert [each["text"].tolist() for each in found] == [each["text"].tolist() for each in expected]


def pictured(seed, count):
    """Examples with text, with an image, and with both."""
    rng, examples = np.random.default_rng(seed), sequences(seed, count)
    for index, example in enumerate(examples):
        if index % 3:
            height, width = rng.integers(1, 4, 2)
            example |= patches_of(rng.standard_normal((2 * height, 2 * width, 3)).astype(np.float32), 2)
        if index % 3 == 2:
            del example["text"]
    return examples


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(8, 40), st.integers(9, 40))
def test_the_picture_and_the_text_of_an_example_share_a_segment(seed, count, length, patches):
    examples = pictured(seed, count)
    batch = pack(examples, {"text": length, "patches": patches})
    lengths = np.array([[len(each.get(name, ())) for name in ("text", "patches")] for each in examples])
    order = np.argsort(first_fit(lengths, (length, patches)), kind="stable")
    assert batch["patches"].shape == (len(batch["text"]), patches, 12)
    found = unpack(batch)
    assert len(found) == count
    for one, index in zip(found, order, strict=True):
        assert one.keys() == examples[index].keys()
        for name, each in one.items():
            np.testing.assert_array_equal(each, examples[index][name])
    assert not batch["patches"][batch["patch_segment"] == 0].any()


def test_patches_are_cut_row_by_row():
    image = np.arange(4 * 6 * 2, dtype=np.float32).reshape(4, 6, 2)
    cut = patches_of(image, 2)
    assert cut["patch_position"].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    for patch, (row, column) in zip(cut["patches"], cut["patch_position"], strict=True):
        np.testing.assert_array_equal(patch.reshape(2, 2, 2), image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2])


def cut(count, places):
    return {"patches": np.zeros((count, 3), np.float32), "patch_position": np.zeros((places, 2), np.int32)}


TEXTS = sequences(0, 3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: first_fit(np.array([3, 9, 2]), 8),
            "sequence 1 with a length of 9 is longer than a row, which holds 8",
        ),
        (
            lambda: first_fit(np.array([[3, 4], [3, 6]]), (8, 5)),
            "sequence 1 with a length of 3 and 6 is longer than a row, which holds 8 and 5",
        ),
        (lambda: first_fit(np.array([3, 0]), 8), "sequence 1 with a length of 0 is empty"),
        (lambda: first_fit(np.array([[3, -1]]), (8, 8)), "sequence 0 with a length of 3 and -1 is empty"),
        (lambda: first_fit(np.array([3]), 0), "capacity of a row must be at least 1, not 0"),
        (lambda: first_fit(np.array([[3, 4]]), 8), "2 features need as many capacities, not 1"),
        (lambda: pack([], {"text": 8}), "nothing to pack"),
        (lambda: pack(TEXTS, {"text": 8}, np.zeros(3, int)), "together longer than it, which holds 8"),
        (lambda: pack(TEXTS, {"text": 8, "patches": 8}), "no example has patches"),
        (lambda: pack([cut(3, 2)], {"patches": 8}), "with 3 patches has 2 positions of patches"),
        (lambda: patches_of(np.zeros((4, 6, 3), np.float32), 4), "4 × 6 cannot be cut into patches of 4 × 4"),
    ],
)
def test_what_does_not_fit_is_named(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_nothing_to_place():
    assert first_fit(np.zeros(0, int), 8).tolist() == []
