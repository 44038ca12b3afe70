"""Pictures as sequences of patches: as transformers' processor of SigLIP 2 makes them, and by hand."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)

from data_pipelines.naflex import naflex, naflex_size, pad, patchify
from data_pipelines.preprocess import Preprocess
from jmm.errors import UserError

SIDES = st.integers(1, 3000)


@example(size=(1, 1), patch_size=16, patches=256)  # the largest factor is reached
@example(size=(3000, 1), patch_size=16, patches=256)
@example(size=(224, 224), patch_size=16, patches=196)
@given(st.tuples(SIDES, SIDES), st.integers(1, 40), st.integers(1, 1100))
def test_sizes_are_those_of_siglip_2(size, patch_size, patches):
    found = naflex_size(size, patch_size, patches)
    assert found == get_image_size_for_max_num_patches(*size, patch_size, patches)
    rows, columns = found[0] / patch_size, found[1] / patch_size
    assert rows.is_integer() and columns.is_integer() and 1 <= rows * columns <= patches


def test_the_factor_is_known_as_well_as_theirs():
    """Of large pictures one in 170 gets another side where the search ends ten times as early."""
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 8000, (600, 2)).tolist():
        theirs = get_image_size_for_max_num_patches(height, width, 16, 1024)
        assert naflex_size((height, width), 16, 1024) == theirs


def picture(height, width, channels=3, seed=0):
    """Smooth, as photographs are, with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    return (np.asarray(coarse)[..., :channels] // 2 + rng.integers(0, 128, (height, width, channels))).astype(np.uint8)


@pytest.mark.parametrize("size", [(480, 640), (333, 90), (17, 401), (30, 20), (256, 256), (1, 60)])
@pytest.mark.parametrize(("patch_size", "patches"), [(16, 256), (14, 100), (16, 1)])
def test_patches_are_those_of_siglip_2(size, patch_size, patches):
    image = picture(*size)
    theirs = Siglip2ImageProcessorPil(patch_size=patch_size, max_num_patches=patches)
    theirs = theirs(image, input_data_format="channels_last", return_tensors="np")
    ours = naflex(image, patch_size, patches)
    assert ours.grid == tuple(theirs["spatial_shapes"][0])
    np.testing.assert_array_equal(ours.mask, theirs["pixel_attention_mask"][0].astype(bool))
    # Both go through Pillow's bilinear filter: the same bytes; 1e-6 is the rounding of their float32.
    normal = Preprocess().normalise(ours.pixels[:, :, None])[:, :, 0]
    np.testing.assert_allclose(normal[ours.mask], theirs["pixel_values"][0][ours.mask], atol=1e-6)
    assert not ours.pixels[~ours.mask].any() and not theirs["pixel_values"][0][~ours.mask].any()


def test_patches_by_hand():
    """Two rows and one column of patches of 2 × 2, in a sequence of three."""
    image = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)
    found = naflex(image, patch_size=2, patches=3)
    assert found.grid == (2, 1)
    np.testing.assert_array_equal(found.pixels, [range(8), range(8, 16), [0] * 8])
    np.testing.assert_array_equal(found.positions, [[0, 0], [1, 0], [0, 0]])
    np.testing.assert_array_equal(found.mask, [True, True, False])


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(1, 9), st.integers(1, 50), st.sampled_from([1, 3])
)
def test_every_patch_stands_where_its_position_says(size, patch_size, patches, channels):
    found = naflex(picture(*size, channels), patch_size, patches)
    assert found.pixels.shape == (patches, patch_size * patch_size * channels) and found.pixels.dtype == np.uint8
    assert found.positions.shape == (patches, 2) and found.positions.dtype == np.int32
    rows, columns = found.grid
    assert found.mask.sum() == rows * columns <= patches and found.mask[: rows * columns].all()
    whole = np.zeros((rows * patch_size, columns * patch_size, channels), np.uint8)
    for patch, (row, column) in zip(found.pixels[found.mask], found.positions[found.mask], strict=True):
        place = np.s_[row * patch_size : (row + 1) * patch_size, column * patch_size : (column + 1) * patch_size]
        whole[place] = patch.reshape(patch_size, patch_size, channels)
    by_hand = Image.fromarray(picture(*size, channels).squeeze(2) if channels == 1 else picture(*size, channels))
    by_hand = by_hand.resize((whole.shape[1], whole.shape[0]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(whole, np.asarray(by_hand).reshape(whole.shape))


def test_floats_are_cut_and_padded_as_well():
    image = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 2, 3)
    found = pad(patchify(image, 2), (2, 1), 2)
    assert found.pixels.dtype == np.float32 and found.mask.all()
    np.testing.assert_array_equal(found.pixels.reshape(-1), image.reshape(-1))


def test_bad_input_gets_one_sentence():
    image = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(UserError, match=r"must be at least 1, not \(4, 6\), 16 and 0"):
        naflex(image, patches=0)
    with pytest.raises(UserError, match=r"must be at least 1, not \(4, 6\), 0 and 256"):
        naflex(image, patch_size=0)
    with pytest.raises(UserError, match=r"an image of 4 × 6 cannot be cut into patches of 4 × 4"):
        patchify(image, 4)
    with pytest.raises(UserError, match=r"a picture of 2 × 3 patches does not fit a sequence of 5"):
        pad(patchify(image, 2), (2, 3), 5)
