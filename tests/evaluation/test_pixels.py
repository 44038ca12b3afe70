"""Bits per pixel, by hand and of a model, and the pictures of completions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.digits import Digits
from jmm.distributed.mesh import make_mesh
from jmm.errors import UserError
from jmm.evaluation.pixels import NextPixel, bits_of, markov_bits
from jmm.evaluation.probes import LayerProbes
from jmm.experiment import MeshShape
from jmm.kernels import masks
from jmm.model import Model
from jmm.models import image_gpt
from jmm.parts.transformer import Block, TransformerConfig

DATA = Digits(image_size=8)
CONFIG = image_gpt.Config(TransformerConfig(16, 3, 2, 32, scan=False), (8, 8), 1, 4)


def model():
    module = CONFIG.build()
    variables = module.init(jax.random.key(0), image=jnp.zeros((1, 8, 8, 1)))
    return Model(CONFIG, module, variables, DATA.preprocessor(), make_mesh(MeshShape(), jax.devices()[:1]))


def test_bits_of_even_and_certain_logits():
    codes = np.array([[0, 3, 1]])
    assert bits_of(np.zeros((1, 3, 8), np.float32), codes) == pytest.approx(3)
    certain = 1e4 * np.eye(8, dtype=np.float32)[codes]
    assert bits_of(certain, codes) == 0


def test_a_markov_model_by_hand():
    # Seen once each: start → 0, 0 → 1, 1 → 0; every count begins at 1, of two colours.
    train, codes = np.array([[0, 1, 0]]), np.array([[0, 1, 1], [1, 0, 0]])
    first, up, down = (2 / 3, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1 / 3)
    expected = [first[0], up[1], down[1], first[1], down[0], up[0]]
    assert markov_bits(train, codes, 2) == pytest.approx(-np.mean(np.log2(expected)))


def test_of_a_model(tmp_path):
    evaluation, reader = NextPixel(), model()
    found = evaluation.run(reader, DATA)
    # Its head begins near 0, and all four colours are as likely.
    assert found["pixels/bits"] == pytest.approx(2, abs=0.2)
    assert 1 < found["pixels/markov_bits"] < found["pixels/bits"]
    (path,) = evaluation.draw(reader, DATA, tmp_path)
    with Image.open(path) as picture:
        assert picture.size[1] > 700


def test_probes_read_what_a_layer_gives():
    """Of each block, the mean over the tokens of its residual stream, as a plain loop over the blocks gives it."""
    reader, probes = model(), LayerProbes()
    image = np.stack([DATA.preprocessor().normalise(DATA.source("held_out")[i]["image"]) for i in range(5)])
    layers = probes.features(reader, {"image": image, "label": np.zeros(5)})
    assert [each.shape for each in layers] == [(5, 16)] * 3
    last = reader(image=image)["features"]
    # The last layer's stream is what the final norm takes.
    scale = reader.variables["params"]["decoder"]["norm"]
    whole = stream(reader, image)
    np.testing.assert_allclose(layers[-1], whole.mean(axis=1), rtol=1e-5, atol=1e-6)
    mean, variance = whole.mean(-1, keepdims=True), whole.var(-1, keepdims=True)
    normed = (whole - mean) / np.sqrt(variance + 1e-6) * scale["scale"] + scale["bias"]
    np.testing.assert_allclose(normed, last, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="ImageGPT has no stack of layers that is called 'encoder'"):
        LayerProbes("encoder").features(reader, {"image": image})


def stream(reader, image):
    """The residual stream behind the last block."""
    params = reader.unstacked["params"]
    codes = np.asarray(reader(image=image)["codes"]).reshape(len(image), -1)
    ids = np.concatenate([np.full((len(image), 1), 4), codes[:, :-1]], axis=1)
    x = params["embedding"]["embedding"][ids] + params["positions"]["table"]
    for layer in range(3):
        x = Block(CONFIG.decoder).apply({"params": params["decoder"]["blocks"][str(layer)]}, x, mask=masks.causal())
    return np.asarray(x)


def test_probes_find_labels():
    found = LayerProbes().run(model(), DATA)
    assert set(found) == {"probe/best", "probe/best_layer", *(f"probe/accuracy@{i}" for i in (1, 2, 3))}
    # Even of random layers: pixels alone tell most digits.
    assert 0.5 < found["probe/best"] == max(found[f"probe/accuracy@{i}"] for i in (1, 2, 3))
