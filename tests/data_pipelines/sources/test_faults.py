"""What is wrong with single records, and what training makes of it."""

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.broken import Broken
from data_pipelines.careful import Careful, Skipped
from data_pipelines.own import OwnData
from data_pipelines.pipeline import held_out_examples, training_batches
from data_pipelines.preprocess import Preprocess
from data_pipelines.sources.array_record import pack, unpack
from data_pipelines.sources.layouts import records
from data_pipelines.sources.records import Examples, Fields
from jmm.errors import UserError
from tests.data_pipelines.sources.layouts import CAPTIONS, add, array_record, encoded, parquet, picture, tar_shards

GOOD = encoded(picture(0))


def bomb(side=30_000):
    """A PNG of some kilobytes that unpacks to gigabytes: the header is all that may be looked at."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    about = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def shard(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            add(archive, name, data)
    return str(path)


def pair(key, image=GOOD, caption=b"a picture"):
    return {f"{key}.png": image, f"{key}.txt": caption}


FAULTS = {
    "image": (pair("b", image=b"no picture"), "are not a readable image"),
    "cut image": (pair("b", image=GOOD[:-40]), "are not a readable image"),
    "pixels": (pair("b", image=bomb()), "has more than .* pixels"),
    "caption": (pair("b", caption=b"  \n"), "a text is empty"),
    "bytes": (pair("b", caption=b"\xff\xfe"), "a text is not UTF-8"),
    "field": ({"b.txt": b"alone"}, "there is no image, but txt"),
    "label": ({**pair("b"), "b.cls": b"seven"}, "a label is b'seven', not a whole number"),
    "json": ({**pair("b"), "b.json": b"{"}, "its JSON cannot be read"),
    "list": ({**pair("b"), "b.json": b"[]"}, "its JSON is no object"),
    "up": ({"b/../../b.png": GOOD}, "a name that leads out of the archive"),
    "absolute": ({"/b.png": GOOD}, "a name that leads out of the archive"),
}
REASONS = {"cut image": "image", "bytes": "caption", "label": "field", "json": "record", "list": "record"}
REASONS |= {"up": "name", "absolute": "name"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_record_is_told_by_its_reason_and_its_place(tmp_path, fault):
    files, says = FAULTS[fault]
    path = shard(tmp_path / "a.tar", pair("a") | files | pair("c"))
    source = Examples(records(path).open(), Fields(needed=("image",)))
    assert len(source) == 3 and source[0].keys() == source[2].keys() == {"image", "caption"}
    with pytest.raises(Broken, match=rf"^record 1 of .*a.tar: .*{says}") as error:
        source[1]
    assert error.value.reason == REASONS.get(fault, fault)


LINES = [
    ("caption", '{"file_name": "a.png", "caption": " "}', "a text is empty"),
    ("record", "{bad", "it is no JSON object"),
    ("field", "[1]", "it names no file"),
    ("field", '{"file_name": "lost.png", "caption": "x"}', r"there is no lost\.png that can be read"),
    ("name", '{"file_name": "../a.png", "caption": "x"}', "lies outside"),
    ("name", '{"file_name": "/etc/hostname", "caption": "x"}', "lies outside"),
    ("name", '{"file_name": "a\\u0000.png", "caption": "x"}', "is no name of a file"),
    ("image", '{"file_name": "b.png", "caption": "x"}', "are not a readable image"),
]


@pytest.mark.parametrize(("reason", "line", "says"), LINES)
def test_a_broken_line_of_a_folder_is_told_by_its_reason_and_its_number(tmp_path, reason, line, says):
    (tmp_path / "a.png").write_bytes(GOOD)
    (tmp_path / "b.png").write_bytes(b"no picture")
    good = '{"file_name": "a.png", "caption": "a picture"}'
    (tmp_path / "captions.jsonl").write_text("\n".join([good, "", line, good]))
    source = Examples(records(str(tmp_path)).open(), Fields())
    assert len(source) == 3 and source[0]["caption"] == source[2]["caption"] == "a picture"
    with pytest.raises(Broken, match=rf"^line 3 of .*captions\.jsonl( \(.*\))?: .*{says}") as error:
        source[1]
    assert error.value.reason == reason


def test_a_shard_that_is_cut_off_gives_what_is_whole(tmp_path):
    path = tmp_path / "a.tar"
    shard(path, pair("a") | pair("b", image=encoded(np.zeros((64, 64, 3), np.uint8) + 7, "BMP")))
    path.write_bytes(path.read_bytes()[:4000])
    source = Examples(records(str(path)).open(), Fields())
    assert len(source) == 2 and source[0]["caption"] == "a picture"
    with pytest.raises(Broken, match="the archive ends here") as error:
        source[1]
    assert error.value.reason == "record"


LAYOUTS = {"tar": tar_shards, "parquet": parquet, "array_record": array_record}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_cannot_be_opened_stands_for_one_broken_record(tmp_path, layout):
    folder = Path(LAYOUTS[layout](tmp_path / "shards"))
    lost = folder / f"zzz.{layout}"
    lost.write_bytes(b"no such thing" * 100)
    raw, skipped = records(str(folder)).open(), Skipped(share=1.0)
    source = Careful(Examples(raw, Fields()), "mine", skipped)
    assert [source[i]["caption"] for i in range(len(source))] == [*CAPTIONS, CAPTIONS[0]]
    assert skipped.counts == {"shard": 1} and f"zzz.{layout} is no " in skipped.unlisted()[0]["message"]
    for path in folder.glob(f"*.{layout}"):
        path.write_bytes(lost.read_bytes())
    with pytest.raises(UserError, match=rf"\.{layout} is no .*(tar archive|Parquet|ArrayRecord)"):
        records(str(folder)).open()


def test_links_and_devices_in_an_archive_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "b.png", GOOD)
    raw = records(str(tmp_path / "a.tar")).open()
    assert len(raw) == 1 and set(raw[0]) == {"png"}


def test_the_index_is_kept_and_made_again_for_another_shard(tmp_path):
    path = tmp_path / "a.tar"
    shard(path, pair("a"))
    assert len(records(str(path)).open()) == 1
    (kept,) = tmp_path.glob("a.tar.*.index.npy")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:50])  # half written
    assert len(records(str(path)).open()) == 1 and kept.read_bytes() == whole
    shard(path, pair("a") | pair("b") | pair("c"))
    assert len(records(str(path)).open()) == 3


@pytest.mark.parametrize("data", [b"", b"\xc1", pack({"a": 1})[:-1], b"\x01", b"\x80\x80"])
def test_bytes_that_are_no_record(data):
    with pytest.raises(Broken, match="a record is"):
        unpack(data)


def test_records_come_back_as_they_were_packed():
    record = {
        "image": b"\x00\xff",
        "caption": "три",
        "label": 3,
        "box": np.arange(8.0).reshape(2, 4),
        "many": ["a", 1.5],
    }
    found = unpack(pack(record | {"number": np.int64(7)}))
    np.testing.assert_array_equal(found.pop("box"), record.pop("box"))
    assert found == record | {"number": 7}
    with pytest.raises(TypeError, match="a record holds object"):
        pack({"a": object()})


def with_broken(path, count, broken):
    """A folder of shards of which some records have no readable image."""
    files = {}
    for i in range(count):
        files |= pair(f"{i:04d}", image=b"nothing" if i in broken else GOOD, caption=str(i).encode())
    path.mkdir()
    shard(path / "a.tar", files)
    return OwnData(records(str(path)), hold_out=count, preprocess=Preprocess((4, 4), text_length=16))


def test_training_goes_on_without_broken_records_and_counts_them(tmp_path):
    """In a place of a broken record stands the one after it, whatever the threads and wherever a run begins."""
    data, skipped = with_broken(tmp_path / "own", 40, {3, 17}), Skipped(share=0.2)
    with training_batches(data, 13, 0, threads=2, skipped=skipped) as batches:
        found = [next(batches)["text"] for _ in range(6)]
    with training_batches(data, 13, 0, threads=0, next_example=26, skipped=Skipped(share=0.2)) as batches:
        np.testing.assert_array_equal(next(batches)["text"], found[2])
    texts = data.preprocessor()
    read = np.concatenate(found[:3]).tolist()  # one epoch of 39
    count = {i: read.count(texts.text(str(i))[0].tolist()) for i in range(39)}
    assert count == {i: {3: 0, 4: 2, 17: 0, 18: 2}.get(i, 1) for i in range(39)}
    assert skipped.counts == {"image": 2}
    listed = skipped.unlisted()
    assert {(each["dataset"], each["record"], each["reason"]) for each in listed} == {
        ("OwnData", 3, "image"),
        ("OwnData", 17, "image"),
    }
    assert all("a.tar" in each["message"] for each in listed) and skipped.unlisted() == []


def test_too_many_broken_records_end_it(tmp_path):
    data = with_broken(tmp_path / "own", 60, set(range(0, 60, 5)))
    with (
        pytest.raises(
            UserError, match=r"of \d+ records of OwnData are broken, more than the share of 0.1 that broken_share"
        ),
        training_batches(data, 10, 0, threads=0, skipped=Skipped(share=0.1)) as batches,
    ):
        for _ in range(20):
            next(batches)


def test_nothing_but_broken_records_ends_at_once(tmp_path):
    data = with_broken(tmp_path / "own", 30, set(range(30)))
    source = Careful(data.source("train"), "mine", Skipped(share=1.0))
    with pytest.raises(UserError, match=r"16 records of mine from record 0 on are broken; the last: record 15 of"):
        source[0]
    with pytest.raises(UserError, match="all of the examples are broken; the last: record 29 of"):
        held_out_examples(data)


def test_held_out_examples_are_those_that_are_whole(tmp_path):
    data = with_broken(tmp_path / "own", 30, {5})
    held = OwnData(data.records, hold_out=3, preprocess=data.preprocess)
    assert [example["caption"] for example in held_out_examples(held)] == [str(i) for i in range(2, 30, 3) if i != 5]


def test_a_needed_field_that_no_example_has():
    with pytest.raises(UserError, match=r"needed fields are of image, .*, not picture"):
        Fields(needed=("picture",))


def test_json_of_a_record_wins_over_nothing(tmp_path):
    path = shard(tmp_path / "a.tar", {"a.png": GOOD, "a.json": json.dumps({"caption": ["first", "second"]}).encode()})
    assert Examples(records(path).open(), Fields())[0]["caption"] == "first"
    assert io.BytesIO(GOOD).read() == records(path).open()[0]["png"]
