"""One table a family: which tensor of ours is which of theirs, and how its axes lie. Read in both directions."""

import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jmm.errors import UserError

Layout = Literal["same", "linear", "linear2", "conv"]
"""`same`: the same numbers in the same order (axes may be split or of size 1; so are GPT-2's `Conv1D`, [in, out]).
`linear`: theirs is [out, in], ours [in, …out]; `linear2`: the same where our input has two axes (heads and head
width). `conv`: theirs is OIHW, ours HWIO."""

LAYER = "{layer}"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One tensor, or one of each layer where their name holds {layer} and ours is stacked."""

    ours: str
    """Path in our parameters, such as image/encoder/blocks/mlp/up/kernel."""
    theirs: str
    """Name in their state dict."""
    layout: Layout = "same"
    """How their axes become ours."""
    part: tuple[int, int] = (0, 1)
    """Which of how many equal parts of theirs is ours, along its outputs: the keys of a fused projection of queries,
    keys and values are (1, 3). Outputs are the first axis of theirs, and in `same` the last."""
    copies: tuple[str, ...] = ()
    """Other names under which theirs may hold the same tensor (tied weights); any one of the names is enough."""


Tensors = Mapping[str, np.ndarray]


def import_tensors(table: Sequence[Row], tensors: Tensors, abstract: Any, ignored: str = "") -> Any:
    """Our parameters, in the shapes of the pytree `abstract`, from their tensors. Names that match the regular
    expression `ignored` from end to end are no weights (buffers) and are left out.

    Raises:
      UserError: listing every tensor that is missing, left over or of a wrong size, and copies that differ.
    """
    wanted = flatten_dict(abstract, sep="/")
    rows = {row.ours: row for row in table}
    problems = [f"our {path} is in no row of the table" for path in wanted if path not in rows]
    left, found = {name for name in tensors if not re.fullmatch(ignored, name)}, {}
    for path, leaf in wanted.items():
        if path not in rows:
            continue
        parts = []
        for names, shape in _names(rows[path], leaf.shape):
            left.difference_update(names)
            try:
                parts.append(_read(rows[path], names, shape, tensors).astype(leaf.dtype))
            except UserError as problem:
                problems.append(str(problem))
        stacked = LAYER in rows[path].theirs
        if not problems:
            found[path] = np.stack(parts) if stacked else parts[0]
    problems += [f"{name} is left over" for name in sorted(left)]
    if problems:
        # A fused tensor is read by several rows, and what is wrong with it is said once.
        raise UserError(f"the tensors do not fit the model: {'; '.join(dict.fromkeys(problems))}")
    return unflatten_dict(found, sep="/")


def export_tensors(table: Sequence[Row], params: Any, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Their tensors, in their `shapes`, from our parameters: undoes `import_tensors`.

    Raises:
      UserError: listing every tensor that has no row or no shape, or whose parts are not all among ours.
    """
    ours = flatten_dict(jax.device_get(params), sep="/")
    rows = {row.ours: row for row in table}
    problems = [f"our {path} is in no row of the table" for path in ours if path not in rows]
    pieces: dict[str, dict[Row, np.ndarray]] = {}
    for path, array in ours.items():
        if path not in rows:
            continue
        row = rows[path]
        for index, (names, shape) in enumerate(_names(row, array.shape)):
            known = [name for name in names if name in shapes]
            if not known:
                problems.append(f"{names[0]} is not known there")
            for name in known:
                piece, part = array[index] if LAYER in row.theirs else array, _part_shape(shapes[name], row)
                if part is None or not _fits(part, shape, row.layout):
                    problems.append(_misfit(name, shapes[name], shape, row))
                else:
                    piece = _to_theirs(piece, part, row.layout)
                pieces.setdefault(name, {})[row] = piece
    problems += [f"{name} is not covered" for name in sorted(shapes) if not _is_whole(pieces.get(name, {}))]
    if problems:
        raise UserError(f"the model does not fit the tensors: {'; '.join(dict.fromkeys(problems))}")
    return {name: _joined(held) for name, held in pieces.items()}


def _names(row: Row, shape: Shape) -> Iterator[tuple[list[str], Shape]]:
    """Names that one tensor may have there, and the shape of ours; of each layer in turn."""
    names = [row.theirs, *row.copies]
    if LAYER not in row.theirs:
        yield names, shape
        return
    for layer in range(shape[0]):
        yield [name.replace(LAYER, str(layer)) for name in names], shape[1:]


def _read(row: Row, names: Sequence[str], shape: Shape, tensors: Tensors) -> np.ndarray:
    """One of our tensors, or of one layer of it."""
    held = [name for name in names if name in tensors]
    if not held:
        raise UserError(f"{names[0]} is missing")
    tensor = tensors[held[0]]
    for copy in held[1:]:
        if not np.array_equal(tensors[copy], tensor):
            raise UserError(f"{copy} differs from {held[0]}, and the model has one tensor for both")
    part = _part_shape(tensor.shape, row)
    if part is None or not _fits(part, shape, row.layout):
        raise UserError(_misfit(held[0], tensor.shape, shape, row))
    index, count = row.part
    if count > 1:
        tensor = np.split(tensor, count, _output_axis(row))[index]
    return _to_ours(tensor, shape, row.layout)


def _misfit(name: str, theirs: Shape, ours: Shape, row: Row) -> str:
    parts = f"{row.part[1]} parts of " if row.part[1] > 1 else ""
    return f"{name} is {theirs}, which does not fit {parts}{ours}"


def _output_axis(row: Row) -> int:
    return -1 if row.layout == "same" else 0


def _part_shape(whole: Shape, row: Row) -> Shape | None:
    """The shape of one part of theirs; None if it does not divide."""
    count = row.part[1]
    if count == 1:
        return whole
    shape, axis = list(whole), _output_axis(row)
    if not shape or shape[axis] % count:
        return None
    shape[axis] //= count
    return tuple(shape)


def _is_whole(pieces: Mapping[Row, np.ndarray]) -> bool:
    """Whether the parts of one of their tensors are all there."""
    return bool(pieces) and sorted(row.part[0] for row in pieces) == list(range(next(iter(pieces)).part[1]))


def _joined(pieces: Mapping[Row, np.ndarray]) -> np.ndarray:
    """One of their tensors from its parts."""
    rows = sorted(pieces, key=lambda row: row.part)
    if len(rows) == 1:
        return pieces[rows[0]]
    return np.concatenate([pieces[row] for row in rows], axis=_output_axis(rows[0]))


def _fits(theirs: Shape, ours: Shape, layout: Layout) -> bool:
    if layout == "conv":
        return len(theirs) == 4 and tuple(theirs[i] for i in (2, 3, 1, 0)) == ours
    if layout == "same":
        # The axes of one are those of the other, split: where an axis ends there, one ends here.
        ends = [set(accumulate((1, *shape), operator.mul)) for shape in (theirs, ours)]
        return math.prod(theirs) == math.prod(ours) and (ends[0] <= ends[1] or ends[1] <= ends[0])
    inputs = 2 if layout == "linear2" else 1
    return theirs == (math.prod(ours[inputs:]), math.prod(ours[:inputs]))


def _to_ours(tensor: np.ndarray, shape: Shape, layout: Layout) -> np.ndarray:
    if layout == "conv":
        tensor = tensor.transpose(2, 3, 1, 0)
    elif layout != "same":
        tensor = tensor.T
    return tensor.reshape(shape)


def _to_theirs(array: np.ndarray, shape: Shape, layout: Layout) -> np.ndarray:
    if layout == "conv":
        array = array.transpose(3, 2, 0, 1)
    elif layout != "same":
        inputs = 2 if layout == "linear2" else 1
        array = array.reshape(math.prod(array.shape[:inputs]), -1).T
    return np.ascontiguousarray(array).reshape(shape)


def transformer_rows(ours: str, theirs: str, names: Mapping[str, str], layout: Layout | None = None) -> list[Row]:
    """Rows of a stack of blocks; `names` maps our sub-layers to theirs (query: self_attn.q_proj, up: mlp.fc1 …).
    `layout` is that of all kernels; None: as `torch.nn.Linear` has them."""
    rows = []
    for part, name in names.items():
        path, foreign = f"{ours}/blocks/{part}", f"{theirs}.{LAYER}.{name}"
        if part.endswith("_norm"):
            rows += [Row(f"{path}/scale", f"{foreign}.weight"), Row(f"{path}/bias", f"{foreign}.bias")]
        else:
            linear: Layout = "linear2" if part.endswith("attention/out") else "linear"
            rows += [
                Row(f"{path}/kernel", f"{foreign}.weight", layout or linear),
                Row(f"{path}/bias", f"{foreign}.bias"),
            ]
    return rows
