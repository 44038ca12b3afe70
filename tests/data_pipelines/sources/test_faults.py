"""What is wrong with single records, and what training makes of it."""

import datetime
import gzip
import io
import json
import os
import tarfile
import zlib
from decimal import Decimal
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
from data_pipelines.sources.web_dataset import WebDataset
from data_pipelines.texts import texts
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
    "large": ({**pair("b"), "b.cls": b"5000000000"}, "not a whole number of 32 bits"),
    "half": ({**pair("b"), "b.json": rb'{"caption": "cut \ud83d"}'}, "a text holds half a letter"),
    "json": ({**pair("b"), "b.json": b"{"}, "its JSON cannot be read"),
    "list": ({**pair("b"), "b.json": b"[]"}, "its JSON is no object"),
    "up": ({"b/../../b.png": GOOD}, "a name that leads out of the archive"),
    "absolute": ({"/b.png": GOOD}, "a name that leads out of the archive"),
}
REASONS = {"cut image": "image", "bytes": "caption", "label": "field", "json": "record", "list": "record"}
REASONS |= {"large": "field", "half": "caption"}
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


def broken_of(path):
    """How many of its records are broken, and the captions of the others."""
    source, captions, broken = Examples(records(str(path)).open(), Fields(needed=("image", "caption"))), [], 0
    for index in range(len(source)):
        try:
            captions.append(source[index]["caption"])
        except Broken:
            broken += 1
    return broken, captions


def test_wherever_a_shard_is_cut_off_or_damaged_it_is_told(tmp_path):
    path = tmp_path / "a.tar"
    shard(path, pair("a") | pair("b") | pair("c", caption=b"the last"))
    whole = path.read_bytes()
    assert broken_of(path) == (0, ["a picture", "a picture", "the last"])
    with tarfile.open(path) as archive:
        heads, end = [member.offset for member in archive], archive.offset
    for cut in [*range(heads[2], end, 128), end]:
        path.write_bytes(whole[:cut])
        assert broken_of(path)[0] >= 1, cut
    path.write_bytes(whole[: heads[2]] + b"x" * 512 + whole[heads[2] + 512 :])
    assert broken_of(path) == (1, ["a picture"])


def test_files_without_an_ending_and_hidden_ones_are_no_records(tmp_path):
    hidden = {f"./._{name}": b"of a file system" for name in pair("a")}
    path = shard(tmp_path / "a.tar", {"README": b"about"} | hidden | {f"./{n}": d for n, d in pair("a").items()})
    assert broken_of(path) == (0, ["a picture"])


def test_dots_in_keys_and_compressed_shards_are_refused(tmp_path):
    path = shard(tmp_path / "a.tar", {f"{n}.{n}ms.txt": b"x" for n in range(100)})
    with pytest.raises(UserError, match=r"100 different endings \(0ms\.txt, 10ms\.txt, …\): a name's first dot ends"):
        records(path).open()
    (tmp_path / "b.tar").write_bytes(gzip.compress(Path(path).read_bytes()))
    with pytest.raises(UserError, match="it is compressed: unpack it first"):
        records(str(tmp_path / "b.tar")).open()


ODD = [
    ("audio", "a.wav", "a sound is str"),
    ("audio", {"bytes": None, "path": "a.wav"}, "a sound is NoneType"),
    ("audio", {"array": [0.0], "sampling_rate": 8000}, "a sound is NoneType"),
    ("images", 3, "pictures are int, not a list"),
    ("video", "a.mp4", "pictures are str, not a list"),
    ("video", [], "there is no frame"),
    ("image", np.zeros((4, 4, 4), np.uint8), r"an image is uint8 \[4, 4, 4\]"),
    ("image", np.zeros((0, 4, 3), np.uint8), r"an image is uint8 \[0, 4, 3\]"),
    ("image", np.zeros((4, 4, 3), np.float32), r"an image is float32"),
    ("label", float("inf"), "a label is inf, not a whole number"),
    ("label", 1.5, "a label is 1.5, not a whole number"),
    ("label", -(1 << 31) - 1, "not a whole number of 32 bits"),
]


@pytest.mark.parametrize(("name", "value", "says"), ODD, ids=[says for *_, says in ODD])
def test_values_of_another_kind(name, value, says):
    with pytest.raises(Broken, match=says):
        Fields().example({name: value})


def test_a_prompt_without_an_answer_asks_nothing():
    how, caption = Preprocess(text_length=16), {"caption": "a boat"}
    found = how.fields(Fields().example({"prompt": "draw a boat"} | caption))
    assert found.keys() == {"text", "text_mask"} and (found["text"] == how.fields(caption)["text"]).all()
    assert "prefix_length" in how.fields(Fields().example({"question": "what?", "answer": "a boat"}))
    assert list(texts(Rows([{"prompt": "draw a boat"}]))) == ["draw a boat"]


class Rows(list):
    def where(self, index):
        return f"row {index}"


def test_shards_of_many_endings_that_all_records_have(tmp_path):
    path = shard(tmp_path / "a.tar", {f"{n}.{view}.jpg": GOOD for n in range(4) for view in range(80)})
    assert [len(records(path).open()[n]) for n in range(4)] == [80] * 4


def test_an_archive_behind_another_is_told(tmp_path):
    path = tmp_path / "a.tar"
    shard(path, pair("a"))
    path.write_bytes(path.read_bytes() * 2)
    assert broken_of(path) == (1, ["a picture"])


LAYOUTS = {"tar": tar_shards, "parquet": parquet, "array_record": array_record}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_cannot_be_opened_stands_for_one_broken_record(tmp_path, layout):
    folder = Path(LAYOUTS[layout](tmp_path / "shards"))
    lost = folder / f"zzz.{layout}"
    lost.write_bytes(b"no such thing" * 100)
    raw, skipped = records(str(folder)).open(), Skipped(share=1.0)
    source = Careful(Examples(raw, Fields()), "mine", skipped)
    found = [source[i]["caption"] for i in range(len(source))]
    assert found[:-1] == [*CAPTIONS] and found[-1] in CAPTIONS
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
    # Another of the same size, and no younger than the index.
    about = path.stat()
    shard(path, pair("d") | pair("e"))
    assert path.stat().st_size == about.st_size
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert len(records(str(path)).open()) == 2
    # No pattern takes an index for a shard.
    assert len(records(str(tmp_path / "a.tar*")).open()) == len(WebDataset(str(tmp_path / "*")).open()) == 2


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
    for value in (object(), 1 << 70, "\ud83d"):
        with pytest.raises(Broken, match="a record has no place in a file"):
            pack({"a": value})
    assert unpack(pack({"day": datetime.date(2026, 11, 24), "price": Decimal("1.50")})) == {
        "day": "2026-11-24",
        "price": "1.50",
    }


def with_broken(path, count, broken):
    """A folder of shards of which some records have no readable image."""
    files = {}
    for i in range(count):
        files |= pair(f"{i:04d}", image=b"nothing" if i in broken else GOOD, caption=str(i).encode())
    path.mkdir()
    shard(path / "a.tar", files)
    return OwnData(records(str(path)), hold_out=count, preprocess=Preprocess((4, 4), text_length=16))


def test_training_goes_on_without_broken_records_and_counts_them(tmp_path):
    """In the place of a broken record stands another, whatever the threads and wherever a run begins."""
    data, skipped = with_broken(tmp_path / "own", 40, {3, 17}), Skipped(share=0.2)
    with training_batches(data, 13, 0, threads=2, skipped=skipped) as batches:
        found = [next(batches)["text"] for _ in range(6)]
    with training_batches(data, 13, 0, threads=0, next_example=26, skipped=Skipped(share=0.2)) as batches:
        np.testing.assert_array_equal(next(batches)["text"], found[2])
    texts = data.preprocessor()
    read = np.concatenate(found[:3]).tolist()  # one epoch of 39
    count = [read.count(texts.text(str(i))[0].tolist()) for i in range(39)]
    assert [place for place in range(39) if not count[place]] == [3, 17] and sum(count) == 39
    assert skipped.counts == {"image": 2}
    listed = skipped.unlisted()
    assert {(each["dataset"], each["record"], each["reason"]) for each in listed} == {
        ("OwnData", 3, "image"),
        ("OwnData", 17, "image"),
    }
    assert all("a.tar" in each["message"] for each in listed) and skipped.unlisted() == []
    # What is kept of them for the whole run is a sentence, and not the record.
    kept = skipped.broken.values()
    assert {(error.__traceback__, error.__cause__, error.__context__) for error in kept} == {(None, None, None)}


def test_broken_records_that_lie_together_end_nothing(tmp_path):
    broken = set(range(10, 40))
    data, skipped = with_broken(tmp_path / "own", 60, broken), Skipped(share=0.9)
    with training_batches(data, 10, 0, threads=0, skipped=skipped) as batches:
        for _ in range(60):
            next(batches)
    assert {place for _, place in skipped.broken} == broken and skipped.read == 600


@pytest.mark.parametrize(("share", "ends"), [(0.005, False), (0.01, False), (0.03, True), (1.0, True)])
def test_chance_alone_does_not_end_training(share, ends):
    """Twenty runs, 5,000 records each, one in a hundred of which may be broken."""
    ended = 0
    for seed in range(20):
        skipped = Skipped(share=0.01)
        try:
            for place, broken in enumerate(np.random.default_rng(seed).random(5000) < share):
                if broken:
                    skipped.add("mine", place, Broken("image", "x"))
                else:
                    skipped.good()
        except UserError:
            ended += 1
    assert ended == 20 if ends else ended <= 1


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
    with pytest.raises(
        UserError, match=r"record 0 of mine is broken, and so are the 15 that could .*; the last: record \d+ of"
    ):
        source[0]
    with pytest.raises(UserError, match="all of the examples are broken; the last: record 29 of"):
        held_out_examples(data)


def test_held_out_examples_are_those_that_are_whole(tmp_path):
    data = with_broken(tmp_path / "own", 30, {5})
    held = OwnData(data.records, hold_out=3, preprocess=data.preprocess)
    with pytest.warns(UserWarning, match=r"1 of 10 examples are broken and left out; the last: record 5 of .*a\.tar"):
        found = held_out_examples(held)
    assert [example["caption"] for example in found] == [str(i) for i in range(2, 30, 3) if i != 5]


def test_a_needed_field_that_no_example_has():
    with pytest.raises(UserError, match=r"needed fields are of image, .*, not picture"):
        Fields(needed=("picture",))


def test_json_of_a_record_wins_over_nothing(tmp_path):
    path = shard(tmp_path / "a.tar", {"a.png": GOOD, "a.json": json.dumps({"caption": ["first", "second"]}).encode()})
    assert Examples(records(path).open(), Fields())[0]["caption"] == "first"
    assert io.BytesIO(GOOD).read() == records(path).open()[0]["png"]
