"""The GPU kernels in the interpreter of Pallas against NumPy in float64, and their lowering to Triton."""

from functools import partial

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.kernels import gpu_blocks, masks, pallas_gpu
from jmm.kernels.blocks import block_map
from jmm.kernels.core import FLOOR, Operands, Problem, attend, row_sums
from jmm.kernels.gpu_blocks import Tile, Tiles
from tests.arrays import assert_close

B = 2
SQUARE = Tiles(*[Tile(16, 16)] * 4)
UNEQUAL = Tiles(Tile(32, 16), Tile(16, 32), Tile(16, 32), Tile(32, 16))


def labels(length, high, seed=0, batch=B, ordered=True):
    drawn = np.random.default_rng(seed).integers(0, high, (batch, length))
    return jnp.asarray(np.sort(drawn, axis=1) if ordered else drawn)


def padding(length, *real):
    return jnp.arange(length)[None] < jnp.asarray(real)[:, None]


def packed(q_length, k_length, count=3):
    return masks.segments(labels(q_length, count), labels(k_length, count, seed=1))


CASES = {
    # mask, query heads, key heads, queries, keys, head width, shape of the bias before its [queries, keys], tiles
    "everything": (masks.First(64), 2, 2, 32, 64, 64, None, SQUARE),
    "causal": (masks.causal(), 2, 1, 64, 64, 32, None, UNEQUAL),
    "prefix and window, lengths between blocks": (masks.prefix(20) & masks.window(25), 1, 1, 37, 55, 72, None, SQUARE),
    "a prefix for each row, one bias": (masks.prefix(jnp.asarray([3, 30])), 4, 2, 48, 40, 80, (1, 1), UNEQUAL),
    "packed texts, a bias of heads": (masks.causal() & packed(50, 50), 4, 2, 50, 50, 96, (1, 4), SQUARE),
    "padding, a bias of rows": (masks.valid(padding(33, 33, 5)), 2, 2, 16, 33, 128, (B, 1), SQUARE),
    "packed or near, a bias of all": (packed(40, 48) | masks.window(4), 4, 1, 40, 48, 32, (B, 4), UNEQUAL),
    "labels in no order": (
        masks.segments(labels(48, 9, ordered=False), labels(48, 9, ordered=False)), 1, 1, 48, 48, 24, (1, 1), SQUARE
    ),
    "images before a text": (
        masks.media(jnp.asarray([[0] * 20 + [1] * 16, [0] * 4 + [2] * 32]), labels(60, 3, seed=1)),
        *(2, 1, 36, 60, 32, (1, 2), SQUARE),
    ),
    "a row without keys, one query": (masks.valid(padding(40, 0, 17)), 2, 2, 1, 40, 16, (1, 2), UNEQUAL),
    "nothing": (masks.First(0), 1, 1, 17, 20, 32, (1, 1), SQUARE),
    "the widest head": (masks.causal(), 1, 1, 32, 32, 256, None, SQUARE),
}  # fmt: skip


def random_operands(mask, heads, key_heads, q_length, k_length, width, bias_shape, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(heads, q_length), (key_heads, k_length), (key_heads, k_length)]
    q, k, v = (jnp.asarray(rng.standard_normal((B, *shape, width)), dtype) for shape in shapes)
    bias = None if bias_shape is None else jnp.asarray(rng.standard_normal((*bias_shape, q_length, k_length)), dtype)
    d_out = jnp.asarray(rng.standard_normal(q.shape), dtype)
    return Operands(q, k, v, bias, *mask.labels(q_length, k_length)), d_out


def random_problem(mask, tiles, width):
    return Problem(masks.without_labels(mask), width**-0.5, interpret=True, blocks=tiles)


@partial(jax.jit, static_argnums=0)
def both(problem, operands, d_out):
    """The output and the gradients of q, k, v, bias."""
    arrays = operands[:4]
    out, pull = jax.vjp(lambda *arrays: attend(pallas_gpu, problem, operands._replace(**name(arrays))), *arrays)
    return out, pull(d_out)


def name(arrays):
    return dict(zip(Operands._fields[:4], arrays, strict=True))


def textbook(mask, operands, d_out, scale):
    """softmax(q kᵀ · scale + bias) v and its gradients, dense, in float64."""
    q, k, v, bias, d_out = (None if x is None else np.asarray(x, np.float64) for x in (*operands[:4], d_out))
    batch, heads, q_length, _ = q.shape
    key_heads, k_length = k.shape[1:3]
    k, v = (np.repeat(x, heads // key_heads, axis=1) for x in (k, v))
    visible = np.broadcast_to(np.asarray(mask.dense(q_length, k_length))[:, None], (batch, heads, q_length, k_length))
    logits = np.where(visible, q @ k.swapaxes(2, 3) * scale + (0 if bias is None else bias), -np.inf)
    top = logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total > 0, total, 1)
    d_weights = d_out @ v.swapaxes(2, 3)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))

    def grouped(x):
        return x.reshape(batch, key_heads, -1, *x.shape[2:]).sum(axis=2)

    d_bias = None
    if bias is not None:
        d_bias = d_logits.sum(axis=tuple(axis for axis in (0, 1) if bias.shape[axis] == 1), keepdims=True)
    d_k = grouped(d_logits.swapaxes(2, 3) @ q) * scale
    return weights @ v, (d_logits @ k * scale, d_k, grouped(weights.swapaxes(2, 3) @ d_out), d_bias)


def assert_equal(found, expected, out_scale, gradient_scale):
    assert_close(found[0], expected[0], out_scale, "output")
    for what, ours, theirs in zip(("q", "k", "v", "bias"), found[1], expected[1], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, theirs, gradient_scale, f"gradient of {what}")


@pytest.mark.parametrize("case", CASES)
def test_equals_the_textbook(case):
    mask, *shapes, tiles = CASES[case]
    width = shapes[4]
    operands, d_out = random_operands(mask, *shapes)
    found = both(random_problem(mask, tiles, width), operands, d_out)
    assert_equal(found, textbook(mask, operands, d_out, width**-0.5), 1e-5, 1e-4)


def test_bfloat16():
    """Within the eight bits of bfloat16 of float64 on the same numbers; weights are rounded to them too."""
    mask = masks.causal()
    operands, d_out = random_operands(mask, 2, 1, 40, 40, 32, (1, 2), jnp.bfloat16)
    found = both(random_problem(mask, SQUARE, 32), operands, d_out)
    assert all(x.dtype == jnp.bfloat16 for x in (found[0], *found[1]))
    assert_equal(found, textbook(mask, operands, d_out, 32**-0.5), 1e-2, 2e-2)


def test_minus_infinity_in_the_bias_hides():
    mask = masks.First(32)
    operands, d_out = random_operands(mask, 1, 1, 32, 32, 32, (1, 1))
    hidden = jnp.asarray(np.tri(32, k=-3) == 0)  # three whole rows among them
    operands = operands._replace(bias=jnp.where(hidden, -jnp.inf, operands.bias))
    found = both(random_problem(mask, SQUARE, 32), operands, d_out)
    with np.errstate(invalid="ignore"):
        expected = textbook(mask, operands, d_out, 32**-0.5)
    assert_equal(found, expected, 1e-5, 1e-4)
    assert np.all(np.asarray(found[0][:, :, :3]) == 0)


def test_parts_of_the_keys_join_at_positions_known_at_run_time():
    """As a ring of devices does: outputs by the weight of each part, gradients from the whole normaliser."""
    mask = masks.causal() & masks.window(30)
    operands, d_out = random_operands(mask, 2, 2, 24, 48, 32, (1, 2))
    problem = random_problem(mask, SQUARE, 32)
    parts = [
        operands._replace(k=operands.k[:, :, at], v=operands.v[:, :, at], bias=operands.bias[..., at])
        for at in (slice(0, 24), slice(24, 48))
    ]

    @jax.jit
    def joined(q_first, firsts):
        outs, each = zip(
            *(pallas_gpu.forward(problem, p, (q_first, f)) for p, f in zip(parts, firsts, strict=True)), strict=True
        )
        lse = jnp.logaddexp(*each)
        out = sum(o * jnp.exp(e - lse)[..., None] for o, e in zip(outs, each, strict=True))
        rest = lse, row_sums(out, d_out), d_out
        return out, [pallas_gpu.backward(problem, p, *rest, (q_first, f)) for p, f in zip(parts, firsts, strict=True)]

    out, (first, second) = joined(jnp.int32(10), (jnp.int32(0), jnp.int32(24)))

    class Later(type(mask)):
        """The same formula with queries that begin at 10."""

        def dense(self, q_length, k_length):
            return self.block(10 + jnp.arange(q_length), jnp.arange(k_length), (), ())

    gradients = (first.q + second.q, *(jnp.concatenate(pair, axis) for pair, axis in [
        ((first.k, second.k), 2), ((first.v, second.v), 2), ((first.bias, second.bias), 3)
    ]))  # fmt: skip
    later = Later(mask.left, mask.right)
    assert_equal((out, gradients), textbook(later, operands, d_out, 32**-0.5), 1e-5, 1e-4)


def test_rows_without_keys_weigh_nothing():
    mask = masks.valid(padding(20, 0, 20))
    operands, _ = random_operands(mask, 1, 1, 20, 20, 32, None)
    out, lse = pallas_gpu.forward(random_problem(mask, SQUARE, 32), operands)
    assert np.all(np.asarray(out[0]) == 0) and np.all(np.asarray(lse[0]) == FLOOR)
    assert np.all(np.asarray(lse[1]) > FLOOR)


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (masks.causal(), slice(0, 16)),
        (masks.segments(jnp.full((B, 16), 7), jnp.asarray([[0] * 16 + [7] * 16 + [9] * 16] * B)), slice(16, 32)),
    ],
    ids=["known when tracing", "known at run time"],
)
def test_skipped_blocks_are_never_read(mask, seen):
    operands, d_out = random_operands(mask, 2, 1, 16, 48, 32, (1, 1))
    unseen = np.ones(48, bool)
    unseen[seen] = False
    k, v = (jnp.where(unseen[:, None], jnp.nan, x) for x in (operands.k, operands.v))
    operands = operands._replace(k=k, v=v, bias=jnp.where(unseen, jnp.nan, operands.bias))
    out, gradients = both(random_problem(mask, SQUARE, 32), operands, d_out)
    assert all(np.all(np.isfinite(x)) for x in (out, *gradients))
    assert all(np.all(np.asarray(x)[:, :, unseen] == 0) for x in gradients[1:3])
    assert np.all(np.asarray(gradients[3])[..., unseen] == 0)


def test_lists_of_blocks():
    """Causal, four queries and two keys a block: whole blocks come first."""
    truth = block_map(masks.causal(), (), (), (8, 8), (4, 2))
    listed = gpu_blocks.visits(truth, by_keys=False)
    assert listed.count.tolist() == [[[0, 2], [2, 4]]]
    assert listed.index[0, 0, :2].tolist() == [0, 1] and listed.index[0, 1].tolist() == [0, 1, 2, 3]
    listed = gpu_blocks.visits(truth, by_keys=True)
    assert listed.count.tolist() == [[[1, 2], [1, 2], [0, 1], [0, 1]]]
    assert listed.index[0, 0].tolist() == [1, 0]
    assert listed.kinds == gpu_blocks.Kinds(full=True, partial=True, running=True)


def test_whole_blocks_that_do_not_follow_one_another():
    truth = block_map(masks.First(4) | masks.Window(3), (), (), (16, 16), (2, 2))
    listed = gpu_blocks.visits(truth, by_keys=False)
    assert not listed.kinds.running
    assert listed.index[0, 7, :3].tolist() == [0, 1, 7]


def arrays_in(jaxpr):
    """Shapes of everything computed outside of kernels."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        if equation.primitive.name != "pallas_call":
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from arrays_in(inner)


def test_nothing_of_queries_by_keys_is_held_but_the_gradient_of_the_bias():
    mask = masks.causal() & packed(640, 640)
    operands, d_out = random_operands(mask, 2, 1, 640, 640, 32, None)
    problem = random_problem(mask, Tiles(*[Tile(64, 64)] * 4), 32)
    largest = max(np.prod(shape) for shape in arrays_in(jax.make_jaxpr(partial(both, problem))(operands, d_out).jaxpr))
    assert largest <= operands.q.size


def test_refusals():
    def reason(width, *dtypes):
        arrays = (jax.ShapeDtypeStruct((1, 1, 8, width), dtype) for dtype in dtypes)
        return pallas_gpu.supports(Problem(masks.causal(), 1.0), Operands(*arrays, None, (), ()))

    assert reason(256, *[jnp.bfloat16] * 3) is None
    assert "256" in reason(264, *[jnp.bfloat16] * 3)
    assert "one type" in reason(64, jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert "int8" in reason(64, *[jnp.int8] * 3)
    assert "something" in pallas_gpu.supports(
        Problem(masks.causal(), 1.0), Operands(*[jax.ShapeDtypeStruct((1, 1, 0, 8), jnp.float32)] * 3, None, (), ())
    )


def triton_kernels(lowered):
    """Name and Triton IR of each kernel; parsing verifies it, which lowering does not."""
    from jaxlib.mlir import ir
    from jaxlib.triton import dialect

    context = ir.Context()
    dialect.register_dialect(context)
    context.load_all_available_dialects()

    def calls(operation):
        for inner in (each for region in operation.regions for block in region.blocks for each in block.operations):
            if inner.operation.name == "stablehlo.custom_call" and "triton" in str(
                inner.attributes["call_target_name"]
            ):
                yield ir.DictAttr(inner.attributes["mhlo.backend_config"])
            yield from calls(inner.operation)

    for config in calls(lowered.compiler_ir("stablehlo").operation):
        yield ir.StringAttr(config["name"]).value, ir.Module.parse(ir.StringAttr(config["ir"]).value_bytes, context)


@pytest.mark.skipif(
    jax.__version_info__ > (0, 10, 2), reason="newer versions compile when they lower, which takes a CUDA plugin"
)
@pytest.mark.parametrize(
    ("table", "width", "dtype", "mask"),
    [
        (gpu_blocks.HOPPER, 72, jnp.bfloat16, masks.prefix(jnp.asarray([3, 7])) & packed(500, 500)),
        (gpu_blocks.FLOAT32, 64, jnp.float32, masks.causal()),
    ],
    ids=["bfloat16", "float32"],
)
def test_lowers_to_triton(table, width, dtype, mask):
    tiles = next(entry for widest, entry in table.items() if width <= widest)
    operands, d_out = random_operands(mask, 4, 2, 500, 500, width, (1, 4), dtype)
    problem = random_problem(mask, tiles, width)._replace(interpret=False)
    kernels = dict(triton_kernels(both.trace(problem, operands, d_out).lower(lowering_platforms=("cuda",))))
    assert sorted(kernels) == ["dbias", "dkv", "dq", "forward"]
    dots = {name: str(module).count("tt.dot") for name, module in kernels.items()}
    # One body for blocks that are wholly visible and one for the others.
    assert dots == {"forward": 4, "dq": 6, "dkv": 8, "dbias": 4}
    if dtype == jnp.float32:
        assert all("tf32" not in str(module) for module in kernels.values())
