"""Training that starts from weights of a folder: a published one, a workdir, a model of jmm."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from data_pipelines.preprocess import Preprocess
from jmm.errors import UserError
from jmm.experiment import Experiment
from jmm.interop.family import abstract, differences, plain
from jmm.interop.model import describe, load
from jmm.interop.resolution import at_resolution, towers
from jmm.interop.table import flatten, unflatten
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

    A system that differs from that of the folder in the size of its images alone has its positions interpolated. Those
    that `experiment.fresh` names are None.
    """
    if not experiment.initial:
        return None

    def read(mesh: Mesh) -> Variables:
        model = load(experiment.initial, mesh=mesh)
        config, variables = model.config, model.variables
        wanted = dict(towers(experiment.model))
        if wanted and wanted.keys() == dict(towers(config)).keys():
            config, variables = at_resolution(config, variables, next(iter(wanted.values())).image_size)
        compare = _of_common_parts if experiment.fresh else differences
        lost = list(compare(plain(config), plain(experiment.model)))
        if lost:
            said = "; ".join(f"{name} is {theirs!r} there and {ours!r} here" for name, theirs, ours in lost)
            raise UserError(f"the weights of {experiment.initial} are of another system: {said}")
        return _but_fresh(experiment, variables) if experiment.fresh else variables

    return read


def _of_common_parts(theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """The differences of what two systems have by one name; how tokens are pooled, their parameters tell."""
    for each in fields(ours):
        part, other = getattr(ours, each.name), getattr(theirs, each.name, None)
        if is_dataclass(part) and type(other) is type(part):
            yield from (found for found in differences(other, part, each.name) if not found[0].endswith(".pool"))


def _but_fresh(experiment: Experiment, variables: Variables) -> Variables:
    """The variables of the experiment's system, of those of another; None where one starts anew."""
    wanted, held = abstract(experiment.model), flatten(variables)
    anew = {
        path
        for name, tree in wanted.items()
        for path in flatten({name: tree})
        if any(re.search(pattern, path.removeprefix(f"{name}/")) for pattern in experiment.fresh)
    }
    shapes = {path: leaf.shape for path, leaf in flatten(wanted).items() if path not in anew}
    lost = [path for path, shape in shapes.items() if getattr(held.get(path), "shape", 0) != shape]
    if lost:
        raise UserError(f"{experiment.initial} has no {', '.join(lost)} of such a shape; fresh names what starts anew")
    found: Variables = unflatten({path: None if path in anew else held[path] for path in flatten(wanted)}, wanted)
    return found
