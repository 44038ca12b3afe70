"""The losses over pairs against loops in float64, cases worked by hand, and transformers."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from jmm.distributed.mesh import make_mesh
from jmm.distributed.sharding import batch_sharding, on_mesh
from jmm.experiment import MeshShape
from jmm.models import clip, vit
from jmm.objectives.contrastive import (
    caption_ids,
    dense_sigmoid,
    dense_softmax,
    nt_xent,
    sigmoid_contrastive,
    softmax_contrastive,
)
from jmm.parts.transformer import TransformerConfig
from tests.arrays import assert_close


def unit_vectors(rows, seed):
    x = np.random.default_rng(seed).standard_normal((rows, 8))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


IMAGE, TEXT = unit_vectors(5, 0), unit_vectors(5, 1)


def assert_equal_with_gradients(ours, theirs, *inputs):
    """`theirs` in float64 by torch, `ours` in float32."""
    tensors = [torch.tensor(np.asarray(each), dtype=torch.float64, requires_grad=True) for each in inputs]
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


@pytest.mark.parametrize("loss", [softmax_contrastive, dense_softmax])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_softmax_contrastive_equals_transformers(loss, scale):
    assert_equal_with_gradients(
        loss,
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


@pytest.mark.parametrize("ours", [sigmoid_contrastive, dense_sigmoid])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (3.0, 0.5)])
def test_sigmoid_contrastive_equals_the_double_loop(ours, scale, bias):
    def theirs(image, text, scale, bias):
        loss = 0
        for i, j in np.ndindex(5, 5):
            sign = 1 if i == j else -1
            loss -= torch.log(1 / (1 + torch.exp(-sign * (scale * image[i] @ text[j] + bias))))
        return loss / 5

    assert_equal_with_gradients(ours, theirs, IMAGE, TEXT, scale, bias)


# --- labels ---

IDS = np.array([7, -2, 7, 7, 3])
SAME = np.array([[1, 0, 0, 0.5, 0], [0, 0, 0, 0, 0], [0.25, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0.5]])
"""The second row has no target, nor has the second column."""


@pytest.mark.parametrize("ours", [softmax_contrastive, dense_softmax])
def test_softmax_with_ids_is_the_loss_of_unicl(ours):
    """Written as in the paper: the mean over the positives of each row, of what each loses."""

    def theirs(image, text, scale):
        def one_way(queries, keys):
            loss = 0
            for i in range(5):
                positives = [j for j in range(5) if IDS[j] == IDS[i]]
                total = sum(torch.exp(scale * queries[i] @ keys[j]) for j in range(5))
                loss -= sum(torch.log(torch.exp(scale * queries[i] @ keys[k]) / total) for k in positives) / len(
                    positives
                )
            return loss / 5

        return (one_way(image, text) + one_way(text, image)) / 2

    assert_equal_with_gradients(lambda *args: ours(*args, labels=jnp.asarray(IDS)), theirs, IMAGE, TEXT, 9.0)


@pytest.mark.parametrize("ours", [softmax_contrastive, dense_softmax])
def test_softmax_with_a_matrix_is_the_cross_entropy(ours):
    def theirs(image, text, scale):
        logits, same = scale * image @ text.T, torch.tensor(SAME)
        ways = ((logits, same), (logits.T, same.T))
        return (
            sum(
                torch.nn.functional.cross_entropy(each, target / target.sum(1, keepdim=True).clamp(min=0.1))
                for each, target in ways
            )
            / 2
        )

    labels = jnp.asarray(SAME, jnp.float32)
    assert_equal_with_gradients(lambda *args: ours(*args, labels=labels), theirs, IMAGE, TEXT, 9.0)


@pytest.mark.parametrize("ours", [sigmoid_contrastive, dense_sigmoid])
@pytest.mark.parametrize("labels", [IDS, SAME], ids=["ids", "matrix"])
def test_sigmoid_with_labels_is_the_binary_cross_entropy(ours, labels):
    yes = torch.tensor(labels if labels.ndim == 2 else labels[:, None] == labels, dtype=torch.float64)

    def theirs(image, text, scale, bias):
        logits = scale * image @ text.T + bias
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, yes, reduction="sum") / 5

    assert_equal_with_gradients(lambda *args: ours(*args, labels=jnp.asarray(labels)), theirs, IMAGE, TEXT, 9.0, -3.0)


@pytest.mark.parametrize("labels", [np.arange(5), np.eye(5), 2 * np.eye(5), np.eye(5, dtype=bool)])
def test_every_way_to_say_the_diagonal(labels):
    image, text = jnp.asarray(IMAGE, jnp.float32), jnp.asarray(TEXT, jnp.float32)
    loss = jax.jit(softmax_contrastive)
    plain = loss(image, text, jnp.float32(9))
    assert_close(loss(image, text, jnp.float32(9), labels=jnp.asarray(labels)), plain, 1e-6)


def test_no_targets_at_all_are_no_loss():
    image, text = jnp.asarray(IMAGE, jnp.float32), jnp.asarray(TEXT, jnp.float32)
    nothing = jnp.zeros((5, 5))
    for loss in (softmax_contrastive, dense_softmax):
        found = jax.jit(jax.value_and_grad(lambda *args, loss=loss: loss(*args, labels=nothing), argnums=(0, 1, 2)))
        for each in jax.tree.leaves(found(image, text, jnp.float32(9))):
            np.testing.assert_array_equal(each, 0)


def test_labels_are_constants():
    image, text = jnp.asarray(IMAGE, jnp.float32), jnp.asarray(TEXT, jnp.float32)
    gradient = jax.grad(lambda labels: softmax_contrastive(image, text, jnp.float32(9), labels=labels))
    np.testing.assert_array_equal(jax.jit(gradient)(jnp.asarray(SAME, jnp.float32)), 0)


@pytest.mark.parametrize(
    ("image", "text", "labels", "named"),
    [
        ((4, 3), (5, 3), None, ["(4, 3)", "(5, 3)"]),
        ((4, 3), (4, 2), None, ["(4, 3)", "(4, 2)"]),
        ((4,), (4,), None, ["(4,)", "(4,)"]),
        ((4, 3), (4, 3), (5,), ["(4, 3)", "(4,)", "(4, 4)", "(5,)"]),
        ((4, 3), (4, 3), (4, 1), ["(4, 3)", "(4,)", "(4, 4)", "(4, 1)"]),
    ],
)
def test_shapes_that_disagree_are_named(image, text, labels, named):
    arguments = jnp.zeros(image), jnp.zeros(text), jnp.float32(1)
    labels = None if labels is None else jnp.zeros(labels)
    for loss, more in ((softmax_contrastive, ()), (sigmoid_contrastive, (jnp.float32(0),))):
        with pytest.raises(ValueError) as error:
            loss(*arguments, *more, labels=labels)
        assert all(name in str(error.value) for name in named)
        assert "\n" not in str(error.value)


# --- ids of captions ---


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=6, max_size=6))
def test_caption_ids_are_equal_where_captions_are(text):
    ids = np.asarray(jax.jit(caption_ids)(jnp.asarray(text)))
    text = np.asarray(text)
    np.testing.assert_array_equal(ids[:, None] == ids, (text[:, None] == text).all(-1))
    assert ids.min() >= 0 and ids.max() < len(text)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1)])
def test_caption_ids_of_little(shape):
    np.testing.assert_array_equal(caption_ids(jnp.full(shape, 3)), 0)


def test_caption_ids_on_a_mesh():
    mesh = make_mesh(MeshShape(fsdp=2))
    text = np.random.default_rng(0).integers(0, 2, (32, 3))
    with on_mesh(mesh):
        ids = np.asarray(jax.jit(caption_ids)(jax.device_put(text.astype(np.int32), batch_sharding(mesh))))
    np.testing.assert_array_equal(ids[:, None] == ids, (text[:, None] == text).all(-1))


@pytest.mark.parametrize(("objective", "dense"), [("softmax", dense_softmax), ("sigmoid", dense_sigmoid)])
def test_clip_knows_equal_captions(objective, dense):
    encoder = TransformerConfig(width=8, depth=1, num_heads=1, mlp_dim=8)
    towers = vit.ImageTower(encoder, (4, 4), 4), clip.TextTower(encoder, 9, 3)
    plain = clip.Config(*towers, 4, objective=objective)
    module = plain.build()
    batch = {
        "image": jax.random.normal(jax.random.key(0), (3, 4, 4, 3)),
        "text": jnp.array([[1, 4, 2], [1, 5, 2], [1, 4, 2]]),
        "text_mask": jnp.ones((3, 3), bool),
    }

    @jax.jit
    def run():
        variables = module.init(jax.random.key(1), **batch)
        outputs = module.apply(variables, **batch)
        configs = (plain, replace(plain, equal_captions="positives"))
        return outputs, [config.loss(module, variables, batch, {}).value for config in configs]

    outputs, (negatives, positives) = run()
    names = ("image_embedding", "text_embedding", "logit_scale", "logit_bias")
    found = [outputs[name] for name in names if name in outputs]
    assert_close(negatives, dense(*found), 1e-5)
    assert_close(positives, dense(*found, jnp.array([0, 1, 0])), 1e-5)
    # Equal texts have equal logits: a softmax loses the same wherever among them its target lies.
    assert (abs(negatives - positives) < 1e-5) == (objective == "softmax")


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
