"""The tiled losses against the whole matrix in float64: any size, tile, scale and kind of label; on meshes; memory."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jmm.distributed.mesh import make_mesh
from jmm.distributed.sharding import ACTIVATION_RULES, batch_sharding, on_mesh
from jmm.experiment import MeshShape
from jmm.objectives.contrastive import dense_sigmoid, dense_softmax, sigmoid_contrastive, softmax_contrastive
from tests.arrays import assert_close

EPS = float(np.finfo(np.float32).eps)


def softmax(logits, axis):
    """(log Σ exp, probabilities)."""
    exp = np.exp(logits - logits.max(axis, keepdims=True))
    total = exp.sum(axis, keepdims=True)
    return (logits.max(axis, keepdims=True) + np.log(total)).squeeze(axis), exp / total


def whole_softmax(logits, same):
    """Value and its gradient by the logits, both times B."""
    value, error = 0.0, np.zeros_like(logits)
    for axis in (0, 1):
        total = same.sum(axis, keepdims=True)
        targets = np.divide(same, total, out=np.zeros_like(same), where=total > 0)
        lse, found = softmax(logits, axis)
        value += ((total.squeeze(axis) > 0) * lse).sum() / 2 - (targets * logits).sum() / 2
        error += ((total > 0) * found - targets) / 2
    return value, error


def whole_sigmoid(logits, same):
    """The same of the sigmoid."""
    yes, no = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
    value = -(same * yes + (1 - same) * no).sum()
    return value, (1 - same) * np.exp(yes) - same * np.exp(no)


def in_float64(whole, image, text, scale, bias, same):
    """Value and the gradients by image, text, scale and bias."""
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    cosines, rows = image @ text.T, len(image)
    value, error = whole(scale * cosines + bias, same)
    gradients = scale * error @ text, scale * error.T @ image, (error * cosines).sum(), error.sum()
    return value / rows, [each / rows for each in gradients]


def labels_of(kind, rows, rng):
    """(labels as given, the matrix that they mean)."""
    if kind == "none":
        return None, np.eye(rows)
    if kind == "ids":
        ids = rng.integers(-3, max(1, rows // 3), rows)
        return jnp.asarray(ids), (ids[:, None] == ids).astype(float)
    same = rng.random((rows, rows)) < 1.5 / rows  # some rows and columns stay without any
    if kind == "matrix":
        same = same * rng.integers(1, 5, (rows, rows)) / 4
        return jnp.asarray(same, jnp.float32), same
    return jnp.asarray(same), same.astype(float)


def gradient_of(loss, inputs, **options):
    """The jitted value and gradients by all inputs."""
    return jax.jit(jax.value_and_grad(lambda *args: loss(*args, **options), argnums=tuple(range(len(inputs)))))


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@settings(max_examples=12)
@given(
    rows=st.integers(1, 70),
    width=st.integers(1, 9),
    chunk=st.sampled_from([1, 7, 16, 32, 100]),
    scale=st.sampled_from([0.0, 1.0, 14.5, 100.0, 1e4]),
    kind=st.sampled_from(["none", "ids", "matrix", "bool"]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 99),
)
@example(rows=70, width=8, chunk=16, scale=1e4, kind="ids", dtype="bfloat16", seed=0)
@example(rows=64, width=8, chunk=16, scale=100.0, kind="matrix", dtype="float32", seed=1)
@example(rows=1, width=1, chunk=1, scale=1e4, kind="bool", dtype="float32", seed=2)
def test_tiles_equal_the_whole(name, rows, width, chunk, scale, kind, dtype, seed):
    rng = np.random.default_rng(seed)
    # Quarters: their products are exact in both types, so that what differs is the loss and not the logits.
    image, text = (jnp.asarray(rng.integers(-4, 5, (rows, width)) / 4, dtype) for _ in range(2))
    labels, same = labels_of(kind, rows, rng)
    loss, bias = (softmax_contrastive, 0.0) if name == "softmax" else (sigmoid_contrastive, -2.5)
    inputs = [image, text, jnp.float32(scale), jnp.float32(bias)][: 3 if name == "softmax" else 4]
    value, gradients = gradient_of(loss, inputs, labels=labels, chunk=chunk)(*inputs)
    whole = whole_softmax if name == "softmax" else whole_sigmoid
    expected, exact = in_float64(whole, image, text, scale, bias, same)

    # float32 keeps no more of a sum of logits than of the largest.
    largest = scale * float(np.abs(np.asarray(image, float) @ np.asarray(text, float).T).max()) + abs(bias)
    assert abs(float(value) - expected) <= 1e-5 * abs(expected) + 4 * EPS * largest
    # Where probabilities near 1 and 0 cancel, ε is left, times what they are multiplied by.
    factors = (max(scale, 1), max(scale, 1), width, rows)
    for index, (x, found, right) in enumerate(zip(inputs, gradients, exact, strict=False)):
        assert found.dtype == x.dtype
        bound = (1e-5 if x.dtype == jnp.float32 else 2**-8) * np.abs(right).max() + 8 * EPS * width * factors[index]
        worst = np.abs(np.asarray(found, np.float64) - right).max()
        assert worst <= bound, f"gradient of input {index}: off by {worst}, more than {bound}"


def unit_vectors(rows, width, seed):
    x = np.random.default_rng(seed).standard_normal((rows, width))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


# --- meshes ---

LOSSES = {
    "softmax": (softmax_contrastive, dense_softmax, [jnp.float32(20)]),
    "sigmoid": (sigmoid_contrastive, dense_sigmoid, [jnp.float32(20), jnp.float32(-10)]),
}
MESHES = {
    "8": MeshShape(),
    "4x2": MeshShape(fsdp=2),
    "2x2x2": MeshShape(fsdp=2, tensor=2),
    "tensor 8": MeshShape(tensor=8),
}


def on_devices(mesh, loss, inputs, labels, chunk):
    """(compiled function, its arguments), rows of the inputs cut over the batch axes."""
    cut = batch_sharding(mesh)
    place = [jax.device_put(x, cut) if x.ndim else x for x in inputs]
    labels = None if labels is None else jax.device_put(labels, cut)

    def thrice(*args):
        return 3 * loss(*args[:-1], labels=args[-1], chunk=chunk)

    with on_mesh(mesh):
        compiled = (
            jax.jit(jax.value_and_grad(thrice, argnums=tuple(range(len(inputs))))).lower(*place, labels).compile()
        )
    return compiled, (*place, labels)


CASES = [(kind, shape) for kind in ("none", "matrix") for shape in ("8", "4x2", "2x2x2")]


@pytest.mark.parametrize(("kind", "shape"), [*CASES, ("ids", "4x2"), ("none", "tensor 8")])
@pytest.mark.parametrize("name", LOSSES)
def test_meshes_equal_one_device(name, shape, kind):
    ours, dense, extra = LOSSES[name]
    rows, mesh = 40, make_mesh(MESHES[shape])  # tiles of 2 divide the 10 rows of a device in 2 × 2 × 2, not 5 of 8
    labels, _ = labels_of(kind, rows, np.random.default_rng(0))
    inputs = [unit_vectors(rows, 8, 0), unit_vectors(rows, 8, 1), *extra]
    compiled, placed = on_devices(mesh, ours, inputs, labels, 2)
    value, gradients = compiled(*placed)
    expected, exact = gradient_of(dense, inputs, labels=labels)(*inputs)
    assert float(value) == pytest.approx(3 * float(expected), rel=1e-6)
    for index, (found, right) in enumerate(zip(gradients, exact, strict=True)):
        assert_close(found, 3 * right, 1e-5, f"gradient of input {index}")
    assert ("collective-permute" in compiled.as_text()) == (shape != "tensor 8")


@pytest.mark.parametrize("name", LOSSES)
def test_rings_gather_nothing(name):
    """What is communicated are hops of one device's rows, and scalars."""
    ours, _, extra = LOSSES[name]
    rows, width = 1024, 24
    inputs = [unit_vectors(rows, width, 0), unit_vectors(rows, width, 1), *extra]
    compiled, _ = on_devices(make_mesh(MeshShape(fsdp=2)), ours, inputs, None, 64)
    text = compiled.as_text()
    assert "collective-permute" in text
    assert not re.search(r"all-gather|all-to-all", text)
    for reduced in re.findall(r"= (.*?) all-reduce\(", text):
        assert set(re.findall(r"\[([\d,]*)\]", reduced)) == {""}, "only scalars are summed over devices"
    assert not re.search(rf"\[{rows},|,{rows}\]", text), "no device holds whole rows of the matrix, or all embeddings"
    assert not re.search(r"\[128,128\]", text), "nor all its own pairs with one other device"


gradient = jax.value_and_grad(softmax_contrastive, argnums=(0, 1, 2))


def assert_local(found, inputs):
    expected = gradient_of(dense_softmax, inputs)(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_a_batch_that_does_not_divide_is_computed_whole():
    inputs = unit_vectors(13, 8, 0), unit_vectors(13, 8, 1), jnp.float32(20)
    with on_mesh(make_mesh(MeshShape())):
        assert_local(jax.jit(gradient)(*inputs), inputs)


def test_inside_a_shard_map_the_rows_at_hand_are_the_batch():
    mesh, inputs = make_mesh(MeshShape()), (unit_vectors(16, 8, 0), unit_vectors(16, 8, 1), jnp.float32(20))
    with on_mesh(mesh):
        whole = jax.shard_map(
            lambda *args: jax.tree.map(lambda x: jax.lax.pmean(x, "data"), gradient(*args)),
            in_specs=jax.P(),
            out_specs=jax.P(),
            check_vma=False,
        )
        assert_local(jax.jit(whole)(*inputs), inputs)


def test_rules_without_a_mesh_change_nothing():
    inputs = unit_vectors(16, 8, 0), unit_vectors(16, 8, 1), jnp.float32(20)
    with nn.logical_axis_rules(ACTIVATION_RULES):
        assert_local(jax.jit(gradient)(*inputs), inputs)


def test_without_jit():
    inputs = unit_vectors(6, 8, 0), unit_vectors(6, 8, 1), jnp.float32(20)
    assert_local(gradient(*inputs), inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_the_value_alone_is_the_same(name):
    ours, _, extra = LOSSES[name]
    inputs = [unit_vectors(30, 8, 0), unit_vectors(30, 8, 1), *extra]
    alone = jax.jit(lambda *args: ours(*args, chunk=8))(*inputs)
    assert float(alone) == pytest.approx(float(gradient_of(ours, inputs, chunk=8)(*inputs)[0]), rel=1e-6)


# --- memory ---


@pytest.mark.parametrize("name", LOSSES)
def test_memory_does_not_grow_with_the_matrix(name):
    ours, dense, extra = LOSSES[name]
    rows = 4096
    vectors = jax.ShapeDtypeStruct((rows, 64), jnp.float32)

    def temporary(loss):
        compiled = gradient_of(loss, [vectors, vectors, *extra]).lower(vectors, vectors, *extra).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    tiled = temporary(lambda *args: ours(*args, chunk=256))
    assert tiled < rows * rows * 4 / 10
    assert temporary(dense) > 2 * rows * rows * 4
