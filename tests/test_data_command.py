"""`jmm data`: what it prints, writes and refuses."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipelines.pretrained import PretrainedTokenizer
from data_pipelines.sources.layouts import records
from tests.data_pipelines.sources.layouts import CAPTIONS, COUNT, encoded, folder_csv, picture, tar_shards
from tests.test_cli import jmm, refused


@pytest.fixture
def shards(tmp_path):
    return tar_shards(tmp_path / "shards")


def test_inspect_counts_lists_and_draws(capsys, tmp_path):
    folder = tmp_path / "own"
    path = folder_csv(folder)
    (folder / "1.png").write_bytes(encoded(picture(1))[:60])
    sheet = tmp_path / "sheet.png"
    code, out, err = jmm(capsys, "data", "inspect", path, "--png", sheet)
    assert code == 0 and not err
    assert f"Folder: {COUNT} records, of which {COUNT} were read" in out
    assert "image    in 4   5 to 16 pixels a shorter side, median 6.5" in out
    assert "broken   1, 1 image" in out and "captions.csv (1.png): " in out
    with Image.open(sheet) as drawn:
        pixels = np.asarray(drawn)
    assert pixels.shape[1] == 4 * (224 + 24) and (pixels < 128).any()
    code, out, _ = jmm(capsys, "data", "inspect", path, "--count", 2, "--json")
    found = json.loads(out)
    assert (code, found["records"], found["read"], found["fields"]) == (0, COUNT, 2, {"image": 2, "caption": 2})


def test_bench_names_the_stage_that_limits(capsys, shards):
    code, out, _ = jmm(capsys, "data", "bench", shards, "--batch-size", 2, "--image-size", 8, "--json")
    found = json.loads(out)
    assert code == 0 and set(found["stages"]) == {"read", "decode", "transform", "batch"}
    assert found["limit"] == min(found["stages"], key=found["stages"].get) and found["whole"] > 0
    assert "gave 5 good examples, less than a batch of 64" in refused(capsys, "data", "bench", shards)
    assert "--workers must be at least 0, not -1" in refused(capsys, "data", "bench", shards, "--workers", -1)
    code, out, _ = jmm(capsys, "data", "bench", shards, "--batch-size", 2, "--image-size", 8, "--workers", 2)
    assert code == 0 and "on 2 threads of each of 2 processes" in out


def test_what_has_names_of_its_own_is_told(capsys, tmp_path):
    pq.write_table(pa.table({"picture": [encoded(picture(0))] * 9, "title": ["a"] * 9}), tmp_path / "a.parquet")
    _, out, _ = jmm(capsys, "data", "inspect", tmp_path)
    assert "not used: picture, title" in out and "set them: --data.fields.image NAME" in out
    assert "no field that training looks for" in refused(capsys, "data", "bench", tmp_path, "--batch-size", 2)


def test_bench_goes_without_what_lacks_a_field(capsys, tmp_path):
    captions = ["a", "b", None, "d", "e", "f"]
    labels = [1, None, None, None, None, None]
    columns = {"image": [encoded(picture(0))] * 6, "caption": captions, "label": labels}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    code, out, _ = jmm(capsys, "data", "bench", tmp_path, "--batch-size", 2, "--image-size", 8)
    assert code == 0 and "limits" in out
    columns = {"image": columns["image"] * 50, "text": ["a", None, "b", "c", "d", "e"] * 50}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    code, out, _ = jmm(capsys, "data", "bench", tmp_path, "--batch-size", 2, "--image-size", 8)
    assert code == 0 and "limits" in out


def test_a_long_list_of_broken_records_is_cut_off(capsys, tmp_path):
    pq.write_table(pa.table({"image": [b"nothing"] * 130, "caption": ["a"] * 130}), tmp_path / "a.parquet")
    _, out, _ = jmm(capsys, "data", "inspect", tmp_path)
    assert out.count("not a readable image") == 100 and "and 30 more" in out
    said = refused(capsys, "data", "inspect", tmp_path, "--png", tmp_path / "a.png")
    assert "130 were read; the first: row 0 of " in said


def test_convert(capsys, tmp_path, shards):
    to = tmp_path / "to"
    code, out, err = jmm(capsys, "data", "convert", shards, to, "--to", "arrayrecord", "--shards", 2, "--workers", 1)
    assert code == 0 and "5 records in 2 shards, verified; 0 left out" in out
    assert "data-00001-of-00002.array_record: 3 records" in err
    assert len(records(str(to)).open()) == COUNT
    assert "holds another conversion" in refused(capsys, "data", "convert", shards, to, "--shards", 3)


def test_tokenizer(capsys, tmp_path, shards):
    to = tmp_path / "tokenizer"
    code, out, _ = jmm(capsys, "data", "tokenizer", shards, "--vocab-size", 292, "--to", to)
    assert code == 0 and str(to) in out
    tokenizer = PretrainedTokenizer(str(to))
    assert tokenizer.vocab_size == 292 and len(tokenizer.encode(CAPTIONS[0], 64)) > 2
    assert "a vocabulary of 289 to 296 tokens, not 999" in refused(
        capsys, "data", "tokenizer", shards, "--vocab-size", 999, "--to", tmp_path / "other"
    )
    assert "is there already" in refused(capsys, "data", "tokenizer", shards, "--vocab-size", 292, "--to", to)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "nowhere"], "there is no nowhere"),
        (["convert", "nowhere", "to", "--shards", "1"], "there is no nowhere"),
        (["tokenizer", "nowhere", "--vocab-size", "300"], "there is no nowhere"),
    ],
)
def test_what_is_not_there(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, "data", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["inspect"], ["convert", "a", "b"], ["bench", "a", "--wrong"], []])
def test_wrong_use(capsys, arguments):
    code, out, err = jmm(capsys, "data", *arguments)
    assert code == 2 and not out and err
