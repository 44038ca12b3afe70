"""Hidden patches: exact numbers, blocks, and every place as likely."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipelines.patch_masks import block_mask, random_mask
from jmm.errors import UserError

SEEDS = st.integers(0, 2**32)


@example(10, 90, 0)  # 10 · (1 − 0.9) is 0.9999999999999998
@example(196, 75, 0)
@given(st.integers(1, 400), st.integers(0, 100), SEEDS)
def test_the_number_is_exact(patches, percent, seed):
    found = random_mask(patches, percent / 100, np.random.default_rng(seed))
    assert found.shape == (patches,) and found.dtype == bool
    assert (~found).sum() == patches * (100 - percent) // 100
    np.testing.assert_array_equal(found, random_mask(patches, percent / 100, np.random.default_rng(seed)))


def test_as_in_mae():
    """ViT-B/16 at 224: 49 of 196 are seen; what does not divide is hidden."""
    assert random_mask(196, 0.75, np.random.default_rng(0)).sum() == 147
    assert random_mask(50, 0.75, np.random.default_rng(0)).sum() == 38


def test_every_patch_is_as_likely():
    rng = np.random.default_rng(0)
    shares = np.mean([random_mask(16, 0.75, rng) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(shares, 0.75, atol=0.028)  # four deviations
    pairs = np.array([random_mask(16, 0.5, rng) for _ in range(4000)], float)
    together = np.corrcoef(pairs.T) - np.eye(16)
    np.testing.assert_allclose(together, (np.eye(16) - 1) / 15, atol=0.08)  # drawn without replacement: −1 / 15


@given(st.integers(1, 20), st.integers(1, 20), SEEDS, st.sampled_from([0.0, 0.3, 0.4, 0.9]), st.integers(1, 30))
def test_enough_is_hidden(height, width, seed, ratio, smallest):
    found = block_mask((height, width), np.random.default_rng(seed), ratio, smallest)
    assert found.shape == (height, width) and found.dtype == bool
    assert found.sum() > ratio * height * width
    np.testing.assert_array_equal(found, block_mask((height, width), np.random.default_rng(seed), ratio, smallest))


def test_what_is_hidden_at_once_is_a_block():
    """With a ratio of 0 one block is enough: its sides lie in the aspect, its size between the bounds."""
    for seed in range(200):
        rows, columns = np.nonzero(block_mask((30, 40), np.random.default_rng(seed), ratio=0.0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width and 12 <= len(rows) <= 20  # 16, its sides rounded
        assert 2 <= height <= 7 and 2 <= width <= 7  # √(16 · 0.3) = 2.2, √(16 / 0.3) = 7.3


def test_as_many_are_high_as_wide():
    shapes = []
    for seed in range(1000):
        rows, columns = np.nonzero(block_mask((60, 60), np.random.default_rng(seed), ratio=0.0, smallest=400))
        shapes.append(np.log((np.ptp(rows) + 1) / (np.ptp(columns) + 1)))
    assert np.mean(shapes) == pytest.approx(0, abs=0.07)  # three deviations: 2 log(1 / 0.3) / √12 / √1000
    assert np.std(shapes) == pytest.approx(2 * np.log(1 / 0.3) / np.sqrt(12), rel=0.05)


def test_as_in_beit():
    """14 × 14 patches at 0.4: at least 79 are hidden, and at most a last block more; most of them side by side."""
    masks = [block_mask((14, 14), np.random.default_rng(seed)) for seed in range(300)]
    counts = [int(mask.sum()) for mask in masks]
    assert min(counts) == 79 and max(counts) < 79 + 18 and len(set(counts)) > 5
    beside = np.mean([(mask[:, 1:] == mask[:, :-1]).mean() for mask in masks])
    assert beside > 0.8  # of patches hidden one by one, 0.52
    np.testing.assert_allclose(np.mean(masks, axis=0)[4:10, 4:10], np.mean(masks, axis=0)[4:10, 4:10].mean(), atol=0.12)


def test_blocks_may_be_as_large_as_what_is_missing():
    """Neighbors of 40 × 40 patches, both hidden or both seen: 0.95 of them; 0.85 were all blocks as small as can be."""
    masks = [block_mask((40, 40), np.random.default_rng(seed)) for seed in range(60)]
    assert np.mean([(mask[:, 1:] == mask[:, :-1]).mean() for mask in masks]) > 0.92


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_bad_ratios_get_one_sentence(ratio):
    with pytest.raises(UserError, match=rf"the ratio of hidden patches must be from 0 to 1, not {ratio}"):
        random_mask(4, ratio, np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"ratio": 1.0}, {"ratio": -0.5}, {"smallest": 0}, {"grid": (0, 4)}])
def test_bad_blocks_get_one_sentence(wrong):
    with pytest.raises(UserError, match=r"from 0 to below 1, smallest and both sides of the grid at least 1, not"):
        block_mask(**{"grid": (4, 4), "rng": np.random.default_rng(0)} | wrong)
