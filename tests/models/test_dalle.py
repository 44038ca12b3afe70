"""DALL-E's stream against the recorded files of ruDALL-E and RuDOLPH, and what it writes with a cache and without."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from data_pipelines.preprocess import Preprocess
from jmm.distributed.mesh import make_mesh
from jmm.errors import UserError
from jmm.experiment import MeshShape
from jmm.generation import generate
from jmm.kernels import masks
from jmm.model import Model
from jmm.models.dalle import VARIANTS, Config, sandwich
from jmm.protocol import forward
from tests.arrays import assert_close
from tests.goldens import golden_files, read_golden

FILES = golden_files("rudalle_dalle") + golden_files("rudolph")
EXACT = 1e-4
KEYS = {"dropout": jax.random.key(0)}

NAMES = {
    "attention_norm": "input_layernorm",
    "attention_norm_after": "before_first_addition_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_norm_after": "before_second_addition_layernorm",
    "mlp/up": "mlp.dense_h_to_4h",
    "mlp/down": "mlp.dense_4h_to_h",
    "attention/out": "attention.dense",
}
"""Of ours in a layer, theirs."""


def config_of(shape):
    """Ours of a file's."""
    side, newer = shape["image_tokens_per_dim"], shape.get("hf_version") != "v2"
    right = shape.get("r_text_seq_length", 0)
    decoder = sandwich(shape["hidden_size"], shape["num_layers"], shape["num_attention_heads"])
    plain = not shape.get("cogview_sandwich_layernorm", True)
    return Config(
        replace(decoder, norm_order="pre") if plain else decoder,
        (side, side),
        shape["vocab_size"] + shape.get("text_special_tokens", 0),
        shape["image_vocab_size"] + shape.get("image_special_tokens", 0),
        shape.get("text_seq_length") or shape["l_text_seq_length"],
        right,
        start_id=None if newer else 2,
        first_code="text" if newer else "image",
        kernel=shape.get("kernel_size"),
        last_kernel=shape.get("last_kernel_size", 11),
        wrapped=not newer,
    )


def theirs(path, tensors, config):
    """Of ours, their tensor in our layout."""
    found = re.fullmatch(r"decoder/blocks/(\d+)/(.*)", path)
    if found:
        part, kind = found[2].rsplit("/", 1)
        layer, kind = f"transformer.layers.{found[1]}.", "bias" if kind == "bias" else "weight"
        if part.split("/")[1:] and part.split("/")[1] in ("query", "key", "value"):
            which = ("query", "key", "value").index(part.split("/")[1])
            return np.split(tensors[f"{layer}attention.query_key_value.{kind}"], 3)[which].T
        return tensors[f"{layer}{NAMES[part]}.{kind}"].T
    left = "l_text_pos_embeddings.weight" if config.right_length else "text_pos_embeddings.weight"
    if path == "embedding/embedding":
        return np.concatenate([tensors["text_embeddings.weight"], tensors["image_embeddings.weight"]])
    return {
        "text_positions": lambda: tensors[left][: config.first],
        "row_positions": lambda: tensors["image_row_embeddings.weight"],
        "column_positions": lambda: tensors["image_col_embeddings.weight"],
        "right_positions": lambda: tensors["r_text_pos_embeddings.weight"][: config.right_length],
        "decoder/norm/scale": lambda: tensors["transformer.final_layernorm.weight"],
        "decoder/norm/bias": lambda: tensors["transformer.final_layernorm.bias"],
        "head_norm/scale": lambda: tensors["to_logits.0.weight"],
        "head_norm/bias": lambda: tensors["to_logits.0.bias"],
        "head/kernel": lambda: tensors["to_logits.1.weight"].T,
        "head/bias": lambda: tensors["to_logits.1.bias"],
    }[path]()


def read(golden):
    """The system of a file, its weights layer by layer, and its batch."""
    config = config_of(golden.config)
    module = config.build()
    spec = {name: jnp.ones(each.shape, each.dtype) for name, each in config.batch_spec(1).items()}
    spec.pop("target_mask", None)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), **spec))["params"]
    flat = {}
    for path, leaf in flatten_dict(made, sep="/").items():
        if "/blocks/" not in path:
            flat[path] = jnp.asarray(theirs(path, golden.weights, config)).reshape(leaf.shape)
            continue
        layers = [path.replace("blocks/", f"blocks/{i}/") for i in range(config.decoder.depth)]
        flat[path] = jnp.stack([jnp.asarray(theirs(each, golden.weights, config)) for each in layers])
        flat[path] = flat[path].reshape(leaf.shape)
    ids, (rows, columns) = golden.inputs["input_ids"], config.grid
    text, rest = np.split(ids, [config.text_length], axis=1)
    codes = rest[:, : rows * columns].reshape(-1, rows, columns)
    batch = {"text": text, "text_mask": text != 0, "codes": codes}
    if config.right_length:
        target = rest[:, rows * columns :]
        batch |= {"target": target, "target_mask": target != 0}
    batch = {name: jnp.asarray(each, None if "mask" in name else jnp.int32) for name, each in batch.items()}
    return config, module, {"params": unflatten_dict(flat, sep="/")}, batch


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_layer_sees_what_theirs_sees(path):
    golden = read_golden(path)
    config, length = config_of(golden.config), golden.inputs["input_ids"].shape[1]
    kinds = ["row", "col", "row", "conv" if config.kernel else "row"]
    for layer in range(config.decoder.depth):
        last = layer == config.decoder.depth - 1 and layer % 4 != 1
        kind = ("last_conv" if config.kernel else "conv") if last else kinds[layer % 4]
        expected = golden.weights[f"transformer.{kind}_mask"] > 0
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], config.layer_masks(length))
        found = (masks.causal() & own).dense(length, length)[0]
        np.testing.assert_array_equal(found, np.tril(expected), err_msg=f"layer {layer}, {kind}")
        # And one query at a time.
        places = jnp.arange(length)
        np.testing.assert_array_equal((masks.causal() & own).at(places, length), found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_theirs(path):
    """Logits, each loss and the gradients."""
    golden = read_golden(path)
    config, module, variables, batch = read(golden)
    outputs = jax.jit(partial(forward, module))(variables, batch)
    assert_close(outputs["logits"], golden.outputs["logits"], EXACT)

    def loss(params):
        found = config.loss(module, {"params": params}, batch, KEYS)
        return found.value, found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    expected = golden.outputs
    named = {"loss": "loss", "text_loss": "loss_text", "image_loss": "loss_image"}
    if config.right_length:
        named = {"loss": "loss", "text_loss": "l_text_loss", "image_loss": "image_loss", "right_loss": "r_text_loss"}
    for ours, name in named.items():
        assert_close(found.metrics[ours], expected[name], EXACT, name)
    if "loss_lr0" in expected:
        image_alone = replace(config, weights=(0.0, 1.0, 0.0)).loss(module, variables, batch, KEYS)
        assert_close(image_alone.value, expected["loss_lr0"], EXACT)
    flat = flatten_dict(gradients, sep="/")
    checked = 0
    for path_, gradient in flat.items():
        places = range(config.decoder.depth) if "/blocks/" in path_ else [0]
        layers = [path_.replace("blocks/", f"blocks/{i}/") for i in places]
        for layer, each in enumerate(layers):
            try:
                wanted = theirs(each, golden.grads, config)
            except KeyError:
                continue
            own = gradient if len(layers) == 1 else gradient[layer]
            assert_close(own.reshape(wanted.shape), wanted, EXACT, each)
            checked += 1
    assert checked >= 3
    text = flat["embedding/embedding"][: config.text_vocab]
    assert_close(text, golden.grads["text_embeddings.weight"], EXACT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_of_the_loss_have_its_mean(path):
    config, module, variables, batch = read(read_golden(path))
    batch = {name: jnp.ones_like(each) if name == "target_mask" else each for name, each in batch.items()}
    found = jax.jit(partial(config.loss, module))(variables, batch, KEYS)
    np.testing.assert_allclose(found.rows.mean(), found.value, rtol=1e-5)


def test_text_is_dropped_from_a_share_of_the_examples():
    """Each row's loss is that of its text or of none, as the key says."""
    config, module, variables, batch = read(read_golden(FILES[0]))
    batch = {name: jnp.concatenate([each] * 8) for name, each in batch.items()}
    losses = {}
    for share in (0.0, 0.5):
        of_share = jax.jit(partial(replace(config, drop_text=share).loss, module))
        losses[share] = of_share(variables, batch, KEYS).rows
    none = {**batch, "text_mask": jnp.zeros_like(batch["text_mask"])}
    without = jax.jit(partial(config.loss, module))(variables, none, KEYS).rows
    dropped = np.isclose(losses[0.5], without, rtol=1e-5)
    np.testing.assert_allclose(losses[0.5], np.where(dropped, without, losses[0.0]), rtol=1e-5)
    assert 0 < dropped.sum() < len(dropped)
    with pytest.raises(UserError, match="drop_text is a share of the examples"):
        replace(config, drop_text=1.0)


def test_a_picture_before_a_right_text_may_be_read_only():
    """Then neither is its loss learned nor its text dropped: a question stays before its answer."""
    config, module, variables, batch = read(read_golden(golden_files("rudolph")[0]))
    config = replace(config, weights=(0.0, 1.0, 0.0), draws_given=False)
    batch = {name: jnp.concatenate([each] * 8) for name, each in batch.items()}
    told = np.arange(16) % 4 == 1
    batch["target_mask"] = jnp.ones_like(batch["target_mask"]).at[:, 1:].set(told[:, None])
    of_rows = jax.jit(partial(config.loss, module))(variables, batch, KEYS)
    all_rows = jax.jit(partial(replace(config, draws_given=True).loss, module))(variables, batch, KEYS)
    np.testing.assert_allclose(of_rows.rows, np.where(told, 0, all_rows.rows), rtol=1e-6)
    np.testing.assert_allclose(of_rows.value, all_rows.rows[~told].mean(), rtol=1e-5)
    dropping = replace(config, drop_text=0.5, draws_given=True)
    dropped = jax.jit(partial(dropping.loss, module))(variables, batch, KEYS).rows != all_rows.rows
    assert 0 < dropped.sum() < (~told).sum() and not dropped[told].any()


def model_of(config, variables):
    return Model(config, config.build(), variables, Preprocess(), make_mesh(MeshShape(), jax.devices()[:1]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_cache_writes_what_reading_all_anew_writes(path):
    """From the text alone, and some from the first row of an image."""
    config, _, variables, batch = read(read_golden(path))
    model = model_of(config, variables)
    fields = {name: batch[name] for name in ("text", "text_mask")}
    given = config.grid[1] if config.wrapped or config.right_length else 0
    codes = batch["codes"].reshape(2, -1)[:, :given]
    count = config.num_codes - given
    written = generate(model, {**fields, "codes": codes} if given else fields, max_new_tokens=count)
    found = jnp.concatenate([codes, written.ids - config.text_vocab], axis=1)
    assert found.min() >= 0
    again = model(**fields, codes=found.reshape(2, *config.grid), **_right(config, batch))["logits"]
    first = config.first - 1 + given
    likeliest = again[:, first : first + count, config.text_vocab :].argmax(-1)
    np.testing.assert_array_equal(likeliest, found[:, given:])


def _right(config, batch):
    return {"target": jnp.zeros_like(batch["target"])} if config.right_length else {}


def test_right_text_is_written_behind_the_image():
    config, _, variables, batch = read(read_golden(golden_files("rudolph")[0]))
    model = model_of(config, variables)
    begin = jnp.full((2, 1), 3)
    fields = {name: batch[name] for name in ("text", "text_mask", "codes")}
    written = generate(model, {**fields, "target": begin}, max_new_tokens=config.right_length - 1).ids
    again = model(**fields, target=jnp.concatenate([begin, written], axis=1))["logits"]
    words = config.text_vocab - config.text_length
    likeliest = again[:, -config.right_length : -1, :words].argmax(-1)
    np.testing.assert_array_equal(likeliest, written)
    assert written.max() < words, "padding of the first text was written"


def test_what_does_not_fit_is_named():
    config, _, variables, batch = read(read_golden(golden_files("rudolph")[0]))
    model = model_of(config, variables)
    fields = {name: batch[name] for name in ("text", "codes")}
    with pytest.raises(UserError, match="the text before the image has 8 tokens, padding included, not 5"):
        generate(model, {"text": fields["text"][:, :5]}, max_new_tokens=1)
    with pytest.raises(UserError, match="17 codes are given of an image of 16"):
        generate(model, {**fields, "codes": jnp.zeros((2, 17), int)}, max_new_tokens=1)
    with pytest.raises(UserError, match="4 codes are given of an image of 16"):
        generate(model, {**fields, "codes": fields["codes"][:, 0], "target": fields["text"][:, :1]}, max_new_tokens=1)
    with pytest.raises(UserError, match="holds 30 tokens"):
        generate(model, {"text": fields["text"]}, max_new_tokens=25)
    with pytest.raises(UserError, match="no room for 8 kinds of padding"):
        Config(sandwich(32, 1, 2), text_vocab=8, text_length=8)


PARAMETERS = {"dalle": 12_000_000_000, "rudalle_malevich": 1_300_000_000, "rudolph_350m": 350_000_000}
"""As their names and papers round them."""


@pytest.mark.parametrize("name", VARIANTS)
def test_full_sizes(name):
    config = VARIANTS[name]
    spec = {name: each for name, each in config.batch_spec(1).items() if name != "target_mask"}
    module = config.build()
    made = jax.eval_shape(
        lambda: module.init(jax.random.key(0), **{k: jnp.zeros(v.shape, v.dtype) for k, v in spec.items()})
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(made))
    assert abs(count / PARAMETERS[name] - 1) < 0.06, count
