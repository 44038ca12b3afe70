"""Runs an exported system with JAX alone (`pip install jax safetensors flatbuffers`); each has a copy, load.py.

>>> embed = load("image")
>>> embed(image=pictures)["image_embedding"]
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
from jax import export
from safetensors.numpy import load_file


def load(name: str, folder: Path = Path(__file__).parent) -> Callable[..., dict[str, jax.Array]]:
    """The program of this name in export.json: arrays by name in, arrays by name out."""
    program = json.loads((folder / "export.json").read_text(encoding="utf-8"))["programs"][name]
    stored = {path: each for file in folder.glob("*.safetensors") for path, each in load_file(file).items()}
    weights = jax.device_put({path: stored[path] for path in program["weights"]})
    run = jax.jit(export.deserialize((folder / program["file"]).read_bytes()).call)
    return lambda **batch: run(weights, batch)
