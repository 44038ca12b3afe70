"""Attention in plain JAX whose memory is linear in the length: the softmax is taken block by block.

The output of a block of queries is gathered over blocks of keys with a running maximum and sum (Rabe and Staats 2021,
section 3; Dao et al. 2022, algorithm 1). The backward pass computes the weights again from the saved normaliser (Dao
et al. 2022, algorithm 4). No [Q, K] array of a head ever exists, and blocks where nothing is visible cost nothing.

On a CPU what counts is where the numbers lie, so there one head is worked on at a time, in blocks that the cache
holds. Elsewhere all heads advance together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jmm.kernels.core import FLOOR, Gradients, Operands, Problem
from jmm.kernels.cut import Cut, visit
from jmm.kernels.placement import target

BLOCKS = (256, 256)
"""About as many queries and keys in a block, unless the problem says otherwise: small enough to skip by."""
OPEN_BLOCKS = (512, 1024)
"""The same where every pair is visible."""

Arrays = tuple[jax.Array, ...]


def forward(
    problem: Problem, operands: Operands, offsets: Sequence[Any] = (0, 0)
) -> tuple[Float[Array, "B H Q D"], Float[Array, "B H Q"]]:
    """As `Core.forward`."""
    cut = _cut(problem, operands, offsets)
    tables = cut.tables(by_keys=False)
    queries, keys, values = (_tokens_first(each) for each in operands[:3])

    def head(arrays: Arrays, _: Any, b: jax.Array, g: jax.Array) -> tuple[Arrays, None]:
        q = cut.blocks(arrays[0], b, g, 0) * problem.scale
        k, v = cut.blocks(keys, b, g, 1), cut.blocks(values, b, g, 1)

        def row(i: jax.Array) -> Arrays:
            q_block = _block(q, i)

            def step(j: jax.Array, partial: bool, carry: Arrays) -> Arrays:
                highest, total, out = carry
                s = cut.shown(_dot(q_block, _block(k, j), 1), (b, g, i, j), partial)
                new_highest = jnp.maximum(highest, s.max(1))
                p, shrink = jnp.exp(s - new_highest[:, None]), jnp.exp(highest - new_highest)
                out = out * shrink[:, None] + _dot(p.astype(cut.dtype), _block(v, j), 0)
                return new_highest, total * shrink + p.sum(1), out

            nothing = _zeros(q, q.shape[1]) + FLOOR, _zeros(q, q.shape[1]), _zeros(q, *q.shape[1:])
            highest, total, out = visit(tables, b, i % cut.counts[0], step, nothing)
            total = jnp.where(total == 0, 1, total)
            return out / total[:, None], highest + jnp.log(total)

        out, lse = lax.map(row, jnp.arange(len(q)))
        return (cut.joined(out, 0), cut.joined(lse[..., None], 0)), None

    queries = queries.astype(jnp.promote_types(queries.dtype, values.dtype))
    (out, lse), _ = _each_head(head, (queries, _zeros(queries, *queries.shape[:3], 1)), None, cut)
    return _tokens_first(out).astype(values.dtype), _tokens_first(lse)[..., 0]


def backward(
    problem: Problem,
    operands: Operands,
    lse: Float[Array, "B H Q"],
    delta: Float[Array, "B H Q"],
    d_out: Float[Array, "B H Q D"],
    offsets: Sequence[Any] = (0, 0),
) -> Gradients:
    """As `Core.backward`."""
    cut = _cut(problem, operands, offsets)
    tables = cut.tables(by_keys=True)
    beside = [_tokens_first(each) for each in (d_out, lse[..., None], delta[..., None])]

    def head(arrays: Arrays, d_bias: Any, b: jax.Array, g: jax.Array) -> tuple[Arrays, Any]:
        q, d_o, norm, shift = (cut.blocks(each, b, g, 0) for each in (arrays[0], *beside))
        k, v = (cut.blocks(each, b, g, 1) for each in arrays[1:])
        q, norm, shift = q * problem.scale, norm[..., 0], shift[..., 0]

        def column(carry: tuple[jax.Array, Any], j: jax.Array) -> tuple[Any, Arrays]:
            # The weights stand with the keys in front, [K, Q], so that no product needs a transposed copy of them.
            k_block, v_block = _block(k, j), _block(v, j)
            k_turned = k_block.T

            def step(i: jax.Array, partial: bool, carry: Any) -> Any:
                dk, dv, dq, d_bias = carry
                q_block, d_block = _block(q, i), _block(d_o, i)
                s = cut.shown(_dot(k_block, q_block, 1), (b, g, i, j), partial, turned=True)
                p = jnp.exp(s - _block(norm, i))
                ds = p * (_dot(v_block, d_block, 1) - _block(shift, i))
                d_bias = cut.added(d_bias, ds, (b, g, i, j))
                p, ds = p.astype(cut.dtype), ds.astype(cut.dtype)
                dq = lax.dynamic_update_index_in_dim(dq, _block(dq, i) + _dot(k_turned, ds, 0), i, 0)
                return dk + _dot(ds, q_block, 0), dv + _dot(p, d_block, 0), dq, d_bias

            nothing = _zeros(q, *k.shape[1:])
            dk, dv, *carry = visit(tables, b, j, step, (nothing, nothing, *carry), cut.group, cut.counts[0])
            return tuple(carry), (dk, dv)

        dq = _zeros(q, len(q), q.shape[2], q.shape[1])
        (dq, d_bias), (dk, dv) = lax.scan(column, (dq, d_bias), jnp.arange(len(k)))
        return (cut.joined(dq.mT * problem.scale, 0), cut.joined(dk, 1), cut.joined(dv, 1)), d_bias

    d_bias = None if cut.bias is None else _zeros(operands.q, *cut.bias.shape)
    found, d_bias = _each_head(head, tuple(_tokens_first(each) for each in operands[:3]), d_bias, cut)
    dq, dk, dv = (_tokens_first(each) for each in found)
    return Gradients(dq, dk, dv, None if d_bias is None else d_bias[..., : cut.lengths[0], : cut.lengths[1]])


def _cut(problem: Problem, operands: Operands, offsets: Sequence[Any]) -> Cut:
    # A CPU multiplies float32 best.
    dtype = jnp.float32 if _one_at_a_time() else jnp.result_type(*operands[:3])
    return Cut(problem, operands, offsets, dtype, problem.blocks or BLOCKS, problem.blocks or OPEN_BLOCKS)


def _each_head(head: Callable[..., tuple[Arrays, Any]], arrays: Arrays, shared: Any, cut: Cut) -> tuple[Arrays, Any]:
    """Replaces each group of heads' part [L, H, D] of arrays [B, L, H, D] by what `head(arrays, shared, b, g)` finds.

    It does so in place, so that no arrays are made and filled with zeros. `shared` is handed from head to head.
    """

    def turn(n: jax.Array, carry: tuple[Arrays, Any]) -> tuple[Arrays, Any]:
        b, g = n // cut.groups, n % cut.groups
        found, shared = head(*carry, b, g)
        pairs = zip(carry[0], found, strict=True)
        put = (lax.dynamic_update_slice(x, y[None].astype(x.dtype), (b, 0, g * y.shape[1], 0)) for x, y in pairs)
        return tuple(put), shared

    if _one_at_a_time() or shared is not None:
        return lax.fori_loop(0, cut.rows * cut.groups, turn, (arrays, shared))
    each = jax.vmap(jax.vmap(lambda b, g: head(arrays, None, b, g)[0], (None, 0)), (0, None))
    pairs = zip(arrays, each(jnp.arange(cut.rows), jnp.arange(cut.groups)), strict=True)
    return tuple(y.swapaxes(1, 2).reshape(x.shape).astype(x.dtype) for x, y in pairs), None


def _one_at_a_time() -> bool:
    return target().platform == "cpu"


def _tokens_first(x: Float[Array, "B M N D"]) -> Float[Array, "B N M D"]:
    """[B, H, L, D] to [B, L, H, D], and back. The entry has done the opposite, and XLA drops both."""
    return jnp.swapaxes(x, 1, 2)


def _zeros(like: jax.Array, *shape: int) -> jax.Array:
    # Inside shard_map they must vary along the same axes of the mesh as what is added to them.
    return jnp.zeros_like(like, jnp.float32, shape)


def _block(x: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _dot(a: Float[Array, "M D"], b: Array, b_axis: int) -> Float[Array, "M N"]:
    """a bᵀ (b_axis 1) or a b (0), the two products that are fastest on a CPU; for aᵀ b XLA would copy a first."""
    return lax.dot_general(a, b, (((1,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
