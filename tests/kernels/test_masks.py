"""Every mask formula against arrays written by hand, against plain loops, and as a pytree."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmm.kernels import attention, masks

BATCH, Q, K = 2, 4, 5

CAUSAL = [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [1, 1, 1, 0, 0],
    [1, 1, 1, 1, 0],
]
PREFIX_3 = [
    [1, 1, 1, 0, 0],
    [1, 1, 1, 0, 0],
    [1, 1, 1, 0, 0],
    [1, 1, 1, 1, 0],
]
WINDOW_2 = [
    [1, 1, 0, 0, 0],
    [1, 1, 1, 0, 0],
    [0, 1, 1, 1, 0],
    [0, 0, 1, 1, 1],
]
CASES = {
    "causal": (lambda: masks.causal(), [CAUSAL]),
    "prefix": (lambda: masks.prefix(3), [PREFIX_3]),
    "prefix of each row": (lambda: masks.prefix(jnp.array([0, 3])), [CAUSAL, PREFIX_3]),
    "window": (lambda: masks.window(2), [WINDOW_2]),
    "window of one": (lambda: masks.window(1), [np.eye(Q, K)]),
    "segments": (
        lambda: masks.segments(jnp.array([[1, 1, 2, 3], [7, 0, 0, 7]]), jnp.array([[1, 2, 2, 1, 0], [0, 0, 7, 5, 7]])),
        [
            [
                [1, 0, 0, 1, 0],
                [1, 0, 0, 1, 0],
                [0, 1, 1, 0, 0],
                [0, 0, 0, 0, 0],
            ],
            [
                [0, 0, 1, 0, 1],
                [1, 1, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [0, 0, 1, 0, 1],
            ],
        ],
    ),
    # The label 0 of a visual token belongs to no image: text before any image must not see it.
    "media": (
        lambda: masks.media(jnp.array([[0, 1, 1, 2], [0, 0, 1, 3]]), jnp.array([[1, 1, 2, 2, 0], [0, 1, 2, 3, 3]])),
        [
            [
                [0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [0, 0, 1, 1, 0],
            ],
            [
                [0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0],
                [0, 1, 0, 0, 0],
                [0, 0, 0, 1, 1],
            ],
        ],
    ),
    "valid": (
        lambda: masks.valid(jnp.array([[True, True, False, True, False], [False] * 5])),
        [
            [[1, 1, 0, 1, 0]] * 4,
            [[0, 0, 0, 0, 0]] * 4,
        ],
    ),
    "near": (
        lambda: masks.near(jnp.array([[0, 1, 2, 9]]), jnp.array([[0, 1, 2, 3, 4]]), jnp.array([[0, 1, 2, 99]])),
        [
            [
                [1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1],
            ],
        ],
    ),
    "and": (
        lambda: (
            masks.causal() & masks.valid(jnp.array([[True, False, True, True, True], [False, True, True, False, True]]))
        ),
        [
            [
                [1, 0, 0, 0, 0],
                [1, 0, 0, 0, 0],
                [1, 0, 1, 0, 0],
                [1, 0, 1, 1, 0],
            ],
            [
                [0, 0, 0, 0, 0],
                [0, 1, 0, 0, 0],
                [0, 1, 1, 0, 0],
                [0, 1, 1, 0, 0],
            ],
        ],
    ),
    "or": (
        lambda: (
            masks.window(1)
            | masks.valid(jnp.array([[False, False, False, True, False], [True, False, False, False, True]]))
        ),
        [
            [
                [1, 0, 0, 1, 0],
                [0, 1, 0, 1, 0],
                [0, 0, 1, 1, 0],
                [0, 0, 0, 1, 0],
            ],
            [
                [1, 0, 0, 0, 1],
                [1, 1, 0, 0, 1],
                [1, 0, 1, 0, 1],
                [1, 0, 0, 1, 1],
            ],
        ],
    ),
}
each_case = pytest.mark.parametrize(("make", "expected"), CASES.values(), ids=CASES)


@each_case
def test_dense_array_is_the_one_written_by_hand(make, expected):
    dense = make().dense(Q, K)
    assert dense.dtype == jnp.bool_
    np.testing.assert_array_equal(dense, np.array(expected, bool))


@each_case
@pytest.mark.parametrize(("rows", "columns"), [((0, 2), (0, 3)), ((2, 4), (1, 5)), ((1, 2), (4, 5))])
def test_block_of_positions_is_the_slice_of_the_dense_array(make, expected, rows, columns):
    mask = make()
    q_labels, k_labels = mask.labels(Q, K)
    block = masks.without_labels(mask).block(
        jnp.arange(*rows),
        jnp.arange(*columns),
        tuple(label[:, slice(*rows)] for label in q_labels),
        tuple(label[:, slice(*columns)] for label in k_labels),
    )
    np.testing.assert_array_equal(block, np.array(expected, bool)[:, slice(*rows), slice(*columns)])


@each_case
def test_one_query_of_each_row(make, expected):
    expected = np.broadcast_to(np.array(expected, bool), (BATCH, Q, K))
    for places in ([0, 3], [2, 1]):
        # The labels of queries are fewer than the keys; none is asked for.
        seen = make().at(jnp.array(places), K)
        np.testing.assert_array_equal(seen, expected[np.arange(BATCH), places])


@each_case
def test_passes_through_jit(make, expected):
    dense = jax.jit(lambda formula: formula.dense(Q, K))(make())
    np.testing.assert_array_equal(dense, np.array(expected, bool))


@each_case
def test_passes_through_ahead_of_time_compilation(make, expected):
    dense = jax.jit(lambda formula: formula.dense(Q, K)).lower(make()).compile()(make())
    np.testing.assert_array_equal(dense, np.array(expected, bool))


@each_case
def test_passes_through_scan(make, expected):
    carried, dense = jax.lax.scan(lambda formula, _: (formula, formula.dense(Q, K)), make(), None, length=2)
    np.testing.assert_array_equal(dense, np.array([expected, expected], bool))
    np.testing.assert_array_equal(carried.dense(Q, K), np.array(expected, bool))


@each_case
def test_passes_through_checkpoint(make, expected):
    @jax.checkpoint
    def total(formula, x):
        return jnp.sum(jnp.sin(x) * formula.dense(Q, K))

    x = jnp.arange(Q * K, dtype=jnp.float32).reshape(Q, K)
    gradient = jax.jit(jax.grad(total, argnums=1))(make(), x)
    np.testing.assert_allclose(gradient, np.cos(x) * np.sum(expected, axis=0), rtol=1e-5, atol=1e-6)


def both(pair):
    (left, sees_left), (right, sees_right) = pair
    return left & right, lambda *token: sees_left(*token) and sees_right(*token)


def either(pair):
    (left, sees_left), (right, sees_right) = pair
    return left | right, lambda *token: sees_left(*token) or sees_right(*token)


def formulas(q_length, k_length):
    """Pairs of a formula and the plain predicate of (row, query position, key position) it stands for."""

    def labels(length):
        row = st.lists(st.integers(0, 2), min_size=length, max_size=length)
        return st.lists(row, min_size=BATCH, max_size=BATCH)

    def lengths():
        return st.lists(st.integers(0, k_length), min_size=BATCH, max_size=BATCH)

    q_labels, k_labels = labels(q_length), labels(k_length)
    single = st.one_of(
        st.just((masks.causal(), lambda b, i, j: j <= i)),
        st.integers(0, k_length).map(lambda n: (masks.prefix(n), lambda b, i, j: j <= i or j < n)),
        lengths().map(lambda n: (masks.prefix(jnp.array(n)), lambda b, i, j: j <= i or j < n[b])),
        st.integers(1, 4).map(lambda n: (masks.window(n), lambda b, i, j: abs(i - j) < n)),
        k_labels.map(lambda real: (masks.valid(jnp.array(real) > 0), lambda b, i, j: real[b][j] > 0)),
        st.tuples(q_labels, k_labels).map(
            lambda ids: (masks.segments(*map(jnp.array, ids)), lambda b, i, j: ids[0][b][i] == ids[1][b][j])
        ),
        st.tuples(q_labels, k_labels).map(
            lambda ids: (
                masks.near(*map(jnp.array, ids), jnp.array(ids[0])),
                lambda b, i, j: abs(ids[0][b][i] - ids[1][b][j]) <= ids[0][b][i],
            )
        ),
        st.tuples(q_labels, k_labels).map(
            lambda ids: (masks.media(*map(jnp.array, ids)), lambda b, i, j: 0 < ids[0][b][i] == ids[1][b][j])
        ),
    )

    def joined(inner):
        pair = st.tuples(inner, inner)
        return pair.map(both) | pair.map(either)

    return st.recursive(single, joined, max_leaves=4)


# Few lengths, because every new shape is compiled anew.
@settings(max_examples=60)
@given(st.data(), st.sampled_from([1, 4]), st.sampled_from([1, 3, 5]))
def test_formula_is_its_predicate(data, q_length, k_length):
    mask, sees = data.draw(formulas(q_length, k_length))
    expected = [[[sees(b, i, j) for j in range(k_length)] for i in range(q_length)] for b in range(BATCH)]
    dense = np.asarray(mask.dense(q_length, k_length))
    assert dense.shape in [(1, q_length, k_length), (BATCH, q_length, k_length)]
    np.testing.assert_array_equal(np.broadcast_to(dense, (BATCH, q_length, k_length)), expected)


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (masks.valid(jnp.ones((1, 3), bool)), "valid has labels for keys of shape (1, 3)"),
        (
            masks.segments(jnp.zeros((1, 2), int), jnp.zeros((1, 4), int)),
            "segments has labels for queries of shape (1, 2)",
        ),
        (masks.media(jnp.zeros((1, 4), int), jnp.zeros((1, 5), int)) & masks.causal(), "media has labels for keys of"),
        (masks.causal() | masks.valid(jnp.ones((1, 5), bool)), "valid has labels for keys of shape (1, 5)"),
        (masks.valid(jnp.ones((3, 4), bool)), "valid has labels for keys of shape (3, 4)"),
        (masks.prefix(jnp.zeros(3, int)), "prefix has lengths of shape (3,)"),
    ],
)
def test_labels_that_are_not_as_many_as_the_tokens_are_refused(mask, named):
    q = jnp.ones((2, 4, 1, 2))
    with pytest.raises(ValueError, match=re.escape(named)):
        attention(q, q, q, mask=mask)
