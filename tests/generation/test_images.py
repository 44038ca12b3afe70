"""Pictures drawn on prompts and on the beginnings of others, the command that draws them, and what is refused."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.scenes import Scenes
from data_pipelines.scenes import tokenizer as words
from jmm.cli import main
from jmm.distributed.mesh import make_mesh
from jmm.errors import UserError
from jmm.experiment import MeshShape
from jmm.generation.images import Manner, draw_images, encode, paint
from jmm.interop.convert import save
from jmm.model import Model
from jmm.models import clip, dalle, image_gpt, vit, vqgan
from jmm.parts.transformer import TransformerConfig
from jmm.protocol import inputs_of

DATA = Scenes("caption", plain=True, counts=(2,), words=0.0, text_length=16)
PROMPT = "a large red circle above a small blue square"
STREAM = dalle.Config(
    dalle.sandwich(16, 2, 2), (8, 8), text_vocab=words().vocab_size + 16, image_vocab=40, text_length=16
)
TOKENIZER = vqgan.Config((32, 32), 3, vqgan.GridConfig(4, (1, 2, 2), 1, (), 6, 2), 40, 6, critic=None)
PIXELS = image_gpt.Config(TransformerConfig(16, 2, 2, 16), (6, 4), 3, 27)


def model_of(config, image_size=(32, 32), batch_size=3):
    module, key = config.build(), jax.random.key(0)
    spec = inputs_of(module, config.batch_spec(1))
    fields = {name: jnp.zeros(each.shape, each.dtype) for name, each in spec.items()}
    abstract, rng = jax.eval_shape(partial(module.init, key), **fields), np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), abstract)
    if "buffers" in variables:
        variables["buffers"] = {"clusters": jnp.asarray(config.palette)}
    preprocess = replace(DATA.preprocessor(), image_size=image_size)
    return Model(config, module, variables, preprocess, make_mesh(MeshShape(), jax.devices()[:1]), batch_size)


def watch(patch, seen):
    """Notes which codes are made pictures of."""

    def look(tokenizer, codes):
        seen.append(codes)
        return paint(tokenizer, codes)

    patch.setattr("jmm.generation.images.paint", look)


@pytest.fixture(scope="module")
def stream():
    return model_of(STREAM)


@pytest.fixture(scope="module")
def tokenizer():
    return model_of(TOKENIZER)


def test_a_seed_draws_the_same_and_another_does_not(stream, tokenizer):
    images = draw_images(stream, tokenizer, [PROMPT] * 4, seed=5)
    assert images.shape == (4, 32, 32, 3) and images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 4
    np.testing.assert_array_equal(images, draw_images(stream, tokenizer, [PROMPT] * 4, seed=5))
    assert (images != draw_images(stream, tokenizer, [PROMPT] * 4, seed=6)).any()


def test_the_beginning_of_a_picture_is_kept(stream, tokenizer):
    picture = np.random.default_rng(1).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    codes = encode(tokenizer, [picture])[0]
    assert codes.shape == (8, 8) and len(np.unique(codes)) > 3
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, seen)
        for rows in (3, None):
            images = draw_images(stream, tokenizer, [PROMPT] * 2, beginning=picture, rows=rows)
            kept = rows or 4
            np.testing.assert_array_equal(seen[-1][:, :kept], np.stack([codes[:kept]] * 2))
            assert (seen[-1][0, kept:] != seen[-1][1, kept:]).any()
    np.testing.assert_array_equal(images, paint(tokenizer, seen[-1]))


def test_guidance_is_towards_the_prompt(stream, tokenizer):
    """Without guidance the prompt alone counts; at 0 what is drawn is what no prompt draws; beyond, the logits are so
    many times as far."""
    texts = stream.preprocess(texts=[PROMPT])
    apart = {"text": texts["text"], "text_mask": np.zeros_like(texts["text_mask"])}
    given = [{**texts, "codes": np.zeros((1, 0), np.int32)}, {**apart, "codes": np.zeros((1, 0), np.int32)}]
    given = [jax.tree.map(jnp.asarray, each) for each in given]
    logits = [
        stream.module.apply(stream.variables, **each, method="prefill", mutable=["cache"])[0][0] for each in given
    ]
    with_it, without = (np.asarray(each)[0, STREAM.text_vocab :] for each in logits)
    ways, seen = (1.0, 0.0, 7.5, 200.0), []
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, seen)
        for guidance in ways:
            draw_images(stream, tokenizer, [PROMPT], manner=Manner(temperature=0.0, guidance=guidance))
    expected = [(without + guidance * (with_it - without)).argmax() for guidance in ways]
    assert [codes[0, 0, 0] for codes in seen] == expected
    assert len(set(expected)) > 1, "the prompt changes nothing"


def test_a_model_that_is_its_own_tokenizer():
    model = model_of(PIXELS, (6, 4))
    images = draw_images(model, None, None, count=5)
    assert images.shape == (5, 6, 4, 3)
    palette = np.rint((PIXELS.palette + 1) * 127.5)
    assert {tuple(pixel) for pixel in images.reshape(-1, 3)} <= {tuple(colour) for colour in palette.astype(int)}
    upper = draw_images(model, None, None, count=2, beginning=images[0], rows=2)
    np.testing.assert_array_equal(upper[:, :2], np.stack([images[0, :2]] * 2))


def test_what_cannot_be_drawn_is_named(stream, tokenizer):
    picture = np.zeros((32, 32, 3), np.uint8)
    pixels = model_of(PIXELS, (6, 4))
    other = model_of(replace(TOKENIZER, num_codes=41))
    wider = model_of(replace(TOKENIZER, image_size=(64, 64)), (64, 64))
    for message, model, maker, prompts, more in (
        ("DALLE draws what a prompt says; give one", stream, tokenizer, None, {}),
        ("ImageGPT reads no prompt", pixels, None, [PROMPT], {}),
        ("at least one picture to draw, not 0", pixels, None, None, {"count": 0}),
        ("the prompt has 41 tokens; DALLE reads 16", stream, tokenizer, [PROMPT * 3], {}),
        ("tokenizer whose codes it was trained on is missing: DALLE makes no pictures", stream, None, [PROMPT], {}),
        ("this is no tokenizer: DALLE makes no pictures of codes", stream, stream, [PROMPT], {}),
        ("the tokenizer has 41 codes, and the model was trained on 40", stream, other, [PROMPT], {}),
        (r"makes 16×16 codes of a picture, the model \(8, 8\)", stream, wider, [PROMPT], {}),
        ("1 to 7 rows of codes can be kept, not 8", stream, tokenizer, [PROMPT], {"beginning": picture, "rows": 8}),
        ("1 to 7 rows of codes can be kept, not 0", stream, tokenizer, [PROMPT], {"beginning": picture, "rows": 0}),
        ("there is none", pixels, None, None, {"count": 1, "manner": Manner(guidance=2.0)}),
        ("guidance must be 0 or more, not -1", stream, tokenizer, [PROMPT], {"manner": Manner(guidance=-1.0)}),
        ("VQGAN writes no text", tokenizer, tokenizer, [PROMPT], {}),
    ):
        with pytest.raises(UserError, match=message):
            draw_images(model, maker, prompts, **more)
    with pytest.raises(UserError, match="codes from 0 to 39, none of id 40"):
        paint(tokenizer, np.full((1, 8, 8), 40))
    with pytest.raises(UserError, match="none of id -1"):
        paint(tokenizer, np.full((1, 8, 8), -1))


def refused(capsys, *arguments):
    code = main(["generate", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert code and not out and err.count("\n") == 1, err
    return err


def test_the_command(stream, tokenizer, tmp_path, capsys):
    save(stream, tmp_path / "dalle", "jmm")
    save(tokenizer, tmp_path / "vqgan", "jmm")
    tower = vit.ImageTower(TransformerConfig(8, 1, 1, 8), (16, 16), 8)
    matcher = clip.Config(tower, clip.TextTower(TransformerConfig(8, 1, 1, 8), words().vocab_size, 16), 8)
    save(model_of(matcher, (16, 16)), tmp_path / "clip", "jmm")
    target, folder = tmp_path / "out.png", tmp_path / "dalle"
    given = [folder, "--tokenizer", tmp_path / "vqgan", "--prompt", PROMPT, "--count", "3", "--to", target]
    assert main(["generate", *map(str, given)]) == 0
    assert capsys.readouterr().out.split() == ["written", str(target)]
    first = np.asarray(Image.open(target))
    assert first.shape == (2 * 132 + 4, 2 * 132 + 4, 3)
    more = ["--clip", tmp_path / "clip", "--candidates", "5", "--guidance", "2", "--top-p", "0.9", "--json"]
    assert main(["generate", *map(str, given + more)]) == 0
    found = json.loads(capsys.readouterr().out)["similarity"]
    assert len(found) == 3 and found == sorted(found, reverse=True)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "black.png")
    kept = ["--image-prompt", tmp_path / "black.png", "--rows", "2"]
    assert main(["generate", *map(str, given + kept)]) == 0
    capsys.readouterr()
    assert "is missing" in refused(capsys, folder, "--prompt", PROMPT)
    assert "--rows says how much of an --image-prompt is kept" in refused(capsys, *given, "--rows", "2")
    assert "--candidates are chosen from by a --clip" in refused(capsys, *given, "--candidates", "2")
    assert "--clip compares pictures with a --prompt" in refused(capsys, folder, "--clip", tmp_path / "clip")
    assert "does not compare images with texts" in refused(capsys, *given, "--clip", tmp_path / "vqgan")
    assert "there is no folder" in refused(capsys, *given[:-1], tmp_path / "no" / "a.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "black.png").read_bytes()[:40])
    assert "torn.png" in refused(capsys, *given, "--image-prompt", tmp_path / "torn.png")
