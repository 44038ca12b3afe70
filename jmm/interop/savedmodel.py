"""A system as a TensorFlow SavedModel, which TensorFlow alone runs, on a CPU, an NVIDIA GPU or a TPU.

Each program (image and text for a system with two towers) is a signature of this name; the only one of a system is
also its serving_default. Beside the SavedModel's own files lies export.json, which says what they take and give.

>>> embed = tf.saved_model.load(folder).signatures["image"]
>>> embed(image=pictures)["image_embedding"]
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jmm.interop.extras import require
from jmm.interop.programs import Program, function, needed_weights, programs, write_description
from jmm.interop.stablehlo import PLATFORMS
from jmm.model import Model
from jmm.protocol import ModelConfig


def export_savedmodel(model: Model, folder: Path) -> None:
    """Writes the programs of a system with their weights into an empty folder.

    Raises:
      UserError: TensorFlow is not installed.
    """
    require("savedmodel", ["tensorflow"])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # or it tells of this processor's instructions on every import
    import tensorflow as tf

    found = programs(model.config)
    module = tf.Module()
    weights = needed_weights(model, found)
    module.weights = {name: tf.Variable(np.asarray(each), name=name) for name, each in weights.items()}
    signatures = {each.name: _signature(model.config, each, module.weights) for each in found}
    if len(found) == 1:
        signatures["serving_default"] = signatures[found[0].name]
    tf.saved_model.save(module, str(folder), signatures=signatures)
    versions = {"tensorflow": tf.__version__, "jax": jax.__version__}
    named = {each.name: each for each in found}
    write_description(model, named, folder, format="SavedModel", platforms=PLATFORMS, **versions)


def _signature(config: ModelConfig, program: Program, variables: dict[str, Any]) -> Callable[..., Any]:
    """A concrete tf.function of the program's inputs by name."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    shapes = {name: f"({', '.join(map(str, shape))})" for name, shape in program.inputs.items()}
    converted = jax2tf.convert(
        function(config),
        polymorphic_shapes=[None, shapes],
        polymorphic_constraints=program.constraints,
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    weights = {name: variables[name] for name in program.weights}

    def run(**batch: Any) -> Any:
        return converted(weights, batch)

    specs = {
        name: tf.TensorSpec([None if isinstance(each, str) else each for each in shape], program.dtypes[name], name)
        for name, shape in program.inputs.items()
    }
    concrete: Callable[..., Any] = tf.function(run, autograph=False).get_concrete_function(**specs)
    return concrete
