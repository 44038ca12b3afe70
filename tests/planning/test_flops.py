"""Counted FLOPs against closed forms, of loops, of what is computed again, and of whole systems."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from data_pipelines.digits import Digits
from jmm.experiment import Experiment, Optimizer
from jmm.models import clip, coca, pali, vit
from jmm.parts.transformer import with_remat
from jmm.planning.compiler import model_flops
from jmm.planning.flops import flops

TRAINED = 3
"""A gradient costs twice what the value does: each product has one for either factor."""


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products():
    assert flops(lambda a, b: a @ b, array(3, 4), array(4, 5)) == 2 * 3 * 4 * 5
    assert flops(lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), array(2, 3, 5, 7), array(2, 3, 11, 7)) == (
        2 * 2 * 3 * 5 * 11 * 7
    )
    assert flops(lambda a: jnp.exp(a).sum(), array(1000)) == 0


def test_loops_are_followed():
    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

    one = 2 * 8 * 16 * 16
    assert flops(scanned, array(8, 16), array(5, 16, 16)) == 5 * one
    assert flops(jax.grad(scanned, argnums=(0, 1)), array(8, 16), array(5, 16, 16)) == 5 * TRAINED * one
    again = jax.checkpoint(scanned)
    assert flops(jax.grad(again, argnums=(0, 1)), array(8, 16), array(5, 16, 16)) == 5 * (TRAINED + 1) * one

    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="does not say how often it runs"):
        flops(until, array(4, 4))
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x), array(4, 4)) == 2 * 4**3


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_gradients_cost_the_same_each(stride):
    def convolved(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=numbers)

    x, kernel = array(2, 9, 9, 3), array(stride, stride, 3, 4)
    side = (9 - stride) // stride + 1
    one = 2 * 2 * side * side * 4 * stride * stride * 3
    assert flops(convolved, x, kernel) == one
    whole = flops(jax.grad(lambda *given: convolved(*given).sum(), argnums=(0, 1)), x, kernel)
    assert 2 * one <= whole <= 3.4 * one


def layers(config, tokens, seen, across=0):
    """Forward, a row: products of weights and of attention (Kaplan et al. 2020, table 1)."""
    width, matrices = config.width, 3 if config.activation.startswith("gated") or config.gated else 2
    inner = config.num_heads * (config.head_dim or width // config.num_heads)
    each = 4 * width * inner + matrices * width * config.mlp_dim
    found = 2 * tokens * each + 4 * tokens * seen * inner
    if across:
        found += 2 * (2 * tokens + 2 * across) * width * inner + 4 * tokens * across * inner
    return config.depth * found


def seeing(tower):
    """Forward of an image encoder, a picture; how many tokens it makes."""
    patches = tower.image_size[0] // tower.patch_size * (tower.image_size[1] // tower.patch_size)
    tokens = patches + (tower.pool == "class")
    first = 2 * patches * tower.patch_size**2 * tower.channels * tower.encoder.width
    return first, layers(tower.encoder, tokens, tokens), tokens


def of(model, batch, **optimizer):
    return model_flops(
        Experiment("counted", model, Digits(), steps=1, batch_size=batch, optimizer=Optimizer(**optimizer))
    )


def test_a_vit_costs_what_its_closed_form_says():
    model = vit.VARIANTS["vit_b16"]
    first, rest, _ = seeing(model.image)
    head = 2 * model.image.encoder.width * model.num_classes
    # No gradient is taken of the pictures.
    assert of(model, 8) == pytest.approx(8 * (2 * first + TRAINED * (rest + head)), rel=0.03)
    assert of(model, 8, freeze=("^image/",)) < 0.45 * of(model, 8)


def test_a_clip_costs_what_its_closed_form_says():
    model, batch = clip.VARIANTS["clip_b16"], 4096
    first, rest, _ = seeing(model.image)
    text = layers(model.text.encoder, model.text.context_length, model.text.context_length)
    heads = 2 * model.embed_dim * (model.image.encoder.width + model.text.encoder.width)
    pairs = 2 * batch * model.embed_dim
    wanted = batch * (2 * first + TRAINED * (rest + text + heads + pairs))
    assert of(model, batch) == pytest.approx(wanted, rel=0.03)


def test_a_coca_costs_what_its_closed_form_says():
    model, batch = coca.VARIANTS["coca_base"], 16
    first, rest, seen = seeing(model.image)
    width, length = model.unimodal.width, model.context_length
    queries = model.num_queries
    pool = 2 * 2 * (queries + seen) * width * width + 4 * queries * seen * width
    halves = layers(model.unimodal, length + 1, length + 1) + layers(model.multimodal, length, length, queries)
    head = 2 * length * width * model.vocab_size
    wanted = batch * (2 * first + TRAINED * (rest + pool + halves + head))
    assert of(model, batch) == pytest.approx(wanted, rel=0.03)


def test_a_pali_costs_what_its_closed_form_says():
    model, batch = pali.VARIANTS["pali_3b"], 4
    first, rest, seen = seeing(model.image)
    language, length, target = model.language, model.text_length, model.target_length
    projection = 2 * seen * model.image.encoder.width * language.encoder.width
    encoder = layers(language.encoder, seen + length, seen + length)
    decoder = layers(language.decoder, target, target, seen + length)
    head = 2 * target * language.encoder.width * language.vocab_size
    wanted = batch * (2 * first + TRAINED * (rest + projection + encoder + decoder + head))
    assert of(model, batch) == pytest.approx(wanted, rel=0.03)


def test_what_is_computed_again_is_no_work_of_the_model():
    model = vit.VARIANTS["vit_b16"]
    again = with_remat(model, "full")
    assert again.image.encoder == replace(model.image.encoder, remat="full")
    assert with_remat(again, "none") == with_remat(model, "none")
    assert of(again, 2) == of(model, 2)
