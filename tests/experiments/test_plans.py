"""Every experiment of a pod's size has a plan that fits, for the slice that its head names."""

import ast
import re
from pathlib import Path

import pytest

from jmm.overrides import read_experiment_file
from jmm.planning.chips import slice_of

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PLANS = sorted((EXPERIMENTS / "plans").glob("*.txt"))


def planned():
    """Names and slices of the experiments whose head names a slice."""
    heads = {file.stem: ast.get_docstring(ast.parse(file.read_text())) or "" for file in EXPERIMENTS.glob("*.py")}
    found = {name: re.search(rf"jmm plan experiments/{name}.py --topology (\S+)", head) for name, head in heads.items()}
    return {name: match[1] for name, match in found.items() if match}


def test_they_are_those_that_were_planned():
    assert planned().keys() == {file.stem for file in PLANS} and len(PLANS) >= 10


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_the_plan_is_of_the_experiment_as_it_is(file):
    text, experiment = file.read_text(), read_experiment_file(EXPERIMENTS / f"{file.stem}.py")
    said = {line[:28].rstrip(): line[28:].strip() for line in text.splitlines()}  # parts are indented
    topology = planned()[file.stem]
    assert said["experiment"].startswith(f"{file.stem}, ") and said["slice"].startswith(f"{topology}, ")
    assert said["batch"] == f"{experiment.batch_size:,} examples a step"
    sizes = {axis: int(size) for axis, size in re.findall(r"(\w+) (\d+)(?: ×|$)", said["slice"].partition("mesh ")[2])}
    assert sizes == vars(experiment.mesh)
    needed, there = map(float, said["  in all, at most"].split(" GiB of "))
    assert "does not fit" not in text and needed <= there == slice_of(topology).chip.memory / 2**30
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", said["planned"])
