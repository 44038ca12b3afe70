"""Changed logits against transformers' own, and draws against their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from jmm.generation.sample import Sampling, changed, choose, most_probable, nucleus
from tests.arrays import assert_close


def logits(vocabulary, rows=4, seed=0):
    return (3 * np.random.default_rng(seed).standard_normal((rows, vocabulary))).astype(np.float32)


def theirs(values, *warpers):
    values = torch.tensor(values)
    for warper in warpers:
        values = warper(None, values)
    return values.numpy()


def test_guidance_gives_both_halves_the_same_tokens():
    given = jnp.asarray(logits(11, rows=6)).at[0, 4].set(-jnp.inf).at[3, 4].set(-jnp.inf)
    tokens = choose(given, Sampling(guidance=3.0), jax.random.key(0))
    np.testing.assert_array_equal(tokens[:3], tokens[3:])
    np.testing.assert_array_equal(tokens[1:3], (given[4:] + 3 * (given[1:3] - given[4:])).argmax(-1))
    assert tokens[0] != 4, "what cannot be drawn was drawn"
    drawn = choose(given, Sampling(1.0, guidance=3.0), jax.random.key(1))
    np.testing.assert_array_equal(drawn[:3], drawn[3:])


@pytest.mark.parametrize("vocabulary", [7, 1000, 50_257])
@pytest.mark.parametrize("count", [1, 3, 50, 100_000])
def test_top_k_keeps_what_transformers_keeps(count, vocabulary):
    given = logits(vocabulary)
    kept = most_probable(jnp.asarray(given), count)
    np.testing.assert_array_equal(kept, theirs(given, TopKLogitsWarper(count)))
    assert np.isfinite(kept).sum() == 4 * min(count, vocabulary)


@pytest.mark.parametrize("vocabulary", [7, 1000, 50_257])
@pytest.mark.parametrize("probability", [1e-9, 0.01, 0.3, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(probability, vocabulary):
    given = logits(vocabulary)
    np.testing.assert_array_equal(
        nucleus(jnp.asarray(given), probability), theirs(given, TopPLogitsWarper(probability))
    )


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 40, 0.8), (1.9, 200, 0.95), (0.2, 5, 0.5)])
def test_changes_come_in_the_same_order(temperature, top_k, top_p):
    given = logits(1000, seed=1)
    warpers = TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)
    expected = theirs(given, *warpers)
    found = np.asarray(changed(jnp.asarray(given), Sampling(temperature, top_k, top_p)))
    kept = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), kept)
    assert_close(found[kept], expected[kept], 1e-6)


def test_equal_logits_are_kept_together():
    given = jnp.array([[1.0, 2.0, 2.0, -3.0, 2.0], [-1.0, -1.0, -2.0, -2.0, -5.0]])
    np.testing.assert_array_equal(most_probable(given, 1) > -jnp.inf, [[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(most_probable(given, 3) > -jnp.inf, [[0, 1, 1, 0, 1], [1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(nucleus(given, 0.1) > -jnp.inf, [[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(nucleus(given, 1.0), given)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.6), Sampling(1.5, top_k=5), Sampling(1.0, None, 0.7)])
def test_tokens_come_as_often_as_they_are_probable(sampling):
    draws = 20_000
    given = logits(12, 1, seed=2) / 3
    expected = np.asarray(jax.nn.softmax(changed(jnp.asarray(given), sampling)))[0]
    rows = jnp.broadcast_to(jnp.asarray(given), (draws, 12))
    counts = np.bincount(jax.jit(choose, static_argnums=1)(rows, sampling, jax.random.key(3)), minlength=12)
    drawn, expected = expected > 0, expected.astype(np.float64)
    assert counts[~drawn].sum() == 0
    # The seed is fixed: wrong probabilities fall far below, right ones lie anywhere above.
    assert chisquare(counts[drawn], draws * expected[drawn] / expected[drawn].sum()).pvalue > 1e-3


def test_without_a_temperature_the_most_probable_is_taken():
    given = jnp.asarray(logits(1000)).at[1, 3:9:2].set(100.0).at[2, 999].set(100.0)
    given = given.at[3].set(jnp.nan)  # a token of the vocabulary even then
    chosen = choose(given, Sampling(), jax.random.key(0))
    np.testing.assert_array_equal(chosen, [given[0].argmax(), 3, 999, 999])
    np.testing.assert_array_equal(choose(given[:, :1], Sampling(), jax.random.key(0)), 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.5}, "temperature must be 0 or more, not -0.5"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, not nan"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be at least 1, not 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must lie above 0 and at most at 1, not 0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p must lie above 0 and at most at 1, not 1.5"),
        ({"top_k": 5}, "need a temperature above 0"),
        ({"top_p": 0.5}, "need a temperature above 0"),
    ],
)
def test_what_is_out_of_range_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
