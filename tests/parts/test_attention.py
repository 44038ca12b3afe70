"""Multi-head attention against torch, and its grouped and rotary forms against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jmm.kernels import masks
from jmm.parts.attention import MultiHeadAttention
from jmm.parts.positions import rotary
from tests.arrays import assert_close, perturbed
from tests.parts import torch_params


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def abstract_of(module, x):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), x))["params"]


def params_of(module, x):
    return perturbed(jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_of(module, x)), std=0.4)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("width", "heads"), [(12, 3), (8, 1)])
def test_equals_torch(cross, masked, width, heads):
    theirs = torch_params.perturbed_layer(torch.nn.MultiheadAttention(width, heads, batch_first=True))
    params = torch_params.attention(theirs)
    x, context = noise(2, 5, width), noise(2, 7, width, seed=1)
    keys = context if cross else x
    real = np.arange(keys.shape[1]) < np.array([[3], [keys.shape[1]]])

    @jax.jit
    def run(x, context, mask):
        return MultiHeadAttention(heads).apply({"params": params}, x, context if cross else None, mask=mask)

    mask = masks.valid(jnp.asarray(real)) if masked else None
    out = run(jnp.asarray(x, jnp.float32), jnp.asarray(context, jnp.float32), mask)
    query, key = torch.tensor(x), torch.tensor(keys)
    expected, _ = theirs(query, key, key, key_padding_mask=torch.tensor(~real) if masked else None)
    assert_close(out, expected.detach(), 1e-5)


def test_grouped_queries_equal_full_attention_with_repeated_keys():
    x = jnp.asarray(noise(2, 5, 24), jnp.float32)
    grouped = MultiHeadAttention(6, num_kv_heads=2)
    params = params_of(grouped, x)
    assert params["key"]["kernel"].shape == (24, 2, 4)
    repeated = dict(params)
    for name in ("key", "value"):  # head h reads key head h // 3
        repeated[name] = {
            "kernel": np.repeat(params[name]["kernel"], 3, axis=1),
            "bias": np.repeat(params[name]["bias"], 3, axis=0),
        }
    expected = jax.jit(MultiHeadAttention(6).apply)({"params": repeated}, x)
    assert_close(jax.jit(grouped.apply)({"params": params}, x), expected, 1e-5)


@pytest.mark.parametrize("positions", [None, [[0, 1, 2, 3, 4]], [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]])
def test_rotary_turns_queries_and_keys_and_not_values(positions):
    x = jnp.asarray(noise(2, 5, 12), jnp.float32)
    module = MultiHeadAttention(3, rotary_base=100.0)
    params = params_of(module, x)
    given = None if positions is None else jnp.array(positions)
    out = jax.jit(module.apply)({"params": params}, x, positions=given)

    at = jnp.arange(5)[None] if given is None else given
    q, k, v = (
        np.einsum("bld,dhe->blhe", x, params[n]["kernel"]) + params[n]["bias"] for n in ("query", "key", "value")
    )
    q, k = (np.asarray(rotary(jnp.asarray(each), at, 100.0)) for each in (q, k))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    attended = np.einsum("bhqk,bkhd->bqhd", weights, v)
    assert_close(out, np.einsum("bqhd,hde->bqe", attended, params["out"]["kernel"]) + params["out"]["bias"], 1e-5)


def test_bias_is_added_to_the_logits():
    x = jnp.asarray(noise(2, 5, 12), jnp.float32)
    module = MultiHeadAttention(3)
    params = params_of(module, x)
    run = jax.jit(lambda **more: module.apply({"params": params}, x, **more))
    causal = jnp.where(jnp.tril(jnp.ones((5, 5), bool)), 0.0, -1e9)[None, None]
    assert_close(run(bias=causal), run(mask=masks.causal()), 1e-6)


def test_scale_multiplies_the_logits():
    """As would queries as much smaller; the head is 4 wide, so that ½ is usual."""
    x = jnp.asarray(noise(2, 5, 12), jnp.float32)
    params = params_of(MultiHeadAttention(3), x)
    smaller = params | {"query": jax.tree.map(lambda each: each * (0.2 / 0.5), params["query"])}
    expected = jax.jit(MultiHeadAttention(3).apply)({"params": smaller}, x)
    assert_close(jax.jit(MultiHeadAttention(3, scale=0.2).apply)({"params": params}, x), expected, 1e-5)


def test_queries_start_as_much_smaller_as_their_scale_is_larger():
    x, key = jnp.asarray(noise(1, 5, 12), jnp.float32), jax.random.key(0)
    usual, own = (MultiHeadAttention(3, scale=scale).init(key, x)["params"] for scale in (None, 1.0))
    assert_close(own["query"]["kernel"], usual["query"]["kernel"] * 4**-0.5, 1e-6)
    for name in ("key", "value", "out"):
        np.testing.assert_array_equal(own[name]["kernel"], usual[name]["kernel"])


def test_own_head_width_and_no_bias():
    x = jnp.zeros((1, 3, 10))
    params = abstract_of(MultiHeadAttention(3, head_dim=4, use_bias=False), x)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "query": {"kernel": (10, 3, 4)},
        "key": {"kernel": (10, 3, 4)},
        "value": {"kernel": (10, 3, 4)},
        "out": {"kernel": (3, 4, 10)},
    }


@pytest.mark.parametrize(("use_bias", "out_bias"), [(True, False), (False, True), (True, None), (False, None)])
def test_the_joining_projection_has_a_bias_of_its_own_choice(use_bias, out_bias):
    params = abstract_of(MultiHeadAttention(3, use_bias=use_bias, out_bias=out_bias), jnp.zeros((1, 3, 12)))
    biased = {name: "bias" in each for name, each in params.items()}
    assert biased.pop("out") == (use_bias if out_bias is None else out_bias)
    assert set(biased.values()) == {use_bias}


def test_the_result_may_have_a_width_of_its_own():
    x, module = jnp.asarray(noise(2, 5, 12), jnp.float32), MultiHeadAttention(3, out_features=7)
    params = params_of(module, x)
    assert params["out"]["kernel"].shape == (3, 4, 7)
    own = {**params, "out": {"kernel": np.ones((3, 4, 12)) / 5, "bias": np.zeros(12)}}
    own["out"]["kernel"][..., :7], own["out"]["bias"][:7] = params["out"]["kernel"], params["out"]["bias"]
    expected = jax.jit(MultiHeadAttention(3).apply)({"params": own}, x)[..., :7]
    assert_close(jax.jit(module.apply)({"params": params}, x), expected, 1e-6)


def test_width_that_does_not_divide_into_heads_is_refused():
    with pytest.raises(ValueError, match="width of 10 does not divide into 3 heads"):
        MultiHeadAttention(3).init(jax.random.key(0), jnp.zeros((1, 2, 10)))


# --- with a cache ---


@pytest.mark.parametrize("rotary_base", [None, 50.0])
def test_tokens_one_by_one_equal_the_whole(rotary_base):
    x, module = jnp.asarray(noise(2, 6, 24), jnp.float32), MultiHeadAttention(6, 2, rotary_base=rotary_base)
    params = params_of(module, x)
    bias = jnp.asarray(noise(1, 6, 6, 6, seed=1), jnp.float32)
    expected = jax.jit(module.apply)({"params": params}, x, mask=masks.causal(), bias=bias)

    @jax.jit
    def begin(x):
        biased = {"mask": masks.causal(), "bias": bias[..., :3, :3]}
        return module.apply({"params": params}, x, **biased, cached=True, mutable=["cache"])

    @jax.jit
    def step(cache, x, t):
        given, of_token = {"params": params, "cache": cache}, jax.lax.dynamic_slice_in_dim(bias, t, 1, axis=2)
        positions = jnp.full((1, 1), t)
        out, changed = module.apply(given, x, bias=of_token, positions=positions, cached=True, mutable=["cache"])
        return out, changed["cache"]

    out, state = begin(x[:, :3])
    assert_close(out, expected[:, :3], 1e-5)
    assert jax.tree.map(jnp.shape, state["cache"]) == {"key": (2, 2, 3, 4), "value": (2, 2, 3, 4)}
    cache = jax.tree.map(lambda each: jnp.pad(each, [(0, 0), (0, 0), (0, 3), (0, 0)]), state["cache"])
    for t in range(3, 6):
        out, cache = step(cache, x[:, t : t + 1], t)
        assert_close(out, expected[:, t : t + 1], 1e-5)


def test_a_context_is_projected_once():
    x, context = jnp.asarray(noise(2, 3, 12), jnp.float32), jnp.asarray(noise(2, 5, 8, seed=1), jnp.float32)
    module, mask = MultiHeadAttention(3), masks.valid(jnp.arange(5) < jnp.array([[5], [2]]))
    variables = jax.jit(module.init)(jax.random.key(0), x, context)
    expected = module.apply(variables, x, context, mask=mask)
    _, state = module.apply(variables, x, context, mask=mask, cached=True, mutable=["cache"])
    assert jax.tree.map(jnp.shape, state["cache"]) == {"context_key": (2, 3, 5, 4), "context_value": (2, 3, 5, 4)}
    # What is given as context does not matter any more.
    given = {**variables, **state}
    out, after = module.apply(given, x[:, 2:], context + 1, mask=mask, cached=True, mutable=["cache"])
    assert_close(out, expected[:, 2:], 1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_without_being_asked_for_there_is_no_cache():
    x, module = jnp.ones((1, 3, 12)), MultiHeadAttention(3)
    variables = module.init(jax.random.key(0), x)
    assert variables.keys() == {"params"}
    assert module.init(jax.random.key(0), x, cached=False).keys() == {"params"}
    assert module.apply(variables, x, mutable=["cache"])[1] == {}


@pytest.mark.parametrize("given", [{}, {"positions": jnp.zeros((1, 1), int), "mask": masks.causal()}])
def test_a_new_token_has_a_position_and_no_mask(given):
    x, module = jnp.ones((1, 3, 12)), MultiHeadAttention(3)
    variables = module.init(jax.random.key(0), x)
    _, state = module.apply(variables, x, cached=True, mutable=["cache"])
    with pytest.raises(ValueError, match="a new token needs its position, and no mask but"):
        module.apply({**variables, **state}, x[:, :1], **given, cached=True, mutable=["cache"])
