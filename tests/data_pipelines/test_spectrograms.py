"""Features of sounds against transformers' extractors and scipy, and by hand."""

import numpy as np
import pytest
import scipy.fft
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor, audio_utils

from data_pipelines.cepstra import cepstra, deltas, hubert
from data_pipelines.spectrograms import (
    AST,
    HUBERT,
    WHISPER_SAMPLES,
    LogMel,
    ast,
    fit_length,
    mel_filters,
    to_hertz,
    to_mel,
    whisper,
    window,
)
from jmm.errors import UserError

RATE = 16_000
# Both compute in float64, and round to float32 once: 1e-4 of the scale leaves room for torch's float32 transforms.
CLOSE = 1e-4


def speechlike(seconds, seed=0):
    """A gliding tone with harmonics that swells and falls silent, and noise: quiet and loud, low and high."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 80 * np.sin(3 * time)) / RATE
    voice = sum(np.sin(n * phase) / n for n in range(1, 30)) * np.maximum(0, np.sin(2 * np.pi * 1.5 * time))
    return (0.2 * voice + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def assert_close(ours, theirs):
    assert (ours.shape, ours.dtype) == (theirs.shape, np.float32)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE * np.abs(theirs).max())


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("seconds", [0.5, 3.21, 31])
def test_whisper(bands, seconds):
    sound = speechlike(seconds)
    theirs = WhisperFeatureExtractor(feature_size=bands)(sound, sampling_rate=RATE, return_tensors="np")
    ours = whisper(sound, bands)
    assert ours.shape == (3000, bands)
    assert_close(ours, theirs["input_features"][0].T)


def test_whisper_hears_silence():
    theirs = WhisperFeatureExtractor()(np.zeros(RATE, np.float32), sampling_rate=RATE, return_tensors="np")
    assert_close(whisper(np.zeros(RATE, np.float32)), theirs["input_features"][0].T)
    np.testing.assert_allclose(whisper(np.zeros(RATE, np.float32)), (np.log10(1e-10) + 4) / 4)


# Theirs says that some low bands hold no frequency, which is so in Kaldi as well.
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("seconds", [0.1, 2.5, 11])
def test_ast(seconds):
    sound = speechlike(seconds)
    theirs = ASTFeatureExtractor()(sound, sampling_rate=RATE, return_tensors="np")["input_values"][0]
    assert_close(ast(sound), theirs)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("area", [True, False])
@pytest.mark.parametrize(("low", "high"), [(0.0, None), (133.0, 6854.0)])
def test_filters(scale, area, low, high):
    form = LogMel(bands=40, fft=512, scale=scale, area=area, low=low, high=high)
    norm = "slaney" if area else None
    theirs = audio_utils.mel_filter_bank(257, 40, low, high or RATE / 2, RATE, norm, scale)
    np.testing.assert_allclose(mel_filters(form), theirs, atol=1e-12)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_kaldi_filters():
    theirs = audio_utils.mel_filter_bank(257, 128, 20, 8000, RATE, None, "kaldi", triangularize_in_mel_space=True)
    np.testing.assert_allclose(mel_filters(AST), theirs, atol=1e-9)


@pytest.mark.parametrize("kind", ["hann", "hamming", "povey", "rectangular"])
@pytest.mark.parametrize("periodic", [True, False])
def test_windows(kind, periodic):
    theirs = audio_utils.window_function(400, "boxcar" if kind == "rectangular" else kind, periodic)
    np.testing.assert_allclose(window(kind, 400, periodic), theirs, atol=1e-12)


@pytest.mark.parametrize("log", [None, "ln", "log10", "decibel"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("centred", [True, False])
def test_forms(log, power, centred):
    sound = speechlike(1.3)
    form = LogMel(hop=123, power=power, centred=centred, log=log, scale="htk", area=False, window="hamming")
    theirs = audio_utils.spectrogram(
        *(sound, audio_utils.window_function(400, "hamming"), 400, 123),
        fft_length=400,
        power=float(power),
        center=centred,
        mel_filters=audio_utils.mel_filter_bank(201, 80, 0.0, RATE / 2, RATE),
        log_mel={"ln": "log", "decibel": "dB"}.get(log, log),
    )
    assert_close(form(sound), theirs.T)


def test_a_tone_is_in_its_band():
    # 1 kHz is 15 mel on Slaney's scale, and 8 kHz is 15 + 27 ln 8 / ln 6.4 = 45.2. The peaks of 30 bands are 45.2 / 31
    # apart: that of band 9 (of 0, 1, …) lies at 14.6 mel, that of band 10 at 16.1.
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    rows = LogMel(bands=30, area=False)(tone)
    assert (rows[2:-2].argmax(axis=1) == 9).all()


def test_scales_by_hand():
    np.testing.assert_allclose(to_mel(np.array([0.0, 700.0, 6300.0]), "htk"), [0, 2595 * np.log10(2), 2595])
    np.testing.assert_allclose(to_mel(np.array([0.0, 200.0, 1000.0, 6400.0]), "slaney"), [0, 3, 15, 42])
    for scale in ("htk", "slaney"):
        hertz = np.linspace(0, 20_000, 999)
        np.testing.assert_allclose(to_hertz(to_mel(hertz, scale), scale), hertz, atol=1e-9)


def test_a_long_sound_is_that_of_its_blocks():
    sound = speechlike(60)
    rows = LogMel()(sound)
    assert rows.shape == (6001, 80)
    np.testing.assert_allclose(rows[5000:5900], LogMel()(sound[4990 * 160 :])[10:910], rtol=1e-6)


def test_lengths():
    np.testing.assert_array_equal(fit_length(np.ones(3, np.float32), 5), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(fit_length(np.ones(3, np.float32), 2), [1, 1])
    assert fit_length(np.ones(3, np.float32), WHISPER_SAMPLES).dtype == np.float32
    assert ast(speechlike(0.5), frames=20).shape == (20, 128)


@pytest.mark.parametrize("count", [1, 13, 23])
def test_cepstra_are_scipys(count):
    rows = HUBERT(speechlike(1))
    assert_close(cepstra(rows, count), scipy.fft.dct(rows, type=2, norm="ortho", axis=1)[:, :count])


def test_cepstra_by_hand():
    rows = np.array([[3.0, 1.0], [2.0, 2.0]], np.float32)
    root = np.sqrt(2)
    np.testing.assert_allclose(cepstra(rows, 2), [[4 / root, 2 / root], [4 / root, 0]], atol=1e-6)
    # Q = 2: coefficient 0 stays, and 1 becomes 1 + 1 · sin(π / 2) = 2 times as large.
    np.testing.assert_allclose(cepstra(rows, 2, lifter=2.0), [[4 / root, 4 / root], [4 / root, 0]], atol=1e-6)


def test_deltas_by_hand():
    # (1 · 1 + 2 · 2) · 2 / (2 · 5) = 1 within a ramp; at its beginning (1 · 1 + 2 · 2) / 10, then (1 · 2 + 2 · 3) / 10.
    ramp = np.arange(6, dtype=np.float32)[:, None]
    np.testing.assert_allclose(deltas(ramp)[:, 0], [0.5, 0.8, 1, 1, 0.8, 0.5], rtol=1e-6)


def test_deltas_are_slopes_of_fitted_lines():
    features = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    padded = np.pad(features, ((2, 2), (0, 0)), mode="edge")
    slopes = [np.polyfit(np.arange(5), padded[t : t + 5], 1)[0] for t in range(20)]
    np.testing.assert_allclose(deltas(features), slopes, atol=1e-5)


def test_hubert():
    sound = speechlike(1.7)
    theirs = audio_utils.spectrogram(
        *(sound, audio_utils.window_function(400, "povey", periodic=False), 400, 160),
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=audio_utils.mel_filter_bank(
            257, 23, 20.0, 8000.0, RATE, None, "kaldi", triangularize_in_mel_space=True
        ),
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    ).T
    lifted = scipy.fft.dct(theirs, norm="ortho")[:, :13] * (1 + 11 * np.sin(np.pi * np.arange(13) / 22))
    ours = hubert(sound)
    assert ours.shape == (1 + (len(sound) - 400) // 160, 39)
    assert_close(ours[:, :13], lifted)
    np.testing.assert_array_equal(ours[:, 13:26], deltas(ours[:, :13]))
    np.testing.assert_array_equal(ours[:, 26:], deltas(ours[:, 13:26]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 401}, "the transform as long as a window"),
        ({"length": 0}, "each must be positive"),
        ({"hop": 0}, "each must be positive"),
        ({"bands": 0}, "each must be positive"),
        ({"high": 8001.0}, "between 0 and 8000 Hz, not between 0 and 8001"),
        ({"low": 5000.0, "high": 400.0}, "not between 5000 and 400"),
        ({"low": -1.0}, "not between -1 and 8000"),
        ({"floor": 0.0}, "must have a logarithm, which 0 has not"),
    ],
)
def test_settings_that_contradict_each_other(options, message):
    with pytest.raises(UserError, match=message):
        LogMel(**options)


@pytest.mark.parametrize(("form", "least"), [(LogMel(), 201), (AST, 400)])
def test_too_short(form, least):
    assert form(np.ones(least, np.float32)).shape[1] == form.bands
    with pytest.raises(UserError, match=f"a sound of {least - 1} samples is too short for windows of 400"):
        form(np.ones(least - 1, np.float32))


@pytest.mark.parametrize("count", [0, 24])
def test_more_cepstra_than_bands(count):
    with pytest.raises(UserError, match=f"1 to 23 cepstral coefficients, not {count}"):
        cepstra(np.zeros((2, 23), np.float32), count)
