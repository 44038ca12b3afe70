"""The TPU kernels in the interpreter of Pallas against NumPy in float64, on every feature crossed; what they skip."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from jmm.kernels import masks, pallas_tpu
from jmm.kernels.core import FLOOR, Operands, Problem, attend, row_sums
from jmm.kernels.masks import First, without_labels
from jmm.kernels.tpu_blocks import MAX_WIDTH, TABLE, UNKNOWN, BlockSizes, block_sizes
from tests.arrays import assert_close
from tests.kernels import float64
from tests.kernels.test_chunked import MASKS

B = 2
CASES = {
    # mask, queries, keys, heads, key heads, width, bias but for its [Q, K], type, blocks
    "full": ("everything", 64, 64, 2, 2, 64, None, jnp.float32, (32, 32)),
    "nothing visible": ("nothing", 17, 20, 2, 1, 16, (1, 1), jnp.float32, (16, 16)),
    "causal, grouped": ("causal", 48, 48, 4, 2, 80, None, jnp.float32, (16, 32)),
    "causal, wide": ("causal", 33, 40, 2, 1, 256, None, jnp.float32, (16, 16)),
    "prefix, bias of heads": ("prefix", 37, 37, 3, 1, 72, (1, 3), jnp.float32, (16, 16)),
    "prefix of each row": ("prefix of each row", 40, 33, 2, 2, 32, None, jnp.float32, (8, 16)),
    "window, one bias": ("window", 48, 48, 2, 1, 128, (1, 1), jnp.float32, (16, 16)),
    "segments": ("segments", 40, 40, 2, 1, 96, None, jnp.float32, (8, 8)),
    "media, bias of all": ("media", 25, 19, 4, 2, 32, (B, 4), jnp.float32, (8, 8)),
    "padding, one query": ("padding", 1, 40, 4, 4, 32, (B, 1), jnp.float32, (8, 8)),
    "packed, bias of heads": ("packed", 37, 37, 4, 1, 40, (1, 4), jnp.float32, (16, 8)),
    "either": ("either", 20, 31, 2, 2, 32, None, jnp.float32, (64, 8)),
    "bfloat16": ("packed", 40, 40, 2, 2, 64, (1, 2), jnp.bfloat16, (16, 16)),
}


def make(case, seed=0, ordered=True):
    """The problem, its operands, d_out and the mask."""
    name, q_length, k_length, heads, groups, width, of_bias, dtype, blocks = case
    rng = np.random.default_rng(seed)
    labels = [rng.integers(0, 4, (B, length)) for length in (q_length, k_length)]
    mask = MASKS[name](*(jnp.asarray(np.sort(each, axis=1) if ordered else each) for each in labels))

    def array(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    q, d_out = array(B, heads, q_length, width), array(B, heads, q_length, width)
    k, v = array(B, groups, k_length, width), array(B, groups, k_length, width)
    bias = None if of_bias is None else array(*of_bias, q_length, k_length).astype(jnp.float32)
    problem = Problem(without_labels(mask), width**-0.5, True, BlockSizes(*blocks))
    return problem, Operands(q, k, v, bias, *mask.labels(q_length, k_length)), d_out, mask


@partial(jax.jit, static_argnums=0)
def everything(problem, operands, d_out):
    """Output, lse and gradients."""
    out, lse = pallas_tpu.forward(problem, operands)
    return out, lse, *pallas_tpu.backward(problem, operands, lse, row_sums(out, d_out), d_out)


def expected_of(problem, operands, d_out, mask):
    visible = mask.dense(operands.q.shape[2], operands.k.shape[2])
    return float64.attention(*operands[:3], visible, problem.scale, operands.bias, d_out)


def assert_as_expected(found, expected, forward, backward):
    for name, ours in zip(expected._fields, found, strict=True):
        theirs = getattr(expected, name)
        if theirs is None or not np.any(theirs):
            assert ours is None or not np.any(ours), name
        elif name == "lse":
            seen = theirs != FLOOR
            np.testing.assert_array_equal(np.asarray(ours)[~seen], np.float32(FLOOR))
            if seen.any():
                assert_close(np.asarray(ours)[seen], theirs[seen], forward, name)
        else:
            assert_close(ours, theirs, forward if name == "out" else backward, name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_float64(case):
    given = make(case)
    # bfloat16 keeps 8 bits: weights and outputs are rounded by up to 2⁻⁹ each, gradients once more.
    forward, backward = (1e-5, 1e-4) if case[7] == jnp.float32 else (2**-6, 2**-5)
    assert_as_expected(everything(*given[:3]), expected_of(*given), forward, backward)


@settings(max_examples=12)
@given(
    st.sampled_from(sorted(MASKS)),
    st.sampled_from([(24, 24), (19, 40)]),
    st.sampled_from([((4, 2), None), ((2, 2), (1, 2)), ((2, 1), (B, 1)), ((2, 2), (1, 1))]),
    st.sampled_from([16, 128]),
    st.booleans(),
    st.integers(0, 9),
)
def test_features_crossed(name, lengths, heads_and_bias, width, ordered, seed):
    heads, of_bias = heads_and_bias
    given = make((name, *lengths, *heads, width, of_bias, jnp.float32, (8, 16)), seed, ordered)
    assert_as_expected(everything(*given[:3]), expected_of(*given), 1e-5, 1e-4)


@pytest.mark.parametrize("name", ["causal", "segments"])
def test_positions_may_be_traced(name):
    problem, operands, d_out, mask = make((name, 48, 48, 2, 2, 32, None, jnp.float32, (8, 8)))
    # Two parts of the queries against two parts of the keys, joined by what `lse` says of each.
    parts = [slice(0, 24), slice(24, 48)]

    @jax.jit
    def part(operands, offsets):
        return pallas_tpu.forward(problem, operands, (offsets[0], offsets[1]))

    outs = []
    for rows in parts:
        found = []
        for columns in parts:
            q, k, v = operands.q[:, :, rows], operands.k[:, :, columns], operands.v[:, :, columns]
            q_labels = tuple(each[:, rows] for each in operands.q_labels)
            k_labels = tuple(each[:, columns] for each in operands.k_labels)
            found.append(part(Operands(q, k, v, None, q_labels, k_labels), jnp.array([rows.start, columns.start])))
        whole = jnp.logaddexp(found[0][1], found[1][1])
        outs.append(sum(out * jnp.exp(lse - whole)[..., None] for out, lse in found))
    assert_close(jnp.concatenate(outs, axis=2), expected_of(problem, operands, d_out, mask).out, 1e-5, "out")


@pytest.mark.parametrize("name", ["window", "packed"])
def test_hidden_blocks_are_never_read(name):
    case = (name, 64, 64, 2, 1, 32, (1, 2), jnp.float32, (8, 8))
    problem, operands, d_out, mask = make(case)
    found = everything(problem, operands, d_out)
    # Rows of the batch apart: a block that one row hides may be seen by the other.
    some = np.asarray(mask.dense(64, 64)).reshape(-1, 8, 8, 8, 8).any((2, 4))
    hidden = np.repeat(np.repeat(~some, 8, 1), 8, 2)
    assert hidden.any()
    unread = np.all(hidden, axis=0)
    bias = jnp.where(jnp.asarray(unread), jnp.nan, operands.bias)
    again = everything(problem, operands._replace(bias=bias), d_out)
    for ours, theirs in zip(again, found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_keys_that_no_query_sees_may_be_anything():
    problem, operands, d_out, _ = make(("nothing", 16, 48, 2, 1, 32, None, jnp.float32, (8, 8)))
    problem = problem._replace(formula=First(16))
    poison = jnp.where(jnp.arange(48)[:, None] >= 16, jnp.nan, 1)
    found = everything(problem, operands._replace(k=operands.k * poison, v=operands.v * poison), d_out)
    clean = everything(problem, operands, d_out)
    for ours, theirs in zip(found[:5], clean[:5], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("case", ["causal, grouped", "packed, bias of heads"])
def test_no_race(case):
    name, *_ = CASES[case]
    of_bias = None if CASES[case][6] is None else (1, 2)
    problem, operands, d_out, mask = make((name, 16, 16, 2, 1, 32, of_bias, jnp.float32, (8, 8)))
    checked = problem._replace(interpret=pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan"))
    found = everything(checked, operands, d_out)
    assert_as_expected(found, expected_of(problem, operands, d_out, mask), 1e-5, 1e-4)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter

    assert not interpreter.races.races_found


def test_bias_of_minus_infinity_hides():
    problem, operands, d_out, mask = make(("everything", 16, 16, 2, 2, 32, (1, 2), jnp.float32, (8, 8)))
    bias = operands.bias.at[:, :, 3].set(-jnp.inf).at[:, :, :, 5].set(-jnp.inf)
    operands = operands._replace(bias=bias)
    assert_as_expected(everything(problem, operands, d_out), expected_of(problem, operands, d_out, mask), 1e-5, 1e-4)


def test_only_gradients_that_are_asked_for_are_computed():
    problem, operands, d_out, _ = make(("causal", 16, 16, 2, 2, 32, (1, 2), jnp.float32, (8, 8)))

    def loss(q, operands):
        return jnp.sum(attend(pallas_tpu, problem, operands._replace(q=q)) * d_out)

    text = jax.jit(jax.grad(loss)).lower(operands.q, operands).as_text()
    whole = jax.jit(lambda o: jax.vjp(lambda o: attend(pallas_tpu, problem, o), o)[1](d_out)).lower(operands).as_text()
    assert len(text) < len(whole)


@pytest.mark.parametrize("length", [1, 127, 128, 197, 257, 729, 1025, 4096])
def test_blocks_fill_whole_lanes_with_little_padding(length):
    from jmm.kernels.tpu_call import Tiles

    tiles = Tiles.of(length, 512, ())
    assert tiles.block % 128 == 0
    assert tiles.block <= 512
    assert length <= tiles.padded < length + 128 * tiles.number


def test_every_generation_has_blocks_for_every_width():
    for kind in TABLE:
        assert max(TABLE[kind]) == MAX_WIDTH
        for sizes in TABLE[kind].values():
            assert sizes.q % 128 == 0 == sizes.k % 128


def test_an_unknown_device_has_small_blocks():
    q = jax.ShapeDtypeStruct((1, 1, 64, 64), jnp.bfloat16)
    assert block_sizes(Operands(q, q, q, None, (), ())) == UNKNOWN


@pytest.mark.parametrize(
    ("width", "dtype", "length", "named"),
    [
        (20, jnp.float32, 64, "multiple of 8 up to 256, not 20"),
        (264, jnp.float32, 64, "multiple of 8 up to 256, not 264"),
        (64, jnp.float16, 64, "not in float16"),
        (64, jnp.bfloat16, 1 << 18, "blocks is longer than"),
        (64, jnp.bfloat16, 1 << 22, "names one of 8192 blocks, and there are 16384"),
    ],
)
def test_what_no_kernel_takes_is_named(width, dtype, length, named):
    q = jax.ShapeDtypeStruct((1, 1, length, width), dtype)
    why = pallas_tpu.supports(Problem(masks.causal(), 1.0), Operands(q, q, q, None, (), ()))
    assert named in why
