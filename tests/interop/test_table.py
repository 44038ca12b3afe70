"""The table between two frameworks: layouts, stacked layers, and naming all that does not fit at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.errors import UserError
from jmm.interop.table import Row, export_tensors, import_tensors, transformer_rows
from tests.arrays import assert_close

TABLE = [
    Row("patch/kernel", "conv.weight", "conv"),
    Row("query/kernel", "q.weight", "linear"),
    Row("query/bias", "q.bias"),
    Row("out/kernel", "o.weight", "linear2"),
    Row("token", "cls"),
    Row("blocks/up/kernel", "layers.{layer}.fc.weight", "linear"),
    Row("blocks/up/bias", "layers.{layer}.fc.bias"),
    Row("blocks/out/kernel", "layers.{layer}.o.weight", "linear2"),
]
OURS = {
    "patch": {"kernel": (2, 3, 4, 5)},
    "query": {"kernel": (6, 2, 3), "bias": (2, 3)},
    "out": {"kernel": (2, 3, 6)},
    "token": (1, 6),
    "blocks": {"up": {"kernel": (3, 6, 7), "bias": (3, 7)}, "out": {"kernel": (3, 2, 3, 6)}},
}
THEIRS = {
    "conv.weight": (5, 4, 2, 3),
    "q.weight": (6, 6),
    "q.bias": (6,),
    "o.weight": (6, 6),
    "cls": (1, 1, 6),
    **{f"layers.{layer}.fc.weight": (7, 6) for layer in range(3)},
    **{f"layers.{layer}.fc.bias": (7,) for layer in range(3)},
    **{f"layers.{layer}.o.weight": (6, 6) for layer in range(3)},
}


def abstract():
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        OURS,
        is_leaf=lambda each: isinstance(each, tuple),
    )


def random_tensors():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in THEIRS.items()}


def test_every_tensor_takes_our_shape():
    params = import_tensors(TABLE, random_tensors(), abstract())
    assert jax.tree.map(np.shape, params) == OURS


def test_export_undoes_import():
    tensors = random_tensors()
    back = export_tensors(TABLE, import_tensors(TABLE, tensors, abstract()), THEIRS)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_linear_maps_the_same():
    tensors, x = random_tensors(), np.random.default_rng(1).standard_normal((4, 6))
    params = import_tensors(TABLE, tensors, abstract())
    q = np.einsum("bd,dhe->bhe", x, params["query"]["kernel"]) + params["query"]["bias"]
    expected = x @ tensors["q.weight"].T + tensors["q.bias"]
    # Head h holds the columns 3h to 3h + 2.
    assert_close(q, expected.reshape(4, 2, 3), 1e-6)
    out = np.einsum("bhe,hed->bd", q, params["out"]["kernel"])
    assert_close(out, expected @ tensors["o.weight"].T, 1e-6)


def test_convolution_goes_from_oihw_to_hwio():
    tensors = random_tensors()
    kernel = import_tensors(TABLE, tensors, abstract())["patch"]["kernel"]
    for h, w, i, o in np.ndindex(2, 3, 4, 5):
        assert kernel[h, w, i, o] == tensors["conv.weight"][o, i, h, w]


def test_layers_are_stacked_in_their_order():
    tensors = random_tensors()
    blocks = import_tensors(TABLE, tensors, abstract())["blocks"]
    for layer in range(3):
        np.testing.assert_array_equal(blocks["up"]["kernel"][layer], tensors[f"layers.{layer}.fc.weight"].T)
        np.testing.assert_array_equal(blocks["up"]["bias"][layer], tensors[f"layers.{layer}.fc.bias"])
        out = tensors[f"layers.{layer}.o.weight"].T.reshape(2, 3, 6)
        np.testing.assert_array_equal(blocks["out"]["kernel"][layer], out)


def test_layers_beyond_nine_keep_their_order():
    tensors = {f"layers.{layer}.fc.bias": np.full(2, layer, np.float32) for layer in range(12)}
    params = import_tensors(
        [Row("bias", "layers.{layer}.fc.bias")], tensors, {"bias": jax.ShapeDtypeStruct((12, 2), jnp.float32)}
    )
    np.testing.assert_array_equal(params["bias"][:, 0], np.arange(12))


def test_everything_wrong_at_import_is_named_at_once():
    tensors = random_tensors()
    del tensors["q.bias"], tensors["layers.1.fc.weight"]
    tensors["cls"] = np.zeros((1, 1, 7), np.float32)
    tensors["layers.2.fc.bias"] = np.zeros((8,), np.float32)
    tensors["layers.3.fc.bias"] = np.zeros((7,), np.float32)
    tensors["pooler.weight"] = np.zeros((6, 6), np.float32)
    wanted = abstract()
    wanted["gate"] = jax.ShapeDtypeStruct((6,), jnp.float32)
    with pytest.raises(UserError) as caught:
        import_tensors(TABLE, tensors, wanted)
    parts = str(caught.value).removeprefix("the tensors do not fit the model: ").split("; ")
    assert sorted(parts) == [
        "cls is (1, 1, 7), which does not fit (1, 6)",
        "layers.1.fc.weight is missing",
        "layers.2.fc.bias is (8,), which does not fit (7,)",
        "layers.3.fc.bias is left over",
        "our gate is in no row of the table",
        "pooler.weight is left over",
        "q.bias is missing",
    ]


@pytest.mark.parametrize(
    ("name", "shape"), [("layers.1.fc.weight", (6, 7)), ("q.weight", (4, 9)), ("conv.weight", (2, 3, 4, 5))]
)
def test_other_axes_with_as_many_numbers_are_refused(name, shape):
    """They would load without a word and mean nothing."""
    tensors = random_tensors() | {name: np.ones(shape, np.float32)}
    with pytest.raises(UserError, match=name):
        import_tensors(TABLE, tensors, abstract())


def test_everything_wrong_at_export_is_named_at_once():
    params = import_tensors(TABLE, random_tensors(), abstract())
    params["gate"] = np.zeros(6, np.float32)
    shapes = {**THEIRS, "pooler.weight": (6, 6)}
    del shapes["layers.2.fc.bias"], shapes["cls"]
    with pytest.raises(UserError) as caught:
        export_tensors(TABLE, params, shapes)
    parts = str(caught.value).removeprefix("the model does not fit the tensors: ").split("; ")
    assert sorted(parts) == [
        "cls is not known there",
        "layers.2.fc.bias is not known there",
        "our gate is in no row of the table",
        "pooler.weight is not covered",
    ]


def test_transformer_rows():
    names = {
        "attention/query": "attn.q",
        "attention/out": "attn.o",
        "cross_attention/out": "cross.o",
        "mlp_norm": "ln2",
    }
    assert transformer_rows("text/encoder", "encoder.layers", names) == [
        Row("text/encoder/blocks/attention/query/kernel", "encoder.layers.{layer}.attn.q.weight", "linear"),
        Row("text/encoder/blocks/attention/query/bias", "encoder.layers.{layer}.attn.q.bias"),
        Row("text/encoder/blocks/attention/out/kernel", "encoder.layers.{layer}.attn.o.weight", "linear2"),
        Row("text/encoder/blocks/attention/out/bias", "encoder.layers.{layer}.attn.o.bias"),
        Row(
            "text/encoder/blocks/cross_attention/out/kernel",
            "encoder.layers.{layer}.cross.o.weight",
            "linear2",
        ),
        Row("text/encoder/blocks/cross_attention/out/bias", "encoder.layers.{layer}.cross.o.bias"),
        Row("text/encoder/blocks/mlp_norm/scale", "encoder.layers.{layer}.ln2.weight"),
        Row("text/encoder/blocks/mlp_norm/bias", "encoder.layers.{layer}.ln2.bias"),
    ]
