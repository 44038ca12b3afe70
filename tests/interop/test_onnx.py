"""ONNX models, run in a fresh process by onnxruntime alone."""

import pytest

from jmm.interop.onnx import export_onnx
from tests.interop.exports import CONFIGS, assert_same_outputs, model_of, run_fresh

RUN = """
import onnxruntime
def run(folder, name, batch):
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    return dict(zip((each.name for each in session.get_outputs()), session.run(None, batch)))
"""


@pytest.mark.parametrize("system", CONFIGS)
def test_every_system_runs_in_onnxruntime(system, tmp_path):
    model = model_of(CONFIGS[system])
    export_onnx(model, tmp_path)
    for program, batch, outputs in run_fresh(RUN, tmp_path, model.config, ["jmm", "flax", "jax", "torch"]):
        assert_same_outputs(model, program, batch, outputs)
