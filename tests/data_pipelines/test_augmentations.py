"""Random changes of images: against Pillow, by hand, and what holds of every draw."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from data_pipelines.augmentations import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    gaussian_blur,
    grayscale,
    random_box,
    random_flip,
    random_resized_crop,
    solarize,
)
from data_pipelines.view import RandomView
from jmm.errors import UserError
from tests.data_pipelines.test_naflex import picture

SEEDS = st.integers(0, 2**32)
COLORS = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
PINNED = [(36, 83, 313, 393), (37, 246, 246, 219), (34, 289, 115, 138), (16, 58, 327, 292)]


def draw(seed=0):
    return np.random.default_rng(seed)


def test_boxes_are_as_large_as_asked():
    boxes = [random_box((90, 120), draw(seed), area=(0.2, 0.5), aspect=(0.5, 2.0)) for seed in range(200)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 90 - height and 0 <= left <= 120 - width
        assert 0.19 < height * width / (90 * 120) < 0.51 and 0.47 < width / height < 2.1
    assert len(set(boxes)) == 200
    # Nothing of that size fits a strip: all of it is taken.
    assert random_box((10, 1000), draw(), area=(1.0, 1.0), aspect=(1.0, 1.0)) == (0, 0, 10, 1000)


def test_boxes_of_a_seed_stay_the_same():
    """A run that is taken up again sees what it would have seen."""
    rng = draw(7)
    assert [random_box((375, 500), rng) for _ in range(4)] == PINNED


@given(st.integers(1, 400), st.integers(1, 400), SEEDS)
def test_boxes_lie_inside(height, width, seed):
    top, left, rows, columns = random_box((height, width), draw(seed))
    assert 0 <= top <= height - rows and 0 <= left <= width - columns and rows >= 1 and columns >= 1


def test_shares_are_uniform_and_shapes_log_uniform():
    boxes = np.array([random_box((1000, 1000), draw(seed), area=(0.1, 0.5)) for seed in range(4000)])
    shares, shapes = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 3] / boxes[:, 2])
    # Everything fits: three deviations of the mean of 4000 draws, 0.4 / √12 / √4000 and 2 log(4/3) / √12 / √4000.
    assert shares.mean() == pytest.approx(0.3, abs=0.0055) and shapes.mean() == pytest.approx(0, abs=0.008)
    assert shares.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.05)
    assert shapes.std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_a_crop_is_pillows(resample):
    image = picture(60, 80)
    found = random_resized_crop(image, (20, 30), draw(3), (0.1, 0.4), (0.5, 2.0), resample)
    top, left, height, width = random_box((60, 80), draw(3), (0.1, 0.4), (0.5, 2.0))
    by_hand = Image.fromarray(image).crop((left, top, left + width, top + height))
    by_hand = by_hand.resize((30, 20), Image.Resampling[resample.upper()])
    np.testing.assert_array_equal(found, np.asarray(by_hand))


def test_half_are_mirrored():
    found = [random_flip(COLORS, draw(seed)) for seed in range(200)]
    mirrored = [(each == np.asarray(ImageOps.mirror(Image.fromarray(COLORS)))).all() for each in found]
    assert all(m != (each == COLORS).all() for m, each in zip(mirrored, found, strict=True))
    assert 70 < sum(mirrored) < 130


ENHANCERS = [
    (adjust_brightness, ImageEnhance.Brightness),
    (adjust_contrast, ImageEnhance.Contrast),
    (adjust_saturation, ImageEnhance.Color),
]


@pytest.mark.parametrize(("adjust", "enhancer"), ENHANCERS)
@given(factor=st.floats(0, 3), seed=SEEDS)
def test_factors_are_pillows(adjust, enhancer, factor, seed):
    image = draw(seed).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    expected = np.asarray(enhancer(Image.fromarray(image)).enhance(factor))
    np.testing.assert_array_equal(adjust(image, factor), expected)


def test_factors_by_hand():
    image = np.array([[[100, 200, 30], [50, 0, 240]]], np.uint8)  # lumas 151 and 42, whose mean is 96.5
    np.testing.assert_array_equal(adjust_brightness(image, 1.5), [[[150, 255, 45], [75, 0, 255]]])
    np.testing.assert_array_equal(adjust_contrast(image, 0.5), [[[98, 148, 63], [73, 48, 168]]])
    np.testing.assert_array_equal(adjust_saturation(image, 2.0), [[[49, 249, 0], [58, 0, 255]]])
    np.testing.assert_array_equal(adjust_saturation(image, 0.0), grayscale(image))
    np.testing.assert_array_equal(grayscale(image), [[[151] * 3, [42] * 3]])


def test_hues_go_round():
    image = np.array([[[255, 0, 0], [0, 255, 0], [90, 90, 90]]], np.uint8)
    third, back = adjust_hue(image, 1 / 3).astype(int), adjust_hue(image, -1 / 3).astype(int)
    # The circle has 256 steps, and the turn counts 255: a third is off by up to 1/255, which is 6 values.
    np.testing.assert_allclose(third, [[[0, 255, 0], [0, 0, 255], [90, 90, 90]]], atol=8)
    np.testing.assert_allclose(back, [[[0, 0, 255], [255, 0, 0], [90, 90, 90]]], atol=8)
    assert adjust_hue(COLORS, 0.003) is COLORS and (adjust_hue(COLORS, 0.004) != COLORS).any()


@given(st.floats(-0.5, 0.5), SEEDS)
def test_hues_leave_lightness_alone(turn, seed):
    image = draw(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    for extreme in (np.min, np.max):  # of HSV: its value, and what its saturation says
        before, after = (extreme(each, axis=2).astype(int) for each in (image, adjust_hue(image, turn)))
        np.testing.assert_allclose(after, before, atol=2)


def test_jitter_draws_each_change_once_and_in_any_order():
    image = picture(20, 20)
    first = {}
    for seed in range(60):
        rng = draw(seed)
        order = tuple(rng.permutation(4))
        factors = [rng.uniform(0.6, 1.4), rng.uniform(0.6, 1.4), rng.uniform(0.8, 1.2), rng.uniform(-0.1, 0.1)]
        expected = Image.fromarray(image)
        for change in order:
            if change < 3:
                expected = ENHANCERS[change][1](expected).enhance(factors[change])
            else:
                expected = Image.fromarray(adjust_hue(np.asarray(expected), factors[3]))
        np.testing.assert_array_equal(color_jitter(image, draw(seed)), np.asarray(expected))
        first[order] = seed
    assert len(first) > 18, "there are 24 orders"


@pytest.mark.parametrize("only", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_leaves_out_what_is_0(only):
    amounts = dict.fromkeys(["brightness", "contrast", "saturation", "hue"], 0.0)
    np.testing.assert_array_equal(color_jitter(COLORS, draw(), **amounts), COLORS)
    assert (color_jitter(COLORS, draw(), **amounts | {only: 0.5}) != COLORS).any()


def test_factors_are_never_below_0():
    """Brightness within 1 ± 5 is within 0–6: hardly ever black, often white."""
    gray = np.full((2, 2, 3), 100, np.uint8)
    found = np.array([color_jitter(gray, draw(seed), 5.0, 0.0, 0.0, 0.0)[0, 0, 0] for seed in range(300)])
    assert (found == 0).mean() < 0.02 and (found < 100).mean() == pytest.approx(1 / 6, abs=0.065)
    assert (found == 255).mean() == pytest.approx(3.45 / 6, abs=0.086)  # three deviations


@pytest.mark.parametrize("wrong", [{"brightness": -0.1}, {"contrast": -1.0}, {"saturation": -1.0}, {"hue": 0.6}])
def test_bad_jitter_gets_one_sentence(wrong):
    with pytest.raises(UserError, match=r"must be at least 0 and hue from 0 to 0\.5, not .*(-0\.1|-1\.0|0\.6)"):
        color_jitter(COLORS, draw(), **wrong)


def test_blur_is_a_gaussian():
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[20, 20] = 255
    np.testing.assert_array_equal(
        gaussian_blur(dot, 1.7), np.asarray(Image.fromarray(dot).filter(ImageFilter.GaussianBlur(1.7)))
    )
    wide = np.repeat(dot[20:21], 41, 0)  # a line, whose profile is the kernel
    distance = np.arange(41) - 20
    kernel = np.exp(-(distance**2) / (2 * 3.0**2))
    # Three box filters: the fourth moment is a little small, here by 3 of 255.
    np.testing.assert_allclose(gaussian_blur(wide, 3.0)[20, :, 0], 255 * kernel / kernel.sum(), atol=3)


@given(st.integers(0, 256), SEEDS)
def test_solarize_is_pillows(threshold, seed):
    image = draw(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        solarize(image, float(threshold)), np.asarray(ImageOps.solarize(Image.fromarray(image), threshold))
    )


def test_solarize_by_hand():
    np.testing.assert_array_equal(solarize(np.array([[[0], [127], [128], [255]]], np.uint8))[0, :, 0], [0, 127, 127, 0])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"area": (1.0, 0.08)}, "data.area is a smallest and a largest part"),
        ({"area": (0.0, 1.0)}, "data.area is"),
        ({"area": (8.0, 10.0)}, "data.area is"),
        ({"aspect": (0.0, 1.0)}, "data.aspect is a smallest and a largest width over height"),
    ],
)
def test_parts_that_no_image_has(wrong, says):
    with pytest.raises(UserError, match=says):
        RandomView(**wrong)
