"""Reads the text of a program that the TPU compiler made: what each operation computes, moves and sends.

A compiled program is a schedule for one chip. Its operations are counted as often as they run (the bodies of loops are
written once), a fusion as one operation: what passes inside it never leaves the chip.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from jmm.planning.hlo_text import Instruction, Shape, instruction, replica_group

FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")
"""Operations that move nothing."""
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
SLICES = "slices"
"""The axis of what goes from slice to slice, on the data centre's network."""
WAITS = ("AllocateBuffer", "AsyncCollectiveStart", "AsyncCollectiveDone", "ConcatBitcast")
"""Custom calls that reserve, start or await something."""


Computation = dict[str, Instruction]


class Collective(NamedTuple):
    """Chips that exchange arrays."""

    kind: str
    sent: float
    """Bytes that a chip sends, where each chip of a group passes on to the next (a ring)."""
    axes: tuple[str, ...]
    """Those of the mesh over which it goes."""
    hidden: bool
    """Whether it runs while other operations do."""


class Operation(NamedTuple):
    """What one operation does each time, and how often it runs."""

    name: str
    times: int
    flops: float
    """Of matrix products and convolutions: two for each multiplication."""
    moved: int
    """Bytes between the chip and its memory."""
    hidden: bool = False
    """Whether it moves bytes while other operations run."""
    collective: Collective | None = None


@dataclass(frozen=True)
class Mesh:
    """Names and sizes of the axes, in the order in which the program counts its chips."""

    axes: dict[str, int]
    slices: int = 1
    """How many there are, one after another along the first axis."""

    @cached_property
    def places(self) -> np.ndarray:
        """Of each chip, its place on each axis [chips, axes]."""
        return np.array(list(product(*(range(size) for size in self.axes.values()))))

    def between(self, group: list[int]) -> tuple[str, ...]:
        """The axes along which the chips of a group differ."""
        places = self.places[group]
        differ = (places != places[0]).any(axis=0)
        return tuple(name for name, each in zip(self.axes, differ, strict=True) if each)


@dataclass
class Program:
    """A compiled program."""

    text: str
    mesh: Mesh
    computations: dict[str, Computation] = field(default_factory=dict)
    entry: str = ""

    def __post_init__(self) -> None:
        """Parses the text."""
        current: Computation = {}
        for line in self.text.splitlines():
            head = re.match(r"(ENTRY )?(%[\w.-]+) \(", line)
            if head:
                current = self.computations.setdefault(head[2], {})
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("  ") and (made := instruction(line)):
                current[made.name] = made

    def operations(self) -> list[Operation]:
        """All that runs, loops followed."""
        return list(self._walk(self.entry, 1))

    def _walk(self, name: str, times: int) -> Iterator[Operation]:
        computation, begun = self.computations[name], set[str]()
        for each in computation.values():
            if each.op in FREE:
                continue
            if each.op == "while":
                body, condition = each.attribute(r"body=(%[\w.-]+)"), each.attribute(r"condition=(%[\w.-]+)")
                assert body and condition
                yield from self._walk(body, times * self._trips(computation, each, condition))
            elif each.op == "call":
                target = each.attribute(r"to_apply=(%[\w.-]+)")
                assert target
                yield from self._walk(target, times)
            elif each.op == "conditional":
                yield from self._dearest(each, times)
            else:
                yield from self._one(computation, each, times, begun)

    def _dearest(self, each: Instruction, times: int) -> list[Operation]:
        """Of the branches of a condition the one that moves and computes most."""
        named = each.attribute(r"branch_computations=\{([^}]*)\}") or ", ".join(
            re.findall(r"(?:true|false)_computation=(%[\w.-]+)", each.attributes)
        )
        branches = [list(self._walk(branch, times)) for branch in named.split(", ")]
        return max(branches, key=lambda done: sum(one.times * (one.flops + one.moved) for one in done))

    def _trips(self, home: Computation, loop: Instruction, condition: str) -> int:
        """How often a loop runs: its counter goes from where it starts, 1 where the first round stands before the loop,
        to the constant of its condition."""
        own = self.computations[condition]
        inside = [one for each in own.values() for one in self._inside(each)]
        ends = [int(one.operands[0]) for one in inside if one.op == "constant" and one.shapes[0].kind == "s32"]
        counters = [one for one in own.values() if one.op == "get-tuple-element" and one.shapes[0].kind == "s32"]
        start = None
        state = home[loop.operands[0]]
        if len(ends) == len(counters) == 1 and state.op == "tuple":
            place = int(counters[0].attribute(r"index=(\d+)") or 0)
            start = _constant(home, home[state.operands[place]])
        if start is None:
            raise ValueError(f"the loop with the condition {condition} does not say how often it runs")
        return ends[0] - start

    def _one(self, computation: Computation, each: Instruction, times: int, begun: set[str]) -> Iterator[Operation]:
        """An operation that is no loop; `begun` are exchanges of this computation that have been counted."""
        if each.op in ("send", "recv"):
            between = self._between_slices(computation, each)
            if between:
                yield Operation(each.name, times, 0.0, 0, True, between)
            return
        inside = self._inside(each)
        exchanges = [one for one in inside if kind_of(one)]
        awaited = any(one.op == "custom-call" and target_of(one) in WAITS for one in inside)
        for one in exchanges:
            # One exchange appears in all the fusions that run beside it.
            chain = one.attribute(r'chain_id="(\d+)"') or (one.attribute(r"channel_id=(\d+)") if awaited else None)
            if chain is not None and chain in begun:
                continue
            begun.update([chain] if chain is not None else [])
            hidden = awaited or chain is not None or one.op.endswith("-start")
            source = computation if one is each else self._home(each, one)
            exchange = self._exchange(source, one, hidden)
            if "all-reduce-scatter" in each.attributes:  # a sum of which each chip keeps its part: nothing comes back
                exchange = exchange._replace(kind="reduce-scatter", sent=exchange.sent / 2)
            yield Operation(one.name, times, 0.0, 0, hidden, exchange)
        if awaited or (exchanges and inside == [each]) or each.op.endswith("-done"):
            return
        if each.op.endswith("-start"):  # a copy from one memory to another while others run
            moved = max((shape.moved for shape in each.shapes), default=0)
            yield Operation(each.name, times, 0.0, moved, hidden=True)
            return
        flops, moved = self._flops(each, computation), self._moved(each, computation)
        yield Operation(each.name, times, flops, moved)

    def _inside(self, each: Instruction) -> list[Instruction]:
        """The instructions of a fusion, those of fusions within it too; any other stands for itself."""
        called = each.attribute(r"calls=(%[\w.-]+)") if each.op in ("fusion", "async-start") else None
        if called is None:
            return [each]
        return [deep for one in self.computations[called].values() for deep in self._inside(one)]

    def _home(self, fusion: Instruction, wanted: Instruction) -> Computation:
        """The computation in which an instruction of a fusion stands."""
        called = fusion.attribute(r"calls=(%[\w.-]+)")
        assert called
        own = self.computations[called]
        if any(one is wanted for one in own.values()):
            return own
        nested = (one for one in own.values() if one.op == "fusion" and any(x is wanted for x in self._inside(one)))
        return self._home(next(nested), wanted)

    def _exchange(self, home: Computation, each: Instruction, hidden: bool) -> Collective:
        kind = kind_of(each)
        assert kind
        if kind == "collective-permute":
            pairs = re.findall(r"\{(\d+),(\d+)\}", each.attribute(r"source_target_pairs=\{(.*?\})\}") or "")
            axes = sorted({axis for pair in pairs for axis in self.mesh.between([int(pair[0]), int(pair[1])])})
            return Collective(kind, each.shapes[0].bytes, tuple(axes), hidden)
        group = replica_group(each.attributes, len(self.mesh.places))
        ways, given = len(group), sum(home[name].shapes[0].bytes for name in each.operands)
        return Collective(kind, sent(kind, given, ways), self.mesh.between(group), hidden)

    def _between_slices(self, home: Computation, each: Instruction) -> Collective | None:
        """What goes from slice to slice, which the program hands to its host as a send and a receive."""
        kind = each.attribute(r'_xla_megascale_transfer_type="(\w+)"')
        if each.op == "recv" or kind is None:
            return None
        name, given = kind.lower().replace("_", "-"), home[each.operands[0]].shapes[0].bytes
        return Collective(name, sent(name, given, self.mesh.slices), (SLICES,), True)

    def _flops(self, each: Instruction, computation: Computation) -> float:
        if each.op == "fusion":
            called = each.attribute(r"calls=(%[\w.-]+)")
            assert called
            inner = self.computations[called]
            return sum(self._flops(one, inner) for one in inner.values())
        if each.op == "custom-call":  # a kernel says what it computes
            return float(each.attribute(r'"flops":"?(\d+)') or 0)
        if each.op == "convolution":
            return convolution_flops(each, *(computation[name].shapes[0] for name in each.operands[:2]))
        if each.op == "dot":
            contracted = each.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
            left = computation[each.operands[0]].shapes[0]
            return 2.0 * prod(each.shapes[0].dims) * prod(left.dims[int(i)] for i in contracted.split(",") if i)
        return 0.0

    def _moved(self, each: Instruction, computation: Computation) -> int:
        """Bytes read and written: of an array that a fusion takes or writes only a slice of, the slice."""
        operands = [computation[name] for name in each.operands if name in computation]
        if each.op in ("dynamic-slice", "slice", "gather"):
            return 2 * sum(shape.moved for shape in each.shapes)
        if each.op == "dynamic-update-slice":
            return 2 * operands[1].shapes[0].moved
        if each.op != "fusion":
            read = sum(shape.moved for one in operands for shape in one.shapes)
            return read + sum(shape.moved for shape in each.shapes)
        called = each.attribute(r"calls=(%[\w.-]+)")
        assert called
        inner = self.computations[called]
        parameters = _parameters(inner)
        read = 0
        for index, operand in enumerate(operands):
            shape = operand.shapes[0]
            taken = self._slices(inner, parameters[index]) if index in parameters else None
            read += shape.moved if taken is None or shape.on_chip else min(taken, shape.moved)
        root = next(one for one in inner.values() if one.root)
        parts = [inner[name] for name in root.operands] if root.op == "tuple" else [root]
        written = 0
        for shape, part in zip(each.shapes, parts, strict=False):
            update = _updated(inner, part)
            written += shape.moved if update is None or shape.on_chip else update
        return read + written

    def _slices(self, inner: Computation, name: str) -> int | None:
        """Bytes of all slices that are taken of a parameter, or written into it; None: it is used whole."""
        total = 0
        for user in (one for one in inner.values() if name in one.operands):
            deeper: int | None = 0
            if user.op == "bitcast":
                deeper = self._slices(inner, user.name)
            elif user.op == "fusion" and (called := user.attribute(r"calls=(%[\w.-]+)")):
                within = self.computations[called]
                deeper = self._slices(within, _parameters(within)[user.operands.index(name)])
            elif user.op in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                deeper = user.shapes[0].bytes
            elif user.op != "dynamic-update-slice" or user.operands[0] != name:
                return None
            if deeper is None:
                return None
            total += deeper
        return total


def _constant(home: Computation, each: Instruction) -> int | None:
    """The value of an instruction that is a constant or the copy of one."""
    while each.op in ("copy", "bitcast") and each.operands[0] in home:
        each = home[each.operands[0]]
    return int(each.operands[0]) if each.op == "constant" else None


def sent(kind: str, given: int, ways: int) -> float:
    """Bytes that one of several sends round a ring (Chan et al. 2007) of `given` that it holds: of its own part to
    every other, of a sum there and back."""
    if kind == "all-gather":
        return float(given * (ways - 1))
    return given * (ways - 1) / ways * (2 if kind == "all-reduce" else 1)


def _parameters(inner: Computation) -> dict[int, str]:
    """Names of the parameters of a computation by their places."""
    return {int(one.operands[0]): one.name for one in inner.values() if one.op == "parameter"}


def _updated(inner: Computation, part: Instruction) -> int | None:
    """Bytes that are written into a larger array; None: it is written whole."""
    while part.op == "bitcast":
        part = inner[part.operands[0]]
    return inner[part.operands[1]].shapes[0].bytes if part.op == "dynamic-update-slice" else None


def kind_of(each: Instruction) -> str | None:
    """Which exchange between chips it is, if it is one."""
    op = each.op.removesuffix("-start")
    return op if op in COLLECTIVES else None


def target_of(each: Instruction) -> str:
    """Of a custom call."""
    return each.attribute(r'custom_call_target="([^"]*)"') or ""


def convolution_flops(each: Instruction, left: Shape, right: Shape) -> float:
    """Two for each product of an element that is there with a weight: a product of batches is written as a
    convolution most of whose window falls on gaps, and those cost nothing."""
    labels = each.attribute(r"dim_labels=([\w>-]+)")
    assert labels
    lhs, rhs, out = re.split(r"_|->", labels)
    window = each.attribute(r"window=\{([^}]*)\}") or ""
    settings = {key: value.split("x") for key, value in re.findall(r"(\w+)=([\w-]+)", window)}
    pairs = 1.0
    for axis in range(len(settings.get("size", []))):
        pad = settings["pad"][axis] if "pad" in settings else "0_0"
        number = {key: int(settings[key][axis]) for key in ("stride", "lhs_dilate", "rhs_dilate") if key in settings}
        size, stride, gap = int(settings["size"][axis]), number.get("stride", 1), number.get("lhs_dilate", 1)
        there = (left.dims[lhs.index(str(axis))] - 1) * gap + 1
        starts = np.arange(each.shapes[0].dims[out.index(str(axis))]) * stride - int(pad.split("_")[0])
        seen = starts[:, None] + np.arange(size)[None] * number.get("rhs_dilate", 1)
        pairs *= ((seen >= 0) & (seen < there) & (seen % gap == 0)).sum()
    made = each.shapes[0].dims
    return float(2 * pairs * made[out.index("b")] * made[out.index("f")] * right.dims[rhs.index("i")])
