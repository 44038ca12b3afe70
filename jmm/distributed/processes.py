"""Several processes that train as one."""

from dataclasses import dataclass

import jax

from jmm.errors import UserError


@dataclass(frozen=True)
class Cluster:
    """Where this process stands among those that train together."""

    coordinator: str
    """host:port of process 0."""
    processes: int
    """Number of processes."""
    process: int
    """Index of this one."""


def initialize(cluster: Cluster | None) -> None:
    """Joins the cluster; call before anything touches a device. None: this process trains alone.

    Raises:
      UserError: the index does not belong to the cluster, or the others do not come.
    """
    if cluster is None:
        return
    if not 0 <= cluster.process < cluster.processes:
        raise UserError(f"--process-id {cluster.process} is not below --num-processes {cluster.processes}")
    try:
        jax.distributed.initialize(cluster.coordinator, cluster.processes, cluster.process)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the processes at {cluster.coordinator}: {error}") from error


def join_cluster() -> None:
    """Joins the processes that the machine's surroundings tell of, as Cloud TPU, GKE and Slurm do; call before anything
    touches a device.

    Raises:
      UserError: nothing tells of other processes, or they do not come.
    """
    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"nothing here tells of a cluster ({why}); name its first process with --coordinator HOST:PORT"
        ) from error


def is_first() -> bool:
    """True in the one process that writes files."""
    return jax.process_index() == 0
