"""Sounds from files written by the standard library, by scipy and by soundfile; damaged ones; and other rates."""

import io
import struct
import sys
import wave

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.audio import HEADER, Sound, read_sound, resample
from jmm.errors import UserError

RATE = 16_000
WIDTHS = st.sampled_from([1, 2, 3, 4])


def written(values, width, rate=RATE):
    """A WAV file of whole numbers [S, C], by the standard library."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(values.shape[1])
        out.setsampwidth(width)
        out.setframerate(rate)
        data = [int(v + 128 if width == 1 else v).to_bytes(width, "little", signed=width > 1) for v in values.ravel()]
        out.writeframes(b"".join(data))
    return file.getvalue()


def riff(*chunks):
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def header(encoding=1, channels=1, rate=RATE, block=2, bits=16):
    return struct.pack(HEADER, encoding, channels, rate, rate * block, block, bits)


@given(WIDTHS, st.integers(1, 6), st.integers(0, 30), st.integers(0, 2**32), st.integers(1, 192_000))
def test_whole_numbers_come_back(width, channels, count, seed, rate):
    top = 1 << (8 * width - 1)
    values = np.random.default_rng(seed).integers(-top, top, (count, channels))
    sound = read_sound(written(values, width, rate))
    assert (sound.rate, sound.samples.dtype, sound.samples.shape) == (rate, np.float32, (count, channels))
    np.testing.assert_array_equal(sound.samples, (values / top).astype(np.float32))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_ends_of_the_range(width):
    top = 1 << (8 * width - 1)
    samples = read_sound(written(np.array([[-top], [0], [top - 1]]), width)).samples[:, 0]
    np.testing.assert_array_equal(samples[:2], [-1, 0])
    assert samples[2] == np.float32((top - 1) / top)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(50,), (50, 2)])
def test_scipy_writes_the_same(dtype, shape, tmp_path):
    values = np.random.default_rng(0).uniform(-1, 1, shape)
    if dtype.startswith("float"):
        stored, expected = values.astype(dtype), values.astype(dtype)
    else:
        top = 1 << (np.iinfo(dtype).bits - 1)
        whole = np.floor(values * top)
        stored, expected = (whole + 128 * (dtype == "uint8")).astype(dtype), whole / top
    scipy.io.wavfile.write(tmp_path / "a.wav", 8000, stored)
    for source in (tmp_path / "a.wav", str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes()):
        sound = read_sound(source)
        np.testing.assert_array_equal(sound.samples, expected.reshape(50, -1).astype(np.float32))
        assert sound.rate == 8000


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_soundfile_writes_the_same(subtype, form):
    values = np.random.default_rng(0).uniform(-0.9, 0.9, (70, 3))
    file = io.BytesIO()
    soundfile.write(file, values, 44_100, subtype, format=form)
    sound = read_sound(file.getvalue())
    theirs, rate = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(sound.samples, theirs)
    assert sound.rate == rate


@pytest.mark.parametrize(("subtype", "bits"), [("PCM_16", 16), ("PCM_24", 24)])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_loses_nothing(subtype, bits, channels, tmp_path):
    top = 1 << (bits - 1)
    whole = np.random.default_rng(0).integers(-top, top, (5000, channels))
    soundfile.write(tmp_path / "a.flac", (whole << (32 - bits)).astype(np.int32), 22_050, subtype)
    sound = read_sound(tmp_path / "a.flac")
    np.testing.assert_array_equal(sound.samples, (whole / top).astype(np.float32))
    assert sound.rate == 22_050


def test_mono_is_the_mean():
    sound = Sound(np.array([[1, 0], [0.5, -0.5], [-1, -0.5]], np.float32), RATE)
    np.testing.assert_array_equal(sound.mono, [0.5, 0, -0.75])
    assert sound.mono.dtype == np.float32


def test_other_chunks_are_passed_over():
    data = np.array([1, -2, 3], "<i2").tobytes()
    file = riff((b"JUNK", b"odd"), (b"fmt ", header()), (b"LIST", b"some words."), (b"data", data), (b"id3 ", b"x"))
    np.testing.assert_array_equal(read_sound(file).samples[:, 0] * 32768, [1, -2, 3])


def test_a_stream_of_unknown_length():
    file = riff((b"fmt ", header()), (b"data", b""))[:-4] + b"\xff" * 4 + np.array([1, -2], "<i2").tobytes()
    np.testing.assert_array_equal(read_sound(file).samples[:, 0] * 32768, [1, -2])


GOOD = written(np.arange(100)[:, None], 2)


@given(st.integers(0, len(GOOD) - 1))
def test_a_file_that_is_cut_off(length):
    with pytest.raises(UserError, match=r"^the sound (is cut off|holds no sound)"):
        read_sound(GOOD[:length])


@given(st.binary(max_size=80))
def test_bytes_that_are_no_sound(data):
    for file in (data, riff((b"fmt ", data)), riff((b"fmt ", data), (b"data", data)), b"fLaC" + data):
        try:
            sound = read_sound(file)
        except UserError as error:
            assert str(error).startswith("the sound ")
        else:
            assert np.isfinite(sound.samples).all()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (riff((b"fmt ", header(6, bits=8, block=1)), (b"data", b"")), "encoding 6 with 8 bits"),
        (riff((b"fmt ", header(bits=12)), (b"data", b"")), "encoding 1 with 12 bits"),
        (riff((b"fmt ", header(3)), (b"data", b"")), "encoding 3 with 16 bits"),
        (riff((b"fmt ", header(rate=0)), (b"data", b"")), "1 channels of 2 bytes at 0 Hz"),
        (riff((b"fmt ", header(rate=4_000_000_000 // 2)), (b"data", b"")), "at 2000000000 Hz"),
        (riff((b"fmt ", header(channels=0)), (b"data", b"")), "0 channels"),
        (riff((b"fmt ", header(channels=3)), (b"data", b"")), "3 channels of 2 bytes"),
        (riff((b"fmt ", header()), (b"data", b"abc")), "its last sample lacks 1 bytes"),
        (riff((b"data", b"ab"), (b"fmt ", header())), "cut off or damaged"),
        (riff((b"fmt ", header(3, block=4, bits=32)), (b"data", struct.pack("<f", np.nan))), "no finite numbers"),
        (riff((b"fmt ", header(3, block=8, bits=64)), (b"data", struct.pack("<d", 1e300))), "no finite numbers"),
        (b"", "no sound that can be read"),
    ],
)
def test_damaged(file, message):
    with pytest.raises(UserError, match=message):
        read_sound(file)


def test_a_flac_file_that_is_cut_off(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-1, 1, 50_000), RATE)
    data = (tmp_path / "a.flac").read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "b.flac").write_bytes(data[: int(share * len(data))])
        with pytest.raises(UserError, match=r"b\.flac (is cut off|holds no sound)"):
            read_sound(tmp_path / "b.flac")


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.wav cannot be read: No such file"):
        read_sound(tmp_path / "none.wav")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_sound(tmp_path)


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r'pip install "jmm\[audio\]"'):
        read_sound(b"fLaC")
    assert read_sound(GOOD).rate == RATE


def tone(hertz, rate, seconds=0.5):
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize(("rate", "to"), [(44_100, 16_000), (8000, 16_000), (16_000, 22_050), (48_000, 16_000)])
def test_a_tone_stays_the_same_tone(rate, to):
    low = resample(tone(440, rate), rate, to)
    assert (low.dtype, len(low)) == (np.float32, -(-int(rate * 0.5) * to // rate))
    # Within, where silence beyond the ends is out of the filter's reach; its ripple is below a thousandth.
    np.testing.assert_allclose(low[500:-500], tone(440, to)[500 : len(low) - 500], atol=2e-3)


def test_what_the_lower_rate_cannot_hold_is_gone():
    assert np.abs(resample(tone(12_000, 48_000), 48_000, 16_000)[500:-500]).max() < 2e-3


def test_channels_are_resampled_apart():
    both = np.stack([tone(440, 8000), tone(900, 8000)], axis=1)
    np.testing.assert_allclose(resample(both, 8000, 16_000)[:, 1], resample(both[:, 1], 8000, 16_000), atol=1e-6)


def test_the_same_rate_changes_nothing():
    samples = tone(440, RATE)
    np.testing.assert_array_equal(resample(samples, RATE, RATE), samples)


@pytest.mark.parametrize(("rate", "to"), [(0, 16_000), (16_000, 0), (-1, 8)])
def test_no_rate(rate, to):
    with pytest.raises(UserError, match=f"positive number of samples a second, not {min(rate, to)}"):
        resample(tone(440, RATE), rate, to)


def test_a_length_that_is_a_lie_takes_no_memory(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros((1000, 2)), 8000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] |= 0x0F  # the highest bits of the number of samples: 64 billion of them
    with pytest.raises(UserError, match=r"is cut off|holds no sound that can be read"):
        read_sound(bytes(data))
