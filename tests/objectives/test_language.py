"""The losses over tokens against torch and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jmm.objectives.language import following, masked_token, row_cross_entropy, token_cross_entropy
from tests.arrays import assert_close

MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 1, 0]], bool)


def next_token(logits, text, mask):
    """The loss of a model of the next token."""
    return token_cross_entropy(logits, *following(text, mask))


def inputs():
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((*MASK.shape, 7)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(rng.integers(0, 7, MASK.shape), jnp.int32)


def test_equals_torch():
    """A target counts if it and the token before it are real: 4 + 2 + 2 + 1 of them."""
    logits, text = inputs()
    pair = MASK[:, 1:] & MASK[:, :-1]
    assert pair.sum() == 9
    (loss, accuracy), gradient = jax.jit(jax.value_and_grad(next_token, has_aux=True))(logits, text, jnp.asarray(MASK))

    theirs = torch.tensor(np.asarray(logits), requires_grad=True)
    labels = torch.tensor(np.where(pair, np.asarray(text)[:, 1:], -100)).long()
    expected = torch.nn.functional.cross_entropy(theirs[:, :-1].transpose(1, 2), labels, ignore_index=-100)
    expected.backward()
    assert_close(loss, expected.detach(), 1e-6)
    assert_close(gradient, theirs.grad, 1e-5)
    right = np.argmax(logits, axis=2)[:, :-1] == np.asarray(text)[:, 1:]
    assert_close(accuracy, right[pair].mean(), 1e-6)


def test_certainty_costs_nothing_and_ignorance_the_logarithm():
    text = jnp.array([[3, 1, 4]])
    mask = jnp.ones((1, 3), bool)
    right = 100 * jax.nn.one_hot(jnp.roll(text, -1, axis=1), 5)
    assert next_token(right, text, mask) == (0, 1)
    assert_close(next_token(jnp.zeros((1, 3, 5)), text, mask)[0], np.log(5), 1e-6)


def test_a_batch_without_a_pair_is_zero_and_its_gradient_too():
    logits, text = inputs()
    mask = jnp.zeros(MASK.shape, bool).at[:, 2].set(True)
    (loss, accuracy), gradient = jax.value_and_grad(next_token, has_aux=True)(logits, text, mask)
    assert (loss, accuracy) == (0, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_bfloat16_logits_are_summed_in_float32():
    logits, text = inputs()
    rounded = logits.astype(jnp.bfloat16)
    loss, _ = next_token(rounded, text, jnp.asarray(MASK))
    assert loss.dtype == jnp.float32
    assert_close(loss, next_token(rounded.astype(jnp.float32), text, jnp.asarray(MASK))[0], 1e-6)


# --- masked tokens ---


def masked_inputs():
    logits, text = inputs()
    return logits, jnp.where(jnp.asarray(MASK), text, -1)


def test_masked_tokens_equal_torch():
    """A target counts where it is not negative: 5 + 3 + 3 + 3 + 1 of them."""
    logits, target = masked_inputs()
    assert (target >= 0).sum() == 15
    (loss, accuracy), gradient = jax.jit(jax.value_and_grad(masked_token, has_aux=True))(logits, target)

    theirs = torch.tensor(np.asarray(logits), requires_grad=True)
    labels = torch.tensor(np.asarray(target)).long()
    expected = torch.nn.functional.cross_entropy(theirs.transpose(1, 2), labels, ignore_index=-1)
    expected.backward()
    assert_close(loss, expected.detach(), 1e-6)
    assert_close(gradient, theirs.grad, 1e-5)
    assert_close(accuracy, (np.argmax(logits, axis=2) == target)[MASK].mean(), 1e-6)


@pytest.mark.parametrize("nothing", [-1, -100])
def test_every_negative_target_is_none(nothing):
    """torch's -100 as well, which lies outside of the vocabulary on both sides."""
    logits, target = masked_inputs()
    other = jnp.where(target < 0, nothing, target)
    np.testing.assert_array_equal(masked_token(logits, other), masked_token(logits, target))
    (loss, accuracy), gradient = jax.value_and_grad(masked_token, has_aux=True)(logits, jnp.full(MASK.shape, nothing))
    assert (loss, accuracy) == (0, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_a_masked_token_is_predicted_where_it_stands():
    target = jnp.array([[-1, 3, -1, 4]])
    right = 100 * jax.nn.one_hot(target, 5)
    assert masked_token(right, target) == (0, 1)
    assert_close(masked_token(jnp.zeros((1, 4, 5)), target)[0], np.log(5), 1e-6)
    assert masked_token(right.at[:, 1].set(right[:, 3]), target) == (50, 0.5)


# --- any tokens ---


def test_cross_entropy_of_the_real_tokens_equals_torch():
    logits, target = inputs()
    loss_of = jax.jit(jax.value_and_grad(token_cross_entropy, has_aux=True))
    (loss, accuracy), gradient = loss_of(logits, target, jnp.asarray(MASK))

    theirs = torch.tensor(np.asarray(logits), requires_grad=True)
    labels = torch.tensor(np.where(MASK, np.asarray(target), -100)).long()
    expected = torch.nn.functional.cross_entropy(theirs.transpose(1, 2), labels, ignore_index=-100)
    expected.backward()
    assert_close(loss, expected.detach(), 1e-6)
    assert_close(gradient, theirs.grad, 1e-5)
    right = np.argmax(logits, axis=2) == np.asarray(target)
    assert_close(accuracy, right[MASK].mean(), 1e-6)


def test_cross_entropy_without_a_real_token_is_zero():
    logits, target = inputs()
    assert token_cross_entropy(logits, target, jnp.zeros(MASK.shape, bool)) == (0, 0)


def test_cross_entropy_of_each_row_is_that_of_the_row_alone():
    logits, target = inputs()
    mask = jnp.asarray(MASK).at[0].set(False)
    alone = [token_cross_entropy(logits[i : i + 1], target[i : i + 1], mask[i : i + 1])[0] for i in range(len(MASK))]
    assert_close(row_cross_entropy(logits, target, mask), jnp.stack(alone), 1e-6)
    assert alone[0] == 0
