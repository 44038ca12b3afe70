"""Attention on a mesh of eight devices: rows, heads and the ring over the sequence give what one device gives."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.distributed.mesh import MeshShape, make_mesh
from jmm.distributed.sharding import on_mesh
from jmm.kernels import attention, masks
from jmm.kernels.placement import warn_once
from tests.arrays import assert_close

B, L, H, G, D = 4, 48, 4, 2, 8
LENGTHS = jnp.array([0, 5, 17, 48])
IDS = jnp.asarray(np.sort(np.random.default_rng(3).integers(0, 3, (B, L)), axis=1))

MASKS = {
    "full": None,
    "causal": masks.causal(),
    "prefix": masks.prefix(20) & masks.valid(jnp.arange(L)[None] < LENGTHS[:, None]),
    "packed": masks.causal() & masks.segments(IDS, IDS),
    "window or rows": masks.window(7) | masks.prefix(LENGTHS),
}
MESHES = {
    "rows": MeshShape(data=4, fsdp=2),
    "heads": MeshShape(data=2, fsdp=2, tensor=2),
    "ring": MeshShape(data=1, sequence=8),
    "all": MeshShape(data=2, tensor=2, sequence=2),
}


def arrays(bias_shape, k_length=L):
    rng = np.random.default_rng(0)
    shapes = [(B, L, H, D), (B, k_length, G, D), (B, k_length, G, D), (B, L, H, D)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (*shapes, bias_shape or (1, 1, 1, 1))]


def value_and_gradients(mask, with_bias, implementation):
    def run(q, k, v, cotangent, bias, mask):
        def call(q, k, v, bias):
            return attention(q, k, v, mask=mask, bias=bias if with_bias else None, implementation=implementation)

        out, pull = jax.vjp(call, q, k, v, bias)
        return out, pull(cotangent)[: 4 if with_bias else 3]

    return lambda *given: jax.jit(run)(*given, mask)


def assert_same(found, expected):
    for name, ours, theirs in zip(
        ("out", "q", "k", "v", "bias"), *map(jax.tree.leaves, (found, expected)), strict=False
    ):
        assert_close(ours, theirs, 1e-5 if name == "out" else 1e-4, name)


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize(
    ("mask", "bias_shape"),
    [
        ("full", None),
        ("causal", (1, H, L, L)),
        ("prefix", (B, 1, L, L)),
        ("packed", None),
        ("window or rows", (1, 1, L, L)),
    ],
)
def test_a_mesh_changes_nothing(mesh, mask, bias_shape):
    given = arrays(bias_shape)
    expected = value_and_gradients(MASKS[mask], bias_shape is not None, "reference")(*given)
    with on_mesh(make_mesh(mesh)):
        assert_same(value_and_gradients(MASKS[mask], bias_shape is not None, "chunked")(*given), expected)


def test_kernels_run_on_a_mesh():
    given = arrays((1, H, L, L))
    expected = value_and_gradients(MASKS["prefix"], True, "reference")(*given)
    with on_mesh(make_mesh(MeshShape(data=2, tensor=2, sequence=2))):
        assert_same(value_and_gradients(MASKS["prefix"], True, "pallas_tpu")(*given), expected)


def test_keys_that_do_not_divide_stay_whole():
    given = arrays(None, k_length=27)
    expected = value_and_gradients(None, False, "reference")(*given)
    with on_mesh(make_mesh(MeshShape(data=4, sequence=2))), pytest.warns(UserWarning, match="27 keys do not divide"):
        warn_once.cache_clear()
        assert_same(value_and_gradients(None, False, "chunked")(*given), expected)


def test_a_mesh_axis_that_cuts_nothing_is_named_once():
    q, k, v, *_ = (each[:, :, :2] for each in arrays(None))
    with on_mesh(make_mesh(MeshShape(data=2, tensor=4))):
        warn_once.cache_clear()
        with pytest.warns(UserWarning, match="2 query and 2 key heads do not divide over the mesh axis tensor"):
            jax.jit(lambda q, k, v: attention(q, k, v, implementation="chunked"))(q, k, v)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            jax.jit(lambda q, k, v: attention(q, k, v, implementation="chunked"))(q, k, v)


def test_the_ring_hands_keys_on_and_never_gathers_them():
    given = arrays(None)
    mesh = make_mesh(MeshShape(data=1, sequence=8))
    where = jax.NamedSharding(mesh, jax.P(None, "sequence"))

    def run(q, k, v):
        return attention(q, k, v, mask=masks.causal(), implementation="chunked")

    with on_mesh(mesh):
        text = jax.jit(run, in_shardings=where, out_shardings=where).lower(*given[:3]).compile().as_text()
    assert "collective-permute" in text
    assert "all-gather" not in text


def test_inside_a_surrounding_shard_map_it_works_on_what_it_is_given():
    given = arrays(None)[:3]
    expected = attention(*given, mask=masks.causal(), implementation="reference")
    with on_mesh(make_mesh(MeshShape(data=4, tensor=2))):
        inner = jax.shard_map(
            lambda q, k, v: attention(q, k, v, mask=masks.causal(), implementation="chunked"),
            in_specs=jax.P("data", None, "tensor"),
            out_specs=jax.P("data", None, "tensor"),
            check_vma=False,
        )
        assert_close(jax.jit(inner)(*given), expected, 1e-5, "out")
