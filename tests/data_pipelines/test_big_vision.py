"""big_vision's image transforms: against TensorFlow's, which it calls, and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.big_vision import area, inception_box, inception_crop, resize_small
from data_pipelines.images import resize
from tests.data_pipelines.test_naflex import picture

SIDES = st.integers(1, 60)


def distance(ours, theirs):
    """The largest difference of two samples' cumulative frequencies (Kolmogorov–Smirnov)."""
    values = np.concatenate([ours, theirs])
    below = [np.searchsorted(np.sort(each), values, "right") / len(each) for each in (ours, theirs)]
    return np.abs(below[0] - below[1]).max()


def test_as_tensorflow():
    import tensorflow as tf

    def theirs(image, size, method, antialias):
        return tf.image.resize(image, size, method=method, antialias=antialias).numpy()

    for height, width in [(300, 200), (97, 331), (64, 64), (500, 375)]:
        image = picture(height, width)
        for size in [(64, 64), (50, 120), (400, 90), (9, 9)]:
            # Before big_vision cuts it off to whole numbers. Pillow rounds after each of the two directions, and a
            # little in its weights; TensorFlow's float32 areas are off by 0.005 or so.
            found = resize(image, size, "squash", "bilinear")
            np.testing.assert_allclose(found, theirs(image, size, "bilinear", True), atol=1.02)
            np.testing.assert_allclose(area(image, size), theirs(image, size, "area", False), atol=0.51)
        for side in (45, 64, 160):
            size = np.rint(np.float32([height, width]) * (np.float32(side) / np.float32(min(height, width))))
            scaled = theirs(image, size.astype(int), "area", False)
            small = resize_small(image, side)
            np.testing.assert_allclose(small, scaled, atol=0.51)
            cut = tf.image.crop_to_bounding_box(small, (small.shape[0] - 40) // 2, (small.shape[1] - 44) // 2, 40, 44)
            np.testing.assert_array_equal(resize(small, (40, 44), "none"), cut.numpy())

    tf.random.set_seed(0)
    rng = np.random.default_rng(0)
    for size in [(300, 200), (100, 400)]:
        boxes = []
        for i in range(2000):
            begin, extent, _ = tf.image.sample_distorted_bounding_box(
                (*size, 3),
                tf.zeros([0, 0, 4]),
                seed=i + 1,
                aspect_ratio_range=(0.75, 1.33),
                area_range=(0.05, 1.0),
                min_object_covered=0.0,
                use_image_if_no_bounding_boxes=True,
            )
            boxes.append([*begin.numpy()[:2], *extent.numpy()[:2]])
        ours = np.array([inception_box(size, rng) for _ in range(2000)])
        # Two samples of 2000 from one distribution are further apart than 0.061 once in a thousand times.
        for column, reference in zip(ours.T, np.array(boxes).T, strict=True):
            assert distance(column, reference) < 0.061


def test_area_by_hand():
    image = np.array([[[0], [30], [60], [90], [120]]], np.uint8)
    np.testing.assert_array_equal(area(image, (1, 2))[0, :, 0], [24, 96])  # (0 + 30 + 60 / 2) / 2.5
    np.testing.assert_array_equal(area(image.reshape(5, 1, 1), (2, 1))[:, 0, 0], [24, 96])
    np.testing.assert_array_equal(area(image[:, :2], (2, 4))[..., 0], [[0, 0, 30, 30]] * 2)


@given(SIDES, SIDES, SIDES, SIDES)
def test_area_keeps_one_color(height, width, rows, columns):
    image = np.broadcast_to(np.array([3, 77, 255], np.uint8), (height, width, 3))
    assert (area(image, (rows, columns)) == image[0, 0]).all()


@given(SIDES, SIDES, SIDES, st.sampled_from(["area", "bilinear"]))
def test_the_shorter_side_is_as_long_as_asked(height, width, side, resample):
    small = resize_small(np.zeros((height, width, 1), np.uint8), side, resample)
    assert min(small.shape[:2]) == side
    assert max(small.shape[:2]) == pytest.approx(side * max(height, width) / min(height, width), abs=0.501)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32))
def test_boxes_lie_inside(height, width, seed):
    top, left, rows, columns = inception_box((height, width), np.random.default_rng(seed))
    assert 0 <= top <= height - rows and 0 <= left <= width - columns and rows >= 1 and columns >= 1
    whole = (rows, columns) == (height, width)
    assert whole or 0.05 <= rows * columns / (height * width) <= 1
    assert whole or round(rows * 0.75) <= columns <= round(rows * 1.33)


def test_a_crop_is_its_box_squashed():
    image = picture(40, 60)
    found = inception_crop(image, (12, 10), np.random.default_rng(5), (0.1, 0.3))
    top, left, height, width = inception_box((40, 60), np.random.default_rng(5), (0.1, 0.3))
    part = image[top : top + height, left : left + width]
    np.testing.assert_array_equal(found, resize(np.ascontiguousarray(part), (12, 10), "squash", "bilinear"))
    assert 0.1 <= height * width / 2400 <= 0.3
