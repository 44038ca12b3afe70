"""Accuracy of a classification head, on planted logits."""

import pytest
from PIL import Image

from jmm.errors import UserError
from jmm.evaluation.classification import Classification
from tests.evaluation.planted import LETTERS, A, B, C, D, Data, model

RIGHT = tuple({"image": image, "label": label} for label, image in enumerate((A, B, C, D)))
WRONG = ({"image": A, "label": 3},)


@pytest.mark.parametrize(("examples", "accuracy"), [(RIGHT, 1.0), (RIGHT + WRONG, 0.8), (WRONG, 0.0)])
def test_accuracy_is_the_share_of_labels_found(examples, accuracy):
    figures = Classification(tuple(LETTERS)).run(model(), Data(examples))
    assert figures == {"classification/accuracy": pytest.approx(accuracy)}


def test_the_picture_of_confusions_is_written(tmp_path):
    (path,) = Classification(tuple(LETTERS)).draw(model(), Data(RIGHT + WRONG), tmp_path)
    with Image.open(path) as picture:
        assert min(picture.size) > 300


def test_examples_without_labels_are_refused():
    with pytest.raises(UserError, match="needs held-out examples with a label; Data has none"):
        Classification(tuple(LETTERS)).run(model(), Data(({"image": A},)))
