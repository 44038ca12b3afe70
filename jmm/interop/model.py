"""From a folder on disk to a model ready to use."""

import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from jmm.distributed.mesh import make_mesh
from jmm.distributed.sharding import tree_shardings
from jmm.errors import UserError
from jmm.experiment import MeshShape
from jmm.model import Model
from jmm.training.checkpoint import check_manifest, reason, restore_items
from jmm.training.optimizer import make_optimizer, merge, split
from jmm.training.state import abstract_state
from jmm.training.step import compute_dtype
from jmm.training.workdir import read_experiment

__all__ = ["Model", "load", "load_step"]


def load(path: str | Path) -> Model:
    """The model of a workdir, from its newest whole checkpoint, with the moving average of the weights if one is
    kept, on all devices of this process.

    Raises:
      UserError: no workdir, no checkpoint in it, or none that can be read.
    """
    return load_step(Path(path))[0]


def load_step(workdir: Path) -> tuple[Model, int]:
    """`load`, and the step of the checkpoint."""
    experiment = read_experiment(workdir)
    folder = workdir.absolute() / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{workdir} holds no checkpoint yet; train it with jmm train")
    mesh = make_mesh(MeshShape())
    module = experiment.model.build(compute_dtype(experiment.precision))
    tx = make_optimizer(experiment.optimizer, experiment.steps)
    state, _ = abstract_state(experiment, module, tx, mesh)
    kept = {"params": state.params, "collections": state.collections, "average": state.average}
    abstract = {name: _placed(tree, mesh) for name, tree in kept.items() if tree}
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        found, step = _newest(manager, folder, abstract)
    params = found["params"]
    if "average" in found:
        params = merge(found["average"], split(params, experiment.optimizer.freeze)[1])
    variables = {"params": params, **found.get("collections", {})}
    return Model(experiment.model, module, variables, experiment.data.preprocessor(), mesh), step


def _newest(manager: ocp.CheckpointManager, folder: Path, abstract: dict[str, Any]) -> tuple[dict[str, Any], int]:
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            check_manifest(folder / str(step))
            found = restore_items(manager, step, abstract)
        except Exception as error:  # Orbax raises many kinds for damaged files
            damaged.append(f"the checkpoint of step {step} is damaged ({reason(error)})")
            continue
        for problem in damaged:
            warnings.warn(f"{problem}: using step {step}", stacklevel=4)
        return found, step
    if damaged:
        raise UserError(f"no checkpoint in {folder} can be read: {'; '.join(damaged)}")
    raise UserError(f"{folder} holds no checkpoint yet; train it with jmm train")


def _placed(tree: Any, mesh: Mesh) -> Any:
    def place(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree, tree_shardings(tree, mesh))
