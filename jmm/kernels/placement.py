"""Where a kernel runs: the device it is traced for, and its share of a mesh.

XLA partitions what it understands. A kernel it does not, so under a mesh each device is given its rows, its heads
and its part of the sequence explicitly (`jax.shard_map`), by the logical names that bind every other activation.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec

from jmm.kernels.masks import Labels

ANY = "any"
"""The platform of a program that runs on every one."""


class Target(NamedTuple):
    """The device that a computation is traced for."""

    platform: str
    """cpu, tpu or gpu; `ANY` where one program is traced for all of them."""
    kind: str
    """As the maker calls it: `TPU v5 lite`, `NVIDIA H100 80GB HBM3`."""


def target() -> Target:
    """The device of the mesh around the call if there is one, else the default device.

    So a step that is compiled ahead of time for a slice gets that slice's kernels on any machine.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = jax.devices()[0]
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    return Target(platform, device.device_kind)


@contextmanager
def for_any_platform() -> Iterator[None]:
    """What is traced inside is plain JAX, which lowers for every platform, whatever device is here. Sizes may be
    symbols."""
    device = AbstractDevice(ANY, None, ANY)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)):
        yield


@functools.cache
def warn_once(message: str) -> None:
    """A warning that is given once in a process."""
    warnings.warn(message, stacklevel=2)


def free_axes(name: str, size: int) -> tuple[str, ...]:
    """The mesh axes that cut a dimension of this logical name and size; none where the size does not divide.

    Axes of size 1, and axes that a surrounding `shard_map` has taken, cut nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    bound = nn.logical_to_mesh_axes((name,))
    axes = bound[0] if bound is not None and len(bound) else None
    names = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    names = tuple(n for n in names if types.get(n, AxisType.Manual) != AxisType.Manual and mesh.shape[n] > 1)
    return names if size % math.prod(mesh.shape[n] for n in names) == 0 else ()


Local = Callable[..., jax.Array]
"""(q, k, v, bias, q_labels, k_labels) of one device, as in `placed`, to its part of the output [B, Q, H, D]."""


def placed(
    local: Callable[[tuple[str, ...], int], Local],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    q_labels: Labels,
    k_labels: Labels,
) -> jax.Array:
    """Runs attention on every device's share of q, k, v [B, L, H, D].

    Args:
      local: given the mesh axes that cut the queries' length and the number of parts of the keys, the function that a
        device runs.
      q, k, v, bias, q_labels, k_labels: whole arrays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = {n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Manual}
    free = set(mesh.axis_names) - manual
    if math.prod(mesh.shape[n] for n in free) == 1:
        return local((), 1)(q, k, v, bias, q_labels, k_labels)
    batch = free_axes("batch", q.shape[0])
    heads = free_axes("heads", math.gcd(q.shape[2], k.shape[2]))
    rows = free_axes("length", q.shape[1])
    columns = free_axes("length", k.shape[1]) if rows else ()
    _warn_of_idle_axes(q, k, heads, rows, columns)

    def spec(*axes: tuple[str, ...]) -> PartitionSpec:
        return PartitionSpec(*(each or None for each in axes))

    def label_specs(labels: Labels, length: tuple[str, ...]) -> tuple[PartitionSpec, ...]:
        return tuple(spec(batch if label.shape[0] > 1 else (), length) for label in labels)

    of_q, of_k = spec(batch, rows, heads), spec(batch, columns, heads)
    of_bias: Any = None
    if bias is not None:
        of_bias = spec(batch if bias.shape[0] > 1 else (), heads if bias.shape[1] > 1 else (), rows, ())
    run = jax.shard_map(
        local(rows, math.prod(mesh.shape[n] for n in columns)),
        in_specs=(of_q, of_k, of_k, of_bias, label_specs(q_labels, rows), label_specs(k_labels, columns)),
        out_specs=of_q,
        axis_names=free,
        # Kernels do not say along which axes their results differ; sums over replicas are then left to the transpose.
        check_vma=False,
    )
    return run(q, k, v, bias, q_labels, k_labels)


def _warn_of_idle_axes(
    q: jax.Array, k: jax.Array, heads: tuple[str, ...], rows: tuple[str, ...], columns: tuple[str, ...]
) -> None:
    for name, found, what in (
        ("heads", heads, f"{q.shape[2]} query and {k.shape[2]} key heads"),
        ("length", rows, f"{q.shape[1]} queries"),
        ("length", columns or (() if rows else ("-",)), f"{k.shape[1]} keys"),
    ):
        idle = free_axes(name, 0)
        if idle and not found:
            warn_once(
                f"attention: {what} do not divide over the mesh axis {'+'.join(idle)}, so every device along it "
                "computes them all"
            )
