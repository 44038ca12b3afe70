"""RandAugment's operations, at torchvision's strengths: against Pillow, and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from data_pipelines.rand_augment import ONE_WAY, OPERATIONS, rand_augment
from jmm.errors import UserError
from tests.data_pipelines.test_naflex import picture

MAGNITUDES = st.integers(0, 30)
IMAGE = picture(33, 47)

# torchvision's names of the strengths at magnitude m of 30, Pillow's of the operations
PILLOW = {
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * s)),
    "solarize": lambda image, s: ImageOps.solarize(image, 255 - 8.5 * round(30 * s)),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}


def test_there_are_fourteen():
    assert len(OPERATIONS) == 14 and OPERATIONS.keys() >= PILLOW.keys()


@pytest.mark.parametrize("name", PILLOW)
@given(magnitude=MAGNITUDES, sign=st.sampled_from([-1, 1]), seed=st.integers(0, 2**32), low=st.integers(0, 250))
def test_colors_are_pillows(name, magnitude, sign, seed, low):
    """Values from `low` on: few of them, or one, are stretched and spread as well."""
    rng = np.random.default_rng(seed)
    image = rng.integers(low, rng.integers(low + 1, 257), (rng.integers(1, 40), 23, 3), dtype=np.uint8)
    strength = magnitude / 30 * (1 if name in ONE_WAY else sign)
    expected = np.asarray(PILLOW[name](Image.fromarray(image), strength))
    np.testing.assert_array_equal(OPERATIONS[name](image, strength), expected)


def nearest(image, source):
    """By hand: each pixel's middle mapped by `source` (x, y) → (x, y), the pixel there, or black."""
    expected = np.zeros_like(image)
    for row, column in np.ndindex(image.shape[:2]):
        x, y = source(column + 0.5, row + 0.5)
        if 0 <= x < image.shape[1] and 0 <= y < image.shape[0]:
            expected[row, column] = image[int(y), int(x)]
    return expected


@pytest.mark.parametrize("magnitude", [-30, -17, -9, 0, 5, 9, 30])
def test_shapes_by_hand(magnitude):
    strength = magnitude / 30
    slope, angle = 0.3 * strength, np.radians(30 * strength)
    right, down = int(150 / 331 * 47 * strength), int(150 / 331 * 33 * strength)
    x0, y0 = 47 / 2, 33 / 2
    sources = {
        "identity": lambda x, y: (x, y),
        "shear_x": lambda x, y: (x + slope * y, y),
        "shear_y": lambda x, y: (x, y + slope * x),
        "translate_x": lambda x, y: (x - right, y),
        "translate_y": lambda x, y: (x, y - down),
        "rotate": lambda x, y: (  # counterclockwise to the eye: y goes down
            x0 + np.cos(angle) * (x - x0) - np.sin(angle) * (y - y0),
            y0 + np.sin(angle) * (x - x0) + np.cos(angle) * (y - y0),
        ),
    }
    assert sources.keys() | PILLOW.keys() == OPERATIONS.keys()
    for name, source in sources.items():
        found, expected = OPERATIONS[name](IMAGE, strength), nearest(IMAGE, source)
        # Pillow counts in 1/65536 of a pixel: where a middle falls on an edge it may take the neighbor.
        assert (found != expected).any(-1).mean() < 0.005, name


def test_rotation_is_counterclockwise():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 30:] = 255  # a hand that points to the right
    rows, _ = np.nonzero(OPERATIONS["rotate"](image, 1.0)[:, :, 0])
    assert rows.max() < 18


def test_colors_by_hand():
    image = np.array([[[10, 0, 0], [20, 0, 1], [60, 0, 3]]], np.uint8)
    np.testing.assert_array_equal(OPERATIONS["posterize"](image + 9, 1.0)[0, :, 0], [16, 16, 64])
    np.testing.assert_array_equal(OPERATIONS["autocontrast"](image, 0.0)[0], [[0, 0, 0], [51, 0, 85], [255, 0, 255]])
    np.testing.assert_array_equal(OPERATIONS["solarize"](image, 1.0), 255 - image)


@given(st.integers(0, 4), MAGNITUDES, st.integers(0, 2**32))
def test_size_and_type_stay_and_a_seed_decides(ops, magnitude, seed):
    found, again = (rand_augment(IMAGE, np.random.default_rng(seed), ops, magnitude) for _ in range(2))
    assert found.shape == IMAGE.shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found, again)


def test_every_operation_is_as_likely_either_way(monkeypatch):
    drawn = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, s, name=name: drawn.append((name, s)) or image)
    rng = np.random.default_rng(0)
    for _ in range(1400):
        rand_augment(IMAGE, rng, ops=2, magnitude=15)
    assert len(drawn) == 2800
    for name in OPERATIONS:
        strengths = [s for each, s in drawn if each == name]
        assert 150 < len(strengths) < 250  # 200, four deviations of 13.6
        assert set(strengths) == ({0.5} if name in ONE_WAY else {0.5, -0.5})


def test_none_changes_nothing():
    assert rand_augment(IMAGE, np.random.default_rng(0), ops=0) is IMAGE


@pytest.mark.parametrize("wrong", [{"ops": -1}, {"magnitude": 31}, {"magnitude": -1}])
def test_bad_input_gets_one_sentence(wrong):
    with pytest.raises(UserError, match=r"ops must be at least 0 and magnitude from 0 to 30, not .*(-1|31)"):
        rand_augment(IMAGE, np.random.default_rng(0), **wrong)
