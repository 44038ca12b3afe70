"""Models of transformers with perturbed weights, and checkpoints on disk in both directions."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from jmm.interop.family import Family, Renamed, export_family, import_family, read_config, write_config


def perturbed_model(model: torch.nn.Module, seed: int = 0) -> Any:
    """The model for evaluation, with Gaussian noise on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tensors_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Their parameters under the names that they have in memory."""
    return {name: tensor.detach().float().numpy() for name, tensor in model.named_parameters()}


def imported(family: Family, model: Any) -> tuple[Any, Any]:
    """Our config and variables, from what their model has in memory."""
    tensors = tensors_of(model)
    config = read_config(family, model.config.to_dict(), Renamed(tensors, family.renames))
    return config, import_family(family, config, tensors)


def their_checkpoint(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and the tensors as their `save_pretrained` writes them."""
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def our_checkpoint(family: Family, config: Any, variables: Any, folder: Path) -> Path:
    """A folder for their `from_pretrained`, written from ours."""
    (folder / "config.json").write_text(json.dumps(write_config(family, config)))
    tensors = export_family(family, config, variables)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_same_tensors(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same names, and every tensor bit for bit."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(actual[name], tensor, err_msg=name)
        assert actual[name].dtype == tensor.dtype, name


def assert_same_variables(actual: Any, expected: Any) -> None:
    """The same tree, and every array bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def gradients(family: Family, config: Any, gradient: Any, model: torch.nn.Module) -> dict[str, tuple[Any, Any]]:
    """Our gradient and theirs of each of their parameters, by canonical name."""
    exported = export_family(family, config, gradient)
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    theirs = Renamed(grads, family.renames)
    assert exported.keys() == theirs.keys()
    return {name: (exported[name], grad.numpy()) for name, grad in theirs.items()}


def assert_same_gradients(family: Family, config: Any, gradient: Any, model: torch.nn.Module) -> None:
    """Every gradient within 1e-4 of the largest: biases of keys have none but rounding, so that the scale of one is
    that of all."""
    pairs = gradients(family, config, gradient, model)
    scale = max(np.abs(theirs).max() for _, theirs in pairs.values())
    for name, (ours, theirs) in pairs.items():
        worst = np.abs(ours - theirs).max()
        assert worst <= 1e-4 * scale, f"{name}: gradient off by {worst:.3g} of {scale:.3g}"
