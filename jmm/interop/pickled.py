"""Weights in PyTorch's own files, which are pickles: read only when asked for, and as weights only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmm.errors import UserError
from jmm.interop.stored import INDEX, places


def open_pickle(folder: Path, name: str) -> dict[str, Any]:
    """The tensors of a file of a folder, or of the shards that an index lists, by name, as NumPy arrays.

    Raises:
      UserError: PyTorch is not installed; a file that is missing, torn, or holds anything but tensors.
    """
    files = sorted(set(places(folder / name).values())) if name.endswith(INDEX) else [name]
    return {tensor: array for file in files for tensor, array in _read(folder / file).items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} is a file of PyTorch, which is not installed; pip install torch") from None
    try:
        # weights_only: an unpickler that makes tensors and containers, and calls nothing else.
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, Mapping) or not all(isinstance(each, torch.Tensor) for each in found.values()):
            raise UserError(f"{path} holds more than tensors by name; save the model's state_dict alone")
        return {str(name): _array(tensor.detach()) for name, tensor in found.items()}
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for what it refuses
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as weights only ({said})") from error


def _array(tensor: Any) -> Any:
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:  # NumPy's own types lack it
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
