"""`jmm classify FOLDER photo.jpg` against transformers' zero-shot pipeline on the same folder."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from jmm.cli import main
from tests.tiny_checkpoints import TWO_TOWERS, two_towers

LABELS = ["cat", "A Dog it's 5!", "the quick brown fox jumps over the lazy dog", "über naïve", "東京"]


@pytest.fixture(scope="module", params=TWO_TOWERS)
def folder(request, tmp_path_factory):
    """A whole checkpoint."""
    return two_towers(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEG files of several sizes, one of them grey."""
    paths, rng = [], np.random.default_rng(0)
    for i, shape in enumerate([(60, 41, 3), (30, 77, 3), (20, 25)]):
        paths.append(tmp_path_factory.mktemp("photos") / f"{i}.jpg")
        rough = Image.fromarray(rng.integers(0, 256, (6, 6, *shape[2:]), dtype=np.uint8))
        rough.resize(shape[1::-1]).save(paths[-1])
    return paths


def test_scores_are_those_of_the_pipeline(folder, photos, capsys):
    theirs = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    for template in (None, "a bad picture of the {}"):
        settings = {} if template is None else {"hypothesis_template": template}
        expected = [theirs(str(path), candidate_labels=LABELS, **settings) for path in photos]
        capsys.readouterr()
        given = [] if template is None else ["--template", template]
        arguments = ["classify", folder, *photos, "--labels", ",".join(LABELS), *given, "--json"]
        assert main(list(map(str, arguments))) == 0
        found = json.loads(capsys.readouterr().out)["images"]
        for ours, row in zip(found, expected, strict=True):
            scores = np.array([each["score"] for each in row])
            assert list(ours["labels"]) == [each["label"] for each in row]
            assert scores.max() - scores.min() > 0.02, "the labels must differ by more than the tolerance"
            np.testing.assert_allclose(list(ours["labels"].values()), scores, rtol=0, atol=1e-4)


def test_search_orders_by_cosine(folder, photos, capsys, tmp_path):
    for path in photos:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert main(["search", str(folder), "a cat", "--images", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["images"]
    cosines = [each["similarity"] for each in found]
    assert len(found) == len(photos)
    assert cosines == sorted(cosines, reverse=True)
