"""The folder of one run: whose it is, and the experiment it holds."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from data_pipelines.preprocess import Preprocess
from data_pipelines.save import TOKENIZER, copy_tokenizer, with_copied_tokenizer
from jmm.distributed.processes import is_first
from jmm.errors import UserError
from jmm.experiment import Experiment

EXPERIMENT_FILE = "experiment.json"
KIND = "_kind"

MAY_CHANGE = (
    "mesh",
    "checkpoint",
    "evaluations",
    "evaluate_every",
    "log_every",
    "data_threads",
    "data_workers",
    "broken_share",
)
"""Fields that do not change what is learnt; a run may go on with others."""

PACKAGES = ("jmm", "data_pipelines")
"""Nothing else is imported because a file says so."""


def claim(workdir: Path, experiment: Experiment) -> None:
    """Makes the folder this experiment's own, or checks that it is. A tokenizer that came with a checkpoint is copied
    into it, so that the run goes on without that checkpoint.

    Raises:
      UserError: it cannot be written, or belongs to an experiment that differs, naming the fields; a tokenizer that is
        missing.
    """
    path = workdir / EXPERIMENT_FILE
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"the workdir {workdir} is a file; choose another --workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            check_same(workdir, _as_today(read_json(workdir)), to_json(experiment))
        elif (workdir / "checkpoints").exists():
            raise UserError(f"{workdir} holds checkpoints but no {EXPERIMENT_FILE}; choose another --workdir")
        if is_first():
            if (workdir / TOKENIZER).exists() and not path.exists():
                raise UserError(f"{workdir} holds a {TOKENIZER} but no {EXPERIMENT_FILE}; choose another --workdir")
            beside = path.with_suffix(".tmp")
            beside.write_text(json.dumps(to_json(experiment), indent=2) + "\n", encoding="utf-8")
            beside.rename(path)
            preprocess = _preprocess(experiment)
            if preprocess and "text" in experiment.model.batch_spec(1) and not (workdir / TOKENIZER).exists():
                copy_tokenizer(preprocess, workdir)
    except OSError as error:
        raise UserError(f"cannot write to the workdir {workdir}: {error.strerror or error}") from error


def _as_today(recorded: Any) -> Any:
    """A recorded experiment with the defaults of fields that there were not yet when it was written."""
    try:
        return to_json(from_json(recorded, "experiment"))
    except UserError:  # of kinds that are not read back
        return recorded


def check_same(workdir: Path, old: Any, new: Any) -> None:
    """Raises UserError that shows the fields in which two experiments differ, if they do."""
    differing = [
        f"{name} was {before!r}, now {now!r}"
        for name, before, now in differences(old, new)
        if name.split(".")[0] not in MAY_CHANGE
    ]
    if differing:
        raise UserError(
            f"{workdir} belongs to another experiment ({'; '.join(differing)}); "
            "choose another --workdir, or these values"
        )


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of every field in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(dict.fromkeys([*old, *new]))
        return [
            difference
            for name in names
            for difference in differences(old.get(name), new.get(name), f"{prefix}.{name}" if prefix else name)
        ]
    return [] if old == new else [(prefix, old, new)]


def to_json(value: Any) -> Any:
    """A tree of dataclasses as JSON values, each with its kind (module:class)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = f"{type(value).__module__}:{type(value).__qualname__}"
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {KIND: kind, **fields}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def from_json(value: Any, where: str) -> Any:
    """Undoes `to_json`; lists become tuples.

    Raises:
      UserError: a kind that is none of ours, or fields that it does not have.
    """
    if isinstance(value, list):
        return tuple(from_json(item, where) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {name: from_json(item, f"{where}.{name}") for name, item in value.items() if name != KIND}
    if KIND not in value:
        return fields
    module, _, name = str(value[KIND]).partition(":")
    if module.split(".")[0] not in PACKAGES and module not in sys.modules:
        raise UserError(
            f"{where} is a {value[KIND]}; only kinds of {' and '.join(PACKAGES)} are read back, "
            "and those of modules that you have imported before"
        )
    try:
        kind: Any = getattr(importlib.import_module(module), name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind(**fields)
        raise TypeError(f"{name} is no dataclass")
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"{where} cannot be read back as {value[KIND]}: {error}") from error


def read_json(workdir: Path) -> Any:
    """The JSON of `experiment.json`.

    Raises:
      UserError: no such file, or not JSON.
    """
    path = workdir / EXPERIMENT_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir} is no workdir of jmm: it holds no {EXPERIMENT_FILE}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_experiment(workdir: Path) -> Experiment:
    """The experiment of a workdir, with the tokenizer that lies there.

    Raises:
      UserError: no such file, or no experiment in it.
    """
    return self_contained(recorded_experiment(workdir), workdir)


def recorded_experiment(workdir: Path) -> Experiment:
    """The experiment of a workdir, word for word. Raises as `read_experiment`."""
    experiment = from_json(read_json(workdir), "experiment")
    if not isinstance(experiment, Experiment):
        raise UserError(f"{workdir / EXPERIMENT_FILE} describes no experiment")
    return experiment


def self_contained(experiment: Experiment, workdir: Path) -> Experiment:
    """The experiment of a workdir with the copy of its tokenizer that `claim` has made there, if it has."""
    preprocess = _preprocess(experiment)
    if preprocess is None or not (workdir / EXPERIMENT_FILE).exists():
        return experiment
    data: Any = experiment.data
    data = dataclasses.replace(data, preprocess=with_copied_tokenizer(preprocess, workdir))
    return dataclasses.replace(experiment, data=data)


def _preprocess(experiment: Experiment) -> Preprocess | None:
    """That of a dataset whose preprocessing can be set."""
    data: Any = experiment.data
    settable = any(field.name == "preprocess" for field in dataclasses.fields(data))
    return data.preprocess if settable and isinstance(data.preprocess, Preprocess) else None
