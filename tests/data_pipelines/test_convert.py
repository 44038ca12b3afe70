"""Converting records to ArrayRecord: whole, in order, gone on with, verified, and never half there."""

import json
import shutil
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest

from data_pipelines.convert import FINISHED, MANIFEST, checked, convert, share, write_shard
from data_pipelines.on_beam import each
from data_pipelines.sources.layouts import records
from jmm.errors import UserError
from tests.data_pipelines.sources.layouts import CAPTIONS, COUNT, encoded, folder_csv, picture, tar_shards


def quiet(line):
    """Says nothing."""


def made(source, target, shards=3, workers=1):
    return convert(source, str(target), shards, workers=workers, say=quiet)


@pytest.mark.parametrize("workers", [1, 2])
def test_records_are_all_there_in_their_order_as_they_were(tmp_path, workers):
    source = tar_shards(tmp_path / "source")
    done = made(source, tmp_path / "to", workers=workers)
    assert [shard.records for shard in done.shards] == [1, 2, 2] and done.made == 3
    before, after = records(source).open(), records(str(tmp_path / "to")).open()
    assert [dict(after[i]) for i in range(COUNT)] == [dict(before[i]) for i in range(COUNT)]
    assert not list((tmp_path / "to").glob("*.part")) and not checked(tmp_path / "to")


def test_it_goes_on_where_it_was_broken_off(tmp_path):
    source, to = folder_csv(tmp_path / "source"), tmp_path / "to"
    made(source, to)
    first, *_, last = sorted(to.glob("*.array_record"))
    kept, written = first.stat().st_mtime_ns, last.read_bytes()
    last.unlink()
    assert made(source, to).made == 1
    assert first.stat().st_mtime_ns == kept and last.read_bytes() == written
    assert made(source, to).made == 0


def test_a_changed_shard_is_found(tmp_path):
    to = tmp_path / "to"
    made(folder_csv(tmp_path / "source"), to)
    one, *_ = to.glob("*.array_record")
    data = bytearray(one.read_bytes())
    data[data.index(b"IHDR")] ^= 1
    one.write_bytes(data)
    (sentence,) = checked(to)
    assert one.name in sentence


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda to: None, "holds another conversion"),
        (lambda to: (to / MANIFEST).write_text("{"), "shards.json cannot be read"),
        (lambda to: (to / MANIFEST).write_text("[]"), "shards.json cannot be read"),
        (lambda to: (to / MANIFEST).unlink(), "is not empty, and holds no conversion to go on with"),
    ],
)
def test_another_conversion_is_not_mixed_with_this_one(tmp_path, change, says):
    source, to = folder_csv(tmp_path / "source"), tmp_path / "to"
    made(source, to)
    change(to)
    before = contents(to)
    with pytest.raises(UserError, match=says):
        made(source, to, shards=2)
    assert contents(to) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_shard_holds_must_be_readable(tmp_path):
    source, to = folder_csv(tmp_path / "source"), tmp_path / "to"
    made(source, to)
    (to / FINISHED / "00001.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"00001\.json cannot be read .*take it away, and the shard is made again"):
        made(source, to)
    (to / FINISHED / "00001.json").unlink()
    assert made(source, to).made == 1 and not checked(to)


def test_a_bucket_holds_the_same(tmp_path):
    """Under fsspec's name of a folder of this machine: shards are written elsewhere and carried there."""
    source, to = tar_shards(tmp_path / "source"), tmp_path / "to"
    assert made(source, f"file://{to}").made == 3 and made(source, f"file://{to}").made == 0
    made(source, tmp_path / "by hand")
    here, there = (
        {path.relative_to(each): data for path, data in contents(each).items()} for each in (tmp_path / "by hand", to)
    )
    assert here == there


def test_beam_makes_the_same(tmp_path):
    pytest.importorskip("apache_beam", reason="Beam wants an environment of its own, see the README")
    source, to = tar_shards(tmp_path / "source"), tmp_path / "to"
    made(source, tmp_path / "by hand")
    said = []
    done = convert(source, str(to), 3, beam="--runner=DirectRunner", say=said.append)
    assert done.made == len(said) == 3
    here, there = (
        {path.relative_to(each): data for path, data in contents(each).items()} for each in (tmp_path / "by hand", to)
    )
    assert here == there
    assert convert(source, str(to), 3, beam="", say=said.append).made == 0
    next(to.glob("*.array_record")).unlink()
    with pytest.raises(UserError, match="Beam knows no --runer"):
        convert(source, str(to), 3, beam="--runer=DirectRunner", say=said.append)
    (tmp_path / "source").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="there is no"):
        convert(source, str(to), 3, beam="", say=said.append)


def test_work_that_fails_on_beam_is_told(tmp_path):
    pytest.importorskip("apache_beam", reason="Beam wants an environment of its own, see the README")
    with pytest.raises(UserError, match=r"the Beam pipeline failed .there is no .*nowhere"):
        each(partial(write_shard, str(tmp_path / "nowhere"), "train", str(tmp_path), 1), [0], "")


def test_without_beam_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match="--beam needs Apache Beam"):
        convert(folder_csv(tmp_path / "source"), str(tmp_path / "to"), 2, beam="", say=quiet)


@pytest.mark.parametrize("shards", [0, COUNT + 1])
def test_more_shards_than_records(tmp_path, shards):
    source = folder_csv(tmp_path / "source")
    with pytest.raises(UserError, match=f"between 1 and the {COUNT} records, not {shards}"):
        made(source, tmp_path / "to", shards=shards)
    assert not (tmp_path / "to").exists()


def test_a_broken_record_is_left_out_and_counted(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    lines = [json.dumps({"content": [caption, {"image": f"{i}.png"}]}) for i, caption in enumerate(CAPTIONS)]
    (source / "pages.jsonl").write_text("\n".join([lines[0], "{broken", *lines[1:]]))
    for i in range(COUNT):
        (source / f"{i}.png").write_bytes(encoded(picture(i)))
    done = made(str(source), tmp_path / "to", shards=2)
    assert sum(shard.records for shard in done.shards) == COUNT and sum(shard.left_out for shard in done.shards) == 1


def test_shares_are_whole_and_even():
    for total, shards in ((7, 3), (5, 5), (100, 7)):
        runs = [share(total, number, shards) for number in range(shards)]
        assert [i for run in runs for i in range(*run)] == list(range(total))
        assert {stop - start for start, stop in runs} <= {total // shards, -(-total // shards)}


def test_no_space_is_said_and_what_was_made_stays(tmp_path, monkeypatch):
    source, to = folder_csv(tmp_path / "source"), tmp_path / "to"
    made(source, to)
    shutil.rmtree(to)
    to.write_text("a file is in the way")
    with pytest.raises((UserError, NotADirectoryError)):
        made(source, to)
    assert to.read_text() == "a file is in the way"


def test_a_source_that_has_changed_is_not_mixed_with_what_it_was(tmp_path):
    source, to = folder_csv(tmp_path / "source"), tmp_path / "to"
    made(source, to)
    (to / FINISHED / "00002.json").unlink()
    before = contents(to)
    (tmp_path / "source" / "captions.csv").write_text(
        "file_name,caption\n" + "".join(f"{n}.png,new\n" for n in range(COUNT))
    )
    with pytest.raises(UserError, match=r"was begun before the files of .*source were changed; name another folder"):
        made(source, to)
    assert contents(to) == before


def test_a_finished_shard_that_is_damaged_is_made_again(tmp_path):
    source, to = folder_csv(tmp_path / "source"), tmp_path / "to"
    made(source, to)
    one, *_ = sorted(to.glob("*.array_record"))
    whole = one.read_bytes()
    one.write_bytes(whole[: len(whole) // 2])
    assert made(source, to).made == 1 and one.read_bytes() == whole


def test_part_of_a_conversion_is_not_taken_for_all(tmp_path):
    to = tmp_path / "to"
    made(tar_shards(tmp_path / "source"), to)
    next(to.glob("*-00001-of-*")).unlink()
    with pytest.raises(UserError, match=r"holds 2 of 3 shards; the conversion that began it goes on by its command"):
        records(str(to)).open()
    assert len(records(str(to / "*.array_record")).open()) == 3


def test_nothing_that_can_be_converted(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "captions.csv").write_text("file_name,caption\ngone.png,a\nlost.png,b\n")
    with pytest.raises(UserError, match=r"none of the 2 records of .* can be converted; the first: line 2 of .*gone"):
        made(str(tmp_path / "source"), tmp_path / "to", shards=1)


def test_a_process_that_is_killed_is_told(tmp_path, monkeypatch):
    def killed(*_):
        raise BrokenProcessPool
        yield

    monkeypatch.setattr("data_pipelines.convert._in_processes", killed)
    with pytest.raises(UserError, match=r"a process of the conversion was ended, .*the same command goes on"):
        made(folder_csv(tmp_path / "source"), tmp_path / "to")


def test_a_writer_without_space_is_told(tmp_path, monkeypatch):
    def full(self, data):
        raise RuntimeError("No space left on device")

    source, to = folder_csv(tmp_path / "source"), tmp_path / "to"
    to.mkdir()
    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordWriter.write", full)
    with pytest.raises(UserError, match=r"part cannot be written \(No space left .*\); the same command goes on"):
        write_shard(source, "train", str(to), 3, 0)
