"""What a chip of each TPU generation can do, and the slices that are known.

From the pages on each generation in Google Cloud's documentation (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e,
tpu7x; read in November 2026). Where pages differ by a rounding, the exact figure stands here. What the data
centre's network carries was read of v5e, v5p and v6e; v4 and v7x are counted as v5p and v6e.
"""

from dataclasses import dataclass
from math import prod

from jmm.errors import UserError

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """One chip."""

    generation: str
    """As the compiler calls it."""
    peak: float
    """Floating-point operations a second in bfloat16."""
    memory: int
    """Bytes of its memory."""
    bandwidth: float
    """Bytes a second between the chip and its memory."""
    link: float
    """Bytes a second that one of its links sends."""
    network: float
    """Bytes a second that its share of the data centre's network sends, from slice to slice."""
    slices: tuple[str, ...]
    """The known shapes of a slice."""
    devices: int = 1
    """Devices that a program sees in a chip."""


SQUARE = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

CHIPS = {
    "v4": Chip("v4", 275e12, 32 * GIB, 1228e9, 50e9, 6.25e9, CUBE, devices=2),
    "v5e": Chip("v5e", 197e12, 16 * GIB, 819e9, 50e9, 3.125e9, SQUARE),
    "v5p": Chip("v5p", 459e12, 95 * GIB, 2765e9, 100e9, 6.25e9, (*CUBE, "16x16x16", "16x16x24")),
    "v6e": Chip("v6e", 918e12, 32 * GIB, 1640e9, 112e9, 12.5e9, SQUARE),
    "v7x": Chip("tpu7x", 2307e12, 192 * GIB, 7380e9, 100e9, 12.5e9, CUBE, devices=2),
}


@dataclass(frozen=True)
class Slice:
    """Chips that are connected, or several such slices."""

    name: str
    """v5e:16x16."""
    chip: Chip
    chips: int
    """Of all of them."""
    count: int = 1
    """How many slices."""

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.count} × {self.name}"

    @property
    def devices(self) -> int:
        """That a program sees."""
        return self.chips * self.chip.devices

    @property
    def topology(self) -> str:
        """As the compiler calls it."""
        return f"{self.chip.generation}:{self.name.partition(':')[2]}"


def slice_of(name: str, count: int = 1) -> Slice:
    """So many slices of a name such as v5e:16x16.

    Raises:
      UserError: none is known by this name, or fewer than one are asked for.
    """
    if count < 1:
        raise UserError(f"--slices is how many train as one, at least 1, not {count}", code=2)
    generation, _, shape = name.partition(":")
    chip = CHIPS.get(generation)
    if chip is None:
        known = ", ".join(f"{each}:{one.slices[-1]}" for each, one in CHIPS.items())
        raise UserError(f"there is no topology {name}; there are, for example, {known}", code=2)
    if shape not in chip.slices:
        known = ", ".join(f"{generation}:{each}" for each in chip.slices)
        raise UserError(f"there is no topology {name}; those of {generation} are {known}", code=2)
    return Slice(name, chip, count * prod(int(side) for side in shape.split("x")), count)
