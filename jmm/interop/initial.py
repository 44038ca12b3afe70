"""Training that starts from weights of a folder: a published one, a workdir, a model of jmm."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from data_pipelines.preprocess import Preprocess
from jmm.errors import UserError
from jmm.experiment import Experiment
from jmm.interop.family import differences, plain
from jmm.interop.model import describe, load
from jmm.interop.resolution import at_resolution, towers
from jmm.protocol import ModelConfig, Variables
from jmm.training.workdir import EXPERIMENT_FILE, recorded_experiment


def start_from(experiment: Experiment, folder: Path, workdir: Path | None = None) -> Experiment:
    """The experiment with the system, the preprocessing and the weights of a folder in place of its own. A workdir that
    started from a folder which is gone knows what was there, all but the weights.

    Raises:
      UserError: the folder holds no model, or the dataset has a preprocessing that cannot be set.
    """
    config, preprocess = _recorded(folder, workdir) or describe(folder)
    data: Any = experiment.data
    if not any(field.name == "preprocess" for field in fields(data)):
        raise UserError(
            f"the dataset {type(data).__name__} prepares its examples in its own way; --from needs one with "
            "a field preprocess, such as data_pipelines.folder.ImageFolder"
        )
    data = replace(data, preprocess=preprocess)
    return replace(experiment, model=config, data=data, initial=str(folder.absolute()))


def _recorded(folder: Path, workdir: Path | None) -> tuple[ModelConfig, Preprocess] | None:
    if folder.exists() or workdir is None or not (workdir / EXPERIMENT_FILE).exists():
        return None
    experiment = recorded_experiment(workdir)
    data: Any = experiment.data
    return (experiment.model, data.preprocess) if experiment.initial == str(folder.absolute()) else None


def initial_weights(experiment: Experiment) -> Callable[[Mesh], Variables] | None:
    """What gives the weights for a mesh; None for an experiment that starts from random ones.

    A system that differs from that of the folder in the size of its images alone has its positions interpolated.
    """
    if not experiment.initial:
        return None

    def read(mesh: Mesh) -> Variables:
        model = load(experiment.initial, mesh=mesh)
        config, variables = model.config, model.variables
        wanted = dict(towers(experiment.model))
        if wanted and wanted.keys() == dict(towers(config)).keys():
            config, variables = at_resolution(config, variables, next(iter(wanted.values())).image_size)
        lost = list(differences(plain(config), plain(experiment.model)))
        if lost:
            said = "; ".join(f"{name} is {theirs!r} there and {ours!r} here" for name, theirs, ours in lost)
            raise UserError(f"the weights of {experiment.initial} are of another system: {said}")
        return variables

    return read
