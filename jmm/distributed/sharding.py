"""Where every array lies on the mesh. All placement rules of the library stand in this file.

Parameters: the first rule whose pattern is found in the path decides; its axes belong to the last dimensions of
the array, so that a stack of layers follows the rule of one layer. A dimension that an axis does not divide is
not cut. Optimizer moments and moving averages lie where their parameters lie.

Activations: parts name the dimensions they constrain; `ACTIVATION_RULES` binds those names to mesh axes.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jmm.distributed.mesh import BATCH_AXES

Axes = str | tuple[str, ...] | None
"""What cuts one dimension: a mesh axis, several together, or nothing."""

PARAMETER_RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    (r"/(query|key|value)/kernel$", ("fsdp", "tensor", None)),
    (r"/(query|key|value)/bias$", ("tensor", None)),
    (r"/out/kernel$", ("tensor", None, "fsdp")),
    (r"/(up|gate)/kernel$", ("fsdp", "tensor")),
    (r"/(up|gate)/bias$", ("tensor",)),
    (r"/down/kernel$", ("tensor", "fsdp")),
    # By rows alone: were the width cut too, looking a row up would have to be laid out anew for every batch.
    (r"(embedding/|unused_)embedding$", (("fsdp", "tensor"), None)),
    (r"patches/projection/kernel$", (None, None, None, ("fsdp", "tensor"))),
    # By outputs alone: cut by inputs, every activation would be a sum over devices.
    (r"conv\d*/kernel$", (None, None, None, ("fsdp", "tensor"))),
    (r"(projection|head)/kernel$", ("fsdp", "tensor")),
    (r"(positions/table|pool/queries)$", (None, "fsdp")),
    # Whole on every device: norms and biases; running statistics, which are those of the whole batch; and codebooks,
    # since each vector is compared with each code.
    (r".*", ()),
)

ACTIVATION_RULES: tuple[tuple[str, Axes], ...] = (
    ("batch", BATCH_AXES),
    ("length", "sequence"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", None),
    ("head_dim", None),
)


@contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Binds the names of activation dimensions to the mesh; a jitted function must be called inside."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
        yield


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as `text/encoder/blocks/mlp/up/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The axes of one parameter by the first rule found in its path."""
    axes = next(axes for pattern, axes in PARAMETER_RULES if re.search(pattern, path))
    leading = len(shape) - len(axes)
    if leading < 0:
        return PartitionSpec()
    fitting = [
        axis if size % _ways(axis, mesh) == 0 else None for axis, size in zip(axes, shape[leading:], strict=True)
    ]
    return PartitionSpec(*[None] * leading, *fitting)


def _ways(axis: Axes, mesh: Mesh) -> int:
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    return math.prod(mesh.shape[name] for name in names)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every array of a pytree (parameters, or state that mirrors them) by the rules."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


@dataclass(frozen=True)
class Placement:
    """Where one array lies."""

    path: str
    shape: tuple[int, ...]
    axes: str
    bytes_per_device: int


def placement_table(tree: Any, shardings: Any) -> list[Placement]:
    """One row for every array of an abstract pytree."""

    def row(path: tuple[Any, ...], leaf: Any, sharding: NamedSharding) -> Placement:
        count = math.prod(sharding.shard_shape(leaf.shape))
        cut = ["+".join(axis) if isinstance(axis, tuple) else axis or "·" for axis in sharding.spec]
        placed = ", ".join(cut) if any(sharding.spec) else "replicated"
        return Placement(path_name(path), leaf.shape, placed, count * leaf.dtype.itemsize)

    rows = jax.tree_util.tree_map_with_path(row, tree, shardings)
    return jax.tree.leaves(rows, is_leaf=lambda leaf: isinstance(leaf, Placement))
