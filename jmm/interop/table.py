"""One table a family: which tensor of ours is which of theirs, and how its axes lie. Read in both directions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jmm.errors import UserError

Layout = Literal["same", "linear", "linear2", "conv"]
"""`same`: the same numbers in the same order (axes may be split or of size 1). `linear`: theirs is [out, in], ours
[in, …out]; `linear2`: the same where our input has two axes (heads and head width). `conv`: theirs is OIHW, ours
HWIO."""

LAYER = "{layer}"


@dataclass(frozen=True)
class Row:
    """One tensor, or one of each layer where their name holds {layer} and ours is stacked."""

    ours: str
    """Path in our parameters, such as image/encoder/blocks/mlp/up/kernel."""
    theirs: str
    """Name in their state dict."""
    layout: Layout = "same"
    """How their axes become ours."""


Tensors = Mapping[str, np.ndarray]


def import_tensors(table: Sequence[Row], tensors: Tensors, abstract: Any) -> Any:
    """Our parameters, in the shapes of the pytree `abstract`, from their tensors.

    Raises:
      UserError: listing every tensor that is missing, left over or of a wrong size.
    """
    wanted = flatten_dict(abstract, sep="/")
    rows = {row.ours: row for row in table}
    problems = [f"our {path} is in no row of the table" for path in wanted if path not in rows]
    left, found = set(tensors), {}
    for path, leaf in wanted.items():
        if path not in rows:
            continue
        parts = []
        for name, shape in _names(rows[path], leaf.shape):
            left.discard(name)
            if name not in tensors:
                problems.append(f"{name} is missing")
                continue
            theirs = tensors[name].shape
            if not _fits(theirs, shape, rows[path].layout):
                problems.append(f"{name} is {theirs}, which does not fit {shape}")
                continue
            parts.append(_to_ours(tensors[name], shape, rows[path].layout).astype(leaf.dtype))
        stacked = LAYER in rows[path].theirs
        if not problems:
            found[path] = np.stack(parts) if stacked else parts[0]
    problems += [f"{name} is left over" for name in sorted(left)]
    if problems:
        raise UserError(f"the tensors do not fit the model: {'; '.join(problems)}")
    return unflatten_dict(found, sep="/")


def export_tensors(table: Sequence[Row], params: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Their tensors, in their `shapes`, from our parameters: undoes `import_tensors`.

    Raises:
      UserError: listing every tensor that has no row or no shape.
    """
    ours = flatten_dict(jax.device_get(params), sep="/")
    rows = {row.ours: row for row in table}
    problems = [f"our {path} is in no row of the table" for path in ours if path not in rows]
    theirs = {}
    for path, array in ours.items():
        if path not in rows:
            continue
        for index, (name, _) in enumerate(_names(rows[path], array.shape)):
            if name not in shapes:
                problems.append(f"{name} is not known there")
                continue
            part = array[index] if LAYER in rows[path].theirs else array
            theirs[name] = _to_theirs(part, shapes[name], rows[path].layout)
    problems += [f"{name} is not covered" for name in sorted(set(shapes) - set(theirs))]
    if problems:
        raise UserError(f"the model does not fit the tensors: {'; '.join(problems)}")
    return theirs


def _names(row: Row, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    if LAYER not in row.theirs:
        yield row.theirs, shape
        return
    for layer in range(shape[0]):
        yield row.theirs.replace(LAYER, str(layer)), shape[1:]


def _fits(theirs: tuple[int, ...], ours: tuple[int, ...], layout: Layout) -> bool:
    if layout == "conv":
        return len(theirs) == 4 and tuple(theirs[i] for i in (2, 3, 1, 0)) == ours
    if layout == "same":
        return math.prod(theirs) == math.prod(ours)
    inputs = 2 if layout == "linear2" else 1
    return theirs == (math.prod(ours[inputs:]), math.prod(ours[:inputs]))


def _to_ours(tensor: np.ndarray, shape: tuple[int, ...], layout: Layout) -> np.ndarray:
    if layout == "conv":
        tensor = tensor.transpose(2, 3, 1, 0)
    elif layout != "same":
        tensor = tensor.T
    return tensor.reshape(shape)


def _to_theirs(array: np.ndarray, shape: tuple[int, ...], layout: Layout) -> np.ndarray:
    if layout == "conv":
        array = array.transpose(3, 2, 0, 1)
    elif layout != "same":
        inputs = 2 if layout == "linear2" else 1
        array = array.reshape(math.prod(array.shape[:inputs]), -1).T
    return np.ascontiguousarray(array).reshape(shape)


def transformer_rows(ours: str, theirs: str, names: Mapping[str, str]) -> list[Row]:
    """Rows of a stack of blocks; `names` maps our sub-layers to theirs (query: self_attn.q_proj, up: mlp.fc1 …)."""
    rows = []
    for part, name in names.items():
        path, foreign = f"{ours}/blocks/{part}", f"{theirs}.{LAYER}.{name}"
        if part.endswith("_norm"):
            rows += [Row(f"{path}/scale", f"{foreign}.weight"), Row(f"{path}/bias", f"{foreign}.bias")]
        else:
            layout: Layout = "linear2" if part.endswith("attention/out") else "linear"
            rows += [
                Row(f"{path}/kernel", f"{foreign}.weight", layout),
                Row(f"{path}/bias", f"{foreign}.bias"),
            ]
    return rows
