"""The mesh: sizes that do not fit the eight devices are refused with both numbers."""

import jax
import pytest

from jmm.distributed.mesh import AXES, check_batch, make_mesh
from jmm.errors import UserError
from jmm.experiment import MeshShape


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (MeshShape(), (8, 1, 1, 1)),
        (MeshShape(fsdp=2), (4, 2, 1, 1)),
        (MeshShape(fsdp=2, tensor=2, sequence=2), (1, 2, 2, 2)),
        (MeshShape(data=2, fsdp=4), (2, 4, 1, 1)),
    ],
)
def test_data_takes_what_the_others_leave(shape, sizes):
    mesh = make_mesh(shape)
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == sizes
    assert set(mesh.devices.ravel()) == set(jax.devices())


@pytest.mark.parametrize(
    ("shape", "needed"),
    [(MeshShape(fsdp=3), "3"), (MeshShape(data=2, tensor=2), "4"), (MeshShape(data=2, fsdp=16), "32")],
)
def test_sizes_that_do_not_fit_are_refused_with_both_numbers(shape, needed):
    with pytest.raises(UserError, match=rf"\b{needed} devices, there are 8\b"):
        make_mesh(shape)


@pytest.mark.parametrize("shape", [MeshShape(data=0), MeshShape(fsdp=0), MeshShape(tensor=-1), MeshShape(data=-2)])
def test_sizes_must_be_positive(shape):
    with pytest.raises(UserError, match="must be positive"):
        make_mesh(shape)


def test_a_mesh_of_some_devices():
    assert make_mesh(MeshShape(), jax.devices()[:2]).devices.shape == (2, 1, 1, 1)


@pytest.mark.parametrize(("batch", "accumulate"), [(8, 1), (16, 2), (32, 4)])
def test_batches_that_divide(batch, accumulate):
    check_batch(batch, make_mesh(MeshShape(fsdp=2)), accumulate)


@pytest.mark.parametrize(
    ("batch", "accumulate", "message"),
    [
        (12, 1, r"batch of 12 .*data 4 . fsdp 2 = 8"),
        (0, 1, r"batch of 0 .*8"),
        (-8, 1, r"batch of -8 .*8"),
        (24, 2, r"batch of 24 .*= 8 times 2 micro-batches"),
    ],
)
def test_batches_that_do_not_divide_are_refused_with_both_numbers(batch, accumulate, message):
    with pytest.raises(UserError, match=message):
        check_batch(batch, make_mesh(MeshShape(fsdp=2)), accumulate)
