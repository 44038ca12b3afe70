"""StableHLO programs, run in a fresh process by JAX alone."""

import pytest

from jmm.interop.stablehlo import export_stablehlo
from tests.interop.exports import CONFIGS, assert_same_outputs, model_of, run_fresh

RUN = """
import runpy
loaded = {}
def run(folder, name, batch):
    if name not in loaded:
        loaded[name] = runpy.run_path(folder / "load.py")["load"](name)
    return loaded[name](**batch)
"""


@pytest.mark.parametrize("system", CONFIGS)
def test_reloaded_without_jmm(system, tmp_path):
    model = model_of(CONFIGS[system])
    export_stablehlo(model, tmp_path)
    for program, batch, outputs in run_fresh(RUN, tmp_path, model.config, ["jmm", "flax"]):
        assert_same_outputs(model, program, batch, outputs)
