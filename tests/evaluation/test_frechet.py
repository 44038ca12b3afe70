"""The Fréchet distance against closed forms and SciPy, and of pictures in the eyes of small models."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import jmm
from data_pipelines.digits import Digits
from jmm.errors import UserError
from jmm.evaluation.frechet import distance, frechet_distance
from jmm.evaluation.reconstruction import Reconstruction
from tests.generation.test_images import DATA, TOKENIZER, model_of
from tests.tiny_checkpoints import two_towers


def with_moments(rng, mean, covariance, rows):
    """Rows whose mean and covariance are these exactly, but for rounding."""
    noise = rng.standard_normal((rows, len(mean)))
    noise -= noise.mean(axis=0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(noise, rowvar=False)))).T
    return mean + white @ np.linalg.cholesky(covariance).T


@given(st.integers(0, 2**16), st.integers(1, 6))
def test_of_gaussians_whose_covariances_commute(seed, width):
    """(σ−σ')² along each common axis, and the square between the means."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((width, width)))[0]
    means, deviations = rng.standard_normal((2, width)), rng.uniform(0.3, 3, (2, width))
    one, other = (
        with_moments(rng, mean, axes @ np.diag(each**2) @ axes.T, 3 * width + rows)
        for mean, each, rows in zip(means, deviations, (4, 9), strict=True)
    )
    wanted = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-10)


def test_of_any_covariances_by_the_root_of_a_matrix():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 5)), rng.standard_normal((60, 5)) + 1
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    wanted = np.square(one.mean(axis=0) - other.mean(axis=0)).sum() + sum(np.trace(each) for each in covariances)
    wanted -= 2 * np.trace(scipy.linalg.sqrtm(covariances[0] @ covariances[1])).real
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-10)


def test_of_fewer_pictures_than_features():
    """Nothing from a set to itself; along a line the difference of the deviations, though no covariance is regular."""
    rng = np.random.default_rng(1)
    few = rng.standard_normal((7, 50)).astype(np.float32)
    assert abs(frechet_distance(few, few[::-1])) < 1e-12
    line = rng.standard_normal(50)
    amounts = rng.standard_normal((9, 1))
    wanted = np.square(2 * amounts.std(ddof=1) * np.linalg.norm(line)) + np.square(2 * amounts.mean() * line).sum()
    assert frechet_distance(amounts * line, 3 * amounts * line) == pytest.approx(wanted, rel=1e-12)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return two_towers("clip", tmp_path_factory.mktemp("clip") / "clip")


def test_in_the_eyes_of_a_clip(clip):
    model = jmm.load(clip)
    images = [Digits().source("held_out")[i]["image"] for i in range(12)]
    colours = [np.repeat(each, 3, axis=-1) if each.shape[-1] == 1 else each for each in images]
    name, nothing = distance(model, colours, colours[::-1])
    assert name == "frechet_clip_image_embedding" and abs(nothing) < 1e-6
    others = [255 - each for each in colours]
    sets = [model.outputs(model.preprocess(images=each), ["image_embedding"]) for each in (colours, others)]
    wanted = frechet_distance(*(each["image_embedding"] for each in sets))
    assert distance(model, colours, others)[1] == pytest.approx(wanted, rel=1e-5)


def test_of_what_a_tokenizer_makes_of_its_codes(clip):
    found = Reconstruction(count=4, features=str(clip)).run(model_of(TOKENIZER), DATA)
    assert found["reconstruction/frechet_clip_image_embedding"] > 1e-3


def test_one_sentence_for_what_cannot_be_compared():
    with pytest.raises(UserError, match="needs two pictures of each set, not 1 and 3"):
        frechet_distance(np.ones((1, 2)), np.ones((3, 2)))
    with pytest.raises(UserError, match="VQGAN says nothing of a picture as a whole"):
        distance(model_of(TOKENIZER), [np.zeros((64, 64, 3), np.uint8)] * 2, [np.ones((64, 64, 3), np.uint8)] * 2)
