"""What the decoder promises beyond parity: sizes, padding, causality, loss, heads, bfloat16."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.packing import first_fit, pack
from jmm.models import decoder
from jmm.parts.transformer import TransformerConfig
from jmm.protocol import ModelConfig, inputs_of
from tests.arrays import abstract_params, assert_close, perturbed

PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "opt_125m": 125_239_296,
    "opt_350m": 331_196_416,
    "opt_1_3b": 1_315_758_080,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "qwen2_0_5b": 494_032_768,
    "qwen2_7b": 7_615_616_512,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
}

STACK = TransformerConfig(width=16, depth=2, num_heads=2, mlp_dim=32)
SWIGLU = replace(STACK, activation="silu", gated=True, norm="rms", use_bias=False, rotary_base=100.0, num_kv_heads=1)
CONFIGS = {
    "gpt2": decoder.Config(STACK, 20, 8),
    "opt": decoder.Config(replace(STACK, activation="relu"), 20, 8, first_position=2),
    "opt-350m": decoder.Config(replace(STACK, norm_order="post"), 20, 8, first_position=2, embed_dim=6),
    "llama": decoder.Config(SWIGLU, 20, 8, first_position=None, tied_head=False),
    "qwen2": decoder.Config(replace(SWIGLU, qkv_bias=True), 20, 8, first_position=None),
    "gemma": decoder.Config(
        replace(SWIGLU, norm="rms_plus_one", head_dim=6), 20, 8, first_position=None, scaled_embedding=True
    ),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
TEXT = jnp.asarray(np.random.default_rng(1).integers(1, 20, (3, 5)), jnp.int32)


def params_of(config):
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_params(config))
    return perturbed(zeros, std=0.3)


@cache
def forward_of(config, dtype=jnp.float32):
    module = config.build(dtype)
    return jax.jit(lambda params, **batch: module.apply({"params": params}, **batch))


def outputs_of(config, dtype=jnp.float32, **batch):
    return forward_of(config, dtype)(params_of(config), **batch)


# --- sizes ---


def test_every_variant_has_a_published_count():
    assert decoder.VARIANTS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_outputs_at_full_size(name):
    config = decoder.VARIANTS[name]
    assert isinstance(config, ModelConfig)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config))) == PARAMETERS[name]
    module, batch = config.build(), config.batch_spec(2)
    assert inputs_of(module, batch) == batch
    outputs, _ = jax.eval_shape(lambda batch: module.init_with_output(jax.random.key(0), **batch), batch)
    tokens = (2, config.context_length)
    assert {name: (each.shape, each.dtype.name) for name, each in outputs.items()} == {
        "features": ((*tokens, config.decoder.width), "float32"),
        "logits": ((*tokens, config.vocab_size), "float32"),
    }


def test_qwen2_has_biases_of_queries_keys_and_values_alone():
    params = abstract_params(CONFIGS["qwen2"])["decoder"]["blocks"]
    biased = {name for name in params["attention"] if "bias" in params["attention"][name]}
    assert biased == {"query", "key", "value"}
    assert all("bias" not in params["mlp"][name] for name in params["mlp"])


# --- what a token sees ---


@each_config
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_real_token(config, side):
    """Whatever ids stand there."""
    alone = outputs_of(config, text=TEXT, text_mask=jnp.ones(TEXT.shape, bool))
    around = ((0, 0), (3, 0) if side == "left" else (0, 3))
    real = slice(3, None) if side == "left" else slice(0, 5)
    padded = outputs_of(
        config,
        text=jnp.pad(TEXT, around, constant_values=7),
        text_mask=jnp.pad(jnp.ones(TEXT.shape, bool), around),
    )
    for name, expected in alone.items():
        assert_close(padded[name][:, real], expected, 1e-5, name)


@each_config
def test_without_a_mask_every_token_is_real(config):
    masked = outputs_of(config, text=TEXT, text_mask=jnp.ones(TEXT.shape, bool))
    for name, expected in outputs_of(config, text=TEXT).items():
        assert_close(masked[name], expected, 1e-5, name)


@each_config
def test_a_token_changes_itself_and_what_follows(config):
    changed = TEXT.at[:, 2].set((TEXT[:, 2] + 1) % 20)
    before, after = (outputs_of(config, text=text)["logits"] for text in (TEXT, changed))
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert np.abs(before - after).max(axis=-1)[:, 2:].min() > 1e-3


@each_config
def test_the_same_token_elsewhere_is_another(config):
    """Positions count: a text of one token repeated would otherwise say the same everywhere."""
    features = outputs_of(config, text=TEXT.at[:, 1].set(TEXT[:, 0]).at[:, 2].set(TEXT[:, 3]))["features"]
    swapped = outputs_of(config, text=TEXT.at[:, 1].set(TEXT[:, 3]).at[:, 2].set(TEXT[:, 0]))["features"]
    assert np.abs(features - swapped)[:, 4].max() > 1e-3


def test_opt_reads_its_table_from_the_third_row():
    config = CONFIGS["opt"]
    params = params_of(config)
    assert params["positions"]["table"].shape == (2 + 8, 16)
    shifted = params | {"positions": {"table": params["positions"]["table"][2:]}}
    expected = forward_of(replace(config, first_position=0))(shifted, text=TEXT)
    np.testing.assert_array_equal(outputs_of(config, text=TEXT)["logits"], expected["logits"])


# --- the head ---


def test_a_tied_head_is_the_embedding():
    for name in ("gpt2", "opt-350m"):
        params, outputs = params_of(CONFIGS[name]), outputs_of(CONFIGS[name], text=TEXT)
        features = np.asarray(outputs["features"])
        if name == "opt-350m":
            features = features @ params["output_projection"]["kernel"]
        assert "head" not in params
        assert_close(outputs["logits"], features @ params["embedding"]["embedding"].T, 1e-5)


def test_an_untied_head_is_its_own():
    params, outputs = params_of(CONFIGS["llama"]), outputs_of(CONFIGS["llama"], text=TEXT)
    assert_close(outputs["logits"], outputs["features"] @ params["head"]["kernel"], 1e-5)


# --- the loss ---


@each_config
def test_loss_is_the_mean_surprise_of_the_next_token(config):
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool)
    module, batch = config.build(), {"text": TEXT, "text_mask": mask}
    loss = jax.jit(lambda params: config.loss(module, {"params": params}, batch, {}))(params_of(config))
    logits = np.asarray(outputs_of(config, **batch)["logits"], np.float64)
    pairs = [(row, at) for row in range(3) for at in range(4) if mask[row, at] and mask[row, at + 1]]
    assert len(pairs) == 4 + 2 + 2
    surprise = [np.log(np.exp(logits[row, at]).sum()) - logits[row, at, TEXT[row, at + 1]] for row, at in pairs]
    assert_close(loss.value, np.mean(surprise), 1e-5)
    right = [np.argmax(logits[row, at]) == TEXT[row, at + 1] for row, at in pairs]
    assert_close(loss.metrics["accuracy"], np.mean(right), 1e-6)
    assert loss.metrics["loss"] == loss.value
    assert loss.updates == {}


def test_steps_lower_the_loss():
    """From near log V to almost nothing: twelve tokens are soon known by heart."""
    config = replace(CONFIGS["llama"], decoder=replace(SWIGLU, remat="dots"))
    module, batch = config.build(), {"text": TEXT, "text_mask": jnp.ones(TEXT.shape, bool)}

    @jax.jit
    def step(params):
        value, gradient = jax.value_and_grad(lambda p: config.loss(module, {"params": p}, batch, {}).value)(params)
        return value, jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)

    params, losses = jax.jit(module.init)(jax.random.key(0), text=TEXT)["params"], []
    for _ in range(60):
        value, params = step(params)
        losses.append(float(value))
    assert abs(losses[0] - math.log(20)) < 0.1
    assert losses[-1] < 0.3


# --- packed texts ---

TEXTS = [np.random.default_rng(7).integers(1, 20, length) for length in (7, 2, 5, 9, 1, 3, 6, 4)]
ROWS = first_fit(np.array([len(text) for text in TEXTS]), 16)
PACKED = pack([{"text": text} for text in TEXTS], {"text": 16})
PADDED = pack([{"text": text} for text in TEXTS], {"text": 16}, np.arange(len(TEXTS)))


def long(config):
    return replace(config, context_length=16)


@each_config
def test_packed_texts_are_read_as_if_each_stood_alone(config):
    assert len(PACKED["text"]) == 3 and not PACKED["text_mask"].all()
    packed = outputs_of(long(config), **PACKED)
    order = np.argsort(ROWS, kind="stable")
    segment = np.concatenate([np.arange(1, (row == ROWS).sum() + 1) for row in range(3)])
    for index, number in zip(order, segment, strict=True):
        alone = outputs_of(long(config), text=TEXTS[index][None].astype(np.int32))
        own = PACKED["segment"][ROWS[index]] == number
        for name, expected in alone.items():
            assert_close(packed[name][ROWS[index]][own], expected[0], 1e-5, name)
    mixed = outputs_of(long(config), text=PACKED["text"], text_mask=PACKED["text_mask"])
    behind = PACKED["segment"] > 1
    assert np.abs(mixed["logits"] - packed["logits"])[behind].max(axis=-1).min() > 1e-3, "else they see one another"


@each_config
def test_the_packed_loss_and_its_gradient_are_the_unpacked_ones(config):
    config, module = long(config), long(config).build()

    @jax.jit
    def run(params, batch):
        def loss(params):
            found = config.loss(module, {"params": params}, batch, {})
            return found.value, found.metrics["accuracy"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    alone = {name: PADDED[name] for name in ("text", "text_mask")}
    (value, accuracy), gradient = run(params_of(config), alone)
    (packed, packed_accuracy), packed_gradient = run(params_of(config), PACKED)
    assert_close(packed, value, 1e-5, "loss")
    assert_close(packed_accuracy, accuracy, 1e-6, "accuracy")
    scale = max(np.abs(each).max() for each in jax.tree.leaves(gradient))
    for (path, expected), found in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(packed_gradient), strict=True
    ):
        # Biases of keys have no gradient but rounding: the scale of a gradient is that of the whole.
        assert np.abs(found - expected).max() <= 1e-5 * scale, jax.tree_util.keystr(path)


@pytest.mark.parametrize("there", ["segment", "position"])
def test_a_segment_without_positions_is_refused(there):
    fields = {name: PACKED[name] for name in ("text", there)}
    with pytest.raises(ValueError, match="both segment and position"):
        outputs_of(long(CONFIGS["llama"]), **fields)


# --- bfloat16 ---


@pytest.mark.parametrize("name", ["opt-350m", "qwen2"])
def test_bfloat16_is_near_float32(name):
    config = CONFIGS[name]
    exact, outputs = outputs_of(config, text=TEXT), outputs_of(config, jnp.bfloat16, text=TEXT)
    for name, value in outputs.items():
        assert value.dtype == jnp.bfloat16, name
        # Some twenty roundings of 2⁻⁹ follow one another and add up as their root: 2⁻⁷, with a margin of 4.
        assert_close(value, exact[name], 2**-5, name)


def test_a_text_longer_than_the_learned_positions_is_refused():
    with pytest.raises(ValueError, match="9 tokens is longer than the 8 learned positions"):
        jax.eval_shape(lambda: CONFIGS["opt"].build().init(jax.random.key(0), text=jnp.zeros((1, 9), jnp.int32)))
