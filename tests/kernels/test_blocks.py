"""Which blocks are computed: never too few for any formula, and no more than needed for those of the field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmm.kernels import masks
from jmm.kernels.blocks import Truth, block_map, schedule
from tests.kernels.test_masks import formulas


def pair_blocks(dense, q_block, k_block):
    """(some, all) of every block, from the whole array."""
    rows, q_length, k_length = dense.shape
    edges = ((0, 0), (0, -q_length % q_block), (0, -k_length % k_block))

    def cut(fill):
        whole = np.pad(dense, edges, constant_values=fill)
        return whole.reshape(rows, -(-q_length // q_block), q_block, -(-k_length // k_block), k_block)

    return cut(False).any((2, 4)), cut(True).all((2, 4))


def mapped(mask, q_length, k_length, q_block, k_block):
    q_labels, k_labels = mask.labels(q_length, k_length)
    return block_map(masks.without_labels(mask), q_labels, k_labels, (q_length, k_length), (q_block, k_block), (0, 0))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([4, 5]), st.sampled_from([3, 5]), st.sampled_from([1, 2, 4]))
def test_no_visible_pair_is_lost(data, q_length, k_length, block):
    mask, _ = data.draw(formulas(q_length, k_length))
    found = mapped(mask, q_length, k_length, block, 2)
    some, every = pair_blocks(np.asarray(mask.dense(q_length, k_length)), block, 2)
    assert np.all(found.some | ~some)
    assert np.all(every | ~np.asarray(found.all))


def cumulative(rng, rows, length, count):
    return jnp.asarray(np.sort(rng.integers(1, count + 1, (rows, length)), axis=1))


def packed(rng, rows, length):
    """Texts of random lengths one after another, then padding of the label 0."""
    ids = np.zeros((rows, length), np.int32)
    for row in ids:
        start, text = 0, 1
        while (end := start + rng.integers(20, 160)) < length:
            row[start:end], start, text = text, end, text + 1
    return jnp.asarray(ids)


def interleaved(rng, rows, text_length, images, tokens):
    """(images before or at each text token, image of each visual token, 0 for images that are not there)."""
    there = rng.integers(0, images + 1, rows)
    k = np.repeat(np.arange(1, images + 1), tokens)[None]
    # Every image that is there is spoken of, as in a page.
    q = np.stack([np.searchsorted(np.linspace(0, 1, n + 2)[1:-1], np.linspace(0, 1, text_length)) for n in there])
    return jnp.asarray(q), jnp.asarray(np.where(k <= there[:, None], k, 0))


PATTERNS = (
    "SimVLM, a prefix for all, padded",
    "SimVLM, a prefix for each row",
    "Flamingo",
    "packed texts",
    "images of many sizes",
    "long text, window",
)


def of_the_field(name):
    rng = np.random.default_rng(7)
    if name == "SimVLM, a prefix for all, padded":
        lengths = jnp.asarray(rng.integers(300, 513, 8))
        return masks.prefix(200) & masks.valid(jnp.arange(512)[None] < lengths[:, None]), 512, 512
    if name == "SimVLM, a prefix for each row":
        return masks.prefix(jnp.asarray(rng.integers(0, 513, 8))), 512, 512
    if name == "Flamingo":
        return masks.media(*interleaved(rng, 8, 512, 6, 64)), 512, 384
    ids = packed(rng, 8, 1024)
    if name == "packed texts":
        return masks.causal() & masks.segments(ids, ids) & masks.valid(ids > 0), 1024, 1024
    if name == "images of many sizes":
        return masks.segments(ids, ids) & masks.valid(ids > 0), 1024, 1024
    if name == "long text, window":
        return masks.causal() & masks.window(200), 1024, 1024
    raise AssertionError(name)


@pytest.mark.parametrize("name", PATTERNS)
def test_only_blocks_with_a_visible_pair_are_computed(name):
    mask, q_length, k_length = of_the_field(name)
    found = jax.jit(lambda mask: mapped(mask, q_length, k_length, 64, 64))(mask)
    some, every = pair_blocks(np.asarray(mask.dense(q_length, k_length)), 64, 64)
    assert np.sum(found.some) / np.sum(some) == 1.0
    assert 0 < np.mean(some) < 1
    np.testing.assert_array_equal(np.broadcast_to(found.all, every.shape), every)


def test_a_formula_without_labels_costs_nothing_at_run_time():
    @jax.jit
    def traced(x):
        assert isinstance(mapped(masks.prefix(5) & masks.window(4), 9, 9, 2, 2).some, np.ndarray)
        return x

    traced(0)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans())
def test_a_list_visits_what_must_be_computed_and_nothing_else(data, rows, majors, minors, by_keys, traced):
    bits = st.lists(st.booleans(), min_size=rows * majors * minors, max_size=rows * majors * minors)
    shape = (rows, majors, minors)
    some, every = (np.array(data.draw(bits)).reshape(shape) for _ in range(2))
    every &= some
    truth = Truth(*(each.swapaxes(1, 2) if by_keys else each for each in (some, every)))
    order = schedule(Truth(*map(jnp.asarray, truth)) if traced else truth, by_keys=by_keys)
    for row in range(rows):
        visits = list(zip(*(np.asarray(each)[row].tolist() for each in order), strict=True))
        computed = [(major, minor) for major, minor, work, _ in visits if work]
        assert computed == [tuple(place) for place in np.argwhere(some[row]).tolist()]
        assert all((work == 2) == every[row, major, minor] for major, minor, work, _ in visits if work)
        # Every major block begins once and ends once, in order, and its own visits lie between.
        opened = None
        finished = []
        for major, _, work, edge in visits:
            if edge & 1:
                assert opened is None
                opened = major
            assert opened == major or (not work and not edge)
            if edge & 2:
                finished.append(opened)
                opened = None
        assert finished == list(range(majors))
        # Behind the end nothing is fetched anew.
        tail = visits[len(visits) - visits[::-1].index(next(v for v in visits[::-1] if v[3])) - 1 :]
        assert len({visit[:2] for visit in tail}) == 1
