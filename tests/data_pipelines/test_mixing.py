"""Mixed batches: by hand, and what holds of every draw."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.mixing import cutmix, mixup
from jmm.errors import UserError

SEEDS = st.integers(0, 2**32)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
LABELS = np.eye(7, dtype=np.float32)[[0, 3, 3, 6, 1]]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_by_hand(alpha):
    rng = np.random.default_rng(4)
    share, order = rng.beta(alpha, alpha), rng.permutation(5)
    found = mixup(IMAGES, LABELS, np.random.default_rng(4), alpha)
    assert found.images.dtype == found.labels.dtype == np.float32
    for i, j in enumerate(order):
        # float32 of values up to 255
        np.testing.assert_allclose(found.images[i], share * IMAGES[i] + (1 - share) * IMAGES[j], atol=1e-4)
        np.testing.assert_allclose(found.labels[i], share * LABELS[i] + (1 - share) * LABELS[j], atol=1e-6)


@given(SEEDS, st.floats(0.05, 5), st.sampled_from([mixup, cutmix]), st.booleans())
def test_labels_stay_probabilities_and_the_batch_its_mean(seed, alpha, mix, soft):
    labels = np.full_like(LABELS, 1 / 7) / 2 + LABELS / 2 if soft else LABELS
    found, again = (mix(IMAGES, labels, np.random.default_rng(seed), alpha) for _ in range(2))
    assert found.labels.min() >= 0
    np.testing.assert_allclose(found.labels.sum(1), 1, atol=1e-6)
    # Every example is once the first and once the second of a pair.
    np.testing.assert_allclose(found.labels.mean(0), labels.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.images.mean(0), IMAGES.mean(0), atol=1e-3)
    np.testing.assert_array_equal(found.images, again.images)


@given(SEEDS)
def test_cutmix_pastes_one_box(seed):
    """Each image is told by its pixels, of one value, and each class by its number."""
    count, height, width = 4, 9, 12
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 1))
    found = cutmix(images, np.eye(count, dtype=np.float64), np.random.default_rng(seed))
    assert found.images.dtype == np.uint8
    for i in range(count):
        shares = np.bincount(found.images[i].reshape(-1), minlength=count) / (height * width)
        np.testing.assert_allclose(found.labels[i], shares, atol=1e-6)
        rows, columns = np.nonzero(found.images[i, :, :, 0] != i)
        if len(rows):
            box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            assert box == len(rows) and len(set(found.images[i, rows, columns, 0])) == 1


def test_cutmix_by_hand():
    """Some of the boxes lie inside, some are cut at a border."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        share, order = rng.beta(1, 1), rng.permutation(5)
        inside = np.ones((6, 8), bool)
        for axis, length in enumerate((6, 8)):
            extent, middle = int(length * np.sqrt(1 - share)), rng.integers(length)
            first = middle - extent // 2
            place = np.arange(length)
            inside &= np.expand_dims((place >= first) & (place < first + extent), 1 - axis)
        found = cutmix(IMAGES, LABELS, np.random.default_rng(seed))
        np.testing.assert_array_equal(found.images, np.where(inside[:, :, None], IMAGES[order], IMAGES))
        other = inside.mean()
        np.testing.assert_allclose(found.labels, (1 - other) * LABELS + other * LABELS[order], atol=1e-6)


def test_neither_changes_what_it_is_given():
    images, labels = IMAGES.copy(), LABELS.copy()
    for mix in (mixup, cutmix):
        mix(images, labels, np.random.default_rng(1))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_bad_input_gets_one_sentence(mix):
    with pytest.raises(UserError, match=r"alpha must be above 0, not 0\.0: without it nothing is mixed"):
        mix(IMAGES, LABELS, np.random.default_rng(0), 0.0)
    with pytest.raises(UserError, match=r"labels must be probabilities of classes, \[5, V\], to be mixed, not \[5\]"):
        mix(IMAGES, LABELS.argmax(1), np.random.default_rng(0))


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_whole_numbers_are_mixed_as_well(mix):
    found, soft = (mix(IMAGES, labels, np.random.default_rng(3)).labels for labels in (LABELS.astype(int), LABELS))
    np.testing.assert_array_equal(found, soft)
    assert found.dtype == np.float32 and found.max(1).min() < 1
