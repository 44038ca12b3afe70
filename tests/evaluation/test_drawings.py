"""Drawings judged by the scenes' own checker: of a model that draws what it should, and of one that does not."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.codes import Codes
from data_pipelines.digits import Digits
from data_pipelines.scenes import Scenes
from jmm.errors import UserError
from jmm.evaluation import drawings
from jmm.evaluation.drawings import Drawings
from jmm.interop.encode import encode
from tests.generation.test_images import DATA, STREAM, TOKENIZER, model_of

SCENES = replace(DATA, examples=2, held_out=6)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "codes"
    encode(model_of(TOKENIZER), SCENES, folder)
    return Codes(str(folder), SCENES)


def test_what_an_untrained_model_draws_is_not_true(codes, tmp_path):
    evaluation = Drawings(count=4)
    found = evaluation.run(model_of(STREAM), codes)
    assert found == {"drawings/true": 0.0, "drawings/chance": 0.0, "drawings/tokenized": 0.0}
    paths = evaluation.draw(model_of(STREAM), codes, tmp_path)
    assert [path.name for path in paths] == ["drawings.png", "drawings_tokenized.png"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_true_pictures_are_true(codes, monkeypatch):
    """Of drawings that are the true pictures all captions are true; a CLIP chooses the true one of several."""
    source = SCENES.source("held_out")
    images = {source[i]["caption"]: source[i]["image"] for i in range(6)}
    wrong = np.full((64, 64, 3), 240, np.uint8)

    def draw(model, tokenizer, captions, **_):
        last = [i % 3 == 2 or len(captions) == 6 for i in range(len(captions))]
        return np.stack([images[c] if right else wrong for c, right in zip(captions, last, strict=True)])

    monkeypatch.setattr(drawings, "draw_images", draw)
    monkeypatch.setattr(drawings, "likeness", lambda _, pictures, texts: np.array([each.std() for each in pictures]))
    found = Drawings(count=None, clip=str(codes.tokenizer), candidates=3).run(model_of(STREAM), codes)
    assert found["drawings/true"] == found["drawings/reranked"] == 1
    assert found["drawings/chance"] == 0


def test_other_datasets_are_named(codes):
    for data in (Scenes(), Codes(codes.path, Digits())):
        with pytest.raises(UserError, match="drawings are judged on codes"):
            Drawings().run(model_of(STREAM), data)
