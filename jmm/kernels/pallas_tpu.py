"""Attention on TPUs: flash attention (Dao 2023) in Mosaic, skipping every block that the mask formula hides.

Three kernels, one shape: a *major* block (queries for the output and dq, keys for dk and dv) stays in fast memory and
accumulates what the *minor* blocks on its list contribute. The list (`jmm.kernels.blocks.schedule`) is prefetched, so a
block that is not on it is neither computed nor fetched; a block that is visible throughout never looks at the
predicate. A tile of scores is [major, minor] in all of them, so each product has the one order that the matrix unit
takes without turning a tile of scores. A fourth kernel gives the gradient of the bias and sums it over the batch
before it leaves fast memory.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from jmm.kernels.blocks import Schedule, schedule
from jmm.kernels.core import FLOOR, Gradients, Operands, Problem
from jmm.kernels.tpu_blocks import MAX_WIDTH, block_sizes
from jmm.kernels.tpu_call import (
    LANES,
    LOG2E,
    MAX_BLOCKS,
    Blocks,
    Call,
    Index,
    Step,
    packed,
    row_spec,
    spread,
    unpacked,
    wide_column,
)

MAX_ENTRIES = 1 << 17
"""Entries of a list of blocks that scalar memory holds beside everything else."""
PARTIAL, FULL = 1, 2


def supports(problem: Problem, operands: Operands) -> str | None:
    """Why these kernels do not take a call; None if they do."""
    q_length, width = operands.q.shape[2:]
    if width % 8 or width > MAX_WIDTH:
        return f"the head width must be a multiple of 8 up to {MAX_WIDTH}, not {width}"
    types = {each.dtype.name for each in operands[:3]}
    if len(types) > 1 or not types <= {"float32", "bfloat16"}:
        return f"it takes q, k and v all in float32 or all in bfloat16, not in {', '.join(sorted(types))}"
    if 0 in (*operands.q.shape, *operands.k.shape):
        return f"there is nothing to compute for q {operands.q.shape} and k {operands.k.shape}"
    sizes = problem.blocks or block_sizes(operands)
    rows = max((each.shape[0] for each in (*operands.q_labels, *operands.k_labels)), default=1)
    blocks = pl.cdiv(q_length, sizes.q), pl.cdiv(operands.k.shape[2], sizes.k)
    if max(blocks) > MAX_BLOCKS:
        return f"an entry of its list names one of {MAX_BLOCKS} blocks, and there are {max(blocks)}"
    entries = rows * blocks[0] * blocks[1]
    return f"its list of {entries} blocks is longer than {MAX_ENTRIES}" if entries > MAX_ENTRIES else None


def forward(
    problem: Problem, operands: Operands, offsets: Sequence[Any] = (0, 0)
) -> tuple[Float[Array, "B H Q D"], Float[Array, "B H Q"]]:
    """As `Core.forward`."""
    call = Call(problem, operands, offsets)
    order = schedule(call.truth, by_keys=False)
    at_q, at_k = _by_queries(call, order)

    def kernel(
        table: Any, offsets: Any, blocks: Blocks, out: Any, lse: Any, q: Any, top: Any, total: Any, sums: Any
    ) -> None:
        at = unpacked(table, order, pl.program_id(0), pl.program_id(2))

        @pl.when(at.first)
        def _() -> None:
            q[...] = call.by_token(blocks.q[0, 0])
            top[...] = jnp.full_like(top, FLOOR)
            total[...], sums[...] = jnp.zeros_like(total), jnp.zeros_like(sums)

        def contribute(partial: bool) -> None:
            place = at.major, at.minor
            s = call.logits(q[...], blocks.k[0, 0], blocks, offsets, place, partial=partial)
            before = top[...]
            above = jnp.maximum(before, jnp.max(s, axis=1)[:, None])
            p = jnp.exp2(s - spread(above, call.k.block))
            kept = jnp.exp2(before - above)
            top[...] = above
            total[...] = total[...] * kept + jnp.sum(p, axis=1)[:, None]
            v = blocks.v[0, 0]
            sums[...] = sums[...] * spread(kept, call.width) + call.dot(p.astype(v.dtype), v, (1, call.t))

        _work(order, at, contribute)

        @pl.when(at.last)
        def _() -> None:
            seen = total[...] > 0
            whole = jnp.where(seen, total[...], 1)
            out[0, 0] = call.by_token(sums[...] / spread(whole, call.width)).astype(out.dtype)
            log = jnp.where(seen, (top[...] + jnp.log2(whole)) / LOG2E, FLOOR)
            lse[0, 0] = log.T[:1]

    arrays, specs = call.inputs(at_q, at_k)
    numbers = jax.ShapeDtypeStruct((call.rows, call.heads, 1, call.q.padded), jnp.float32)
    out, lse = call.run(
        kernel,
        "attention_forward",
        packed(order),
        (call.rows, call.heads, order.steps),
        arrays,
        specs,
        [
            (call.result(call.heads, call.q, operands.v.dtype), call.spec(call.q, at_q)),
            (numbers, row_spec(call.q, at_q)),
        ],
        [
            ((call.q.block, call.width), operands.q.dtype),
            ((call.q.block, LANES), jnp.float32),
            ((call.q.block, LANES), jnp.float32),
            ((call.q.block, call.width), jnp.float32),
        ],
        parallel=2,
        dots=2,
    )
    return call.restored(out, call.q), lse[:, :, 0, : call.q.length]


def backward(
    problem: Problem,
    operands: Operands,
    lse: Float[Array, "B H Q"],
    delta: Float[Array, "B H Q"],
    d_out: Float[Array, "B H Q D"],
    offsets: Sequence[Any] = (0, 0),
) -> Gradients:
    """As `Core.backward`."""
    call = Call(problem, operands, offsets)
    given = (d_out, lse, delta)
    dk, dv = _keys_and_values(call, given)
    d_bias = None if operands.bias is None else _bias(call, given, operands.bias.shape)
    return Gradients(_queries(call, given), dk, dv, d_bias)


def _queries(call: Call, given: tuple[jax.Array, ...]) -> jax.Array:
    """dq [B, H, Q, D]."""
    order = schedule(call.truth, by_keys=False)
    at_q, at_k = _by_queries(call, order)

    def kernel(
        table: Any, offsets: Any, blocks: Blocks, dq: Any, q: Any, d_out: Any, lse: Any, delta: Any, sums: Any
    ) -> None:
        at = unpacked(table, order, pl.program_id(0), pl.program_id(2))

        @pl.when(at.first)
        def _() -> None:
            q[...], d_out[...] = call.by_token(blocks.q[0, 0]), call.by_token(blocks.d_out[0, 0])
            lse[...], delta[...] = wide_column(blocks.lse[0, 0] * LOG2E, LANES), wide_column(blocks.delta[0, 0], LANES)
            sums[...] = jnp.zeros_like(sums)

        def contribute(partial: bool) -> None:
            place = at.major, at.minor
            k = blocks.k[0, 0]
            s = call.logits(q[...], k, blocks, offsets, place, partial=partial)
            p = jnp.exp2(s - spread(lse[...], call.k.block))
            dp = call.dot(d_out[...], blocks.v[0, 0], (1, call.d))
            ds = p * (dp - spread(delta[...], call.k.block))
            sums[...] += call.dot(ds.astype(k.dtype), k, (1, call.t))

        _work(order, at, contribute)

        @pl.when(at.last)
        def _() -> None:
            dq[0, 0] = call.by_token(sums[...] * call.problem.scale).astype(dq.dtype)

    arrays, specs = call.inputs(at_q, at_k, given)
    dtype = call.operands.q.dtype
    (dq,) = call.run(
        kernel,
        "attention_queries",
        packed(order),
        (call.rows, call.heads, order.steps),
        arrays,
        specs,
        [(call.result(call.heads, call.q, dtype), call.spec(call.q, at_q))],
        [
            *[((call.q.block, call.width), dtype)] * 2,
            *[((call.q.block, LANES), jnp.float32)] * 2,
            ((call.q.block, call.width), jnp.float32),
        ],
        parallel=2,
        dots=3,
    )
    return call.restored(dq, call.q)


def _keys_and_values(call: Call, given: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """dk and dv [B, G, K, D], summed over the query heads of a group, which are the innermost axis of the grid."""
    order = schedule(call.truth, by_keys=True)

    def at_q(row: Any, head: Any, step: Any, member: Any, table: Any, _: Any) -> tuple[Any, Any, Any]:
        return row, head * call.group + member, unpacked(table, order, row, step).minor

    def at_k(row: Any, head: Any, step: Any, member: Any, table: Any, _: Any) -> tuple[Any, Any, Any]:
        return row, head, unpacked(table, order, row, step).major

    def kernel(
        table: Any, offsets: Any, blocks: Blocks, dk: Any, dv: Any, k: Any, v: Any, k_sums: Any, v_sums: Any
    ) -> None:
        at = unpacked(table, order, pl.program_id(0), pl.program_id(2))
        member = pl.program_id(3)

        @pl.when(at.first & (member == 0))
        def _() -> None:
            k[...], v[...] = call.by_token(blocks.k[0, 0]), call.by_token(blocks.v[0, 0])
            k_sums[...], v_sums[...] = jnp.zeros_like(k_sums), jnp.zeros_like(v_sums)

        def contribute(partial: bool) -> None:
            place = at.minor, at.major
            q, d_out = blocks.q[0, 0], blocks.d_out[0, 0]
            s = call.logits(k[...], q, blocks, offsets, place, partial=partial, by_keys=True)
            p = jnp.exp2(s - blocks.lse[0, 0] * LOG2E)
            dp = call.dot(v[...], d_out, (1, call.d))
            ds = p * (dp - blocks.delta[0, 0])
            v_sums[...] += call.dot(p.astype(d_out.dtype), d_out, (1, call.t))
            k_sums[...] += call.dot(ds.astype(q.dtype), q, (1, call.t))

        _work(order, at, contribute)

        @pl.when(at.last & (member == call.group - 1))
        def _() -> None:
            dk[0, 0] = call.by_token(k_sums[...] * call.problem.scale).astype(dk.dtype)
            dv[0, 0] = call.by_token(v_sums[...]).astype(dv.dtype)

    arrays, specs = call.inputs(at_q, at_k, given)
    dtype = call.operands.k.dtype
    dk, dv = call.run(
        kernel,
        "attention_keys",
        packed(order),
        (call.rows, call.kv_heads, order.steps, call.group),
        arrays,
        specs,
        [(call.result(call.kv_heads, call.k, dtype), call.spec(call.k, at_k))] * 2,
        [*[((call.k.block, call.width), dtype)] * 2, *[((call.k.block, call.width), jnp.float32)] * 2],
        parallel=2,
        dots=4,
    )
    return call.restored(dk, call.k), call.restored(dv, call.k)


def _bias(call: Call, given: tuple[jax.Array, ...], shape: tuple[int, ...]) -> jax.Array:
    """The gradient of the bias, in its shape; the rows and heads that share it are the innermost axes of the grid."""
    rows, heads = call.rows // shape[0], call.heads // shape[1]
    truth = call.truth
    work = truth.some.astype(np.int32) + (truth.some & truth.all)
    per_row, majors, minors = work.shape

    def kind(table: Any, row: Any, i: Any, j: Any) -> Any:
        return table[((row if per_row > 1 else 0) * majors + i) * minors + j]

    def at(i: Any, j: Any, row: Any, head: Any, inner_row: Any, inner_head: Any, table: Any) -> tuple[Any, Any, Any]:
        # A shared bias counts rows or heads in the inner axes, one of its own in the outer ones. A block that is
        # hidden fetches the block that is there already.
        row, head = row + inner_row, head + inner_head
        some = jnp.minimum(kind(table, row, i, j), 1)
        return row * some, head * some, some

    def at_q(i: Any, j: Any, *rest: Any) -> tuple[Any, Any, Any]:
        row, head, some = at(i, j, *rest[:-1])
        return row, head, i * some

    def at_k(i: Any, j: Any, *rest: Any) -> tuple[Any, Any, Any]:
        row, head, some = at(i, j, *rest[:-1])
        return row, head // call.group, j * some

    def at_bias(i: Any, j: Any, row: Any, head: Any, *_: Any) -> tuple[Any, ...]:
        return row, head, i, j

    def kernel(table: Any, offsets: Any, blocks: Blocks, d_bias: Any) -> None:
        i, j, row = (pl.program_id(axis) for axis in range(3))
        inner_row, inner_head = pl.program_id(4), pl.program_id(5)

        @pl.when((inner_row == 0) & (inner_head == 0))
        def _() -> None:
            d_bias[...] = jnp.zeros_like(d_bias)

        def contribute(partial: bool) -> None:
            q, d_out = call.by_token(blocks.q[0, 0]), call.by_token(blocks.d_out[0, 0])
            s = call.logits(q, blocks.k[0, 0], blocks, offsets, (i, j), partial=partial)
            p = jnp.exp2(s - wide_column(blocks.lse[0, 0] * LOG2E, call.k.block))
            dp = call.dot(d_out, blocks.v[0, 0], (1, call.d))
            d_bias[0, 0] += p * (dp - wide_column(blocks.delta[0, 0], call.k.block))

        found = kind(table, row + inner_row, i, j)
        pl.when(found == PARTIAL)(lambda: contribute(True))
        pl.when(found == FULL)(lambda: contribute(False))

    arrays, specs = call.inputs(at_q, at_k, given)
    padded = jax.ShapeDtypeStruct((*shape[:2], call.q.padded, call.k.padded), jnp.float32)
    (d_bias,) = call.run(
        kernel,
        "attention_bias",
        jnp.asarray(work, jnp.int32).reshape(-1),
        (call.q.number, call.k.number, shape[0], shape[1], rows, heads),
        arrays,
        specs,
        [(padded, pl.BlockSpec((1, 1, call.q.block, call.k.block), at_bias))],
        [],
        parallel=4,
        dots=2,
    )
    return d_bias[:, :, : call.q.length, : call.k.length]


def _by_queries(call: Call, order: Schedule) -> tuple[Index, Index]:
    """Which queries and keys a kernel with the grid (row, head, step) reads, its major blocks being queries."""

    def at_q(row: Any, head: Any, step: Any, table: Any, _: Any) -> tuple[Any, Any, Any]:
        return row, head, unpacked(table, order, row, step).major

    def at_k(row: Any, head: Any, step: Any, table: Any, _: Any) -> tuple[Any, Any, Any]:
        return row, head // call.group, unpacked(table, order, row, step).minor

    return at_q, at_k


def _work(order: Schedule, at: Step, contribute: Callable[[bool], None]) -> None:
    """Runs the one of a step's two forms that its block needs; a form that no block needs is not compiled."""
    kinds = set(np.unique(order.work).tolist()) if isinstance(order.work, np.ndarray) else {0, PARTIAL, FULL}
    for kind in kinds & {PARTIAL, FULL}:
        if kinds == {kind}:
            contribute(kind == PARTIAL)
        else:
            pl.when(at.work == kind)(functools.partial(contribute, kind == PARTIAL))
