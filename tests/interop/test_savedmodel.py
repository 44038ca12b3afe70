"""SavedModels, run in a fresh process by TensorFlow alone."""

import pytest

from jmm.interop.savedmodel import export_savedmodel
from tests.interop.exports import CONFIGS, assert_same_outputs, model_of, run_fresh

RUN = """
import tensorflow as tf
def run(folder, name, batch):
    loaded = tf.saved_model.load(str(folder))
    return loaded.signatures[name](**{key: tf.constant(each) for key, each in batch.items()})
"""


@pytest.mark.parametrize("system", CONFIGS)
def test_reloaded_by_tensorflow_alone(system, tmp_path):
    model = model_of(CONFIGS[system])
    export_savedmodel(model, tmp_path)
    for program, batch, outputs in run_fresh(RUN, tmp_path, model.config, ["jmm", "flax", "jax"]):
        assert_same_outputs(model, program, batch, outputs)
