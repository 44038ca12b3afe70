"""Several datasets as one: shares, order, and the part that each example belongs to."""

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.mixture import Later, Mixture, Part, part_of, task_names
from data_pipelines.order import ordered
from data_pipelines.pipeline import held_out, training_batches
from data_pipelines.preprocess import Preprocess
from jmm.errors import UserError


@dataclass(frozen=True)
class Count:
    """`size` examples whose label is `first` and on; a training example's label is moved by 1,000 in augmentation."""

    first: int
    size: int
    channels: int = 1

    def source(self, split):
        return [{"label": self.first + i} for i in range(self.size if split == "train" else 2)]

    def augment(self, example, rng):
        return {**example, "label": example["label"] + 1000 * int(rng.integers(2))}

    def preprocessor(self):
        return Preprocess(channels=self.channels)


MIXED = Mixture((Part("few", Count(0, 3), 1.0), Part("many", Count(100, 50), 3.0)))


def batches(data, count, **where):
    with training_batches(data, 8, seed=5, threads=0, **where) as iterator:
        return list(islice(iterator, count))


def test_shares_follow_the_weights():
    task = np.concatenate([batch["task"] for batch in batches(MIXED, 40)])
    assert task.dtype == np.int32 and (task == 1).mean() == 0.75


def test_every_example_knows_its_part_and_small_parts_are_repeated():
    found = batches(MIXED, 40)
    label, task = (np.concatenate([batch[name] for batch in found]) for name in ("label", "task"))
    assert ((label % 1000 >= 100) == (task == 1)).all()
    assert set(label[task == 0] % 1000) == {0, 1, 2}
    assert len(set(label[task == 1] % 1000)) == 50, "240 examples of a part with 50 show them all"
    assert (label >= 1000).any() and (label < 1000).any(), "each part augments its own"


def test_the_order_is_a_function_of_the_seed_and_resumes():
    whole = batches(MIXED, 6)
    for one, other in zip(batches(MIXED, 3, next_example=24), whole[3:], strict=True):
        np.testing.assert_array_equal(one["label"], other["label"])
    shares = [batches(MIXED, 2, process=p, processes=2) for p in range(2)]
    joined = np.concatenate([share[1]["label"] for share in shares])
    np.testing.assert_array_equal(joined, whole[1]["label"])


def test_shares_change_at_an_example():
    """At the 21st, within a batch; before it all is as without a change, and behind it each part begins anew."""
    mixture = replace(MIXED, later=Later(20, (3.0, 1.0)))
    found, before = (np.concatenate([batch["label"] for batch in batches(data, 30)]) for data in (mixture, MIXED))
    np.testing.assert_array_equal(found[:20] % 1000, before[:20] % 1000)
    assert ((found[20:] % 1000) < 100).mean() == 0.75
    many = found[20:][found[20:] % 1000 >= 100] % 1000
    assert len(set(many[:50].tolist())) == 50 and sorted(many[:9]) != sorted(found[found % 1000 >= 100][:9] % 1000)
    for start in (16, 24):  # resumed before and behind it
        gone_on = np.concatenate([batch["label"] for batch in batches(mixture, 3, next_example=start)])
        np.testing.assert_array_equal(gone_on, found[start : start + 24])


SIZES = Mixture(
    (Part("few", Count(0, 3), 100.0), Part("more", Count(100, 50), 900.0), Part("all", Count(500, 90), 2500.0))
)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [100, 900, 2500]), (2.0, [10, 30, 50]), (4.0, [10**0.5, 30**0.5, 50**0.5]), (float("inf"), [1, 1, 1])],
)
def test_a_temperature_moves_the_shares_towards_equal_ones(temperature, expected):
    mixed, expected = replace(SIZES, temperature=temperature), np.array(expected) / sum(expected)
    np.testing.assert_allclose(mixed.weights, expected, rtol=1e-12)
    task = np.concatenate([batch["task"] for batch in batches(mixed, 175)])
    # Grain mixes by whole numbers, of which the smallest share has a hundred.
    np.testing.assert_allclose(np.bincount(task) / 1400, expected, rtol=0.01, atol=1 / 1400)


def test_without_a_temperature_the_order_is_that_of_the_weights():
    """To the last bit: runs that were begun without one go on."""
    weights = [part.weight for part in SIZES.parts]
    assert SIZES.weights == [weight / sum(weights) for weight in weights]


@settings(max_examples=25)
@given(st.data())
def test_any_start_and_share_reads_its_part_of_one_list(data):
    temperature = data.draw(st.sampled_from([1.0, 1.7, 5.0, float("inf")]))
    processes, start = data.draw(st.sampled_from([1, 2, 4, 8])), data.draw(st.integers(0, 200))
    process, mixed = data.draw(st.integers(0, processes - 1)), replace(SIZES, temperature=temperature)
    ordered_examples = ordered(mixed, 5)
    share = 8 // processes
    found = batches(mixed, 3, next_example=8 * start, process=process, processes=processes)
    for step, batch in enumerate(found, start):
        first = 8 * step + process * share
        expected = [ordered_examples[index] for index in range(first, first + share)]
        for name in ("label", "task"):
            assert batch[name].tolist() == [int(each[name]) for each in expected]


def test_an_epoch_of_a_part_shows_each_example_once_whatever_the_temperature():
    for temperature in (1.0, 3.0):
        found = batches(replace(SIZES, temperature=temperature), 120)
        label, task = (np.concatenate([batch[name] for batch in found]) for name in ("label", "task"))
        for part, size in enumerate((3, 50, 90)):
            own = label[task == part] % 1000
            whole = own[: len(own) // size * size].reshape(-1, size)
            assert len(whole) and all(len(set(epoch)) == size for epoch in whole.tolist())


def test_held_out_is_that_of_all_parts_in_turn():
    examples, arrays = held_out(MIXED)
    assert [example["label"] for example in examples] == [0, 1, 100, 101]
    assert arrays["task"].tolist() == [0, 0, 1, 1]
    assert held_out(part_of(MIXED, "many"))[1]["label"].tolist() == [100, 101]


def test_names():
    assert task_names(MIXED) == ("few", "many") and task_names(Count(0, 1)) == ()
    assert part_of(Count(0, 1), "") == Count(0, 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mixture(()), "needs parts with different names, not none"),
        (
            lambda: Mixture((Part("a", Count(0, 1)), Part("a", Count(0, 1)))),
            "needs parts with different names, not a, a",
        ),
        (lambda: Mixture((Part("a", Count(0, 1), 0.0),)), "the weight of a must be above 0, not 0.0"),
        (lambda: Mixture((Part("a", Count(0, 1), float("nan")),)), "the weight of a must be above 0, not nan"),
        (lambda: replace(MIXED, later=Later(8, (1.0,))), "later shares are 2 weights, one a part, .* not 1 from 8 on"),
        (lambda: replace(MIXED, later=Later(0, (1.0, 2.0))), "from example 1 or a later one on, not 2 from 0 on"),
        (lambda: replace(MIXED, later=Later(8, (1.0, -1.0))), "the weight of many must be above 0, not -1.0"),
        (lambda: replace(MIXED, temperature=0.5), "the temperature of a mixture must be at least 1, not 0.5"),
        (lambda: replace(MIXED, temperature=float("nan")), "must be at least 1, not nan"),
        (lambda: MIXED.part("none"), "no part 'none'; it has few, many"),
        (lambda: part_of(Count(0, 1), "few"), "Count is no mixture, and has no part 'few'"),
        (lambda: batches(Mixture((Part("empty", Count(0, 0)),)), 1), "empty has no training examples"),
        (
            lambda: replace(MIXED, parts=(*MIXED.parts, Part("grey", Count(0, 1, channels=3)))).preprocessor(),
            "grey and few differ in their preprocessing",
        ),
    ],
)
def test_bad_mixtures_are_named(make, says):
    with pytest.raises(UserError, match=says):
        make()
