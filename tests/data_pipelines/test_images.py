"""What each transform of pictures does to their pixels."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines import images
from data_pipelines.images import affine, resize, squash_box, to_channels

RANDOM = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def white_square(height, width, side):
    image = np.zeros((height, width, 3), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = 255
    return image


def extent(image):
    """Rows and columns whose middle is bright."""
    middle = image[image.shape[0] // 2], image[:, image.shape[1] // 2]
    return int((middle[1] > 127).any(-1).sum()), int((middle[0] > 127).any(-1).sum())


@pytest.mark.parametrize("shape", [(20, 40), (40, 20), (20, 20)])
def test_crop_keeps_proportions(shape):
    small = resize(white_square(*shape, 8), (10, 10), "crop")
    assert small.shape == (10, 10, 3)
    assert extent(small) == (4, 4)
    np.testing.assert_array_equal(small, small[::-1, ::-1])


def test_crop_to_another_shape_keeps_proportions():
    assert extent(resize(white_square(40, 40, 16), (10, 20), "crop")) == (8, 8)


def test_squash_keeps_the_whole_picture():
    assert extent(resize(white_square(20, 40, 8), (10, 10), "squash")) == (4, 2)


def test_resize_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(resize(RANDOM, (6, 8), "crop"), RANDOM)
    np.testing.assert_array_equal(resize(RANDOM[..., :1], (6, 8), "squash"), RANDOM[..., :1])


# side * (width / side) is a hair more than width here: the box would start left of the picture
@settings(deadline=None)
@example(450, 225, 49, 49)
@example(46, 23, 336, 336)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64), st.integers(1, 64))
def test_crop_takes_any_size(height, width, rows, columns):
    image = np.full((height, width, 1), 7, np.uint8)
    assert (resize(image, (rows, columns), "crop") == np.full((rows, columns, 1), 7)).all()


def test_to_channels():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    np.testing.assert_array_equal(to_channels(colours, 1)[..., 0], [[76, 150, 29, 9]])
    grey = RANDOM[..., :1]
    np.testing.assert_array_equal(to_channels(grey, 3), np.concatenate([grey] * 3, axis=2))
    assert to_channels(RANDOM, 3) is RANDOM


def test_affine_identity_is_exact():
    np.testing.assert_array_equal(affine(RANDOM, 0.0, 1.0, (0.0, 0.0)), RANDOM)


@settings(deadline=None)
@given(st.integers(-7, 7), st.integers(-7, 7))
def test_affine_by_whole_pixels_is_exact(down, across):
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 2), dtype=np.uint8)
    rows, columns = np.clip(np.arange(8) - down, 0, 7), np.clip(np.arange(8) - across, 0, 7)
    np.testing.assert_array_equal(affine(image, 0.0, 1.0, (down / 8, across / 8)), image[rows][:, columns])


@pytest.mark.parametrize("size", [7, 8])
def test_affine_by_quarters_is_clockwise_rot90(size):
    image = RANDOM[:1].repeat(size, 0).repeat(2, 1)[:, :size] + np.arange(size, dtype=np.uint8)[:, None, None]
    for quarters in range(-3, 4):
        # float32 coordinates of at most 8 pixels are off by some 1e-6 of a pixel, times 255
        np.testing.assert_allclose(
            affine(image, 90.0 * quarters, 1.0, (0.0, 0.0)),
            np.rot90(image, -quarters).astype(np.float32),
            atol=2e-3,
        )


def test_affine_scale_above_one_enlarges():
    square = white_square(16, 16, 4)
    assert extent(affine(square, 0.0, 2.0, (0.0, 0.0))) == (8, 8)
    assert extent(affine(square, 0.0, 0.5, (0.0, 0.0))) == (2, 2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (5, 1, 1)])
def test_affine_of_a_thin_picture(shape):
    image = np.full(shape, 9, np.uint8)
    np.testing.assert_allclose(affine(image, 30.0, 1.3, (0.4, -0.2)), image, atol=1e-5)


RAMP = np.arange(60, dtype=np.uint8).reshape(5, 12, 1)


def test_the_shorter_edge_then_the_middle():
    by_hand = np.asarray(Image.fromarray(RAMP[..., 0]).resize((24, 10), Image.Resampling.BILINEAR))
    found = resize(RAMP, (8, 7), 10, "bilinear")
    np.testing.assert_array_equal(found[..., 0], by_hand[1:9, 8:15])


def test_the_longer_edge_is_rounded_down():
    assert resize(RAMP[:, :, :], (7, 16), 7).shape == (7, 16, 1)  # 7 · 12 / 5 is 16.8
    np.testing.assert_array_equal(resize(RAMP, (7, 18), 7)[:, [0, -1]], 0)


@pytest.mark.parametrize("size", [(3, 8), (5, 12), (4, 5)])
def test_the_middle_as_it_is(size):
    top, left = (5 - size[0]) // 2, (12 - size[1]) // 2
    np.testing.assert_array_equal(resize(RAMP, size, "none"), RAMP[top : top + size[0], left : left + size[1]])


def test_what_is_too_small_lies_on_black():
    found = resize(RAMP + 1, (8, 9), "none")
    np.testing.assert_array_equal(found[2:7], RAMP[:, 1:10] + 1)
    np.testing.assert_array_equal(found[[0, 1, 7]], 0)


@pytest.mark.parametrize("resample", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_filters_are_pillows(resample):
    by_hand = Image.fromarray(RANDOM).resize((5, 9), Image.Resampling[resample.upper()])
    np.testing.assert_array_equal(resize(RANDOM, (9, 5), "squash", resample), np.asarray(by_hand))


PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize((83, 61))


PARTS = [(top, left, 75 - top, 100 - left) for top in range(0, 75, 7) for left in range(0, 100, 9)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(7, 5), (40, 30), (30, 40), (90, 200), (64, 64)])
@pytest.mark.parametrize("pillow", ["12", "here"])
def test_parts_of_training_images_are_pillows(channels, size, pillow, monkeypatch):
    """All but a hundredth of the levels, the others but one in ten thousand to one level, and these to two; of noise as
    well, where each pass overshoots and is cut off. Pillow 12 is two calls, across and down."""
    if pillow == "12":
        monkeypatch.setattr(images, "ACROSS_FIRST", True)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (75, 100, channels), np.uint8)
    smooth = np.asarray(PHOTO.resize((100, 75)))[..., :channels]
    counts = np.zeros(3, int)
    for image in (smooth, noise, np.where(noise > 127, 255, 0).astype(np.uint8)):
        for top, left, height, width in PARTS:
            by_hand = np.ascontiguousarray(image[top : top + height, left : left + width])
            for each in ((height, size[1]), size) if pillow == "12" else (size,):
                by_hand = resize(by_hand, each, "squash")
            found = squash_box(image, (top, left, height, width), size)
            assert found.shape == (*size, channels) and found.dtype == np.uint8
            apart = np.abs(found.astype(int) - by_hand)
            counts += np.bincount(apart.ravel(), minlength=3)
    assert counts[1:].sum() <= 0.01 * counts.sum() and counts[2] <= 1e-4 * counts.sum(), counts


def test_without_the_fast_extra_they_are_pillows(monkeypatch):
    monkeypatch.setattr(images, "cykooz_resizer", None)
    whole = np.asarray(PHOTO)
    by_hand = resize(np.ascontiguousarray(whole[5:45, 10:60]), (24, 24), "squash")
    np.testing.assert_array_equal(squash_box(whole, (5, 10, 40, 50), (24, 24)), by_hand)


def test_a_thin_picture_is_not_made_gigabytes():
    thin = np.zeros((1, 20_000, 3), np.uint8)
    thin[:, 10_000:] = 255
    for picture, axis in ((thin, 1), (thin.swapaxes(0, 1), 0)):
        found = resize(picture, (224, 224), 224)
        assert found.shape == (224, 224, 3)
        shades = found.mean(axis=(1 - axis, 2))
        assert shades[0] < 60 and shades[-1] > 195 and (np.diff(shades) >= 0).all()
