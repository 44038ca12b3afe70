"""The attention core against NumPy in float64, outputs and gradients, and its edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.kernels import attention, masks
from tests.arrays import assert_close

B, Q, K, H, D = 2, 3, 5, 4, 6
VALID = np.array([[True, False, True, True, False], [True, True, True, False, True]])

CASES = {
    # mask, key heads, shape of the bias, scale
    "plain": (None, H, None, None),
    "scale": (None, H, None, 0.7),
    "causal": (masks.causal(), H, None, None),
    "padding": (masks.valid(jnp.asarray(VALID)), H, None, None),
    "grouped": (None, 2, None, None),
    "one key head": (masks.causal(), 1, (B, H, Q, K), None),
    "bias of all": (None, H, (1, 1, Q, K), None),
    "bias of heads": (None, H, (1, H, Q, K), 0.7),
    "bias of rows": (masks.window(2), 2, (B, 1, Q, K), None),
    "everything": (masks.causal() & masks.valid(jnp.asarray(VALID)), 2, (B, H, Q, K), 0.7),
}


def random_inputs(key_heads, bias_shape):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((B, length, heads, D)) for length, heads in [(Q, H), (K, key_heads), (K, key_heads)]]
    return inputs + ([] if bias_shape is None else [rng.standard_normal(bias_shape)])


def textbook(visible, scale, q, k, v, bias=None):
    """softmax(q kᵀ · scale + bias) v, one row and one head at a time; every query sees some key."""
    bias = np.broadcast_to(0 if bias is None else bias, (B, H, Q, K))
    out = np.zeros((B, Q, H, D))
    for b, h in np.ndindex(B, H):
        g = h // (H // k.shape[2])
        logits = q[b, :, h] @ k[b, :, g].T * scale + bias[b, h]
        weights = np.where(visible[b], np.exp(logits), 0)
        out[b, :, h] = weights / weights.sum(axis=1, keepdims=True) @ v[b, :, g]
    return out


def finite_differences(function, inputs, step=1e-5):
    """Central differences of a scalar function by every entry of every input, good to about ten digits."""
    gradients = [np.zeros_like(array) for array in inputs]
    for array, gradient in zip(inputs, gradients, strict=True):
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = function(*inputs)
            array[index] = kept - step
            gradient[index] = (above - function(*inputs)) / (2 * step)
            array[index] = kept
    return gradients


@pytest.mark.parametrize(("mask", "key_heads", "bias_shape", "scale"), CASES.values(), ids=CASES)
def test_equals_the_textbook(mask, key_heads, bias_shape, scale):
    inputs = random_inputs(key_heads, bias_shape)
    cotangent = np.random.default_rng(1).standard_normal((B, Q, H, D))

    def run(*arrays):
        bias = arrays[3] if bias_shape else None
        return attention(*arrays[:3], mask=mask, bias=bias, scale=scale)

    def backward(*arrays):
        out, pull = jax.vjp(run, *arrays)
        return out, pull(jnp.asarray(cotangent, jnp.float32))

    out, gradients = jax.jit(backward)(*(jnp.asarray(array, jnp.float32) for array in inputs))
    visible = np.broadcast_to(True if mask is None else np.asarray(mask.dense(Q, K)), (B, Q, K))
    theirs = partial(textbook, visible, D**-0.5 if scale is None else scale)
    assert_close(out, theirs(*inputs), 1e-5, "output")
    expected = finite_differences(lambda *arrays: np.sum(cotangent * theirs(*arrays)), inputs)
    for name, gradient, numeric in zip(["q", "k", "v", "bias"], gradients, expected, strict=False):
        assert_close(gradient, numeric, 1e-4, f"gradient of {name}")


@pytest.mark.parametrize("implementation", ["chunked", "pallas_tpu", "pallas_gpu"])
@pytest.mark.parametrize("case", ["scale", "everything"])
def test_every_implementation_gives_the_same(implementation, case):
    mask, key_heads, bias_shape, scale = CASES[case]
    arrays = [jnp.asarray(array, jnp.float32) for array in random_inputs(key_heads, bias_shape)]
    if implementation.startswith("pallas"):  # a kernel's head width is a multiple of eight
        arrays[:3] = [jnp.pad(array, ((0, 0), (0, 0), (0, 0), (0, 2))) for array in arrays[:3]]

    def backward(name, *arrays):
        def run(*arrays):
            bias = arrays[3] if bias_shape else None
            return attention(*arrays[:3], mask=mask, bias=bias, scale=scale, implementation=name)

        out, pull = jax.vjp(run, *arrays)
        return out, *pull(jnp.cos(out))

    found, expected = (jax.jit(partial(backward, name))(*arrays) for name in (implementation, "reference"))
    for name, ours, theirs in zip(["output", "q", "k", "v", "bias"], found, expected, strict=False):
        assert_close(ours, theirs, 1e-5 if name == "output" else 1e-4, name)


def test_query_that_sees_no_key_gives_zeros_and_no_gradient():
    q, k, v, bias = (jnp.asarray(array, jnp.float32) for array in random_inputs(2, (B, H, Q, K)))
    # In row 0 the first query sees nothing, in row 1 nobody does.
    mask = masks.segments(jnp.array([[9, 1, 1], [9, 9, 9]]), jnp.ones((B, K), jnp.int32))
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((B, Q, H, D)), jnp.float32)

    def backward(*arrays):
        out, pull = jax.vjp(lambda q, k, v, bias: attention(q, k, v, mask=mask, bias=bias), *arrays)
        return out, pull(cotangent)

    out, (dq, dk, dv, dbias) = jax.jit(backward)(q, k, v, bias)
    for array in (out, dq, dbias.swapaxes(1, 2)):
        np.testing.assert_array_equal(array[0, 0], 0)
        np.testing.assert_array_equal(array[1], 0)
        assert np.abs(array[0, 1:]).min() > 0
    for array in (dk, dv):
        np.testing.assert_array_equal(array[1], 0)
        assert np.isfinite(array).all()


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_a_bias_of_minus_infinity_hides_like_a_mask(implementation):
    q, k, v = (jnp.asarray(array, jnp.float32) for array in random_inputs(H, None))
    seen = jnp.asarray(np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1]], bool))
    bias = jnp.where(seen, 0.0, -jnp.inf)[None, None]
    mask = masks.segments(jnp.array([[0, 9, 0]] * B), jnp.zeros((B, K), jnp.int32))

    def run(q, mask, bias):
        return jnp.sum(jnp.sin(attention(q, k, v, mask=mask, bias=bias, implementation=implementation)))

    found, gradient = jax.value_and_grad(run)(q, None, bias)
    hidden = jnp.where(seen | (jnp.arange(Q) == 1)[:, None], 0.0, -1e9)[None, None]
    expected, masked = jax.value_and_grad(run)(q, mask, hidden)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert_close(gradient, masked, 1e-5)


def test_hidden_keys_do_not_matter():
    q, k, v = (jnp.asarray(array, jnp.float32) for array in random_inputs(H, None))
    run = jax.jit(lambda k, v: attention(q, k, v, mask=masks.valid(jnp.asarray(VALID))))
    hidden = jnp.asarray(~VALID)[:, :, None, None]
    np.testing.assert_array_equal(run(k, v), run(jnp.where(hidden, 30.0, k), jnp.where(hidden, -1e6, v)))


def test_bfloat16_is_near_float32():
    inputs = [jnp.asarray(array, jnp.bfloat16) for array in random_inputs(2, None)]
    run = jax.jit(lambda q, k, v: attention(q, k, v, mask=masks.causal()))
    out = run(*inputs)
    assert out.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: rounding the weights and the output costs up to 2⁻⁹ each.
    assert_close(out, run(*(each.astype(jnp.float32) for each in inputs)), 2**-7)


def test_softmax_of_bfloat16_inputs_is_taken_in_float32():
    # bfloat16 cannot tell 256 from 257, so a softmax in it would weigh both keys alike.
    q = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    k = jnp.zeros((1, 2, 1, 1), jnp.bfloat16)
    v = jnp.array([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    bias = jnp.array([256.0, 257.0]).reshape(1, 1, 1, 2)
    out = attention(q, k, v, bias=bias)
    assert_close(out, np.full((1, 1, 1, 1), 1 / (1 + np.exp(-1))), 2**-8)


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((2, 3, 4, 6), (2, 5, 4, 6), (2, 4, 4, 6)), ["(2, 5, 4, 6)", "(2, 4, 4, 6)"]),
        (((2, 3, 24), (2, 5, 24), (2, 5, 24)), ["(2, 3, 24)", "(2, 5, 24)"]),
        (((2, 3, 4, 6), (3, 5, 4, 6), (3, 5, 4, 6)), ["(2, 3, 4, 6)", "(3, 5, 4, 6)"]),
        (((2, 3, 4, 6), (2, 5, 4, 8), (2, 5, 4, 8)), ["(2, 3, 4, 6)", "(2, 5, 4, 8)"]),
        (((2, 3, 4, 6), (2, 5, 3, 6), (2, 5, 3, 6)), ["(2, 3, 4, 6)", "(2, 5, 3, 6)"]),
        (((2, 3, 4, 6), (2, 5, 4, 6), (2, 5, 4, 6), (2, 4, 5, 3)), ["(2, 4, 3, 5)", "(2, 4, 5, 3)"]),
        (((2, 3, 4, 6), (2, 5, 4, 6), (2, 5, 4, 6), (2, 2, 3, 5)), ["(2, 4, 3, 5)", "(2, 2, 3, 5)"]),
        (((2, 3, 4, 6), (2, 5, 4, 6), (2, 5, 4, 6), (3, 5)), ["(2, 4, 3, 5)", "(3, 5)"]),
    ],
    ids=["values", "rank", "batch", "head width", "groups", "bias axes", "bias heads", "bias rank"],
)
def test_shapes_that_disagree_are_named(shapes, named):
    q, k, v, *bias = (jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError) as caught:
        attention(q, k, v, bias=bias[0] if bias else None)
    for shape in named:
        assert shape in str(caught.value)
