"""Texts as pictures: where the ink is, where the text ends, and what is cut."""

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from data_pipelines.render import FONT, Strip, render
from jmm.errors import UserError

SERIF = FONT.with_name("DejaVuSerif.ttf")


def patches_of(strip):
    """The patches [N, P, P], grey."""
    side = strip.pixels.shape[0]
    return strip.pixels[:, :, 0].reshape(side, -1, side).swapaxes(0, 1)


def ends(strip):
    """Which patches are wholly black."""
    return np.flatnonzero((patches_of(strip) == 0).all(axis=(1, 2))).tolist()


@given(st.text(max_size=50), st.integers(1, 30), st.integers(8, 32))
def test_text_then_the_mark_then_nothing(text, patches, side):
    strip = render(text, patches, side)
    assert (strip.pixels.shape, strip.pixels.dtype) == ((side, patches * side, 3), np.uint8)
    assert (strip.pixels == strip.pixels[:, :, :1]).all(), "grey"
    assert 0 <= strip.text_patches < patches
    assert strip.text_patches in ends(strip)
    assert (patches_of(strip)[strip.text_patches + 1 :] == 255).all()
    np.testing.assert_array_equal(strip.mask, np.arange(patches) <= strip.text_patches)
    np.testing.assert_array_equal(render(text, patches, side).pixels, strip.pixels)


def test_letters_are_black_on_white():
    strip = render("Hello, world: 42 gypsies!", 40)
    written = patches_of(strip)[: strip.text_patches]
    assert (written == 255).mean() > 0.5 and (written < 64).mean() > 0.05
    # Every patch bears ink, the last one too, or it would not count.
    assert (written.min(axis=(1, 2)) < 128).all()


def test_the_first_ink_is_at_the_left_and_nothing_is_cut_off_above_or_below():
    for text in ("jÄÅgpqy", "Wide", "l"):
        strip = render(text, 20)
        letters = ImageFont.truetype(FONT, 12)
        assert (strip.pixels[:, :2] < 255).any()
        left, top, right, bottom = letters.getbbox(text, anchor="ls")
        assert strip.text_patches == -(-(right - left) // 16)
        ink = np.flatnonzero((strip.pixels[:, : strip.text_patches * 16, 0] < 255).any(axis=1))
        assert 1 + ink[-1] - ink[0] == bottom - top


def test_the_size_is_the_largest_that_fits():
    # DejaVu rises 0.93 of its size and falls 0.24 below; each is rounded up: 12 gives 15 pixels, and 13 gives 17.
    for size, fits in ((12, True), (13, False)):
        assert (sum(ImageFont.truetype(FONT, size).getmetrics()) <= 16) == fits


def test_a_long_text_loses_its_end_and_not_the_mark():
    strip, whole = render("many words " * 300, 10), render("many words " * 3, 40)
    assert (strip.text_patches, ends(strip)) == (9, [9])
    np.testing.assert_array_equal(strip.pixels[:, : 9 * 16], whole.pixels[:, : 9 * 16])


def test_no_text_is_the_mark_alone():
    for text in ("", " \n\t"):
        strip = render(text, 3)
        assert (strip.text_patches, ends(strip), strip.mask.tolist()) == (0, [0], [True, False, False])
    assert ends(render("text", 1)) == [0]


def test_white_space_is_one_space():
    np.testing.assert_array_equal(render(" a\n b\t\tc ", 9).pixels, render("a b c", 9).pixels)


def test_half_a_surrogate_pair_is_a_question_mark():
    np.testing.assert_array_equal(render("a\ud83db", 9).pixels, render("a?b", 9).pixels)


def test_a_font_of_ones_own():
    assert matplotlib.get_data_path() in str(SERIF)
    assert (render("Serif", 9, font=SERIF).pixels != render("Serif", 9).pixels).any()


def test_by_hand():
    # A full block (U+2588) is black as far as it reaches; two of them at size 12 are 20 pixels: two patches.
    strip = render("██", 4)
    assert strip.text_patches == 2
    row = strip.pixels[8, :, 0]
    assert (row[1:19] == 0).all() and (row[20:32] == 255).all() and (row[32:48] == 0).all() and (row[48:] == 255).all()


@pytest.mark.parametrize(("patches", "side"), [(0, 16), (-1, 16), (4, 3), (4, 0)])
def test_no_room(patches, side):
    with pytest.raises(UserError, match=f"not {patches} of {side}"):
        render("text", patches, side)


def test_a_font_that_is_none(tmp_path):
    (tmp_path / "none.ttf").write_bytes(b"no font")
    for name in ("none.ttf", "missing.ttf"):
        with pytest.raises(UserError, match=f"{name} is no font that can be read"):
            render("text", font=tmp_path / name)


def test_a_strip_says_what_is_read():
    strip = Strip(np.full((2, 8, 3), 255, np.uint8), 1)
    assert strip.mask.tolist() == [True, True, False, False]
