"""Signal-to-noise ratios and the use of codes, by hand and on a tokenizer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.digits import Digits
from jmm.distributed.mesh import make_mesh
from jmm.errors import UserError
from jmm.evaluation.reconstruction import Reconstruction, perplexity, psnr
from jmm.experiment import MeshShape
from jmm.model import Model
from jmm.models import image_gpt, vqgan
from jmm.models.vqgan import Config, GridConfig
from jmm.parts.transformer import TransformerConfig

DATA = Digits(image_size=16)
TOKENIZER = Config((16, 16), 1, GridConfig(4, (1, 2), 1, (1,), 6, 2), 12, 6, vqgan.Learned(), critic=None)


def model_of(config):
    module, spec = config.build(), config.batch_spec(1)["image"]
    variables = module.init(jax.random.key(0), image=jnp.zeros(spec.shape, spec.dtype))
    return Model(config, module, variables, DATA.preprocessor(), make_mesh(MeshShape(), jax.devices()[:1]))


def test_decibels():
    image = np.zeros((3, 4, 4, 1), np.float32)
    made = np.stack([image[0] + 0.2, image[0] + 0.02, np.full_like(image[0], 7)])
    # An error of a tenth of the range of 2 is 20 dB; a pixel beyond the range is at its end, 1.
    np.testing.assert_allclose(psnr(image, made), [20, 40, 10 * np.log10(4)], rtol=1e-6)
    assert psnr(image, image).min() == np.inf


def test_perplexity():
    assert perplexity(np.array([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert perplexity(np.array([0, 9])) == pytest.approx(1)


def test_of_a_tokenizer(tmp_path):
    model, evaluation = model_of(TOKENIZER), Reconstruction(count=20)
    found = evaluation.run(model, DATA)
    _, arrays = (None, {"image": np.stack([DATA.preprocessor().normalise(e["image"]) for e in _chosen(20)])})
    outputs = model(**arrays)
    error = np.square(arrays["image"] - np.clip(outputs["image"], -1, 1)).mean(axis=(1, 2, 3))
    assert found["reconstruction/psnr"] == pytest.approx(np.mean(10 * np.log10(4 / error)), rel=1e-5)
    assert found["reconstruction/usage"] == pytest.approx(len(np.unique(outputs["codes"])) / 12)
    assert 1 <= found["reconstruction/perplexity"] <= 12
    (path,) = evaluation.draw(model, DATA, tmp_path)
    with Image.open(path) as picture:
        assert picture.size[0] > 900
    (path,) = replace(evaluation, name="other").draw(model, DATA, tmp_path)
    assert path.name == "other.png"


def _chosen(count):
    source = DATA.source("held_out")
    places = np.sort(np.random.default_rng(0).choice(len(source), count, replace=False))
    return [source[int(place)] for place in places]


def test_what_makes_no_images_of_codes_is_named():
    reader = image_gpt.Config(TransformerConfig(8, 1, 1, 8), (16, 16), 1, 4)
    with pytest.raises(UserError, match="ImageGPT makes no images of codes; a tokenizer does"):
        Reconstruction(count=4).run(model_of(reader), DATA)
