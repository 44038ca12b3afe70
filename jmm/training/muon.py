"""Muon (Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks): every kernel moves by its
momentum, made orthogonal.

The matrices of one shape are dealt out to the devices, each of which makes its own orthogonal, one after another (after
Liu et al. 2025, Muon is scalable for LLM training, section 2.3). Left to the partitioner, every device would make all
of them, or exchange the products of their parts in each round.
"""

import math
import re
from functools import reduce
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jmm.distributed.sharding import path_name

MOMENTUM = 0.95

ROUNDS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Newton and Schulz's iteration: singular values come to lie about 1, from 0.7 to 1.2, soon and not exactly."""

SIZE = 0.2
"""The root mean square of an update before the rate, about that of AdamW's, so that one rate suits both (Liu et al.
2025, section 2.2)."""

INPUTS = (
    (r"/out/kernel$", 2, 3),
    (r"/(query|key|value)/kernel$", 1, 3),
    (r"(conv\d*|patches/projection)/kernel$", 3, 4),
)
"""How many inputs a matrix has among how many of a kernel's last dimensions: the first pattern found in the path
decides. Others have one of two. Dimensions before them count layers, each a matrix of its own."""


def move_by_muon() -> optax.GradientTransformation:
    """Updates of kernels in the direction of their gradients. The state is the momentum."""
    return optax.chain(optax.trace(MOMENTUM, nesterov=True), optax.stateless(_orthogonal_updates))


def orthogonal(matrix: Float[Array, "R C"]) -> Float[Array, "R C"]:
    """About U Vᵀ of a matrix U S Vᵀ that has no more rows than columns; 0 of 0."""
    a, b, c = COEFFICIENTS
    matrix = matrix / (jnp.linalg.norm(matrix) + 1e-7)
    rows, columns = matrix.shape
    if columns < 2 * rows:
        for _ in range(ROUNDS):
            square = matrix @ matrix.T
            matrix = a * matrix + (b * square + c * square @ square) @ matrix
        return matrix
    # A round multiplies by a polynomial of the square, as it does the square itself, twice: the long sides meet only
    # at the beginning and at the end.
    square, factors = matrix @ matrix.T, []
    for _ in range(ROUNDS):
        factors.append(a * jnp.eye(rows) + b * square + c * square @ square)
        square = factors[-1] @ square @ factors[-1]
    return reduce(jnp.matmul, factors) @ matrix


def _orthogonal_updates(updates: Any, _: Any) -> Any:
    """Each kernel's matrices made orthogonal, with entries as large as AdamW's steps."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    stacks = [_matrices(path_name(path), leaf) for path, leaf in leaves]
    moves: dict[int, jax.Array] = {}
    for shape in sorted({_lying(stack).shape[1:] for stack in stacks}):
        alike = [index for index, stack in enumerate(stacks) if _lying(stack).shape[1:] == shape]
        together = jnp.concatenate([_lying(stacks[index]) for index in alike])
        ends = list(accumulate(len(stacks[index]) for index in alike))
        made = jnp.split(_dealt_out(together) * (SIZE * math.sqrt(shape[1])), ends[:-1])
        moves |= dict(zip(alike, made, strict=True))
    turned = [moves[i] if moves[i].shape == stack.shape else moves[i].mT for i, stack in enumerate(stacks)]
    kernels = [move.reshape(kernel.shape) for move, (_, kernel) in zip(turned, leaves, strict=True)]
    return jax.tree_util.tree_unflatten(structure, kernels)


def _matrices(path: str, kernel: jax.Array) -> jax.Array:
    """[N, inputs, outputs]"""
    inputs, among = next((found for pattern, *found in INPUTS if re.search(pattern, path)), (1, 2))
    shape = kernel.shape[kernel.ndim - among :]
    return kernel.reshape(-1, math.prod(shape[:inputs]), math.prod(shape[inputs:]))


def _lying(stack: jax.Array) -> jax.Array:
    """Matrices with no more rows than columns."""
    return stack.mT if stack.shape[1] > stack.shape[2] else stack


def _dealt_out(stack: jax.Array) -> jax.Array:
    """Each matrix [N,R,C] made orthogonal, on one of the devices of the mesh under which this is called."""

    def each(own: jax.Array) -> jax.Array:
        return jax.lax.map(orthogonal, own)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return each(stack)
    filled = jnp.pad(stack, ((0, -len(stack) % mesh.size), (0, 0), (0, 0)))
    over_all = PartitionSpec(mesh.axis_names)
    return jax.shard_map(each, in_specs=over_all, out_specs=over_all)(filled)[: len(stack)]
