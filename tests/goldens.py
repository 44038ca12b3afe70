"""Golden files: weights, inputs, outputs and gradients of a reference, recorded where it ran."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

FOLDER = Path(os.environ.get("JMM_GOLDENS", Path(__file__).parents[2] / "shared" / "goldens"))


@dataclass(frozen=True)
class Golden:
    """One file."""

    config: dict[str, Any]
    """The reference's."""
    weights: dict[str, np.ndarray]
    """Its state dict."""
    inputs: dict[str, np.ndarray]
    """What it was given."""
    outputs: dict[str, np.ndarray]
    """What it gave."""
    grads: dict[str, np.ndarray]
    """Gradients of its loss, by parameter."""


def golden_files(prefix: str) -> list[Path]:
    """The files of a system.

    Raises:
      FileNotFoundError: there are none.
    """
    found = sorted(FOLDER.glob(f"{prefix}*.safetensors"))
    if not found:
        raise FileNotFoundError(
            f"{FOLDER} holds no {prefix}*.safetensors; JMM_GOLDENS names the folder of golden files"
        )
    return found


def read_golden(path: Path) -> Golden:
    """A file's tensors by group and name."""
    groups: dict[str, dict[str, np.ndarray]] = {"weights": {}, "inputs": {}, "outputs": {}, "grads": {}}
    with safe_open(path, "np") as file:
        for key in file.offset_keys():
            group, _, name = key.partition("/")
            groups[group][name] = file.get_tensor(key)
        config = json.loads(file.metadata()["config"])
    return Golden(config, **groups)
