"""Zero-shot classification with planted embeddings: accuracy, probabilities and errors by hand."""

import numpy as np
import pytest

from jmm.errors import UserError
from jmm.evaluation.zero_shot import ZeroShot, class_embeddings, classify
from tests.evaluation.planted import LETTERS, SCALE, A, B, C, D, model, pairs, picture

MODEL = model()
TRUE = [(A, "a", 0), (B, "b", 1), (C, "c", 2), (D, "d", 3)]


@pytest.mark.parametrize(
    ("rows", "accuracy"),
    [
        (TRUE, 1.0),
        ([*TRUE[:3], (D, "a", 0)], 0.75),
        ([(B, "a", 0), (A, "b", 1)], 0.0),
        (TRUE * 5, 1.0),  # more rows than one batch of the model
    ],
)
def test_accuracy(rows, accuracy):
    found = ZeroShot(tuple(LETTERS), ("{}", "the letter {}")).run(MODEL, pairs(*rows))
    assert found == {"zero_shot/accuracy": accuracy}


def test_accuracy_needs_labels():
    with pytest.raises(UserError, match="needs held-out examples with a label; Data has none"):
        ZeroShot(tuple(LETTERS)).run(MODEL, pairs(*TRUE, fields=("image", "caption")))


def test_class_embeddings_are_unit_means_over_templates():
    found = class_embeddings(MODEL, ["a", "b"], ["{}", "the {}", "{} c"])
    np.testing.assert_allclose(found, np.array([[2, 0, 1, 0], [0, 2, 1, 0]]) / np.sqrt(5), atol=1e-6)


def test_no_labels():
    with pytest.raises(UserError, match="no labels"):
        class_embeddings(MODEL, [], ["{}"])


def test_probabilities_by_hand():
    # cosines with a and b are 3/5 and 4/5, then nothing
    found = classify(MODEL, [picture(153, 204, 0, 0), C], ["a", "b"], ["{}"])
    odds = np.exp(SCALE * np.array([[0.6, 0.8], [0, 0]]))
    np.testing.assert_allclose(found, odds / odds.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("bias", [-1.5, 0.0, 200.0, -200.0])
def test_a_sigmoid_gives_each_label_its_own(bias):
    found = classify(model(bias), [picture(153, 204, 0, 0), C], ["a", "b"], ["{}"])
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-SCALE * np.array([[0.6, 0.8], [0, 0]]) - bias))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_draw_shows_some_of_each_class(tmp_path):
    (path,) = ZeroShot(tuple(LETTERS)).draw(MODEL, pairs(*TRUE * 3), tmp_path)
    assert path == tmp_path / "similarity.png"
    assert path.stat().st_size > 1000
