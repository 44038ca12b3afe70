"""SavedModels, run in a fresh process by TensorFlow alone."""

import tensorflow as tf

from jmm.interop.savedmodel import export_savedmodel
from tests.interop.exports import CONFIGS, assert_runs_elsewhere, model_of

RUN = """
import functools
import tensorflow as tf
load = functools.cache(tf.saved_model.load)
def run(folder, name, batch):
    return load(str(folder)).signatures[name](**{key: tf.constant(each) for key, each in batch.items()})
"""


def test_systems_run_in_tensorflow_alone(tmp_path):
    models = {name: model_of(CONFIGS[name]) for name in ("vit", "clip", "llama", "vqgan")}
    for name, model in models.items():
        (tmp_path / name).mkdir()
        export_savedmodel(model, tmp_path / name)
    assert_runs_elsewhere(RUN, {"jmm", "flax", "jax", "data_pipelines"}, models, tmp_path)
    for name, served in {"vit": {"image", "serving_default"}, "clip": {"image", "text"}}.items():
        assert tf.saved_model.load(str(tmp_path / name)).signatures.keys() == served
