"""Which implementation a call gets, and what is said when none fits."""

import warnings

import jax
import jax.numpy as jnp
import pytest

from jmm.distributed.mesh import MeshShape, make_mesh
from jmm.distributed.sharding import on_mesh
from jmm.kernels import attention, masks
from jmm.kernels.choice import CHUNKED_FROM, choose
from jmm.kernels.core import Operands, Problem
from jmm.kernels.masks import First
from jmm.kernels.placement import ANY, Target, for_any_platform, target, warn_once

CPU, TPU = Target("cpu", "cpu"), Target("tpu", "TPU v5 lite")
H100, MI300 = Target("gpu", "NVIDIA H100 80GB HBM3"), Target("gpu", "AMD Instinct MI300X")
BF16, F32 = jnp.bfloat16, jnp.float32


def chosen(at, length, formula=None, width=64, dtype=BF16, bias=False, forced=None, k_length=None):
    q = jax.ShapeDtypeStruct((2, 4, length, width), dtype)
    k = jax.ShapeDtypeStruct((2, 4, k_length or length, width), dtype)
    shape = jax.ShapeDtypeStruct((1, 1, length, k_length or length), F32) if bias else None
    problem = Problem(formula or First(k.shape[2]), 1.0)
    return choose(at, problem, Operands(q, k, k, shape, (), ()), forced)


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ("reference", {"at": CPU, "length": 77}),
        ("chunked", {"at": CPU, "length": 192}),
        ("chunked", {"at": CPU, "length": 1, "k_length": CHUNKED_FROM["cpu"]}),
        ("reference", {"at": TPU, "length": 77}),
        ("reference", {"at": Target(ANY, ANY), "length": 4096}),
        ("pallas_tpu", {"at": TPU, "length": 197}),
        ("pallas_tpu", {"at": TPU, "length": 4096, "dtype": F32, "bias": True, "formula": masks.causal()}),
        ("cudnn", {"at": H100, "length": 1024}),
        ("cudnn", {"at": H100, "length": 1024, "formula": masks.causal()}),
        ("pallas_gpu", {"at": H100, "length": 1024, "formula": masks.causal(), "k_length": 512}),
        ("pallas_gpu", {"at": H100, "length": 1024, "formula": masks.causal() & masks.window(8)}),
        ("pallas_gpu", {"at": H100, "length": 1024, "bias": True}),
        ("pallas_gpu", {"at": H100, "length": 1024, "dtype": F32}),
        ("pallas_gpu", {"at": MI300, "length": 1024}),
        ("reference", {"at": H100, "length": 64}),
    ],
)
def test_platform_shape_and_mask_decide(expected, given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(**given) == expected


@pytest.mark.parametrize(
    ("at", "length", "expected"), [(TPU, 512, "reference"), (TPU, 2048, "chunked"), (H100, 2048, "chunked")]
)
def test_a_shape_that_no_kernel_takes_falls_back_and_says_so_once(at, length, expected):
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match=f"no kernel takes this call .*300.*so {expected} does it"):
        assert chosen(at, length, width=300) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(at, length, width=300) == expected


def test_a_sequence_that_is_cut_goes_to_a_core_that_knows_the_ring():
    with on_mesh(make_mesh(MeshShape(data=4, sequence=2))):
        assert chosen(H100, 1024) == "pallas_gpu"
        with pytest.raises(ValueError, match="cudnn cannot do this: it knows no ring"):
            chosen(H100, 1024, forced="cudnn")
        assert chosen(H100, 1025) == "cudnn"  # a length that does not divide stays whole
    with on_mesh(make_mesh(MeshShape(data=4, tensor=2))):
        assert chosen(H100, 1024) == "cudnn"


@pytest.mark.parametrize("name", ["reference", "chunked", "pallas_tpu", "pallas_gpu"])
def test_each_can_be_forced(name):
    assert chosen(CPU, 32, forced=name) == name


def test_what_a_forced_one_cannot_do_is_named():
    q = jnp.ones((1, 4, 1, 20))
    with pytest.raises(ValueError, match="pallas_tpu cannot do this: the head width must be a multiple of 8"):
        attention(q, q, q, implementation="pallas_tpu")
    with pytest.raises(ValueError, match="cudnn cannot do this: it runs on NVIDIA GPUs, not on cpu"):
        attention(q, q, q, implementation="cudnn")
    with pytest.raises(ValueError, match="cudnn cannot do this: it knows no mask formulas but causal"):
        chosen(H100, 64, formula=masks.window(3), forced="cudnn")
    with pytest.raises(ValueError, match="one of reference, chunked, pallas_tpu, pallas_gpu, cudnn, not 'flash'"):
        choose(CPU, Problem(First(1), 1.0), Operands(q, q, q, None, (), ()), "flash")


def test_a_program_for_any_platform_gets_no_kernel_of_one():
    before = target()
    with for_any_platform():
        assert target() == Target(ANY, ANY)
    assert target() == before
