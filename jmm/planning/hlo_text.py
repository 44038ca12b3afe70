"""The text of a program that the TPU compiler made, line by line: instructions, their arrays, groups of chips."""

import re
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0}
"""Of types whose name does not end in their width."""


class Shape(NamedTuple):
    """One array of the program, as a chip holds it."""

    kind: str
    dims: tuple[int, ...]
    on_chip: bool
    """Whether it lies in the chip's own fast memory."""

    @property
    def bytes(self) -> int:
        """In memory, without padding."""
        bits = BITS[self.kind] if self.kind in BITS else int(re.findall(r"\d+", self.kind)[0])
        return prod(self.dims) * bits // 8

    @property
    def moved(self) -> int:
        """Bytes that pass between the chip and its memory when it is read or written."""
        return 0 if self.on_chip else self.bytes


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    op: str
    shapes: tuple[Shape, ...]
    """Of what it gives; several where it gives a tuple."""
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, pattern: str) -> str | None:
        """What the pattern's group finds behind the operands."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


def instruction(line: str) -> Instruction | None:
    """`  ROOT %name = f32[2,3]{1,0:T(8,128)S(1)} op(%a, %b), attribute=…`; None for another line."""
    found = re.match(r"\s+(ROOT )?(%[\w.-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kinds, rest = (rest[: end + 1], rest[end + 1 :].lstrip()) if rest.startswith("(") else (rest[:end], rest[end + 1 :])
    op, _, _ = rest.partition("(")
    close = _closing(rest, len(op))
    inside = re.sub(r"/\*.*?\*/", "", rest[len(op) + 1 : close])
    operands = tuple(re.findall(r"%[\w.-]+", inside)) or tuple(filter(None, [inside.strip()]))
    return Instruction(found[2], op, shapes_of(kinds), operands, rest[close + 1 :], bool(found[1]))


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"a bracket stays open in {text[:80]}")


def shapes_of(text: str) -> tuple[Shape, ...]:
    """`(f32[2,3]{1,0:T(8,128)S(1)}, s32[])`: memory space 1 and above is on the chip."""
    found = re.findall(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?", text)
    return tuple(Shape(kind, tuple(_numbers(dims)), "S(" in layout) for kind, dims, layout in found)


NAMED_GROUPS = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
"""Sizes of axes; how their chips are counted; the axes of a group."""


def replica_group(text: str, chips: int) -> list[int]:
    """The first group of chips of an exchange, in any of the three spellings of it."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return [int(each) for each in found[1].split(",")]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        ids = _counted(found[2], found[3]).reshape(_numbers(found[1]))
        return [int(each) for each in ids[0].ravel()]
    if found := re.search(NAMED_GROUPS, text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        ids = _counted(found[2], found[3]) if found[2] else np.arange(prod(sizes.values()))
        grouped = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found[4])
        shape: list[int] = []
        inside: list[int] = []
        taken = {name: (int(before or 1), int(part or 0)) for name, before, part in grouped}
        for name, size in sizes.items():
            before, part = taken.get(name, (size, 1))
            part = part or size
            inside += [len(shape) + 1] if name in taken else []
            shape += [before, part, size // (before * part)]
        ids = np.moveaxis(ids.reshape(shape), inside, range(len(inside)))
        return [int(each) for each in ids.reshape(prod(ids.shape[: len(inside)]), -1)[:, 0]]
    return list(range(chips))


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]


def _counted(dims: str, order: str | None) -> np.ndarray:
    ids = np.arange(prod(_numbers(dims))).reshape(_numbers(dims))
    return ids.transpose(_numbers(order)) if order else ids
