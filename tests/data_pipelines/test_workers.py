"""Processes that read for one that trains: the same batches, the same count of broken records, nothing left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.ahead import AHEAD, HELD
from data_pipelines.broken import Broken
from data_pipelines.careful import Skipped
from data_pipelines.packed import Packed
from data_pipelines.pipeline import training_batches
from data_pipelines.preprocess import Preprocess
from jmm.errors import UserError


@dataclass(frozen=True)
class Numbers:
    """Examples of a random picture, a text and their number; every n-th is broken, or one is unlike the others, or
    ends the reading."""

    size: int = 50
    broken: int = 0
    unlike: int = 0
    unreadable: int = -1

    def source(self, split):
        return Numbered(self.size, self.broken, self.unlike, self.unreadable)

    def augment(self, example, rng):
        return {**example, "image": rng.integers(0, 256, (6, 5, 3), np.uint8)}

    def preprocessor(self):
        return Preprocess((6, 5), text_length=12)


@dataclass(frozen=True)
class Numbered:
    size: int
    broken: int
    unlike: int
    unreadable: int

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.unreadable:
            raise UserError(f"nobody knows {index}")
        if self.broken and index % self.broken == 0:
            raise Broken("image", f"{index} is broken")
        if self.unlike:
            return {"image": np.zeros((6, 5, 3), np.uint8), "label": index} | ({"task": 1} if index == 30 else {})
        return {"image": np.zeros((6, 5, 3), np.uint8), "caption": "a" * (index % 9 + 1), "label": index}


def batches(data, batch_size, count, **where):
    with training_batches(data, batch_size, 3, **where) as iterator:
        return list(islice(iterator, count))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("workers, threads", [(1, 0), (2, 1), (3, 2)])
def test_any_number_of_workers_reads_the_same(workers, threads):
    """More batches than lie in shared memory, and all of them are kept; three share the five rows unequally."""
    where = {"process": 1, "processes": 2, "next_example": 30}
    found = batches(Numbers(), 10, AHEAD + HELD + 6, workers=workers, threads=threads, **where)
    assert_same(found, batches(Numbers(), 10, AHEAD + HELD + 6, threads=0, **where))


@pytest.mark.parametrize("who", [{"threads": 0}, {"threads": 3}, {"workers": 2}], ids=str)
def test_memory_that_is_let_go_is_written_again_and_other_is_not(who):
    expected, places = batches(Numbers(), 4, 40, threads=0), set()
    with training_batches(Numbers(), 4, 3, **who) as iterator:
        held = next(islice(iterator, 3, None))["image"][1:, ::2]  # part of one array of the fourth batch
        for number, batch in enumerate(islice(iterator, 36), 4):
            assert_same([batch], [expected[number]])
            places.add(batch["image"].ctypes.data)
            del batch
    np.testing.assert_array_equal(held, expected[3]["image"][1:, ::2])
    assert len(places) <= AHEAD + HELD


def test_threads_end_with_the_pipeline():
    with training_batches(Numbers(), 4, 3, threads=3) as iterator:
        next(iterator)
        assert sum(thread.name.startswith("jmm-data") for thread in threading.enumerate()) == 3
    assert not any(thread.name.startswith("jmm-data") for thread in threading.enumerate())


@pytest.mark.parametrize("who", [{"threads": 2}, {"workers": 1}], ids=str)
def test_examples_that_differ_in_their_fields_end_it(who):
    with pytest.raises(UserError, match="all examples of a batch must have the fields image, label"):
        batches(Numbers(unlike=30), 5, 12, **who)


def test_what_two_processes_with_two_workers_began_one_without_ends():
    whole = batches(Numbers(), 8, 9, threads=0)
    parts = [batches(Numbers(), 8, 5, process=p, processes=2, workers=2) for p in range(2)]
    begun = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_same(begun + batches(Numbers(), 8, 4, next_example=40, threads=0), whole)


def test_packed_texts_are_the_same_rows():
    data = Packed(Numbers(), 16, window=20)
    expected = batches(data, 4, 12, threads=0)
    assert_same(batches(data, 4, 12, workers=2), expected)
    assert_same(batches(data, 4, 7, workers=2, next_example=int(expected[4]["next_example"])), expected[5:])


def test_broken_records_are_replaced_and_counted_alike():
    ours, theirs = Skipped(share=0.5), Skipped(share=0.5)
    expected = batches(Numbers(broken=10), 5, 20, threads=0, skipped=ours)
    assert_same(batches(Numbers(broken=10), 5, 20, workers=2, skipped=theirs), expected)
    assert theirs.counts == ours.counts == {"image": 5}
    assert {str(error) for error in theirs.broken.values()} == {f"{i} is broken" for i in range(0, 50, 10)}
    assert ours.read <= theirs.read <= ours.read + 6 * AHEAD


def test_too_many_broken_records_end_it_with_one_sentence():
    with pytest.raises(UserError, match=r"\d+ of \d+ records of Numbers are broken, more than the share of 0\.01"):
        batches(Numbers(broken=10), 5, 40, workers=2)
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_named():
    with training_batches(Numbers(), 4, 3, workers=2) as iterator:
        list(islice(iterator, 5))
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"a process that reads data has ended with code -9: perhaps for want"):
            list(islice(iterator, 20))
    assert not multiprocessing.active_children()


def test_a_dataset_of_no_module_is_refused_with_one_sentence():
    @dataclass(frozen=True)
    class Local(Numbers):
        pass

    with (
        pytest.raises(UserError, match=r"Local cannot be read by other processes .* classes can be imported"),
        training_batches(Local(), 4, 3, workers=2) as iterator,
    ):
        next(iterator)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_the_process_that_trains_leaves_it_its_workers(sign):
    """It comes to all of a group; the one that trains has a step to end, and a state to save."""
    expected = batches(Numbers(), 4, 20, threads=0)
    with training_batches(Numbers(), 4, 3, workers=2) as iterator:
        found = [{name: array.copy() for name, array in batch.items()} for batch in islice(iterator, 5)]
        for child in multiprocessing.active_children():
            os.kill(child.pid, sign)
        found += list(islice(iterator, 15))
    assert_same(found, expected)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("who", [{"threads": 2}, {"workers": 2}], ids=str)
def test_after_an_error_the_next_batches_are_right(who):
    expected, skipped = batches(Numbers(), 5, 9, threads=0), Skipped(share=0.9)
    with training_batches(Numbers(unreadable=23), 5, 3, skipped=skipped, **who) as iterator:
        found = []
        for _ in range(9):
            try:
                found.append({name: array.copy() for name, array in next(iterator).items()})
            except UserError as error:
                assert "nobody knows 23" in str(error)
                found.append(None)
    assert found.count(None) == 1
    right = [(one, other) for one, other in zip(found, expected, strict=True) if one is not None]
    assert_same([one for one, _ in right], [other for _, other in right])


LEFT = """
from data_pipelines.digits import Digits
from data_pipelines.pipeline import training_batches

if __name__ == "__main__":
    pipeline = training_batches(Digits(text_length=44), 4, 0, workers=2)
    batches = pipeline.__enter__()
    next(batches), next(batches)
    print("the end")
"""


def test_who_leaves_without_closing_does_not_wait_for_ever(tmp_path):
    (tmp_path / "left.py").write_text(LEFT)
    done = subprocess.run(
        [sys.executable, tmp_path / "left.py"],
        **{"env": {**os.environ, "PYTHONPATH": str(Path.cwd())}, "timeout": 100, "capture_output": True, "text": True},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")
