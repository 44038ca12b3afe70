"""Attention on GPUs through Pallas and Triton: mask formulas, and a bias with its gradient.

FlashAttention-2 (Dao 2023): logits live in one block at a time and never in memory. A program keeps a block of
queries (output, dq) or of keys (dk, dv) and visits the blocks of the other side that the formula needs; the gradient
of the bias has a program for each of its blocks, which sums over the rows and heads that share it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from jmm.kernels.core import FLOOR, MASKED, Gradients, Operands, Problem
from jmm.kernels.gpu_blocks import work
from jmm.kernels.gpu_call import (
    Columns,
    Inputs,
    Layout,
    Rows,
    keys,
    prepare,
    queries,
    read,
    read_columns,
    read_rows,
    write,
)
from jmm.kernels.masks import Side

WIDEST = 256
"""Of the heads; wider ones leave no room for a block."""
# The hardware's exponential is of base 2: its factor goes into the scale of the logits.
LOG2E = math.log2(math.e)


def supports(problem: Problem, operands: Operands) -> str | None:
    """Why the kernels do not take these operands; None if they do."""
    q, k, v = operands[:3]
    if q.shape[-1] > WIDEST:
        return f"its heads are at most {WIDEST} wide, not {q.shape[-1]}"
    if not q.dtype == k.dtype == v.dtype:
        return f"it takes q, k, v of one type, not {q.dtype}, {k.dtype}, {v.dtype}"
    if q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"it takes float32, bfloat16 and float16, not {q.dtype}"
    if 0 in (*q.shape, *k.shape):
        return f"it needs something to compute, not q {q.shape}, k {k.shape}"
    return None


def forward(
    problem: Problem, operands: Operands, offsets: Sequence[Any] = (0, 0)
) -> tuple[Float[Array, "B H Q D"], Float[Array, "B H Q"]]:
    """The output, in the type of v, and log Σ exp of each row's logits (`jmm.kernels.core.Core`)."""
    (rows, heads, length, _), q = operands.q.shape, operands.q
    layout, inputs, _ = prepare(problem, operands, offsets, "forward")
    lse = jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)
    result = layout.call(_forward, (layout.q_blocks, heads, rows), inputs, (_like(q), "bhqd"), (lse, "bhq"))
    return result[0], result[1]


def backward(
    problem: Problem,
    operands: Operands,
    lse: Float[Array, "B H Q"],
    delta: Float[Array, "B H Q"],
    d_out: Float[Array, "B H Q D"],
    offsets: Sequence[Any] = (0, 0),
) -> Gradients:
    """The gradients, each in the type of its operand, from kernels that compute the weights again."""
    q, k, v, bias = operands[:4]
    (rows, heads), key_heads = q.shape[:2], k.shape[1]
    saved = {"lse": lse * LOG2E, "delta": delta, "d_out": d_out.astype(v.dtype)}

    layout, inputs, _ = prepare(problem, operands, offsets, "dq")
    (dq,) = layout.call(_dq, (layout.q_blocks, heads, rows), inputs._replace(**saved), (_like(q), "bhqd"))

    layout, inputs, _ = prepare(problem, operands, offsets, "dkv", heads=heads // key_heads)
    outputs = ((_like(k), "bgkd"), (_like(v), "bgkd"))
    dk, dv = layout.call(_dkv, (layout.k_blocks, key_heads, rows), inputs._replace(**saved), *outputs)
    if bias is None:
        return Gradients(dq, dk, dv, None)

    sharing = {"rows": rows // bias.shape[0], "heads": heads // bias.shape[1]}
    layout, inputs, truth = prepare(problem, operands, offsets, "dbias", **sharing)
    inputs = inputs._replace(index=work(truth), count=None, **saved)
    grid = (layout.k_blocks, layout.q_blocks, bias.shape[1], bias.shape[0])
    (dbias,) = layout.call(_dbias, grid, inputs, (_like(bias), "bhqk"))
    return Gradients(dq, dk, dv, dbias)


def _like(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


# The kernels: `c` is their layout, `x` their inputs.


def _forward(c: Layout, x: Inputs, out: Any, lse: Any) -> None:
    i = _from_the_last(c)
    rows = read_rows(c, x, 0, 0, i)

    def visit(j: Any, masked: bool, carry: Any) -> Any:
        total, top, mean = carry
        columns = read_columns(c, x, 0, 0, j)
        logits = _logits(c, x, (0, 0), rows, columns, masked)
        new_top = jnp.maximum(top, jnp.max(logits, axis=1))
        weights = jnp.exp2(logits - new_top[:, None])
        shrink = jnp.exp2(top - new_top)
        mean = mean * shrink[:, None] + _dot(weights.astype(columns.v.dtype), columns.v, 1, 0)
        return total * shrink + jnp.sum(weights, axis=1), new_top, mean

    none, floor = jnp.zeros((c.tile.q,), jnp.float32), jnp.full((c.tile.q,), FLOOR, jnp.float32)
    total, top, mean = _sweep(c, x, i, visit, (none, floor, _zeros(c.tile.q, c.padded_width)))
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    write(c, out, rows.tokens, mean / total[:, None])
    write(c, lse, rows.tokens, jnp.where(seen, (top + jnp.log2(total)) / LOG2E, FLOOR))


def _dq(c: Layout, x: Inputs, dq: Any) -> None:
    i = _from_the_last(c)
    rows = read_rows(c, x, 0, 0, i)

    def visit(j: Any, masked: bool, sums: Any) -> Any:
        columns = read_columns(c, x, 0, 0, j)
        _, d_logits = _weights(c, x, (0, 0), rows, columns, masked)
        return sums + _dot(d_logits.astype(columns.k.dtype), columns.k, 1, 0)

    sums = _sweep(c, x, i, visit, _zeros(c.tile.q, c.padded_width))
    write(c, dq, rows.tokens, sums * c.problem.scale)


def _dkv(c: Layout, x: Inputs, dk: Any, dv: Any) -> None:
    j = pl.program_id(0)
    columns = read_columns(c, x, 0, 0, j)

    def head(h: Any, carry: Any) -> Any:
        def visit(i: Any, masked: bool, carry: Any) -> Any:
            sums_k, sums_v = carry
            rows = read_rows(c, x, 0, h, i)
            # Keys by queries, so that the products below take the weights as they are.
            weights, d_logits = _weights(c, x, (0, h), rows, columns, masked, turned=True)
            sums_v += _dot(weights.astype(rows.d_out.dtype), rows.d_out, 1, 0)
            return sums_k + _dot(d_logits.astype(rows.q.dtype), rows.q, 1, 0), sums_v

        return _sweep(c, x, j, visit, carry)

    zeros = _zeros(c.tile.k, c.padded_width)
    sums_k, sums_v = _each(c.heads, head, (zeros, zeros))
    write(c, dk, columns.tokens, sums_k * c.problem.scale)
    write(c, dv, columns.tokens, sums_v)


def _dbias(c: Layout, x: Inputs, dbias: Any) -> None:
    j, i = pl.program_id(0), pl.program_id(1)

    def row(b: Any, sums: Any) -> Any:
        needed = x.index[0 if x.index.shape[0] == 1 else b, i, j]

        def head(masked: bool, h: Any, sums: Any) -> Any:
            rows, columns = read_rows(c, x, b, h, i), read_columns(c, x, b, jax.lax.div(h, c.group), j)
            return sums + _weights(c, x, (b, h), rows, columns, masked)[1]

        for masked, possible in ((False, c.kinds.full), (True, c.kinds.partial)):
            if possible:
                heads = (needed == (1 if masked else 2)).astype(jnp.int32) * c.heads
                sums = jax.lax.fori_loop(0, heads, functools.partial(head, masked), sums)
        return sums

    sums = _each(c.rows, row, _zeros(c.tile.q, c.tile.k))
    write(c, dbias, queries(c, x, 0, i), sums, keys(c, x, 0, j))


def _from_the_last(c: Layout) -> Any:
    """This program's block: last queries see most under a causal mask, and the longest work is best begun first."""
    return c.q_blocks - 1 - pl.program_id(0)


def _zeros(*shape: int) -> Any:
    return jnp.zeros(shape, jnp.float32)


def _each(count: int, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """A loop, unless there is nothing to repeat."""
    return jax.lax.fori_loop(0, count, step, carry) if count > 1 else step(jnp.int32(0), carry)


def _sweep(c: Layout, x: Inputs, major: Any, visit: Callable[[Any, bool, Any], Any], carry: Any) -> Any:
    """Visits the blocks listed for one major block; `visit` takes a block, whether to mask it, and the carry."""
    whole, listed, first = x.count[0, major, 0], x.count[0, major, 1], x.index[0, major, 0]

    def unmasked(n: Any, carry: Any) -> Any:
        return visit(first + n if c.kinds.running else x.index[0, major, n], False, carry)

    def masked(n: Any, carry: Any) -> Any:
        return visit(x.index[0, major, n], True, carry)

    if c.kinds.full:
        carry = jax.lax.fori_loop(0, whole, unmasked, carry)
    if c.kinds.partial:
        carry = jax.lax.fori_loop(whole, listed, masked, carry)
    return carry


def _weights(
    c: Layout, x: Inputs, at: tuple[Any, Any], rows: Rows, columns: Columns, masked: bool, turned: bool = False
) -> tuple[Any, Any]:
    """The softmax's weights, and the gradients of logits and bias (Dao 2023, algorithm 2, lines 11 to 14)."""
    weights = jnp.exp2(_logits(c, x, at, rows, columns, masked, turned) - _along(rows.lse, turned))
    d_weights = _dot(columns.v, rows.d_out, 1, 1) if turned else _dot(rows.d_out, columns.v, 1, 1)
    return weights, weights * (d_weights - _along(rows.delta, turned))


def _logits(
    c: Layout, x: Inputs, at: tuple[Any, Any], rows: Rows, columns: Columns, masked: bool, turned: bool = False
) -> Any:
    """Logits of base 2 at a row and head, scaled, biased, masked: queries by keys, or `turned`, keys by queries."""
    logits = _dot(columns.k, rows.q, 1, 1) if turned else _dot(rows.q, columns.k, 1, 1)
    logits *= c.problem.scale * LOG2E
    if x.bias is not None:
        bias = read(c, x.bias, *at, rows.tokens, columns.tokens).astype(jnp.float32) * LOG2E
        logits += bias.T if turned else bias
    if not masked:
        return logits
    q, k = rows.tokens, columns.tokens
    visible = c.problem.formula.sees(
        Side(_along(q.position, turned), (_along(label, turned) for label in q.labels)),
        Side(_along(k.position, not turned), (_along(label, not turned) for label in k.labels)),
    )
    if k.inside is not None:
        visible &= _along(k.inside, not turned)
    return jnp.where(visible, logits, MASKED)


def _along(x: Any, columns: bool) -> Any:
    """[n] as [1, n], one number a column, or as [n, 1]."""
    return x[None, :] if columns else x[:, None]


def _dot(a: Any, b: Any, i: int, j: int) -> Any:
    """The product over axis i of a and j of b, summed in float32.

    HIGHEST: factors of float32 are taken whole; by default Triton would round them to the 10 bits of TF32.
    """
    return jax.lax.dot_general(
        a, b, (((i,), (j,)), ((), ())), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
