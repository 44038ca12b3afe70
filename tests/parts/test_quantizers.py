"""Quantisers against the public ones' recorded files, the formulas of their papers worked by hand, and on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from jmm.distributed.mesh import make_mesh
from jmm.distributed.sharding import batch_sharding
from jmm.experiment import MeshShape
from jmm.objectives.quantization import code_use, divergence_from_uniform, nearest_code
from jmm.parts.pooling import unit
from jmm.parts.quantizers import (
    Codebook,
    GumbelQuantizer,
    MovingAverageQuantizer,
    VectorQuantizer,
    follow,
    gumbel_softmax,
    nearest,
    restart,
    straight_through,
)
from tests.arrays import assert_close
from tests.goldens import golden_files, read_golden
from tests.parts.torch_params import linear, perturbed_layer

EXACT = 1e-5


def last(channels_first):
    return jnp.moveaxis(jnp.asarray(channels_first), 1, -1)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("path", golden_files("taming_vqgan"), ids=lambda path: path.stem)
def test_nearest_code_equals_vqgan(path):
    golden = read_golden(path)
    h, expected = last(golden.outputs["h"]), golden.outputs
    params = {"params": {"codes": jnp.asarray(golden.weights["model.quantize.embedding.weight"])}}
    quantizer = VectorQuantizer(len(params["params"]["codes"]))
    found = quantizer.apply(params, h)
    np.testing.assert_array_equal(found.ids.reshape(-1), expected["idx"])
    assert_close(straight_through(h, found.vectors), last(expected["quant"]), EXACT)

    def loss(params, h, weighted):
        return nearest_code(h, quantizer.apply(params, h).vectors, 0.25, weighted)

    for weighted, name in (("codebook", "legacy"), ("commitment", "fixed")):
        value, (by_params, by_h) = jax.value_and_grad(loss, argnums=(0, 1))(params, h, weighted)
        assert_close(value, expected[f"codebook_loss_{name}"], EXACT)
        assert_close(by_h, last(expected[f"d{name}_dh"]), EXACT)
        assert_close(by_params["params"]["codes"], expected[f"d{name}_dcodebook"], EXACT)


@pytest.mark.parametrize("path", golden_files("taming_gumbel_quantize"), ids=lambda path: path.stem)
def test_gumbel_softmax_equals_vqgan(path):
    golden = read_golden(path)
    expected, codes = golden.outputs, jnp.asarray(golden.weights["embed.weight"])
    logits, gumbel = last(expected["logits"]), last(golden.inputs["gumbel"])
    drawn = jnp.argmax(logits + gumbel, axis=-1)
    np.testing.assert_array_equal(drawn, expected["idx"])
    tau = golden.config["tau"]
    assert_close(gumbel_softmax(logits, gumbel, tau) @ codes, last(expected["zq_soft"]), EXACT)
    assert_close(gumbel_softmax(logits, gumbel, tau, hard=True) @ codes, last(expected["zq_st_tau"]), EXACT)
    quantizer = GumbelQuantizer(*codes.shape)
    projection = {"kernel": golden.weights["proj.weight"][:, :, 0, 0].T, "bias": golden.weights["proj.bias"]}
    params = {"params": {"projection": projection, "codes": codes[None]}}
    vectors, ids, found = quantizer.apply(params, last(golden.inputs["z"]), gumbel[..., None, :])
    assert_close(found[..., 0, :], logits, EXACT)
    assert_close(vectors, last(expected["zq_hard"]), EXACT)
    np.testing.assert_array_equal(ids[..., 0], expected["idx"])
    assert_close(golden.config["kl_weight"] * divergence_from_uniform(logits), expected["kl"], EXACT)

    x = last(golden.inputs["zvq"])
    found = VectorQuantizer(len(codes)).apply({"params": {"codes": codes}}, x)
    np.testing.assert_array_equal(found.ids.reshape(-1), expected["vq_idx"])
    assert_close(code_use(found.ids, len(codes))["perplexity"], expected["vq_perplexity"], EXACT)
    assert_close(nearest_code(x, found.vectors), expected["vq_loss"], EXACT)


@pytest.mark.parametrize("path", golden_files("beit2_vqkd"), ids=lambda path: path.stem)
def test_directions_move_as_those_of_vqkd(path):
    golden = read_golden(path)
    expected, weights = golden.outputs, golden.weights
    x = jnp.asarray(expected["to_quant"])
    before = Codebook(*(jnp.asarray(weights[f"quantize.{name}"]) for name in ("embedding.weight", "cluster_size")))
    quantizer = MovingAverageQuantizer(len(before.sizes), unit_length=True)
    found, after = quantizer.apply({"codebook": {"book": before}}, x, train=True, mutable=["codebook"])
    np.testing.assert_array_equal(found.ids, expected["idx"])
    size = golden.config["img_size"] // golden.config["patch_size"]
    grid = straight_through(unit(x), found.vectors).reshape(len(x), size, size, -1)
    assert_close(grid, last(expected["quant"]), EXACT)
    assert_close(jnp.square(unit(x) - found.vectors).mean(), expected["emb_loss"], EXACT)
    assert_close(after["codebook"]["book"].codes, expected["codebook_after"], EXACT)
    assert_close(after["codebook"]["book"].sizes, expected["cluster_after"], EXACT)


def test_groups_of_codes_equal_those_of_wav2vec():
    config = transformers.Wav2Vec2Config(
        conv_dim=(20,),
        conv_stride=(2,),
        conv_kernel=(2,),
        num_codevector_groups=3,
        num_codevectors_per_group=7,
        codevector_dim=12,
    )
    layer = Wav2Vec2GumbelVectorQuantizer(config)
    torch.nn.init.uniform_(layer.codevectors)  # which the layer leaves to the memory that it finds
    theirs = perturbed_layer(layer)
    projection, codes = linear(theirs.weight_proj), jnp.asarray(theirs.codevectors.detach().float())
    quantizer = GumbelQuantizer(7, 12, groups=3)
    x = noise(2, 5, 20)
    vectors, ids, _ = quantizer.apply({"params": {"projection": projection, "codes": codes.reshape(3, 7, 4)}}, x)
    expected, perplexity = theirs(torch.tensor(np.array(x)).double())
    assert_close(vectors, expected.detach(), EXACT)
    found = sum(code_use(ids[..., group], 7)["perplexity"] for group in range(3))
    assert_close(found, perplexity.detach(), EXACT)
    drawn, _, logits = quantizer.apply(
        {"params": {"projection": projection, "codes": codes.reshape(3, 7, 4)}}, x, jnp.zeros((2, 5, 3, 7)), 0.3
    )
    assert_close(drawn, vectors, EXACT)
    assert logits.shape == (2, 5, 3, 7)


def test_of_equally_near_codes_the_first():
    codes = jnp.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    np.testing.assert_array_equal(nearest(jnp.array([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]]), codes), [0, 0, 3])


@given(st.integers(0, 99))
def test_nearest_is_at_the_least_distance(seed):
    x, codes = noise(7, 3, seed=seed), noise(5, 3, seed=seed + 1)
    distances = jnp.linalg.norm(x[:, None] - codes, axis=-1)
    found = jnp.take_along_axis(distances, nearest(x, codes)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(found, distances.min(axis=1), rtol=1e-5)


def test_the_gradient_passes_straight_through():
    x, codes = noise(6, 3), noise(4, 3, seed=1)
    wanted = noise(6, 3, seed=2)
    gradient = jax.grad(lambda x: (straight_through(x, codes[nearest(x, codes)]) * wanted).sum())(x)
    np.testing.assert_array_equal(gradient, wanted)


def test_a_moving_codebook_by_hand():
    """Two batches of one channel: sizes 0.5 · 2 = 1 and 0, then 0.5 · 1 + 0.5 · 1 = 1 and 0.5."""
    book = Codebook(jnp.array([[0.0], [10.0]]), jnp.zeros(2))
    book = follow(book, jnp.array([[1.0], [2.0]]), jnp.array([0, 0]), 0.5)
    np.testing.assert_array_equal(book.codes, [[1.5], [10.0]])
    np.testing.assert_array_equal(book.sizes, [1, 0])
    book = follow(book, jnp.array([[4.0], [9.0]]), jnp.array([0, 1]), 0.5)
    np.testing.assert_allclose(book.codes, [[(0.5 * 1.5 + 0.5 * 4) / 1], [9.0]])
    np.testing.assert_array_equal(book.sizes, [1, 0.5])


def test_a_moving_codebook_finds_the_middle_of_each_heap():
    centres = jnp.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    quantizer = MovingAverageQuantizer(3, decay=0.9, restart_below=0.1)
    state = quantizer.init(jax.random.key(0), centres)

    @jax.jit
    def step(state, key):
        x = centres[jnp.arange(60) % 3] + 0.1 * jax.random.normal(key, (60, 2))
        return quantizer.apply(state, x, train=True, mutable=["codebook"], rngs={"codes": key})[1]

    for key in jax.random.split(jax.random.key(1), 60):
        state = step(state, key)
    book = state["codebook"]["book"]
    nearest_centre = jnp.linalg.norm(book.codes[:, None] - centres, axis=-1)
    assert sorted(nearest_centre.argmin(axis=1).tolist()) == [0, 1, 2]
    assert nearest_centre.min(axis=1).max() < 0.1


def test_only_codes_of_little_use_start_over():
    book = Codebook(noise(4, 2), jnp.array([3.0, 0.0, 0.2, 0.3]))
    x = 10 + noise(8, 2, seed=1)
    again = restart(book, x, jax.random.key(0), below=0.15)  # of 8 / 4 vectors: 0.3
    np.testing.assert_array_equal(again.codes[jnp.array([0, 3])], book.codes[jnp.array([0, 3])])
    for code in again.codes[1:3]:
        assert (code == x).all(axis=1).any()
    np.testing.assert_allclose(again.sizes, [3, 0.3, 0.3, 0.3])


def test_use_of_codes_by_hand():
    use = code_use(jnp.array([[0, 0], [1, 1]]), 4)
    assert use["usage"] == 0.5
    np.testing.assert_allclose(use["perplexity"], 2, rtol=1e-6)
    np.testing.assert_allclose(code_use(jnp.arange(4), 4)["perplexity"], 4, rtol=1e-6)


def test_divergence_by_hand():
    assert divergence_from_uniform(jnp.zeros((3, 8))) == 0
    np.testing.assert_allclose(divergence_from_uniform(jnp.array([[1e4, 0.0, 0.0, 0.0]])), np.log(4), rtol=1e-6)
    p = np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(divergence_from_uniform(jnp.log(p)), (p * np.log(3 * p)).sum(), rtol=1e-5)


@pytest.mark.parametrize("unit_length", [False, True])
@pytest.mark.parametrize("shape", [MeshShape(data=8), MeshShape(data=2, fsdp=2, tensor=2)], ids=str)
def test_a_codebook_is_the_same_on_any_mesh(shape, unit_length):
    quantizer = MovingAverageQuantizer(16, unit_length=unit_length, restart_below=0.2)
    batches = noise(10, 32, 6, 4)

    def losses(place):
        state, found = quantizer.init(jax.random.key(0), batches[0]), []
        step = jax.jit(lambda state, x, key: quantizer.apply(state, x, True, rngs={"codes": key}, mutable=["codebook"]))
        for index, x in enumerate(batches):
            quantized, state = step(state, place(x), jax.random.key(index))
            found.append(float(nearest_code(x, quantized.vectors)))
        return np.array(found), state["codebook"]["book"]

    mesh = make_mesh(shape)
    expected, (codes, sizes) = losses(lambda x: x)
    found, book = losses(lambda x: jax.device_put(x, batch_sharding(mesh)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert_close(book.codes, codes, EXACT)
    assert_close(book.sizes, sizes, EXACT)
