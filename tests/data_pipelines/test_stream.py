"""Where the texts of a stream's tasks stand, and what a RuDOLPH writes behind the codes of a picture."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.codes import Codes
from data_pipelines.digits import Digits
from data_pipelines.mixture import Mixture, Part
from data_pipelines.pipeline import held_out
from data_pipelines.scenes import Scenes
from data_pipelines.stream import TELL, Stream, codes_of
from jmm.cli import main
from jmm.errors import UserError
from jmm.evaluation.captions import Captions
from jmm.evaluation.drawings import Drawings
from jmm.evaluation.writing import pictures_of, write_held_out
from jmm.generation.images import encode as made
from jmm.generation.images import paint
from jmm.generation.texts import tell
from jmm.interop.convert import save
from jmm.interop.encode import encode
from jmm.protocol import forward
from tests.generation.test_images import DATA, STREAM, TOKENIZER, model_of

SCENES = replace(DATA, examples=3, held_out=5, target_length=16)
RUDOLPH = replace(STREAM, right_length=16)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "codes"
    encode(model_of(TOKENIZER), SCENES, folder)
    return Codes(str(folder), SCENES)


@pytest.fixture(scope="module")
def rudolph():
    return replace(model_of(RUDOLPH), preprocess=SCENES.preprocessor())


def test_texts_stand_left_of_the_image_or_right_of_it(codes):
    captions = [SCENES.source("held_out")[i]["caption"] for i in range(5)]
    tokenizer = SCENES.preprocessor().tokenizer
    _, drawn = held_out(Stream(codes, "draw"))
    _, told = held_out(Stream(codes, "tell"))
    assert [tokenizer.decode(row.tolist()) for row in drawn["text"]] == captions
    assert [tokenizer.decode(row.tolist()) for row in told["target"]] == [f"{TELL} {each}" for each in captions]
    # Nothing is written behind what is drawn: the end stands first, and nothing predicts what stands first.
    assert drawn["target_mask"].sum() == 5 and not drawn["target_mask"][:, 1:].any()
    assert [tokenizer.decode(row.tolist()) for row in told["text"]] == [""] * 5
    np.testing.assert_array_equal(drawn["codes"], told["codes"])


def test_what_a_mixture_of_tasks_is_made_of(codes):
    mixture = Mixture((Part("digits", Digits()), Part("tell", Stream(codes, "tell"))))
    assert codes_of(mixture) is codes_of(codes) is codes
    assert codes_of(Scenes()) is None


def test_a_question_stands_on_the_left_and_its_answer_on_the_right(codes, monkeypatch):
    asked = {"codes": np.zeros((8, 8), np.int32), "prompt": "how many?", "answer": "2", "answers": ["2", "two"]}
    monkeypatch.setattr(Codes, "source", lambda self, split: [asked])
    example = Stream(codes, "answer").source("train")[0]
    assert (example["prompt"], example["answer"]) == ("how many?", f"{TELL} 2")
    assert example["answers"] == ["2", "two"]
    with pytest.raises(UserError, match="has no caption, without which there is nothing to draw"):
        Stream(codes, "draw").source("train")[0]
    del asked["prompt"]
    with pytest.raises(UserError, match="has no prompt, without which there is nothing to answer"):
        Stream(codes, "answer").source("train")[0]


def test_what_is_told_is_what_the_forward_pass_finds_most_probable(codes, rudolph):
    _, batch = held_out(Stream(codes, "tell"), 2)
    texts = tell(rudolph, batch["codes"], ["", ""], max_new_tokens=4)
    tokenizer, config = rudolph.preprocess.tokenizer, RUDOLPH
    written = jnp.asarray(batch["target"][:, :1])
    words = config.text_vocab - config.text_length
    for _ in range(4):
        fields = {name: batch[name] for name in ("text", "text_mask", "codes")} | {"target": written}
        logits = jax.jit(lambda fields: forward(rudolph.module, rudolph.unstacked, fields))(fields)["logits"]
        written = jnp.concatenate([written, logits[:, -1:, :words].argmax(axis=-1).astype(jnp.int32)], axis=1)
    rows = [row[1:] for row in np.asarray(written).tolist()]
    ends = [row.index(tokenizer.end_id) if tokenizer.end_id in row else len(row) for row in rows]
    assert texts == [tokenizer.decode(row[:end]) for row, end in zip(rows, ends, strict=True)]


def test_both_tasks_are_evaluated(codes, rudolph, tmp_path):
    mixture = Mixture((Part("draw", Stream(codes, "draw")), Part("tell", Stream(codes, "tell"))))
    found = Captions("tell", 3, max_new_tokens=3).run(rudolph, mixture)
    assert found.keys() == {"captions/exact", "captions/bleu4", "captions/cider"} and found["captions/exact"] == 0
    (path,) = Captions("tell", 3, max_new_tokens=3).draw(rudolph, mixture, tmp_path)
    assert path.stat().st_size > 1000
    written = write_held_out(rudolph, mixture, part="tell", count=2, max_new_tokens=3)
    shown = pictures_of(mixture.part("tell"), written)
    np.testing.assert_array_equal(
        shown, paint(model_of(TOKENIZER), np.stack([each.example["codes"] for each in written]))
    )
    assert Drawings(count=2).run(rudolph, mixture)["drawings/true"] == 0


def test_a_model_without_right_text_is_named(codes):
    with pytest.raises(UserError, match="VQGAN writes no text"):
        tell(model_of(TOKENIZER), np.zeros((1, 8, 8), np.int32), [""])
    with pytest.raises(UserError, match="DALLE writes nothing behind the codes of a picture; a RuDOLPH does"):
        tell(model_of(STREAM), np.zeros((1, 8, 8), np.int32), [""])


def test_the_commands(rudolph, tmp_path, capsys):
    """A picture is brought to codes, and what stands behind them is written."""
    save(rudolph, tmp_path / "rudolph", "jmm")
    save(model_of(TOKENIZER), tmp_path / "vqgan", "jmm")
    image = SCENES.source("held_out")[0]["image"]
    Image.fromarray(image).save(tmp_path / "scene.png")
    given = ["--max-new-tokens", "3", "--tokenizer", str(tmp_path / "vqgan")]
    asked = [str(tmp_path / "rudolph"), str(tmp_path / "scene.png")]
    assert main(["caption", *asked, *given, "--json"]) == 0
    codes = made(model_of(TOKENIZER), [image])
    wanted = tell(rudolph, codes, [""], max_new_tokens=3)
    assert [each["caption"] for each in json.loads(capsys.readouterr().out)["images"]] == wanted
    assert main(["answer", *asked, "a small blue square", *given, "--json"]) == 0
    wanted = tell(rudolph, codes, ["a small blue square"], max_new_tokens=3)
    assert [json.loads(capsys.readouterr().out)["answer"]] == wanted
    assert main(["caption", *asked]) == 1
    assert "DALLE reads codes; name what makes them of pictures with --tokenizer" in capsys.readouterr().err
