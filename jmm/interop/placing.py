"""Tensors onto the devices of a mesh, each as it is read."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jmm.distributed.sharding import tree_shardings
from jmm.interop.table import Piece, Tensors, flatten, unflatten


def place(pieces: Sequence[Piece], tensors: Tensors, abstract: Any, mesh: Mesh) -> Any:
    """Our variables, in the shapes and types of `abstract`, where the rules of `jmm.distributed.sharding` put them.

    The host holds one of their tensors at a time: a stack of layers is made on the devices and filled layer by layer.

    Raises:
      UserError: theirs holds different tensors under names that are one.
    """
    wanted, shardings = flatten(abstract), flatten(_placed(abstract, mesh))
    found = {}
    for path, group in groupby(pieces, lambda piece: piece.path):
        leaf, sharding = wanted[path], shardings[path]
        for piece in group:
            array = np.asarray(piece.read(tensors), leaf.dtype)
            if piece.layer is None:
                found[path] = _put(array, sharding)
                continue
            if piece.layer == 0:
                found[path] = _empty(leaf.shape, leaf.dtype, sharding)()
            layer = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))
            found[path] = _fill(found[path], _put(array, layer), jnp.int32(piece.layer))
    return unflatten(found, abstract)


def abstract_on(tree: Any, mesh: Mesh) -> Any:
    """Shapes and types with their places on a mesh, by the rules."""

    def place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree, tree_shardings(tree, mesh))


def _placed(abstract: Any, mesh: Mesh) -> Any:
    # By their paths within each collection, as in the train state.
    return {name: tree_shardings(tree, mesh) for name, tree in abstract.items()}


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    # Every process reads the whole tensor and gives its devices their parts.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _empty(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Callable[[], jax.Array]:
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@partial(jax.jit, donate_argnums=0)
def _fill(stack: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)
