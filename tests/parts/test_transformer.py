"""The block against torch; the stack against itself: scanned, unrolled, recomputed, layer by layer."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jmm.kernels import masks
from jmm.parts.norms import make_norm
from jmm.parts.transformer import Block, Transformer, TransformerConfig, unstack
from tests.arrays import assert_close, perturbed
from tests.parts import torch_params

CONFIG = TransformerConfig(width=12, depth=2, num_heads=3, mlp_dim=20)
BERT = replace(CONFIG, norm_order="post")
LLAMA = replace(
    CONFIG,
    activation="silu",
    gated=True,
    norm="rms",
    use_bias=False,
    rotary_base=100.0,
    num_kv_heads=1,
    cross_attention=True,
)
STACKS = {"post-norm encoder": BERT, "llama with cross-attention": LLAMA}
each_stack = pytest.mark.parametrize("config", STACKS.values(), ids=STACKS)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def inputs_of(config):
    x = jnp.asarray(noise(2, 5, config.width), jnp.float32)
    inputs = {"mask": masks.causal() & masks.valid(jnp.arange(5) < jnp.array([[3], [5]]))}
    if config.cross_attention:
        inputs["context"] = jnp.asarray(noise(2, 4, 8, seed=1), jnp.float32)
        inputs["context_mask"] = masks.valid(jnp.arange(4) < jnp.array([[4], [2]]))
    return x, inputs


def abstract_of(config):
    x, inputs = inputs_of(config)
    return jax.eval_shape(lambda: Transformer(config).init(jax.random.key(0), x, **inputs))["params"]


def params_of(config):
    return perturbed(jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_of(config)), std=0.4)


@cache
def backward(config):
    """Output and gradients of a stack, under jit."""
    x, inputs = inputs_of(config)
    cotangent = jnp.asarray(noise(*x.shape, seed=2), jnp.float32)

    @jax.jit
    def run(params, x, inputs):
        out, pull = jax.vjp(lambda params, x: Transformer(config).apply({"params": params}, x, **inputs), params, x)
        return out, pull(cotangent)

    return run(params_of(config), x, inputs)


def assert_same(actual, expected):
    assert_close(actual[0], expected[0], 1e-5, "output")
    gradients = jax.tree.leaves_with_path(actual[1])
    for (path, ours), theirs in zip(gradients, jax.tree.leaves(expected[1]), strict=True):
        if np.abs(theirs).max() > 1e-5:  # a bias of keys has no gradient but rounding
            assert_close(ours, theirs, 1e-4, jax.tree_util.keystr(path))


# --- the block against torch ---


@pytest.mark.parametrize("norm_order", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_block_equals_torch_encoder_layer(norm_order, activation):
    theirs = torch_params.perturbed_layer(
        torch.nn.TransformerEncoderLayer(
            12,
            3,
            20,
            activation=activation,
            layer_norm_eps=1e-3,
            batch_first=True,
            norm_first=norm_order == "pre",
        )
    )
    params = {
        "attention": torch_params.attention(theirs.self_attn),
        "attention_norm": torch_params.norm(theirs.norm1),
        "mlp": {"up": torch_params.linear(theirs.linear1), "down": torch_params.linear(theirs.linear2)},
        "mlp_norm": torch_params.norm(theirs.norm2),
    }
    config = replace(CONFIG, norm_order=norm_order, activation=activation, norm_eps=1e-3)
    x = noise(2, 5, 12)
    run = jax.jit(lambda x: Block(config).apply({"params": params}, x, mask=masks.causal()))
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert_close(run(jnp.asarray(x, jnp.float32)), theirs(torch.tensor(x), src_mask=hidden).detach(), 1e-5)


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_block_with_cross_attention_equals_torch_decoder_layer(norm_order):
    theirs = torch_params.perturbed_layer(
        torch.nn.TransformerDecoderLayer(
            12, 3, 20, layer_norm_eps=1e-3, batch_first=True, norm_first=norm_order == "pre"
        )
    )
    params = {
        "attention": torch_params.attention(theirs.self_attn),
        "attention_norm": torch_params.norm(theirs.norm1),
        "cross_attention": torch_params.attention(theirs.multihead_attn),
        "cross_attention_norm": torch_params.norm(theirs.norm2),
        "mlp": {"up": torch_params.linear(theirs.linear1), "down": torch_params.linear(theirs.linear2)},
        "mlp_norm": torch_params.norm(theirs.norm3),
    }
    config = replace(CONFIG, norm_order=norm_order, activation="relu", norm_eps=1e-3, cross_attention=True)
    x, context, real = noise(2, 5, 12), noise(2, 4, 12, seed=1), np.arange(4) < np.array([[2], [4]])

    @jax.jit
    def run(x, context, context_mask):
        masked = {"mask": masks.causal(), "context_mask": context_mask}
        return Block(config).apply({"params": params}, x, context=context, **masked)

    out = run(jnp.asarray(x, jnp.float32), jnp.asarray(context, jnp.float32), masks.valid(jnp.asarray(real)))
    expected = theirs(
        torch.tensor(x),
        torch.tensor(context),
        tgt_mask=torch.ones(5, 5, dtype=torch.bool).triu(1),
        memory_key_padding_mask=torch.tensor(~real),
    )
    assert_close(out, expected.detach(), 1e-5)


# --- the stack ---


@each_stack
def test_stack_is_its_layers_in_turn(config):
    params = params_of(config)
    x, inputs = inputs_of(config)
    layer = jax.jit(lambda params, x: Block(config).apply({"params": params}, x, **inputs))
    expected = x
    for depth in range(config.depth):
        expected = layer(jax.tree.map(lambda stacked, depth=depth: stacked[depth], params["blocks"]), expected)
    if config.norm_order == "pre":
        norm = make_norm(config.norm, config.norm_eps, jnp.float32, "norm")
        expected = norm.apply({"params": params["norm"]}, expected)
    else:
        assert params.keys() == {"blocks"}
    out = jax.jit(lambda params: Transformer(config).apply({"params": params}, x, **inputs))(params)
    assert_close(out, expected, 1e-5)


@each_stack
def test_scanned_and_unrolled_are_the_same(config):
    unrolled = replace(config, scan=False)
    assert abstract_of(unrolled) == abstract_of(config)
    assert_same(backward(unrolled), backward(config))


@each_stack
def test_layers_one_by_one_are_the_stack(config):
    params = params_of(config)
    x, inputs = inputs_of(config)
    apart = unstack({"params": {"text": params}, "buffers": {"count": np.arange(3)}})
    assert apart["params"]["text"].keys() == params.keys()
    assert apart["params"]["text"]["blocks"].keys() == {"0", "1"}
    np.testing.assert_array_equal(apart["buffers"]["count"], np.arange(3))
    jax.tree.map(np.testing.assert_array_equal, unstack(apart), apart)

    @jax.jit
    def run(params, x, inputs):
        return Transformer(config).apply({"params": params}, x, **inputs)

    assert_close(run(apart["params"]["text"], x, inputs), backward(config)[0], 1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_no_result(remat, scan):
    config = replace(BERT, scan=scan)
    assert_same(backward(replace(config, remat=remat)), backward(config))


@pytest.mark.parametrize("scan", [True, False])
def test_remat_recomputes_more_and_more(scan):
    """Counted in matrix products: "dots" repeats those of attention alone, "full" every one."""
    x, inputs = inputs_of(CONFIG)
    params = params_of(CONFIG)

    def products(remat):
        module = Transformer(replace(CONFIG, remat=remat, scan=scan))
        gradient = jax.grad(lambda params: module.apply({"params": params}, x, **inputs).sum())
        return str(jax.make_jaxpr(gradient)(params)).count("dot_general")

    none, dots, full = products("none"), products("dots"), products("full")
    assert none < dots < full


def test_biases_and_head_width_where_they_differ():
    config = replace(LLAMA, qkv_bias=True, head_dim=6)
    params = abstract_of(config)["blocks"]
    for name in ("attention", "cross_attention"):
        biased = {part for part, each in params[name].items() if "bias" in each}
        assert biased == {"query", "key", "value"}
        assert params[name]["query"]["kernel"].shape == (2, 12, 3, 6)
        assert params[name]["out"]["kernel"].shape == (2, 3, 6, 12)
    assert not any("bias" in each for each in params["mlp"].values())
    out = abstract_of(replace(BERT, out_bias=False))["blocks"]
    assert "bias" not in out["attention"]["out"] and "bias" in out["attention"]["query"] and "bias" in out["mlp"]["up"]


# --- dropout ---


def test_dropout_is_for_training_alone():
    config = replace(CONFIG, dropout=0.5)
    params = params_of(config)
    x, _ = inputs_of(config)
    run = jax.jit(lambda key: Transformer(config).apply({"params": params}, x, train=True, rngs={"dropout": key}))
    evaluated = jax.jit(lambda: Transformer(config).apply({"params": params}, x))()
    without = jax.jit(lambda: Transformer(CONFIG).apply({"params": params}, x, train=True))()
    np.testing.assert_array_equal(evaluated, without)
    first = run(jax.random.key(1))
    np.testing.assert_array_equal(first, run(jax.random.key(1)))
    assert np.abs(first - evaluated).max() > 0.1
    assert np.abs(first - run(jax.random.key(2))).max() > 0.1


@pytest.mark.parametrize("scan", [True, False])
def test_every_layer_drops_other_entries(scan):
    """Two blocks that add nothing but a bias, 1 and 10, which dropout doubles or drops: 0, 2, 20 or 22."""
    config = replace(CONFIG, depth=2, dropout=0.5, scan=scan)
    params = jax.tree.map(np.zeros_like, params_of(config))
    params["blocks"]["mlp"]["down"]["bias"] += np.array([[1], [10]], np.float32)
    params["norm"]["scale"] += 1
    run = jax.jit(lambda x, key: Transformer(config).apply({"params": params}, x, train=True, rngs={"dropout": key}))
    out = run(jnp.zeros((4, 5, 12)), jax.random.key(0))
    # The last norm keeps different entries of a token different.
    kinds = [np.unique(np.round(token, 3)).size for token in np.asarray(out).reshape(-1, 12)]
    assert max(kinds) == 4


def test_a_context_belongs_to_cross_attention():
    x = jnp.zeros((1, 3, 8))
    for crosses, context in ((True, None), (False, x)):
        config = TransformerConfig(8, 1, 2, 8, cross_attention=crosses)
        with pytest.raises(ValueError, match="needs a context, and one without takes none"):
            Transformer(config).init(jax.random.key(0), x, context=context)
