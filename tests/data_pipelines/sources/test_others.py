"""Pages, sounds and frames; files elsewhere."""

import io
import json
import wave
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import files
from data_pipelines.broken import Broken
from data_pipelines.own import OwnData
from data_pipelines.pipeline import held_out, training_batches
from data_pipelines.preprocess import Preprocess
from data_pipelines.sources.frames import Frames
from data_pipelines.sources.layouts import records
from data_pipelines.sources.pages import Pages
from data_pipelines.sources.records import Examples, Fields
from data_pipelines.sources.sound import Sounds
from jmm.errors import UserError
from tests.data_pipelines.sources.layouts import CAPTIONS, COUNT, encoded, folder_csv, parquet, picture, tar_shards


def pages(path, *lines):
    path.mkdir()
    for i in range(3):
        (path / f"{i}.png").write_bytes(encoded(picture(i)))
    (path / "pages.jsonl").write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_pages_keep_the_order_of_text_and_pictures(tmp_path):
    """In our layout, and in that of OBELICS; a mark that a text itself writes is no picture."""
    ours = {"content": ["a <image> b", {"image": "2.png"}, {"image": "0.png"}, "c"]}
    theirs = {"texts": ["first", None, "second"], "images": [None, "1.png", None]}
    found = records(pages(tmp_path / "p", ours, "", theirs))
    assert isinstance(found, Pages)
    source = Examples(found.open(), Fields())
    assert len(source) == 2
    assert source[0]["text"] == "a   b <image> <image> c" and source[1]["text"] == "first <image> second"
    for i, places in enumerate(((2, 0), (1,))):
        assert len(source[i]["images"]) == len(places)
        for image, place in zip(source[i]["images"], places, strict=True):
            np.testing.assert_array_equal(image, picture(place))


@pytest.mark.parametrize(
    ("page", "reason", "says"),
    [
        ("{", "record", "it is no JSON"),
        ("[1]", "record", "it is list, not an object"),
        ({"content": []}, "caption", "a page is empty"),
        ({"content": [3]}, "field", "a page holds 3, neither a text nor the name of an image"),
        ({"texts": ["a"], "images": []}, "field", "of different lengths"),
        ({"other": 1}, "field", "a page has no content"),
        ({"content": [{"image": "../../etc/passwd"}]}, "name", "lies outside"),
        ({"content": [{"image": "/etc/passwd"}]}, "name", "lies outside"),
        ({"content": [{"image": "nowhere.png"}]}, "field", "there is no nowhere.png that can be read"),
        ({"content": [{"image": "a\0b"}]}, "name", "is no name of a file"),
    ],
)
def test_a_broken_page(tmp_path, page, reason, says):
    source = Examples(Pages(pages(tmp_path / "p", {"content": ["good"]}, page)).open(), Fields())
    assert source[0] == {"text": "good", "images": []}
    with pytest.raises(Broken, match=rf"page 1 of .*pages.jsonl: .*{says}") as error:
        source[1]
    assert error.value.reason == reason


def tone(rate, seconds=0.1):
    """A WAV file of 16 bits."""
    samples = (np.sin(np.arange(int(rate * seconds)) * 2 * np.pi * 440 / rate) * 20_000).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(samples.tobytes())
    return file.getvalue()


def test_sounds_come_at_one_rate(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "a.wav").write_bytes(tone(16_000))
    (tmp_path / "far" / "b.WAV").write_bytes(tone(8_000))
    (tmp_path / "c.wav").write_bytes(tone(16_000)[:60])
    (tmp_path / "captions.csv").write_text("file_name,caption\nfar/b.WAV,a tone\n")
    source = Examples(records(str(tmp_path)).open(), Fields())
    assert len(source) == 3
    first, second = source[0], source[2]
    assert first["audio"].shape == second["audio"].shape == (1600,) and first["audio"].dtype == np.float32
    assert "caption" not in first and second["caption"] == "a tone"
    middle = slice(200, 1400)
    np.testing.assert_allclose(first["audio"][middle], second["audio"][middle], atol=0.02)
    with pytest.raises(Broken, match=r"c.wav: ") as error:
        source[1]
    assert error.value.reason == "audio"


def test_frames_are_spread_over_the_video(tmp_path):
    for name, count in (("long", 10), ("short", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i:02d}.png").write_bytes(encoded(np.full((4, 6, 3), 10 * i, np.uint8)))
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file_name": "short", "caption": "it ends soon"}))
    source = Examples(records(str(tmp_path)).open(), Fields())
    assert source[0]["video"].shape == (8, 4, 6, 3) and "caption" not in source[0]
    assert source[0]["video"][:, 0, 0, 0].tolist() == [0, 10, 30, 40, 50, 60, 80, 90]
    assert source[1]["video"][:, 0, 0, 0].tolist() == [0] * 4 + [10] * 4 and source[1]["caption"] == "it ends soon"
    (tmp_path / "short" / "02.png").write_bytes(encoded(picture(2)))
    with pytest.raises(Broken, match="short: the frames differ in size"):
        source[1]


def test_captions_of_what_is_not_there(tmp_path):
    (tmp_path / "a.wav").write_bytes(tone(8_000))
    (tmp_path / "captions.csv").write_text("file_name,caption\nb.wav,a tone\n")
    with pytest.raises(UserError, match=r"line 2 of .*captions.csv names b.wav, which is not in"):
        records(str(tmp_path)).open()


def test_a_folder_in_a_bucket(tmp_path):
    import fsspec

    there = fsspec.filesystem("memory")
    folder_csv(tmp_path / "own")
    for file in (tmp_path / "own").iterdir():
        there.pipe_file(f"/photos/{file.name}", file.read_bytes())
    source = Examples(records("memory://photos").open(), Fields())
    assert [source[i]["caption"] for i in range(COUNT)] == list(CAPTIONS)
    np.testing.assert_array_equal(source[4]["image"], picture(4))
    there.pipe_file("/photos/captions.csv", b"file_name,caption\n../a.png,a\n/a.png,b\nlost.png,c\n")
    for index, says in enumerate(["line 2 of .* lies outside", "line 3 of .* lies outside", "there is no lost.png"]):
        with pytest.raises(Broken, match=says):
            Examples(records("memory://photos").open(), Fields())[index]


@pytest.mark.parametrize(("write", "suffix"), [(tar_shards, "tar"), (parquet, "parquet")])
def test_shards_in_a_bucket_are_read_where_they_lie(tmp_path, write, suffix):
    """fsspec's own memory stands for gs:// and s3://."""
    import fsspec

    there = fsspec.filesystem("memory")
    write(tmp_path / "own")
    for file in (tmp_path / "own").iterdir():
        there.pipe_file(f"/bucket-{suffix}/{file.name}", file.read_bytes())
    for name in (f"memory://bucket-{suffix}", f"memory://bucket-{suffix}/*.{suffix}"):
        source = Examples(records(name).open(), Fields())
        assert [source[i]["caption"] for i in range(COUNT)] == list(CAPTIONS)
        np.testing.assert_array_equal(source[4]["image"], picture(4))


def test_a_bucket_that_cannot_be_read():
    with pytest.raises(UserError, match=r"there is no memory://nowhere"):
        records("memory://nowhere/*.tar").open()
    with pytest.raises(UserError, match=r"gs://bucket/a.tar is read through fsspec: pip install fsspec gcsfs"):
        records("gs://bucket/a.tar").open()
    with pytest.raises(UserError, match="no path that fsspec knows"):
        records("nonsense://bucket/a.tar").open()


def test_names_of_shards(tmp_path):
    for name in ("a-00.tar", "a-01.tar", "a-02.tar", "b.tar", "c.txt"):
        (tmp_path / name).write_bytes(b"")

    def names(pattern):
        return [path.removeprefix(f"{tmp_path}/") for path in files.shards(pattern, (".tar",))]

    assert names(str(tmp_path)) == ["a-00.tar", "a-01.tar", "a-02.tar", "b.tar"]
    assert names(f"{tmp_path}/a-{{00..01}}.tar") == ["a-00.tar", "a-01.tar"]
    assert names(f"{tmp_path}/a-0?.tar, {tmp_path}/b.tar") == ["a-00.tar", "a-01.tar", "a-02.tar", "b.tar"]
    with pytest.raises(UserError, match=r"there is no .*a-03.tar"):
        names(f"{tmp_path}/a-{{02..03}}.tar")
    assert len(names(",".join([f"{tmp_path}/a-00.tar"] * 200))) == 200  # more letters than a path may have
    (tmp_path / "of two, say").mkdir()
    (tmp_path / "of two, say" / "c.tar").write_bytes(b"")
    (tmp_path / f"b.tar.1{files.INDEX}").write_bytes(b"")
    assert names(f"{tmp_path}/of two, say") == ["of two, say/c.tar"]
    assert files.shards(f"{tmp_path}/b.*", (".other",)) == [f"{tmp_path}/b.tar"]


def test_a_set_is_in_another_state_when_a_file_of_it_is(tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "a.tar").write_bytes(b"a")
    path, to = str(tmp_path), f"{tmp_path}/../{tmp_path.name}/to"
    before = files.state(path, to)
    (tmp_path / "to" / "made").write_bytes(b"b")
    (tmp_path / f"a.tar.1{files.INDEX}").write_bytes(b"index")
    assert files.state(path, to) == before
    assert files.state(f"{path}/*.tar", to) == files.state(f"{path}/a.tar", to)
    (tmp_path / "a.tar").write_bytes(b"ab")
    assert files.state(path, to) != before


def test_frames_go_by_their_numbers(tmp_path):
    (tmp_path / "one").mkdir()
    for number in range(1, 13):
        (tmp_path / "one" / f"frame{number}.png").write_bytes(encoded(np.full((4, 6, 3), number, np.uint8)))
    (tmp_path / "one" / "frame13².png").write_bytes(encoded(np.full((4, 6, 3), 13, np.uint8)))
    frames = Examples(Frames(str(tmp_path), 13).open(), Fields())[0]["video"]
    assert frames[:, 0, 0, 0].tolist() == list(range(1, 14))


def test_a_sound_that_is_gone(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "nowhere.wav")
    with pytest.raises(Broken, match=r"a\.wav: it cannot be read \(No such file"):
        Examples(Sounds(str(tmp_path)).open(), Fields())[0]


def test_sounds_videos_and_texts_become_batches(tmp_path):
    """Of one length, from one part of a sound, with all frames of a video seen alike."""
    sounds, videos = tmp_path / "sounds", tmp_path / "videos"
    sounds.mkdir()
    for name, samples in (("long", np.arange(1, 401)), ("short", np.ones(20))):
        with wave.open(str(sounds / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(samples.astype("<i2").tobytes())
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for number in range(2):
        (videos / str(number)).mkdir(parents=True)
        for place in range(8):
            (videos / str(number) / f"{place}.png").write_bytes(encoded(frame))
    how = Preprocess((8, 6), audio_length=100, video_frames=8, text_length=16)
    heard = OwnData(records(str(sounds)), hold_out=3, preprocess=how)
    with training_batches(heard, 2, 0, threads=1) as batches:
        rows = [row for _ in range(4) for row in next(batches)["audio"].copy()]
    assert {row.shape for row in rows} == {(100,)} and rows[0].dtype == np.float32
    long = [row * 32768 for row in rows if row[-1]]
    assert len(long) == 4 and len({row[0] for row in long}) > 1
    assert all(np.array_equal(np.diff(row), np.ones(99)) for row in long)
    np.testing.assert_allclose(held_out(replace(heard, held_out=heard.records))[1]["audio"][0][0] * 32768, 151)
    seen = OwnData(records(str(videos)), hold_out=3, preprocess=how, area=(0.2, 0.5))
    with training_batches(seen, 2, 0, threads=1) as batches:
        video = next(batches)["video"]
    assert video.shape == (2, 8, 8, 6, 3) and abs(video).max() <= 1
    assert (video == video[:, :1]).all() and not np.array_equal(video[0], video[1])
    assert held_out(replace(seen, held_out=seen.records))[1]["video"].shape == (2, 8, 8, 6, 3)
    short = OwnData(seen.records, hold_out=3, preprocess=replace(how, video_frames=3))
    with training_batches(short, 2, 0, threads=1) as batches:
        assert next(batches)["video"].shape == (2, 3, 8, 6, 3)
    with training_batches(replace(seen, preprocess=replace(how, video_frames=0)), 2, 0, threads=1) as batches:
        assert not next(batches)
    pq.write_table(pa.table({"text": [f"line {n}" for n in range(20)]}), tmp_path / "a.parquet")
    with training_batches(OwnData(records(str(tmp_path / "a.parquet")), preprocess=how), 2, 0, threads=1) as batches:
        assert next(batches)["text"].shape == (2, 16)
