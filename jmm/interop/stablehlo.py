"""A system as StableHLO programs that JAX alone runs, on a CPU, an NVIDIA GPU or a TPU, without jmm.

folder/
  image.jax_export      `jax.export.deserialize` reads it; some ten kB, for it holds no weights
  text.jax_export       (a system whose modalities do nothing alone has one program)
  model.safetensors     the weights by path
  export.json           inputs, outputs and preprocessing
  load.py               how to run it, in a dozen lines
"""

import shutil
from pathlib import Path

import jax
from jax import export

from jmm.interop import load_stablehlo
from jmm.interop.folder import SHARD_BYTES
from jmm.interop.programs import function, needed_weights, programs, write_description
from jmm.interop.stored import write_folder
from jmm.model import Model

PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(model: Model, folder: Path) -> None:
    """Writes the programs of a system, their weights and their description into an empty folder."""
    found = {f"{each.name}.jax_export": each for each in programs(model.config)}
    weights = needed_weights(model, found.values())
    for file, program in found.items():
        abstract = {name: jax.ShapeDtypeStruct(weights[name].shape, weights[name].dtype) for name in program.weights}
        traced = export.export(jax.jit(function(model.config)), platforms=PLATFORMS)(abstract, program.symbolic())
        (folder / file).write_bytes(traced.serialize())
    write_folder(folder, weights, {}, SHARD_BYTES)
    write_description(model, found, folder, format="jax.export", platforms=PLATFORMS, jax=jax.__version__)
    shutil.copyfile(load_stablehlo.__file__, folder / "load.py")
