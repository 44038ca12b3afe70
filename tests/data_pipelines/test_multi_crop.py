"""DINO's views of an image: their sizes, and how often each change is made."""

import numpy as np
import pytest

from data_pipelines import multi_crop
from data_pipelines.multi_crop import MultiCrop, view
from tests.data_pipelines.test_naflex import picture

IMAGE = picture(40, 50)
SMALL = MultiCrop(global_size=24, local_size=8, local_views=3)


def test_two_large_views_and_the_small_ones():
    views = SMALL(IMAGE, np.random.default_rng(0))
    assert [each.shape for each in views] == [(24, 24, 3)] * 2 + [(8, 8, 3)] * 3
    assert all(each.dtype == np.uint8 for each in views)
    assert len(MultiCrop()(IMAGE, np.random.default_rng(0))) == 10
    for each, again in zip(views, SMALL(IMAGE, np.random.default_rng(0)), strict=True):
        np.testing.assert_array_equal(each, again)
    assert (views[0] != SMALL(IMAGE, np.random.default_rng(1))[0]).any()


def test_each_view_shows_its_part(monkeypatch):
    """The areas that are asked of the crop, view by view."""
    asked = []
    crop = multi_crop.random_resized_crop
    monkeypatch.setattr(
        multi_crop,
        "random_resized_crop",
        lambda image, size, rng, area: asked.append((size, area)) or crop(image, size, rng, area),
    )
    SMALL(IMAGE, np.random.default_rng(0))
    assert asked == [((24, 24), (0.4, 1.0))] * 2 + [((8, 8), (0.05, 0.4))] * 3


# 2000 pairs of images, three deviations of a share of one half
@pytest.mark.parametrize(
    ("change", "shares"),
    [
        ("color_jitter", (0.8, 0.8, 0.8)),
        ("grayscale", (0.2, 0.2, 0.2)),
        ("gaussian_blur", (1.0, 0.1, 0.5)),
        ("solarize", (0.0, 0.2, 0.0)),
    ],
)
def test_how_often_each_change_is_made(monkeypatch, change, shares):
    made = np.zeros(3)
    place = 0

    def counted(image, *_):
        made[place] += 1
        return image

    for name in ("color_jitter", "grayscale", "gaussian_blur", "solarize"):
        monkeypatch.setattr(multi_crop, name, lambda image, *_: image)
    monkeypatch.setattr(multi_crop, change, counted)
    ordinary = multi_crop.view

    def counting(*arguments, **named):
        nonlocal place
        found = ordinary(*arguments, **named)
        place = (place + 1) % 3
        return found

    monkeypatch.setattr(multi_crop, "view", counting)
    rng = np.random.default_rng(0)
    one = MultiCrop(global_size=4, local_size=2, local_views=1)
    for _ in range(1000):
        one(IMAGE, rng)
    np.testing.assert_allclose(made / 1000, shares, atol=0.048)


def test_blur_is_between_a_tenth_and_two_pixels(monkeypatch):
    sigmas = []
    monkeypatch.setattr(multi_crop, "gaussian_blur", lambda image, sigma: sigmas.append(sigma) or image)
    for seed in range(300):
        view(IMAGE, np.random.default_rng(seed), 4, (0.5, 1.0), blurred=1.0)
    assert 0.1 <= min(sigmas) < 0.15 and 1.95 < max(sigmas) <= 2.0


def test_certain_changes_are_made():
    """A white image stays white under all but the inversion."""
    white = np.full((10, 10, 3), 255, np.uint8)
    changed = [view(white, np.random.default_rng(i), 4, (0.5, 1.0), blurred=1.0, solarized=1.0) for i in range(20)]
    assert min(each.min() for each in changed) == 0
