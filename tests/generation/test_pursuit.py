"""Pictures found by gradient: the CLIP finds them more like the text, by what is drawn and not by what it is."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jmm.cli import main
from jmm.errors import UserError
from jmm.evaluation.retrieval import likeness
from jmm.generation.images import paint
from jmm.generation.pursuit import Pursuit, _cut, pursue
from jmm.interop.convert import save
from jmm.models import clip, vit
from jmm.parts.transformer import TransformerConfig
from tests.generation.test_images import DATA, PROMPT, STREAM, TOKENIZER, model_of

TOWER = TransformerConfig(16, 1, 2, 16)
CLIP = clip.Config(
    vit.ImageTower(TOWER, (24, 24), 8, pool="mean"), clip.TextTower(TOWER, STREAM.text_vocab, DATA.text_length), 8
)

MANNER = Pursuit(steps=60, cutouts=4, smallest=0.5, noise=0.0, shown=3)


@pytest.fixture(scope="module")
def models():
    return model_of(TOKENIZER), model_of(CLIP, (24, 24))


@pytest.fixture(scope="module")
def found(models):
    return pursue(*models, PROMPT, count=2, manner=MANNER, seed=5)


def test_pictures_come_nearer_to_the_text(models, found):
    assert found.steps == (20, 40, 60) and found.images.shape == (3, 2, 32, 32, 3)
    still = Pursuit(steps=1, learning_rate=0.0, cutouts=1, shown=1)
    chance = pursue(*models, PROMPT, count=16, manner=still, seed=6).similarity
    # Nearer than any of sixteen drawn at random, by more than those differ.
    assert found.similarity[-1].min() > chance.max() + 2 * chance.std()


def test_similarity_is_what_the_clip_says_of_the_pictures(models, found):
    batch = models[1].preprocess(images=list(found.images[-1]), texts=[PROMPT])
    embedded = {
        name: models[1](**{field: batch[field] for field in fields})[name]
        for name, fields in {"image_embedding": ["image"], "text_embedding": ["text", "text_mask"]}.items()
    }
    cosine = np.asarray(embedded["image_embedding"]) @ np.asarray(embedded["text_embedding"])[0]
    # The pictures were rounded to bytes and brought to the CLIP's size by another filter.
    np.testing.assert_allclose(found.similarity[-1], cosine, atol=0.05)


def test_pictures_are_of_codes(models):
    """Without a move they are what the tokenizer paints of the first codes."""
    still = pursue(*models, PROMPT, count=2, manner=Pursuit(steps=1, learning_rate=0.0, cutouts=1, shown=1), seed=3)
    first = jax.random.randint(jax.random.key(3), (2, 8, 8), 0, TOKENIZER.num_codes)
    np.testing.assert_array_equal(still.images[0], paint(models[0], np.asarray(first)))


def test_cut_outs_are_squares_of_the_picture():
    """Of a ramp from left to right each is a ramp as steep as its side is short, and lies within it."""
    ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 40)[None, None, :, None], (2, 30, 40, 3))
    cuts = _cut(ramp, (48, 64), Pursuit(cutouts=5, smallest=0.5, noise=0.0), jax.random.key(0))
    assert cuts.shape == (10, 48, 64, 3)
    steps = np.diff(cuts, axis=2)[:, :, 4:-4]
    step = steps.mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(steps, np.broadcast_to(step, steps.shape), atol=1e-5)
    # One pixel of 40 is 2/39; a side of 15 to 30 pixels is brought to 64.
    assert ((step > 15 / 64 * 2 / 39 - 1e-6) & (step < 30 / 64 * 2 / 39 + 1e-6)).all() and len(np.unique(step)) == 10
    noisy = _cut(jnp.zeros((1, 30, 30, 3)), (16, 16), Pursuit(cutouts=50, noise=0.4), jax.random.key(1))
    assert 0.1 < noisy.std() < 0.3 and noisy.std(axis=(1, 2, 3)).max() < 0.45


def test_one_sentence_for_what_cannot_be_used(models):
    tokenizer, matcher = models
    with pytest.raises(UserError, match="DALLE has no codes that a gradient moves; a VQGAN has"):
        pursue(model_of(STREAM), matcher, PROMPT)
    with pytest.raises(UserError, match="VQGAN does not compare images with texts; a CLIP does"):
        pursue(tokenizer, tokenizer, PROMPT)
    with pytest.raises(UserError, match="at least one step"):
        pursue(tokenizer, matcher, PROMPT, manner=Pursuit(steps=0))
    with pytest.raises(UserError, match="the smallest cut-out is a share of the picture's side"):
        pursue(tokenizer, matcher, PROMPT, manner=Pursuit(smallest=0.0))
    grey = replace(matcher, preprocess=replace(matcher.preprocess, channels=1))
    with pytest.raises(UserError, match="the CLIP sees 1 channels of colour, not 3"):
        pursue(tokenizer, grey, PROMPT)


def test_a_clip_of_another_vocabulary_is_named(models):
    """An id behind the last word would be looked up as nothing, and compare with nothing."""
    tokenizer, matcher = models
    few = model_of(replace(CLIP, text=replace(CLIP.text, vocab_size=5)), (24, 24))
    why = "the CLIP's tokenizer is of another vocabulary than the CLIP: .* gives the id .*, and there are 5 words"
    with pytest.raises(UserError, match=why):
        pursue(tokenizer, few, PROMPT)
    pixels = [np.zeros((24, 24, 3), np.uint8)]
    with pytest.raises(UserError, match=why):
        likeness(few, pixels, [PROMPT])
    assert np.isfinite(likeness(matcher, pixels, [PROMPT])).all()


def test_the_command(models, tmp_path, capsys):
    folders = {name: str(tmp_path / name) for name in ("vqgan", "clip")}
    for model, folder in zip(models, folders.values(), strict=True):
        save(model, folder, "jmm")
    given = ["generate", folders["vqgan"], "--prompt", PROMPT, "--clip", folders["clip"], "--count", "2"]
    to = ["--steps", "4", "--seed", "5", "--to", str(tmp_path / "found.png")]
    assert main([*given, *to, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["steps"] == [1, 2, 3, 4] and len(said["similarity"]) == 2
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.size[1] > 1.9 * picture.size[0]  # two columns, four rows
    assert main([*given, *to, "--top-k", "3"]) == 2
    assert "--top-k is of models that draw code by code" in capsys.readouterr().err
    assert main(["generate", folders["clip"], "--steps", "3"]) == 2
    assert "--steps are of a tokenizer that a --clip leads to the prompt" in capsys.readouterr().err
