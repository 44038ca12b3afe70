"""The losses over pairs against loops in float64, cases worked by hand, and transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from jmm.objectives.contrastive import nt_xent, sigmoid_contrastive, softmax_contrastive
from tests.arrays import assert_close


def unit_vectors(rows, seed):
    x = np.random.default_rng(seed).standard_normal((rows, 8))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


IMAGE, TEXT = unit_vectors(5, 0), unit_vectors(5, 1)


def assert_equal_with_gradients(ours, theirs, *inputs):
    """`theirs` in float64 by torch, `ours` in float32."""
    tensors = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in inputs]
    expected = theirs(*tensors)
    expected.backward()
    arrays = [jnp.asarray(each, jnp.float32) for each in inputs]
    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=tuple(range(len(inputs)))))(*arrays)
    assert_close(value, expected.detach(), 1e-5, "loss")
    for index, (gradient, tensor) in enumerate(zip(gradients, tensors, strict=True)):
        assert_close(gradient, tensor.grad, 1e-4, f"gradient of input {index}")


# Two images along the axes, two texts: the cosines are [[0.6, 0], [0.8, 1]].
AXES, TWO_TEXTS = jnp.eye(2), jnp.array([[0.6, 0.8], [0.0, 1.0]])


# --- softmax ---


def test_softmax_contrastive_by_hand():
    # Logits [[6, 0], [8, 10]]: the rows lose 0.0024757 and 0.1269280, the columns 2.1269280 and 0.0000454.
    loss = jax.jit(softmax_contrastive)(AXES, TWO_TEXTS, jnp.float32(10))
    assert float(loss) == pytest.approx((0.0024757 + 0.1269280 + 2.1269280 + 0.0000454) / 4, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_softmax_contrastive_equals_transformers(scale):
    assert_equal_with_gradients(
        softmax_contrastive,
        lambda image, text, scale: image_text_contrastive_loss(scale * text @ image.T),
        IMAGE,
        TEXT,
        scale,
    )


def test_softmax_contrastive_treats_image_and_text_alike():
    image, text = jnp.asarray(IMAGE, jnp.float32), jnp.asarray(TEXT, jnp.float32)
    loss = jax.jit(softmax_contrastive)
    forward, back = (loss(*pair, jnp.float32(20)) for pair in ((image, text), (text, image)))
    assert_close(forward, back, 1e-6)


# --- sigmoid ---


def test_sigmoid_contrastive_by_hand():
    # The logits are [[1, −5], [3, 5]], the signs [[+, −], [−, +]].
    expected = (
        math.log1p(math.exp(-1)) + math.log1p(math.exp(-5)) + math.log1p(math.exp(3)) + math.log1p(math.exp(-5))
    ) / 2
    assert expected == pytest.approx(1.6876395, abs=1e-6)
    loss = jax.jit(sigmoid_contrastive)(AXES, TWO_TEXTS, jnp.float32(10), jnp.float32(-5))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (3.0, 0.5)])
def test_sigmoid_contrastive_equals_the_double_loop(scale, bias):
    def theirs(image, text, scale, bias):
        loss = 0
        for i, j in np.ndindex(5, 5):
            sign = 1 if i == j else -1
            loss -= torch.log(1 / (1 + torch.exp(-sign * (scale * image[i] @ text[j] + bias))))
        return loss / 5

    assert_equal_with_gradients(sigmoid_contrastive, theirs, IMAGE, TEXT, scale, bias)


# --- NT-Xent ---


def test_nt_xent_by_hand():
    # Logits of the views a, b and their others a', b': ab = 0, aa' = 3, ab' = 0, ba' = 4, bb' = 5, a'b' = 4.
    def loss(own, *others):
        return math.log(sum(map(math.exp, (own, *others)))) - own

    expected = (loss(3, 0, 0) + loss(5, 0, 4) + loss(3, 4, 4) + loss(5, 0, 4)) / 4
    assert float(jax.jit(nt_xent, static_argnums=2)(AXES, TWO_TEXTS, 0.2)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_the_loop(temperature):
    def theirs(first, second):
        views, loss = torch.cat([first, second]), 0
        for i in range(10):
            others = [torch.exp(views[i] @ views[j] / temperature) for j in range(10) if j != i]
            loss -= views[i] @ views[(i + 5) % 10] / temperature - torch.log(sum(others))
        return loss / 10

    assert_equal_with_gradients(lambda first, second: nt_xent(first, second, temperature), theirs, IMAGE, TEXT)


def test_nt_xent_of_one_example_is_zero():
    """Its only rival would be itself, and even two opposite views must not be compared with themselves."""
    assert nt_xent(AXES[:1], -AXES[:1], 1e-4) == 0


# --- large logits ---


@pytest.mark.parametrize(
    ("loss", "extra"),
    [
        (softmax_contrastive, [jnp.float32(1e4)]),
        (sigmoid_contrastive, [jnp.float32(1e4), jnp.float32(-10)]),
        (nt_xent, [1e-4]),
    ],
)
def test_large_logits_stay_finite(loss, extra):
    image, text = jnp.asarray(IMAGE, jnp.float32), jnp.asarray(TEXT, jnp.float32)
    value, gradients = jax.jit(jax.value_and_grad(lambda *pair: loss(*pair, *extra), argnums=(0, 1)))(image, text)
    assert np.isfinite(value) and value > 100
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16_embeddings_meet_in_float32():
    image, text = jnp.asarray(IMAGE, jnp.bfloat16), jnp.asarray(TEXT, jnp.bfloat16)
    for loss, extra in ((softmax_contrastive, [100.0]), (sigmoid_contrastive, [100.0, -10.0])):
        value = loss(image, text, *map(jnp.float32, extra))
        assert value.dtype == jnp.float32
        exact = loss(image.astype(jnp.float32), text.astype(jnp.float32), *map(jnp.float32, extra))
        assert_close(value, exact, 1e-5)
