"""Every layout gives the same examples in the same order, and is told from the others."""

import pickle
import threading

import numpy as np
import pytest

from data_pipelines.own import OwnData
from data_pipelines.pipeline import held_out_examples, training_batches
from data_pipelines.preprocess import Preprocess
from data_pipelines.sources.layouts import records
from data_pipelines.sources.records import Examples, Fields
from jmm.errors import UserError
from tests.data_pipelines.sources.layouts import CAPTIONS, COUNT, WRITERS, picture


@pytest.fixture(scope="module", params=WRITERS)
def written(request, tmp_path_factory):
    """(the layout's name, where it lies)"""
    return request.param.split(" ")[0], WRITERS[request.param](tmp_path_factory.mktemp("data") / "own")


def test_every_layout_gives_the_same_examples(written):
    layout, path = written
    found = records(path)
    assert type(found).__name__ == layout
    source = Examples(found.open(), Fields())
    assert len(source) == COUNT
    for index in (3, 0, 4, 1, 2, 3):
        example = source[index]
        np.testing.assert_array_equal(example["image"], picture(index))
        assert example["caption"] == CAPTIONS[index] and set(example) == {"image", "caption"}


def test_threads_read_the_same(written):
    source = Examples(records(written[1]).open(), Fields())
    wrong = []

    def read(seed):
        for index in np.random.default_rng(seed).integers(0, COUNT, 40):
            if not np.array_equal(source[int(index)]["image"], picture(index)):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_trains_and_holds_out(written):
    data = OwnData(records(written[1]), hold_out=3, preprocess=Preprocess((8, 8), text_length=64))
    assert [example["caption"] for example in held_out_examples(data)] == [CAPTIONS[2]]
    with training_batches(data, 4, 0, threads=2) as batches:
        batch = next(batches)
    assert batch["image"].shape == (4, 8, 8, 3) and batch["text"].shape == (4, 64)


def test_a_description_travels(written):
    """Workers and experiment files hold the description, never what it has open."""
    found = records(written[1])
    assert pickle.loads(pickle.dumps(found)) == found  # only here: nothing of the library unpickles


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path / "nowhere", "there is no .*nowhere"),
        (lambda path: path, "of no known layout: a folder with captions.csv"),
        (lambda path: path / "a.txt", "a.txt is of no known layout"),
        (lambda path: path / "x-{000..002}.tar", "there is no .*x-000.tar"),
        (lambda path: path / "*.parquet", r"\*.parquet names no file that ends with .parquet"),
    ],
)
def test_nothing_there_is_said(tmp_path, make, says):
    (tmp_path / "a.txt").write_text("no data")
    with pytest.raises(UserError, match=says):
        records(str(make(tmp_path))).open()
