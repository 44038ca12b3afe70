"""A user's own folder: what is read from it, and what is said when it is not as it should be."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.folder import ImageFolder
from data_pipelines.pipeline import held_out, training_batches
from data_pipelines.preprocess import Preprocess
from data_pipelines.sources.captions import read_captions
from jmm.errors import UserError

TWO = [("a.png", 'two "boats", at dawn'), ("trip/b.png", "a bridge")]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for shade, name in enumerate(["a.png", "trip/b.png", "../secret.png"]):
        Image.new("RGB", (5, 4), (shade, 0, 0)).save(folder / name)
    return folder


def as_csv(rows):
    quoted = [f'"{name}","{caption.replace(chr(34), 2 * chr(34))}"' for name, caption in rows]
    return "\n".join(["file_name,caption", *quoted]) + "\n"


def as_jsonl(rows):
    return "".join(json.dumps({"file_name": name, "caption": caption}) + "\n" for name, caption in rows)


@pytest.mark.parametrize(("file", "write"), [("captions.csv", as_csv), ("captions.jsonl", as_jsonl)])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_captions_files(folder, file, write, bom):
    (folder / file).write_text(bom + write(TWO), encoding="utf-8")
    found = read_captions(str(folder))
    assert [found.row(i) for i in range(len(found.lines))] == [(name, {"caption": caption}) for name, caption in TWO]


def test_other_columns_are_fields_and_their_order_does_not_matter(folder):
    (folder / "captions.csv").write_text("caption,photographer,file_name\r\nboats,Eve,a.png,what is this\r\n")
    assert read_captions(str(folder)).row(0) == ("a.png", {"caption": "boats", "photographer": "Eve"})


def test_pairs_are_read_when_asked_for(folder):
    (folder / "captions.csv").write_text(as_csv(TWO))
    source = ImageFolder(str(folder)).source("train")
    assert len(source) == 2
    assert source[1]["caption"] == "a bridge"
    np.testing.assert_array_equal(source[1]["image"], np.full((4, 5, 3), (1, 0, 0)))


BAD = [
    ("captions.csv", "file_name,text\na.png,x\n", r"line 2 of .*captions\.csv"),
    ("captions.csv", "file_name,caption\na.png,x\na.png\n", r"line 3 of .*captions\.csv"),
    ("captions.csv", "file_name,caption\na.png,x\nlost.png,x\n", r"line 3 of .*lost\.png"),
    ("captions.csv", "file_name,caption\n../secret.png,x\n", r"line 2 of .*\.\./secret\.png.* outside"),
    ("captions.csv", "file_name,caption\n/etc/hostname,x\n", r"line 2 of .*/etc/hostname.* outside"),
    ("captions.csv", "file_name,caption\ntrip,x\n", r"line 2 of .*trip"),
    ("captions.csv", f"file_name,caption\n{'a' * 400}.png,x\n", r"line 2 of .*captions\.csv"),
    ("captions.csv", "file_name,caption\n\n\na.png,\n", r"line 4 of .*captions\.csv"),
    ("captions.csv", 'file_name,caption\na.png,"two\nlines"\na.png,\n', r"line 4 of .*captions\.csv"),
    ("captions.csv", "file_name,caption\n", r"captions\.csv lists no images"),
    ("captions.csv", "", r"captions\.csv lists no images"),
    ("captions.jsonl", "", r"captions\.jsonl lists no images"),
    ("captions.jsonl", as_jsonl(TWO) + "{bad\n", r"line 3"),
    ("captions.jsonl", as_jsonl(TWO) + "[1]\n", r"line 3 of .*captions\.jsonl"),
    ("captions.jsonl", as_jsonl(TWO) + '{"file_name": 5, "caption": "x"}\n', r"line 3 of .*captions\.jsonl"),
    ("captions.jsonl", as_jsonl([("a\0.png", "x")]), r"line 1 of .*captions\.jsonl"),
]


@pytest.mark.parametrize(
    ("file", "text", "message"), BAD, ids=[f"{i}-{message}" for i, (_, _, message) in enumerate(BAD)]
)
def test_what_is_wrong_is_named(folder, file, text, message):
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        ImageFolder(str(folder)).source("train")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_named(folder):
    (folder / "captions.csv").write_bytes(b"file_name,caption\na.png,caf\xe9\n")
    with pytest.raises(UserError, match=r"captions\.csv is not readable as UTF-8"):
        ImageFolder(str(folder)).source("train")


def test_no_captions_file(folder):
    with pytest.raises(UserError, match=r"photos holds no captions file .*captions\.csv"):
        ImageFolder(str(folder)).source("train")


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere holds no captions file"):
        ImageFolder(str(tmp_path / "nowhere")).source("train")


@pytest.mark.parametrize("hold_out", [2, 3, 10])
def test_hold_out_is_disjoint_and_complete(folder, hold_out):
    captions = [f"caption {i}" for i in range(23)]
    (folder / "captions.csv").write_text(as_csv([("a.png", caption) for caption in captions]))
    data = ImageFolder(str(folder), hold_out=hold_out)
    train, held = ([s[i]["caption"] for i in range(len(s))] for s in map(data.source, ("train", "held_out")))
    assert len(held) == 23 // hold_out
    assert sorted(train + held, key=captions.index) == captions


@pytest.mark.parametrize("hold_out", [0, -3])
def test_hold_out_must_be_positive(folder, hold_out):
    (folder / "captions.csv").write_text(as_csv(TWO))
    with pytest.raises(UserError, match="hold_out"):
        ImageFolder(str(folder), hold_out=hold_out).source("train")


def test_nothing_held_out_is_an_error(folder):
    (folder / "captions.csv").write_text(as_csv(TWO))
    with pytest.raises(UserError, match="no held-out examples"):
        held_out(ImageFolder(str(folder)))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_picture_is_named_while_training(folder, threads):
    (folder / "a.png").write_text("no picture")
    (folder / "captions.csv").write_text(as_csv(TWO[:1]))
    data = ImageFolder(str(folder), preprocess=Preprocess((4, 4)))
    with (
        training_batches(data, 1, seed=0, threads=threads) as batches,
        pytest.raises(UserError, match=r"line 2 of .*captions\.csv \(.*\): .* not a readable image"),
    ):
        next(batches)


def test_augment_depends_on_the_generator_alone():
    data = ImageFolder("photos")
    example = {"image": np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8), "caption": "x"}
    first, again, other = (data.augment(example, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert np.abs(first["image"] - other["image"]).max() > 0
    assert first["caption"] == "x"
