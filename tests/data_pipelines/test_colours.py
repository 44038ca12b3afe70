"""Palettes by k-means."""

import numpy as np
import pytest

from data_pipelines.colours import fit_palette
from data_pipelines.digits import Digits
from jmm.errors import UserError


def test_a_palette_of_scans():
    palette = np.array(fit_palette(Digits(image_size=8), 6))
    assert palette.shape == (6,)
    assert (np.diff(palette) > 0).all(), "sorted, and no two alike"
    assert palette[0] < -0.9 and palette[-1] > 0.9, "ink and paper"
    assert tuple(palette) == fit_palette(Digits(image_size=8), 6)


def test_every_colour_there_is():
    """As many clusters as shades: each is one."""
    shades = fit_palette(Digits(image_size=8), 17)
    np.testing.assert_allclose(shades, 2 * np.rint(255 - np.arange(16, -1, -1) * 255 / 16) / 255 - 1, atol=1e-4)
    with pytest.raises(UserError, match="the pictures have 17 colours; a palette of 18 needs as many"):
        fit_palette(Digits(image_size=8), 18)
