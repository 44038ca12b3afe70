"""The one device mesh: named axes `data`, `fsdp`, `tensor`, `sequence`, made explicitly and passed explicitly."""

import math
from dataclasses import asdict, dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jmm.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("data", "fsdp")


@dataclass(frozen=True)
class MeshShape:
    """Sizes of the axes of the device mesh; their product is the number of devices."""

    data: int = -1
    """Copies of the model, each with its share of the batch; -1: all devices that the other axes leave."""
    fsdp: int = 1
    """Ways in which parameters and optimizer state are cut, each with its share of the batch."""
    tensor: int = 1
    """Ways in which heads and hidden features are cut."""
    sequence: int = 1
    """Ways in which the token axis of activations is cut."""


def make_mesh(shape: MeshShape, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges all devices so that neighbours on the last axes are neighbours on the interconnect. Of several TPU
    slices, between which the network is slow, each takes its run of `data`.

    Raises:
      UserError: the axes do not multiply to the number of devices; `data` is no multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = asdict(shape)
    if any(size < 1 and not (size == -1 and axis == "data") for axis, size in sizes.items()):
        raise UserError(f"mesh axes must be positive (data may be -1 for all that is left), not {_show(sizes)}")
    if sizes["data"] == -1:
        others = math.prod(sizes[axis] for axis in AXES if axis != "data")
        if len(devices) % others:
            raise UserError(f"a mesh of {_show(sizes)} needs a multiple of {others} devices, there are {len(devices)}")
        sizes["data"] = len(devices) // others
    if math.prod(sizes.values()) != len(devices):
        raise UserError(f"a mesh of {_show(sizes)} needs {math.prod(sizes.values())} devices, there are {len(devices)}")
    dimensions = tuple(sizes[axis] for axis in AXES)
    grid = arranged(dimensions, devices) if devices[0].platform == "tpu" else np.array(devices).reshape(dimensions)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arranged(dimensions: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """TPUs in the order of their interconnect, slice after slice along the first dimension."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return np.asarray(mesh_utils.create_device_mesh(dimensions, devices=devices, allow_split_physical_axes=True))
    first, *others = dimensions
    if first % slices:
        raise UserError(f"data {first} does not divide over {slices} slices; the other axes stay within a slice")
    within, between = (first // slices, *others), (slices, *(1 for _ in others))
    return mesh_utils.create_hybrid_device_mesh(within, between, devices=devices, allow_split_physical_axes=True)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises UserError unless the global batch divides over processes, micro-batches and the batch axes."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size < 1 or batch_size % (ways * accumulate):
        parts = f"data {mesh.shape['data']} × fsdp {mesh.shape['fsdp']} = {ways}"
        if accumulate > 1:
            parts += f" times {accumulate} micro-batches"
        raise UserError(f"a batch of {batch_size} does not divide over {parts}")
    if batch_size % jax.process_count():
        raise UserError(f"a batch of {batch_size} does not divide over {jax.process_count()} processes")


def _show(sizes: dict[str, int]) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in sizes.items())
