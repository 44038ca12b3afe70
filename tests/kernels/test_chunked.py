"""The chunked core against NumPy in float64, on every feature crossed; its memory; the blocks that it skips."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from jmm.kernels import attention, chunked, masks
from jmm.kernels.core import FLOOR, Operands, Problem, attend, row_sums
from jmm.kernels.masks import First, without_labels
from tests.arrays import assert_close
from tests.kernels import float64

B = 2
MASKS = {
    # of the labels of queries and keys, [B, L] integers from 0 to 3
    "everything": lambda q, k: First(k.shape[1]),
    "nothing": lambda q, k: First(0),
    "causal": lambda q, k: masks.causal(),
    "prefix": lambda q, k: masks.prefix(9),
    "prefix of each row": lambda q, k: masks.prefix(7 * k[:, 0]),
    "window": lambda q, k: masks.window(4),
    "segments": masks.segments,
    "media": masks.media,
    "near": lambda q, k: masks.near(q, k, q // 2),
    "padding": lambda q, k: masks.valid(k > 1),
    "packed": lambda q, k: masks.causal() & masks.segments(q, k),
    "either": lambda q, k: masks.window(2) | masks.valid(k == 0),
}
CASES = [
    # mask, queries, keys, heads, key heads, width, bias but for its [Q, K], type, blocks
    ("everything", 32, 48, 2, 2, 32, None, jnp.float32, (16, 16)),
    ("everything", 29, 1, 2, 2, 16, None, jnp.float32, (16, 16)),
    ("nothing", 17, 20, 2, 1, 16, (1, 1), jnp.float32, (8, 8)),
    ("causal", 41, 41, 4, 2, 80, None, jnp.float32, (8, 16)),
    ("causal", 30, 50, 2, 2, 256, (B, 1), jnp.bfloat16, (16, 8)),
    ("prefix", 33, 33, 3, 1, 72, (1, 3), jnp.float32, (8, 8)),
    ("prefix of each row", 24, 33, 2, 2, 32, None, jnp.float32, (8, 8)),
    ("window", 48, 48, 2, 1, 64, (1, 1), jnp.float32, (8, 8)),
    ("segments", 40, 40, 2, 1, 32, None, jnp.float32, (8, 8)),
    ("media", 25, 19, 4, 2, 32, (B, 4), jnp.float32, (8, 8)),
    ("near", 24, 33, 2, 2, 32, None, jnp.float32, (8, 8)),
    ("padding", 1, 40, 4, 4, 32, (B, 1), jnp.float32, (8, 8)),
    ("packed", 37, 37, 4, 1, 40, (1, 4), jnp.float32, (8, 8)),
    ("packed", 40, 40, 2, 2, 64, None, jnp.bfloat16, (16, 16)),
    ("either", 20, 31, 2, 2, 32, None, jnp.float32, (200, 8)),
]


def make(case, seed=0, ordered=False):
    """The problem, its operands, d_out and the mask."""
    name, q_length, k_length, heads, groups, width, of_bias, dtype, blocks = case
    rng = np.random.default_rng(seed)
    q_labels, k_labels = (rng.integers(0, 4, (B, length)) for length in (q_length, k_length))
    if ordered:
        q_labels, k_labels = np.sort(q_labels), np.sort(k_labels)
    mask = MASKS[name](jnp.asarray(q_labels), jnp.asarray(k_labels))
    sizes = [(heads, q_length), (groups, k_length), (groups, k_length), (heads, q_length)]
    q, k, v, d_out = (jnp.asarray(rng.standard_normal((B, *size, width)), dtype) for size in sizes)
    bias = None if of_bias is None else jnp.asarray(rng.standard_normal((*of_bias, q_length, k_length)), dtype)
    problem = Problem(without_labels(mask), 1.3 * width**-0.5, blocks=blocks)
    return problem, Operands(q, k, v, bias, *mask.labels(q_length, k_length)), d_out, mask


def both(problem, operands, d_out, offsets):
    out, lse = chunked.forward(problem, operands, offsets)
    return out, lse, *chunked.backward(problem, operands, lse, row_sums(out, d_out), d_out, offsets)


compiled = partial(jax.jit, static_argnums=0)(both)


def expected(problem, operands, d_out, offsets=(0, 0)):
    positions = (first + jnp.arange(x.shape[2]) for first, x in zip(offsets, operands[:2], strict=True))
    visible = problem.formula.block(*positions, operands.q_labels, operands.k_labels)
    return float64.attention(*operands[:3], visible, problem.scale, operands.bias, d_out)


def assert_equal(found, wanted):
    exact = found[0].dtype == jnp.float32
    for name, ours, theirs in zip(float64.Expected._fields, found, wanted, strict=True):
        if theirs is None:
            assert ours is None
        elif name == "lse":
            # A row that sees nothing has exactly the floor, beside which every other number would be small.
            np.testing.assert_array_equal(ours == FLOOR, theirs == FLOOR)
            assert_close(
                np.where(ours == FLOOR, 0, ours), np.where(theirs == FLOOR, 0, theirs), 1e-5 if exact else 1e-2
            )
        elif name == "out":
            assert ours.dtype == found[0].dtype
            assert_close(ours, theirs, 1e-5 if exact else 1e-2, name)
        else:
            # bfloat16 keeps eight bits of every operand and result. Where no row sees two keys, these
            # have no gradient but noise, float64's own (5e-16) included, which is small beside 1.
            few = name in ("q", "k", "bias") and np.abs(theirs).max() < 1e-12
            assert_close(ours + few, theirs + few, 1e-4 if exact else 2e-2, name)


# Few shapes, because every new one is compiled anew; labels and positions are traced.
@settings(max_examples=60)
@given(
    st.sampled_from(CASES),
    st.integers(0, 2**16),
    st.booleans(),
    # Everything in order, keys that come later, and keys that all come too late. Between the last two a causal text
    # would have one row with two keys: its whole gradient may be less than the other rows' noise in bfloat16.
    st.tuples(st.integers(0, 40), st.integers(0, 20)) | st.sampled_from([(0, 0), (0, 60)]),
)
def test_equals_float64_at_traced_positions(case, seed, ordered, offsets):
    problem, operands, d_out, _ = make(case, seed, ordered)
    found = compiled(problem, operands, d_out, tuple(jnp.int32(each) for each in offsets))
    assert found[0].dtype == operands.v.dtype
    assert_equal(found, expected(problem, operands, d_out, offsets))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_entry_equals_float64(case, monkeypatch):
    """Positions are known when tracing, so that formulas without labels give lists; gradients by autodiff."""
    problem, operands, d_out, mask = make(case)
    arrays = [x for x in operands[:4] if x is not None]

    @jax.jit
    def run(mask, arrays):
        def entry(q, k, v, bias=None):
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
            out = attention(q, k, v, mask=mask, bias=bias, scale=problem.scale, implementation="chunked")
            return out.swapaxes(1, 2)

        out, pull = jax.vjp(entry, *arrays)
        return out, pull(d_out)

    monkeypatch.setattr(chunked, "BLOCKS", problem.blocks)
    monkeypatch.setattr(chunked, "OPEN_BLOCKS", problem.blocks)
    out, gradients = run(mask, arrays)
    wanted = expected(problem, operands, d_out)
    assert [x.dtype for x in gradients] == [x.dtype for x in arrays]
    gradients = (*gradients, None) if operands.bias is None else gradients
    assert_equal((out, jnp.asarray(wanted.lse), *gradients), wanted)


@pytest.mark.parametrize("number", [0, 3, 4, 8, 9], ids=lambda number: CASES[number][0])
def test_all_heads_together_equals_float64(number, monkeypatch):
    """As on other platforms than a CPU."""
    monkeypatch.setattr(chunked, "_one_at_a_time", lambda: False)
    problem, operands, d_out, _ = make(CASES[number], ordered=True)
    found = jax.jit(lambda *arrays: both(problem, *arrays, (0, 0)))(operands, d_out)
    assert_equal(found, expected(problem, operands, d_out))


def test_minus_infinity_in_the_bias_hides():
    problem, operands, d_out, _ = make(CASES[7])
    hidden = np.random.default_rng(1).random(operands.bias.shape) < 0.5
    hidden[..., 3, :] = True
    operands = operands._replace(bias=jnp.where(hidden, -jnp.inf, operands.bias))
    found = compiled(problem, operands, d_out, (0, 0))
    assert_equal(found, expected(problem, operands, d_out))
    assert np.all(found[1][:, :, 3] == FLOOR)


@pytest.mark.parametrize(
    "mask",
    [First(32), masks.valid(jnp.arange(64)[None] < 32), masks.segments(*(jnp.arange(n)[None] // 32 for n in (32, 64)))],
    ids=["static", "padding", "segments"],
)
def test_hidden_blocks_are_not_computed(mask):
    """What lies there is not a number, and nobody notices."""
    rng = np.random.default_rng(0)
    q, d_out = (jnp.asarray(rng.standard_normal((1, 2, 32, 16)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.standard_normal((1, 2, 64, 16)), jnp.float32).at[:, :, 32:].set(jnp.nan) for _ in range(2))
    problem = Problem(without_labels(mask), 0.25, blocks=(16, 16))
    found = compiled(problem, Operands(q, k, v, None, *mask.labels(32, 64)), d_out, (0, 0))
    wanted = float64.attention(q, k[:, :, :32], v[:, :, :32], np.ones((1, 32, 32), bool), 0.25, None, d_out)
    for ours, theirs in zip(found[:3], wanted[:3], strict=True):
        assert_close(ours, theirs)
    for ours, theirs in zip(found[3:5], wanted[3:5], strict=True):
        assert_close(ours[:, :, :32], theirs)
        np.testing.assert_array_equal(ours[:, :, 32:], 0)


def value_and_gradients(mask, length, heads=12):
    """Compiled, of the sum of squares of attention on [1, L, heads, 64]."""
    array = jax.ShapeDtypeStruct((1, length, heads, 64), jnp.float32)

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, mask=mask, implementation="chunked") ** 2)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(array, array, array).compile()


@pytest.mark.parametrize("mask", [None, masks.causal()], ids=["everything", "causal"])
def test_memory_is_linear_in_the_length(mask):
    short, long = (value_and_gradients(mask, length) for length in (2048, 4096))
    temporary = [each.memory_analysis().temp_size_in_bytes for each in (short, long)]
    assert temporary[1] <= 2.1 * temporary[0]
    assert temporary[1] <= 4 * (4096 * 12 * 64 * 4)
    shapes = re.findall(r"\b(?:f32|pred|s32|bf16)\[([\d,]+)\]", long.as_text())
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) == 4096 * 12 * 64


def test_gradient_of_a_shared_bias_needs_no_array_for_each_head():
    q = jax.ShapeDtypeStruct((2, 1024, 8, 32), jnp.float32)
    bias = jax.ShapeDtypeStruct((1, 1, 1024, 1024), jnp.float32)

    def loss(q, bias):
        return jnp.sum(attention(q, q, q, bias=bias, implementation="chunked"))

    step = jax.jit(jax.grad(loss, (0, 1))).lower(q, bias).compile()
    assert step.memory_analysis().temp_size_in_bytes < 5 * (1024 * 1024 * 4)


@pytest.mark.parametrize("check", [True, False])
def test_inside_shard_map(check):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    problem, operands, d_out, _ = make(CASES[8])
    operands, rows = operands._replace(bias=None), PartitionSpec("data")

    def local(operands, d_out):
        out, pull = jax.vjp(lambda *qkv: attend(chunked, problem, Operands(*qkv, *operands[3:])), *operands[:3])
        return out, *pull(d_out)

    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=check))
    found, wanted = run(operands, d_out), expected(problem, operands, d_out)
    assert_equal((found[0], jnp.asarray(wanted.lse), *found[1:], None), wanted)


def test_inside_scan_and_remat():
    q = jnp.asarray(np.random.default_rng(0).standard_normal((1, 20, 2, 16)), jnp.float32)

    def layers(entry, q):
        return jnp.sum(jax.lax.scan(lambda x, _: (x + jax.checkpoint(entry)(x), None), q, None, length=2)[0] ** 2)

    def entry(implementation):
        return lambda x: attention(x, x, x, mask=masks.causal(), implementation=implementation)

    ours, theirs = (jax.jit(jax.grad(partial(layers, entry(name))))(q) for name in ("chunked", "reference"))
    assert_close(ours, theirs)


def test_shapes_are_known_without_computing():
    problem, operands, d_out, _ = make(CASES[4])
    shapes = jax.eval_shape(partial(both, problem), operands, d_out, (0, 0))
    assert [(x.shape, x.dtype) for x in shapes[:1] + shapes[2:]] == [
        (x.shape, x.dtype) if n < 4 else (x.shape, jnp.float32)
        for n, x in enumerate([operands.q, *operands[:3], operands.bias])
    ]
