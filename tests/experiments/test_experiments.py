"""Every shipped experiment loads and its step traces, on one device and on a mesh of eight."""

import ast
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from data_pipelines.mixture import task_names
from jmm.distributed.mesh import make_mesh
from jmm.distributed.sharding import on_mesh
from jmm.experiment import MeshShape
from jmm.overrides import read_experiment_file
from jmm.training.loop import check_data
from jmm.training.step import build

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments").glob("*.py"))
PODS = {file.stem for file in (ROOT / "experiments" / "plans").glob("*.txt")}
TRACED = [(file, devices) for file in FILES for devices in (1, 8) if devices > 1 or file.stem not in PODS]
"""Experiments and numbers of devices; those of a pod's size are never on one."""


def test_there_are_some():
    assert ROOT / "experiments" / "quickstart.py" in FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_docstring_names_its_command(file):
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    assert f"jmm train experiments/{file.name} --workdir " in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_name_is_the_name_of_the_file(file):
    assert read_experiment_file(file).name == file.stem


# The attention of VQGAN has one head, which no two devices share.
@pytest.mark.filterwarnings("ignore:attention. 1 query and 1 key heads do not divide over the mesh axis tensor")
@pytest.mark.parametrize("file, devices", TRACED, ids=lambda each: getattr(each, "stem", str(each)))
def test_step_traces(file, devices):
    shape = MeshShape() if devices == 1 else MeshShape(fsdp=2, tensor=2)
    mesh = make_mesh(shape, jax.devices()[:devices])
    experiment = replace(read_experiment_file(file), mesh=shape)
    program = build(experiment, mesh)
    batch, tasks = experiment.model.batch_spec(experiment.batch_size), task_names(experiment.data)
    if tasks:
        batch["task"] = jax.ShapeDtypeStruct((experiment.batch_size,), jnp.int32)
    with on_mesh(mesh):
        state, metrics = jax.eval_shape(program.step, program.state, batch)
    before, after = ([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(s)] for s in (program.state, state))
    assert after == before
    assert {"loss", "grad_norm", "learning_rate"} <= metrics.keys()
    # Of a task's loss its sum and its count: no row of a batch may be of it.
    several = {name for name, value in metrics.items() if value.shape != ()}
    assert several == {f"loss@{task}" for task in tasks}


def test_quickstart_data_is_what_its_model_reads():
    check_data(build(read_experiment_file(ROOT / "experiments" / "quickstart.py")))
