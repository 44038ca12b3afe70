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


def is_first() -> bool:
    """True in the one process that writes files."""
    return jax.process_index() == 0
